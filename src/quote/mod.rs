//! Foreign text in our output: the only place where it is quoted.
//!
//! Names of files, machines and users, contents of configurations, words of daemons: whoever chose them must not be able to
//! say more with them than they are. Each kind of output has a function here, and what it gives holds for one thing:
//!
//! | Output | Function | What it gives |
//! |---|---|---|
//! | a person, a terminal, a log | [`name`], [`path`] | one line of visible characters, another one for every name |
//! | the same inside of a sentence, cut where it is long | [`quotation`] | text in quotation marks |
//! | the same, made of texts that are quoted already | [`message`], [`lines`] | the same, without telling names apart |
//! | a shell command to paste | [`word`], [`words`], [`path_word`] | one word of bash, zsh and POSIX 2024 |
//! | a file that a shell reads | [`literal`] | one word of every shell, fish too |
//! | a program in Nix | [`nix_string`], [`nix_attribute`] | a string, an attribute's name |
//! | JSON | [`json`] | the same value, safe on a terminal |
//! | Markdown | [`code`], [`fenced`] | a code span, a code block |
//! | mtree(5) | [`vis`] | one word; [`unvis`] takes it back |
//! | `sha256sum --check` | [`sum_name`] | a name as coreutils write it |
//! | fstab(5), mountinfo | [`unescape_octal`] | bytes again |

mod lists;
mod nix;
mod shell;
mod terminal;

pub use lists::{json, sum_name, unescape_octal, unvis, vis};
pub use nix::{nix_attribute, nix_string};
pub use shell::{is_plain_word, literal, path_word, word, words};
pub use terminal::{
    Name, clipped, code, fenced, is_hidden, lines, message, name, padded, path, quotation, width,
};
