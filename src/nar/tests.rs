//! The layout against a writer that knows nothing of layouts, and the reader at any offset.

use std::convert::Infallible;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Tree {
    Directory(Vec<(Vec<u8>, Tree)>),
    File { content: Vec<u8>, executable: bool },
    Symlink(Vec<u8>),
}

/// The archive as a program writes it that walks the tree.
fn write(tree: &Tree, into: &mut Vec<u8>) {
    fn string(bytes: &[u8], into: &mut Vec<u8>) {
        into.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        into.extend_from_slice(bytes);
        into.resize(into.len().div_ceil(8) * 8, 0);
    }
    let words =
        |words: &[&[u8]], into: &mut Vec<u8>| words.iter().for_each(|word| string(word, into));
    words(&[b"(", b"type"], into);
    match tree {
        Tree::Directory(entries) => {
            words(&[b"directory"], into);
            for (name, tree) in entries {
                words(&[b"entry", b"(", b"name", name, b"node"], into);
                write(tree, into);
                words(&[b")"], into);
            }
        }
        Tree::File { content, executable } => {
            words(&[b"regular"], into);
            if *executable {
                words(&[b"executable", b""], into);
            }
            words(&[b"contents", content], into);
        }
        Tree::Symlink(target) => words(&[b"symlink", b"target", target], into),
    }
    words(&[b")"], into);
}

fn push<'a>(name: &[u8], tree: &'a Tree, builder: &mut LayoutBuilder, bodies: &mut Vec<&'a [u8]>) {
    let (node, body) = match tree {
        Tree::Directory(_) => (Node::Directory, &[][..]),
        Tree::File { content, executable } => {
            (Node::File { size: content.len() as u64, executable: *executable }, &content[..])
        }
        Tree::Symlink(target) => (Node::Symlink(target), &[][..]),
    };
    assert_eq!(builder.push(name, node).unwrap() as usize, bodies.len());
    bodies.push(body);
    if let Tree::Directory(entries) = tree {
        entries.iter().for_each(|(name, tree)| push(name, tree, builder, bodies));
        builder.close().unwrap();
    }
}

/// The files of a layout, by the numbers of their entries.
struct Bodies<'a>(Vec<&'a [u8]>);

impl Source for Bodies<'_> {
    type Error = Infallible;

    fn read_body(
        &self,
        layout: &Layout,
        entry: u32,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), Infallible> {
        let body = self.0[entry as usize];
        assert_eq!(layout.file_size(entry), body.len() as u64);
        buf.copy_from_slice(&body[offset as usize..][..buf.len()]);
        Ok(())
    }
}

fn trees() -> impl Strategy<Value = Tree> {
    let bytes = |longest| prop::collection::vec(any::<u8>(), 0..longest);
    let leaf = prop_oneof![
        (bytes(40), any::<bool>())
            .prop_map(|(content, executable)| Tree::File { content, executable }),
        prop::collection::vec(1u8..=255, 1..30).prop_map(Tree::Symlink),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let name = prop::collection::vec(1u8..=255, 1..12)
            .prop_filter("no name", |name| !name.contains(&b'/') && name != b"." && name != b"..");
        prop::collection::btree_map(name, inner, 0..6)
            .prop_map(|entries| Tree::Directory(entries.into_iter().collect()))
    })
}

fn layout(tree: &Tree) -> (Layout, Bodies<'_>) {
    let (mut builder, mut bodies) = (LayoutBuilder::default(), Vec::new());
    push(b"", tree, &mut builder, &mut bodies);
    (builder.finish().unwrap(), Bodies(bodies))
}

proptest! {
    #[test]
    fn any_range_is_that_of_the_archive_as_it_is_written(tree in trees(), ranges in prop::collection::vec((any::<prop::sample::Index>(), 0..200usize), 8)) {
        let mut whole = Vec::new();
        whole.extend_from_slice(b"\x0d\0\0\0\0\0\0\0nix-archive-1\0\0\0");
        write(&tree, &mut whole);
        let (layout, bodies) = layout(&tree);
        prop_assert_eq!(layout.size(), whole.len() as u64);
        let read = |offset: usize, len: usize| {
            let mut buf = vec![0xaa; len];
            let Ok(count) = read_at(&layout, &bodies, offset as u64, &mut buf);
            buf.truncate(count);
            buf
        };
        prop_assert_eq!(&read(0, whole.len() + 9), &whole);
        prop_assert!(read(whole.len(), 1).is_empty());
        prop_assert!(read(usize::MAX, 1).is_empty());
        for (at, len) in ranges {
            let at = at.index(whole.len());
            let end = whole.len().min(at + len);
            prop_assert_eq!(&read(at, len), &whole[at..end]);
        }
    }
}

#[test]
fn what_is_no_tree_is_refused() {
    let pushed = |names: &[&[u8]]| {
        let mut builder = LayoutBuilder::default();
        builder.push(b"", Node::Directory).unwrap();
        let file = Node::File { size: 1, executable: false };
        names.iter().try_for_each(|name| builder.push(name, file).map(drop))
    };
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 1 << 16]] {
        assert!(matches!(pushed(&[name]), Err(LayoutError::Name { .. })), "{name:?}");
    }
    assert!(matches!(pushed(&[b"b", b"a"]), Err(LayoutError::Order { .. })));
    assert!(matches!(pushed(&[b"a", b"a"]), Err(LayoutError::Order { .. })));
    assert_eq!(pushed(&[b"a", b"a.b", b"a0"]), Ok(()));
    assert_eq!(LayoutBuilder::default().finish().unwrap_err(), LayoutError::Root);
    let mut builder = LayoutBuilder::default();
    builder.push(b"", Node::File { size: u64::MAX, executable: false }).unwrap_err();
    let mut builder = LayoutBuilder::default();
    builder.push(b"", Node::Directory).unwrap();
    assert_eq!(builder.close(), Ok(()));
    assert_eq!(builder.close(), Err(LayoutError::Root));
    assert_eq!(builder.push(b"x", Node::Directory), Err(LayoutError::Root));
    let mut builder = LayoutBuilder::default();
    builder.push(b"", Node::Directory).unwrap();
    for name in [b"a", b"b"] {
        let half = Node::File { size: i64::MAX as u64 / 2, executable: false };
        builder.push(name, half).unwrap();
    }
    builder.close().unwrap();
    assert_eq!(builder.finish().unwrap_err(), LayoutError::Size);
}

#[test]
fn an_entry_has_its_path() {
    let inner = Tree::Directory(vec![(b"c".to_vec(), Tree::Symlink(b"x".to_vec()))]);
    let file = Tree::File { content: vec![], executable: true };
    let tree = Tree::Directory(vec![(b"a".to_vec(), inner), (b"b".to_vec(), file)]);
    let (layout, _) = layout(&tree);
    let paths: Vec<_> = (0..4).map(|entry| layout.path(entry)).collect();
    assert_eq!(paths, [&b""[..], b"a", b"a/c", b"b"]);
    assert_eq!((layout.kind(3), layout.kind(4)), (Some(Kind::Executable), None));
}
