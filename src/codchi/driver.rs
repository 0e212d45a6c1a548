//! Codchi's own module: the input that it is, and where Codchi takes it from.
//!
//! Finds one URL in a flake.nix without evaluating it: enough of nix's grammar to tell code from
//! comments and strings, and to follow attribute paths through nested sets.

/// The input that is Codchi's own module. No module of a machine has this name.
pub(super) const DRIVER: &str = "codchi_driver";
/// A version of Codchi's own module that makes a NixOS outside of Codchi, for machines that have an older one.
pub const NEW_URL: &str = "github:aformatik/codchi/v0.3.1.7";
/// Codchi's own module where a machine's flake.nix does not name it.
pub const DEFAULT_URL: &str = "github:aformatik/codchi/master";

/// How deep sets may nest. Codchi's own flake.nix nests four deep.
const DEPTH_MAX: usize = 32;

/// `inputs.codchi_driver.url` of a flake.nix.
///
/// Only a plain string is taken: one with an interpolation, an empty one or one with blanks or
/// control characters counts as none, so that nothing but a URL can get into the generated flake.
pub fn url(flake_nix: &str) -> Option<String> {
    let tokens = tokens(flake_nix)?;
    let mut reader = Reader { tokens: &tokens, found: None };
    reader.set(&mut Vec::new(), 0);
    reader.found.filter(|url| !url.is_empty() && url.chars().all(|c| c.is_ascii_graphic()))
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    /// A string without interpolation.
    Text(String),
    /// A string that is not known without evaluation.
    Dynamic,
    Other(char),
}

struct Reader<'a> {
    tokens: &'a [Token],
    found: Option<String>,
}

impl Reader<'_> {
    /// Reads `{ path = value; ... }`, if that is what comes, and leaves the rest of it otherwise.
    fn set(&mut self, path: &mut Vec<String>, depth: usize) {
        if depth > DEPTH_MAX || !self.take('{') {
            return;
        }
        while self.found.is_none() && !self.tokens.is_empty() && !self.take('}') {
            let outer = path.len();
            if self.attribute_path(path) {
                match self.tokens {
                    [Token::Text(url), Token::Other(';'), ..]
                        if path.iter().eq(["inputs", DRIVER, "url"]) =>
                    {
                        self.found = Some(url.clone());
                    }
                    [Token::Other('{'), ..] => self.set(path, depth + 1),
                    _ => {}
                }
            }
            path.truncate(outer);
            self.skip_value();
        }
    }

    /// Reads `a."b".c =`. False where something else comes.
    fn attribute_path(&mut self, path: &mut Vec<String>) -> bool {
        loop {
            match self.tokens {
                [Token::Name(name) | Token::Text(name), rest @ ..] => {
                    path.push(name.clone());
                    self.tokens = rest;
                }
                _ => return false,
            }
            if self.take('=') {
                return true;
            }
            if !self.take('.') {
                return false;
            }
        }
    }

    /// Goes behind the next `;` of this set, or up to its end.
    fn skip_value(&mut self) {
        let mut depth = 0usize;
        while let [token, rest @ ..] = self.tokens {
            match token {
                Token::Other('{' | '[' | '(') => depth += 1,
                Token::Other('}') if depth == 0 => return,
                Token::Other('}' | ']' | ')') => depth = depth.saturating_sub(1),
                Token::Other(';') if depth == 0 => {
                    self.tokens = rest;
                    return;
                }
                _ => {}
            }
            self.tokens = rest;
        }
    }

    fn take(&mut self, c: char) -> bool {
        match self.tokens {
            [Token::Other(found), rest @ ..] if *found == c => {
                self.tokens = rest;
                true
            }
            _ => false,
        }
    }
}

/// Cuts a text into tokens; `None` where a string or comment does not end.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let tail = rest.get(c.len_utf8()..)?;
        rest = if c.is_whitespace() {
            tail
        } else if c == '#' {
            tail.find('\n').and_then(|end| tail.get(end..)).unwrap_or_default()
        } else if rest.starts_with("/*") {
            rest.get(2..)?.split_once("*/")?.1
        } else if c == '"' {
            let (token, tail) = string(tail, 0)?;
            tokens.push(token);
            tail
        } else if rest.starts_with("''") {
            tokens.push(Token::Dynamic);
            indented_string(rest.get(2..)?, 0)?
        } else if c.is_ascii_alphabetic() || c == '_' {
            let part = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '\''));
            let (name, tail) = rest.split_at(rest.find(part).unwrap_or(rest.len()));
            tokens.push(Token::Name(name.to_owned()));
            tail
        } else {
            tokens.push(Token::Other(c));
            tail
        };
    }
    Some(tokens)
}

