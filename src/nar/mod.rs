//! The Nix archive format (NAR) of a store path: a layout fixed from metadata alone, and its bytes at any offset.
//!
//! Like a tar, a NAR holds no checksum of its data, only sizes. So names, kinds and sizes decide where each byte lies, and
//! the archive can be read at any offset without being stored. This module does no I/O: bodies come from a [`Source`].
//!
//! # The archive
//!
//! A *string* is its length as a 64-bit little-endian number, its bytes, and zeros up to a multiple of eight bytes.
//! The archive is the string `nix-archive-1` and the node of the root. A node is `( type KIND … )`:
//!
//! | kind | after it |
//! |---|---|
//! | `regular` | `executable` and an empty string if it is executable, then `contents` and the bytes of the file as a string |
//! | `symlink` | `target` and the target |
//! | `directory` | for each entry, in byte order of the names: `entry ( name NAME node NODE )` |
//!
//! Nothing else is kept: no owner, no time, no other mode bit, no hard link, no hole, no extended attribute.
//!
//! Source: Nix manual, "Nix Archive (NAR) format"; E. Dolstra, "The Purely Functional Software Deployment Model", 5.2.1.

mod layout;
mod reader;

pub use layout::{Kind, Layout, LayoutBuilder, LayoutError, Node};
pub use reader::{Source, read_at};

#[cfg(test)]
mod tests;
