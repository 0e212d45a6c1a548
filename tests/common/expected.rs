//! What an export holds, computed from the disk by the contract.

use super::fixture::{Fixture, is_at_or_below, is_excluded};
use super::snapshot::{Node, Snapshot};
use super::xattr::is_kept;
use rustix::fs::FileType;
use std::path::Path;

const HOME: &[u8] = b"home/codchi";

/// What the contract says of the machine's files on disk; without `/etc`, which is generated. `look` reads the disk.
pub(crate) fn expected(fixture: &Fixture, name: &str, look: fn(&Path) -> Snapshot) -> Snapshot {
    let place = fixture.place(name);
    let rootfs = look(&place.rootfs);
    let sockets: Vec<_> = rootfs
        .nodes
        .iter()
        .filter(|(_, node)| node.kind == FileType::Socket)
        .map(|(path, _)| path.clone())
        .collect();
    let rootfs = rootfs.filtered(|path| {
        !is_excluded(path) && !is_at_or_below(path, HOME) && !sockets.contains(&path.to_vec())
    });
    let homes = look(place.home.parent().unwrap());
    let prefix = [name.as_bytes(), b"/"].concat();
    let of_codchi = |_: &[u8], node: &mut Node| (node.uid, node.gid) = (1000, 100);
    let home = look(&place.home).filtered(|path| path != b".Xauthority").map(of_codchi);
    let mut tree = rootfs.graft(HOME, home);
    let mut directory = homes.nodes[prefix.strip_suffix(b"/").unwrap()].clone();
    of_codchi(HOME, &mut directory);
    tree.nodes.insert(HOME.to_vec(), directory);
    tree.map(|_, node| node.xattrs.retain(|name, _| is_kept(name)))
}

pub(crate) fn without_etc(tree: &Snapshot) -> Snapshot {
    tree.filtered(|path| !is_at_or_below(path, b"etc"))
}
