//! Generators of trees: whatever Linux file systems hold.

use crate::common::disk::{DISKS, DiskKind};
use crate::common::fixture::hostile_file_names;
use crate::common::plan::{Bytes, Entry, Fill, Place, Plan, What, Which};
use crate::common::xattr::Ace;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// A machine: its root file system, its home, and the disk that they are on.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) rootfs: Plan,
    pub(crate) home: Plan,
    pub(crate) disk: DiskKind,
}

impl Machine {
    /// The directories of [`BASE`] and nothing in them.
    pub(crate) fn empty(disk: DiskKind) -> Self {
        Self { rootfs: Plan(Vec::new()), home: Plan(Vec::new()), disk }
    }
}

/// Where the entries of a root file system go: two of these are not exported.
pub(crate) const BASE: [&str; 7] = ["", "home", "srv", "opt", "var/lib", "var/log", "nix"];

const IDS: [u32; 9] = [0, 71, 100, 1000, 65534, 2_097_151, 2_097_152, 3_000_000, u32::MAX - 1];

/// The first is a whiteout of overlayfs, the last the largest that xfs has.
const DEVICES: [(u32, u32); 5] = [(0, 0), (1, 3), (7, 250), (255, 70_000), (511, 262_143)];

const SECONDS: [i64; 10] = [
    0,
    1,
    -1,
    -86_401,
    -(1 << 31),
    1_000_000_000,
    1_700_000_000,
    (1 << 33) - 1,
    1 << 33,
    9_000_000_000,
];

pub(crate) fn machines() -> impl Strategy<Value = Machine> {
    (plan(10..50, true), plan(0..15, false), select(DISKS.as_slice()))
        .prop_map(|(rootfs, home, disk)| Machine { rootfs, home, disk })
}

/// One of everything, so that nothing depends on luck.
pub(crate) fn everything(disk: DiskKind) -> Machine {
    let mut list = List(Vec::new());
    for name in hostile_file_names() {
        list.file("srv", &name, b"named");
    }
    // Around the limits of the name and prefix fields, from `srv` on.
    for length in [88, 89, 90, 91, 92, 93, 94, 95, 96, 97, 148, 149, 150, 151, 152, 246, 247, 248] {
        list.file("srv", &vec![b'n'; length], b"edge");
    }
    for (i, id) in IDS.into_iter().enumerate() {
        let entry = list.file("srv", format!("id{id}").as_bytes(), b"owned");
        (entry.uid, entry.gid) = (id, IDS[IDS.len() - 1 - i]);
        entry.acl = named_acl(id);
        let entry = list.push("opt", format!("id{id}").as_bytes(), What::Directory);
        (entry.acl, entry.default_acl) = (named_acl(id), named_acl(id));
    }
    for (i, seconds) in SECONDS.into_iter().enumerate() {
        for nanos in [0, 1, 500_000_000, 999_999_999] {
            let name = format!("time{i}-{nanos}");
            list.file("srv", name.as_bytes(), b"").mtime = (seconds, nanos);
            let link = What::Symlink(Bytes(b"nowhere".to_vec()));
            list.push("opt", name.as_bytes(), link).mtime = (seconds, nanos);
        }
    }
    for mode in [0, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777] {
        list.file("srv", format!("mode{mode:o}").as_bytes(), b"").mode = mode;
        list.push("opt", format!("mode{mode:o}").as_bytes(), What::Directory).mode = mode;
    }
    for (i, what) in holes().into_iter().enumerate() {
        list.push("var/lib", format!("sparse{i}").as_bytes(), what);
    }
    for (i, (major, minor)) in DEVICES.into_iter().enumerate() {
        list.push("srv", format!("char{i}").as_bytes(), What::Char(major, minor)).xattrs = owned();
        list.push("srv", format!("block{i}").as_bytes(), What::Block(major, minor)).acl =
            named_acl(71);
    }
    list.push("srv", b"fifo", What::Fifo).xattrs = owned();
    for length in [1, 99, 100, 101, 1000, 1023, 4095] {
        let target = What::Symlink(Bytes(vec![0xfe; length]));
        list.push("opt", format!("target{length}").as_bytes(), target).xattrs = owned();
    }
    let names =
        ["user.plain", "user.a=b", "user.%3D", "user.100%", "user.\n", "user. ", "trusted.t"];
    let values: [&[u8]; 5] = [b"", b"a\0b", b"\n12 x=y\n", b"=", b"\xff\xfe"];
    for (i, name) in names.into_iter().enumerate() {
        for (j, value) in values.into_iter().enumerate() {
            let one = (Bytes(name.as_bytes().to_vec()), Fill::These(Bytes(value.to_vec())));
            let name = format!("xattr{i}-{j}");
            list.file("srv", name.as_bytes(), b"").xattrs = vec![one.clone()];
            list.push("opt", name.as_bytes(), What::Directory).xattrs = vec![one];
        }
    }
    let refused = ["selinux", "SMACK64", "ima", "NTACL"].map(|name| {
        (Bytes(format!("security.{name}").into_bytes()), Fill::These(Bytes(b"value".to_vec())))
    });
    list.file("srv", b"security", b"x").xattrs = refused.to_vec();
    list.file("srv", b"large-value", b"x").xattrs =
        vec![(Bytes(b"user.large".to_vec()), Fill::Pattern(64 << 10))];
    for (i, root) in [None, Some(0), Some(1000)].into_iter().enumerate() {
        let entry = list.file("srv", format!("capable{i}").as_bytes(), b"#!");
        (entry.capability, entry.mode) = (Some((1 << 13 | 1 << 40, root)), 0o755);
    }
    list.file("var/log", b"first-name-excluded", b"three names");
    list.link("opt", b"second-name");
    list.link("srv", b"third-name");
    list.push("opt", b"hard-linked-link", What::Symlink(Bytes(b"nowhere".to_vec())));
    list.link("srv", b"hard-linked-link");
    list.push("opt", b"hard-linked-fifo", What::Fifo);
    list.link("srv", b"hard-linked-fifo");
    let home = plan_of_home();
    Machine { rootfs: Plan(list.0), home, disk }
}

