//! Strings and names of Nix.

/// A string. Nix has no escape for NUL, and no caller has one.
pub fn nix_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push_str(r"\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str(r"\n"),
            '\r' => out.push_str(r"\r"),
            '\t' => out.push_str(r"\t"),
            '$' if chars.peek() == Some(&'{') => out.push_str(r"\$"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An attribute's name in a path: as it is where nix reads it so.
pub fn nix_attribute(name: &str) -> String {
    const KEYWORDS: [&str; 10] =
        ["assert", "else", "if", "in", "inherit", "let", "or", "rec", "then", "with"];
    let mut chars = name.chars();
    let plain = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '\'' | '-'))
        && !KEYWORDS.contains(&name);
    if plain { name.to_owned() } else { nix_string(name) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_string_ends_it_or_is_evaluated() {
        assert_eq!(nix_string("a\"\\${b}$c$${d}\n"), r#""a\"\\\${b}$c$\${d}\n""#);
        assert_eq!(
            ["a-b'", "_", "1a", "if", "a.b", ""].map(nix_attribute).join(" "),
            "a-b' _ \"1a\" \"if\" \"a.b\" \"\""
        );
    }
}