/// Reads a string behind its opening quote.
fn string(text: &str, depth: usize) -> Option<(Token, &str)> {
    let mut value = Some(String::new());
    let mut rest = text;
    loop {
        let mut chars = rest.chars();
        let c = chars.next()?;
        let tail = chars.as_str();
        rest = match c {
            '"' => return Some((value.map_or(Token::Dynamic, Token::Text), tail)),
            '\\' => {
                let c = match chars.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    c => c,
                };
                value.iter_mut().for_each(|value| value.push(c));
                chars.as_str()
            }
            '$' if tail.starts_with('{') => {
                value = None;
                interpolation(tail.get(1..)?, depth)?
            }
            '$' if tail.starts_with('$') => {
                value.iter_mut().for_each(|value| value.push_str("$$"));
                tail.get(1..)?
            }
            c => {
                value.iter_mut().for_each(|value| value.push(c));
                tail
            }
        };
    }
}

/// Goes behind a `''...''` string.
fn indented_string(text: &str, depth: usize) -> Option<&str> {
    let mut rest = text;
    loop {
        let mut chars = rest.chars();
        let c = chars.next()?;
        rest = if rest.starts_with("'''") || rest.starts_with("''$") {
            rest.get(3..)?
        } else if rest.starts_with("''\\") {
            let mut chars = rest.get(3..)?.chars();
            chars.next()?;
            chars.as_str()
        } else if rest.starts_with("''") {
            return rest.get(2..);
        } else if rest.starts_with("${") {
            interpolation(rest.get(2..)?, depth)?
        } else if c == '$' && chars.as_str().starts_with('$') {
            rest.get(2..)?
        } else {
            chars.as_str()
        };
    }
}

/// Goes behind the `}` of an interpolation, past strings and braces in it.
fn interpolation(text: &str, depth: usize) -> Option<&str> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut braces = 0usize;
    let mut rest = text;
    loop {
        let mut chars = rest.chars();
        let c = chars.next()?;
        rest = chars.as_str();
        match c {
            '"' => rest = string(rest, depth + 1)?.1,
            '\'' if rest.starts_with('\'') => rest = indented_string(rest.get(1..)?, depth + 1)?,
            '{' => braces += 1,
            '}' if braces == 0 => return Some(rest),
            '}' => braces -= 1,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn finds_the_driver() {
        let github = Some("github:aformatik/codchi/0123456");
        for (text, expected) in [
        (r#"{ inputs = { codchi_driver.url = "github:aformatik/codchi/0123456"; }; }"#, github),
        (r#"{ inputs.codchi_driver.url = "github:aformatik/codchi/0123456"; }"#, github),
        (r#"{inputs."codchi_driver" = {flake=true;url="github:aformatik/codchi/0123456";};}"#, github),
        (
            "# inputs.codchi_driver.url = \"no\";\n{ /* codchi_driver.url = \"no\"; */ description =
             \"codchi_driver.url = \\\"no\\\";\"; outputs = inputs: { inputs.codchi_driver.url =
             \"no\"; }; other.codchi_driver.url = \"no\"; x = ''codchi_driver ''' ''${ '';
             y = \"${{ a = \"}\"; }.a}\"; inputs = { # comment\n \"a\".url = \"b\";
             codchi_driver = { url = \"github:aformatik/codchi/0123456\"; }; }; }",
            github,
        ),
        (r#"{ inputs.codchi_driver.url = "github:${x}/codchi"; }"#, None),
        (r#"{ inputs.codchi_driver.url = "a" + "b"; }"#, None),
        (r#"{ inputs.codchi_driver.url = "a b"; }"#, None),
        (r#"{ inputs.codchi_driver.url = ""; }"#, None),
        (r#"{ inputs.codchi_driver.url = "abc"#, None),
        (r#"{ inputs.codchi_driver.flake = false; }"#, None),
        ("{ lib, ... }: { }", None),
        ("", None),
        ("}{;=\"\"", None),
    ] {
        assert_eq!(super::url(text).as_deref(), expected, "{text}");
    }
        for nested in ["\"${", "{ a = ", "''${"] {
            assert_eq!(super::url(&nested.repeat(100_000)), None);
        }
    }
}
