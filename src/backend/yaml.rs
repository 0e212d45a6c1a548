//! The YAML of a backup.yaml as JSON, so that one reader serves both. Whoever may configure an instance has a hand in
//! the text: an alias that repeats an alias (billion laughs) or a nesting without end must cost nothing.

use serde_json::{Map, Value};
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::TScalarStyle;
use yaml_rust2::{ScanError, Yaml};

/// Levels of nesting; a record has some ten.
const MOST_LEVELS: usize = 32;

/// Why a text is no record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum YamlError {
    /// Not YAML.
    #[error("not YAML (line {line})")]
    Syntax {
        /// Line of the text, from 1.
        line: usize,
    },
    /// The parser would take it for the end, and what a crash left of a file for a whole one.
    #[error("it holds a NUL byte (line {line}): the daemon did not write it to its end")]
    Nul {
        /// Line of the text, from 1.
        line: usize,
    },
    /// Neither LXD nor Incus writes any.
    #[error("it has an alias (line {line}), which no daemon writes")]
    Alias {
        /// Line of the text, from 1.
        line: usize,
    },
    /// Nested deeper than any record.
    #[error("nested too deep (line {line})")]
    Deep {
        /// Line of the text, from 1.
        line: usize,
    },
}

impl From<ScanError> for YamlError {
    fn from(why: ScanError) -> Self {
        Self::Syntax { line: why.marker().line() }
    }
}

/// A list or map that is not at its end.
enum Open {
    List(Vec<Value>),
    Map(Map<String, Value>, Key),
}

/// What comes next in a map.
enum Key {
    Wanted,
    Has(String),
    /// No text: the entry is left out.
    Odd,
}

/// Reads the first document. The parser's own loader recurses and expands aliases; this one does neither.
pub(super) fn read(text: &str) -> Result<Value, YamlError> {
    if let Some((before, _)) = text.split_once('\0') {
        return Err(YamlError::Nul { line: before.lines().count().max(1) });
    }
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    loop {
        let (event, mark) = parser.next_token()?;
        let line = mark.line();
        let value = match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart => continue,
            Event::StreamEnd | Event::DocumentEnd => return Ok(Value::Null),
            Event::Alias(_) => return Err(YamlError::Alias { line }),
            Event::SequenceStart(..) | Event::MappingStart(..) => {
                if open.len() >= MOST_LEVELS {
                    return Err(YamlError::Deep { line });
                }
                open.push(match event {
                    Event::SequenceStart(..) => Open::List(Vec::new()),
                    _ => Open::Map(Map::new(), Key::Wanted),
                });
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::List(items)) => Value::Array(items),
                Some(Open::Map(map, _)) => Value::Object(map),
                None => return Err(YamlError::Syntax { line }),
            },
            Event::Scalar(text, style, _, tag) => {
                scalar(text, style == TScalarStyle::Plain && tag.is_none())
            }
        };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(items)) => items.push(value),
            Some(Open::Map(map, key)) => {
                *key = match (std::mem::replace(key, Key::Wanted), value) {
                    (Key::Wanted, Value::String(name)) => Key::Has(name),
                    (Key::Wanted, _) => Key::Odd,
                    (Key::Has(name), value) => {
                        map.insert(name, value);
                        Key::Wanted
                    }
                    (Key::Odd, _) => Key::Wanted,
                };
            }
        }
    }
}

fn scalar(text: String, plain: bool) -> Value {
    if !plain {
        return Value::String(text);
    }
    match Yaml::from_str(&text) {
        Yaml::Integer(i) => Value::from(i),
        Yaml::Boolean(b) => Value::Bool(b),
        Yaml::Null | Yaml::BadValue => Value::Null,
        _ => Value::String(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn reads_what_the_daemons_write() {
        let text = "container:\n  name: x\n  config:\n    raw.idmap: |-\n      uid 1000 0\n      gid 1000 0\n    \
                    a: '[]'\n    b: \"\"\n  size: 5\n  on: true\n  none: null\n  1: gone\n  list: [x, {y: z}]\n";
        let expected = json!({"container": {
            "name": "x",
            "config": {"raw.idmap": "uid 1000 0\ngid 1000 0", "a": "[]", "b": ""},
            "size": 5, "on": true, "none": null, "list": ["x", {"y": "z"}],
        }});
        assert_eq!(read(text), Ok(expected));
        assert_eq!(read(""), Ok(Value::Null));
    }

    #[test]
    fn refuses_bombs_and_what_is_torn() {
        let laughs: String =
            (1..10).map(|n| format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1)).collect();
        for (text, why) in [
            (format!("a0: &a0 lol\n{laughs}"), YamlError::Alias { line: 2 }),
            ("a: &a\n  b: *a\n".into(), YamlError::Alias { line: 2 }),
            ("- ".repeat(1 << 20), YamlError::Deep { line: 1 }),
            ("[".repeat(40), YamlError::Deep { line: 1 }),
            ("? ".repeat(1 << 20), YamlError::Deep { line: 1 }),
            ("a: [".into(), YamlError::Syntax { line: 2 }),
            ("a: b\nc: d\n\0\0".into(), YamlError::Nul { line: 2 }),
        ] {
            assert_eq!(read(&text), Err(why), "{:.40}", text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"[ \-\[\]{}:,&*!|>'"%#?a\n\t~.]{0,60}"#) {
            let _ = read(&text);
        }
    }
}