fn plan_of_home() -> Plan {
    let mut list = List(Vec::new());
    list.file("", b".Xauthority", b"the host's");
    list.file("", b"file", b"x").xattrs = owned();
    list.file("", b"user", b"x").xattrs =
        vec![(Bytes(b"user.x".to_vec()), Fill::These(Bytes(b"y".to_vec())))];
    list.push("", b"holes", What::Sparse(5 << 20, vec![(0, 1), (2 << 20, 9000)]));
    Plan(list.0)
}

fn owned() -> Vec<(Bytes, Fill)> {
    vec![(Bytes(b"trusted.t".to_vec()), Fill::These(Bytes(b"of root".to_vec())))]
}

fn named_acl(id: u32) -> Vec<Ace> {
    vec![('U', 0, 6), ('u', id, 4), ('G', 0, 5), ('g', id, 0), ('m', 0, 7), ('o', 0, 1)]
}

/// Every kind of hole map.
fn holes() -> Vec<What> {
    let mib = 1_u64 << 20;
    let maps = [
        (20 * mib, vec![]),
        (mib, vec![]),
        (mib - 1, vec![]),
        (20 * mib, vec![(19 * mib, usize::MAX)]),
        (20 * mib + 7, vec![(0, 5000), (10 * mib, 70_000)]),
        (20 * mib, vec![(0, 5000), (20 * mib - 3, 3)]),
        (mib, vec![(0, 1), (mib / 2, 1)]),
        (30 * mib, (0..300).map(|i| (i << 14, 1)).collect()),
        (4 * mib, (0..256).map(|i| (i << 14, 1)).collect()),
    ];
    maps.map(|(size, data)| What::Sparse(size, data)).to_vec()
}

/// Entries below the directories of [`BASE`].
struct List(Vec<Entry>);

impl List {
    fn push(&mut self, base: &str, name: &[u8], what: What) -> &mut Entry {
        self.0.push(Entry {
            place: Place::Base(base.into()),
            name: Bytes(name.to_vec()),
            what,
            uid: 0,
            gid: 0,
            mode: 0o644,
            mtime: (1_600_000_000, 0),
            xattrs: vec![],
            acl: vec![],
            default_acl: vec![],
            capability: None,
        });
        self.0.last_mut().unwrap()
    }

    fn file(&mut self, base: &str, name: &[u8], content: &[u8]) -> &mut Entry {
        self.push(base, name, What::File(Fill::These(Bytes(content.to_vec()))))
    }

    /// One more name of the entry before it, or of what that is a name of.
    fn link(&mut self, base: &str, name: &[u8]) {
        self.push(base, name, What::Link(Which::Last));
    }
}

/// Of a home without an id map, ids in ACLs and capabilities say nothing.
fn plan(entries: std::ops::Range<usize>, ids: bool) -> impl Strategy<Value = Plan> {
    vec(entry(ids), entries).prop_map(Plan)
}

fn entry(ids: bool) -> impl Strategy<Value = Entry> {
    let place = any::<Index>().prop_map(Place::Any);
    let owner = (select(IDS.as_slice()), select(IDS.as_slice()));
    let mode = prop_oneof![select(vec![0o644_u32, 0o755]), 0..=0o7777_u32];
    let seconds = prop_oneof![select(SECONDS.as_slice()), -(1_i64 << 31)..1_i64 << 34];
    let nanos =
        prop_oneof![Just(0), select(vec![1, 500_000_000, 999_999_999]), 0..1_000_000_000_i64];
    let acls = (weighted(0.2, acl(ids)), weighted(0.2, acl(ids)));
    let root = prop_oneof![2 => Just(None), 1 => select(vec![Some(0_u32), Some(1000)])];
    let root = root.prop_map(move |root| root.filter(|_| ids));
    let capability = option::weighted(0.2, (0..1_u64 << 41, root));
    (place, name(), what(), owner, mode, (seconds, nanos), xattrs(), acls, capability).prop_map(
        |(place, name, what, (uid, gid), mode, mtime, xattrs, acls, capability)| Entry {
            place,
            name,
            what,
            uid,
            gid,
            mode,
            mtime,
            xattrs,
            acl: acls.0,
            default_acl: acls.1,
            capability,
        },
    )
}

/// Empty where it is not there.
fn weighted<T: std::fmt::Debug + Clone>(
    probability: f64,
    of: impl Strategy<Value = Vec<T>>,
) -> impl Strategy<Value = Vec<T>> {
    option::weighted(probability, of).prop_map(Option::unwrap_or_default)
}

fn name() -> impl Strategy<Value = Bytes> {
    let byte = || (1..=255_u8).prop_filter("no slash", |byte| *byte != b'/');
    let lengths =
        select([90..=101, 150..=157, 250..=255].into_iter().flatten().collect::<Vec<_>>());
    prop_oneof![
        6 => "[a-z]{1,8}".prop_map(String::into_bytes),
        2 => vec(byte(), 1..40),
        1 => select(hostile_file_names()),
        1 => (byte(), lengths).prop_map(|(byte, length)| vec![byte; length]),
    ]
    .prop_filter("a name", |name| ![b".".as_slice(), b".."].contains(&name.as_slice()))
    .prop_map(Bytes)
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        8 => (0..2000_usize).prop_map(|length| What::File(Fill::Pattern(length))),
        1 => (0..3_000_000_usize).prop_map(|length| What::File(Fill::Pattern(length))),
        3 => sparse(),
        8 => Just(What::Directory),
        4 => target().prop_map(|target| What::Symlink(Bytes(target))),
        3 => any::<Index>().prop_map(|index| What::Link(Which::Any(index))),
        1 => Just(What::Fifo),
        1 => device().prop_map(|(major, minor)| What::Char(major, minor)),
        1 => device().prop_map(|(major, minor)| What::Block(major, minor)),
    ]
}

fn device() -> impl Strategy<Value = (u32, u32)> {
    select(DEVICES.as_slice())
}

/// None of them leads anywhere on this host: a reader that follows a link would change what is there.
fn target() -> impl Strategy<Value = Vec<u8>> {
    let byte = || (1..=255_u8).prop_filter("no way out", |byte| !b"/.".contains(byte));
    let long = (byte(), prop_oneof![90..=110_usize, 1000..=4095_usize]);
    prop_oneof![select(vec!["", "/", "/deep/er/", "../", "../../"]).prop_map(str::as_bytes),]
        .prop_flat_map(move |prefix| {
            let rest = prop_oneof![vec(byte(), 1..60), long.clone().prop_map(|(b, n)| vec![b; n])];
            rest.prop_map(move |rest| [prefix, b"nowhere-of-codchifs ", &rest].concat())
        })
}

/// Holes at the start, in the middle, at the end, everywhere, small ones only, a map of many extents.
fn sparse() -> impl Strategy<Value = What> {
    let size = || {
        let edge = 1_u64 << 20;
        prop_oneof![1..20_000_000_u64, edge - 1..edge + 2]
    };
    prop_oneof![
        size().prop_map(|size| (size, vec![])),
        size().prop_map(|size| (size, vec![(size / 2, usize::MAX)])),
        size().prop_map(|size| (size, vec![(0, 5000), (size - size.min(3), 3)])),
        size().prop_map(|size| (size, vec![(0, (size / 3) as usize)])),
        (2..250_u64).prop_map(|n| (n << 14, (0..n).map(|i| (i << 14, 1)).collect())),
        (2..250_u64)
            .prop_map(|n| ((n << 14) + (2 << 20), (0..n).map(|i| (i << 14, 100)).collect())),
        (size(), vec((any::<Index>(), 1..200_000_usize), 1..6)).prop_map(|(size, data)| {
            (
                size,
                data.iter().map(|(at, length)| (at.index(size as usize) as u64, *length)).collect(),
            )
        }),
    ]
    .prop_map(|(size, data)| What::Sparse(size, data))
}

fn xattrs() -> impl Strategy<Value = Vec<(Bytes, Fill)>> {
    let odd = ["a=b", "=", "100%", "%3D", "%25", "new\nline", "with space", "u\u{308}", "."];
    let odd: Vec<Vec<u8>> = odd.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = prop_oneof![
        3 => "[a-z.]{1,12}".prop_map(String::into_bytes),
        1 => select(odd),
        1 => vec(1..=255_u8, 1..20),
        // bsdtar fails where encoding makes a name longer than any may be.
        1 => (1..=255_u8).prop_filter("no =, no %", |byte| !b"=%".contains(byte))
            .prop_map(|byte| vec![byte; 247]),
    ];
    let namespace = prop_oneof![3 => Just("user."), 1 => Just("trusted.")];
    let name = (namespace, name).prop_map(|(space, name)| [space.as_bytes(), &name].concat());
    let kept = prop_oneof![8 => name, 1 => Just(b"security.NTACL".to_vec())];
    // What must not be exported, or poisons the target.
    let not = ["security.selinux", "security.SMACK64", "security.ima"];
    let not = select(not.map(|name| name.as_bytes().to_vec()).to_vec());
    let value = prop_oneof![
        2 => Just(Fill::These(Bytes(vec![]))),
        2 => select(vec!["\n", "=", "a\0b", "12 x=y\n"])
            .prop_map(|value| Fill::These(Bytes(value.as_bytes().to_vec()))),
        4 => vec(any::<u8>(), 0..40).prop_map(|value| Fill::These(Bytes(value))),
        1 => (0..=65536_usize).prop_map(Fill::Pattern),
        1 => Just(Fill::Pattern(65536)),
    ];
    let one = (prop_oneof![20 => kept, 1 => not].prop_map(Bytes), value);
    weighted(0.4, vec(one, 1..4))
}

fn acl(ids: bool) -> impl Strategy<Value = Vec<Ace>> {
    let most = if ids { 4 } else { 1 };
    let named = || btree_map(select(IDS.as_slice()), 0..8_u8, 0..most);
    (named(), named(), [0..8_u8, 0..8, 0..8, 0..8]).prop_map(|(users, groups, perms)| {
        let mut entries = vec![('U', 0, perms[0])];
        entries.extend(users.into_iter().map(|(id, perm)| ('u', id, perm)));
        entries.push(('G', 0, perms[1]));
        entries.extend(groups.into_iter().map(|(id, perm)| ('g', id, perm)));
        entries.extend([('m', 0, perms[2]), ('o', 0, perms[3])]);
        entries
    })
}
