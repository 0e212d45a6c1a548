//! Which paths of a machine are exported: a small tree of the special ones, matched name by name.
//!
//! Rules are anchored at the root and match whole names. Codchi's own export hands tar patterns like `lib*`, which
//! match at any depth and lose `/var/lib`; a path here is looked up component by component instead, so nothing deeper
//! down can be meant by accident.

use super::LeftOut;
use super::generated::GeneratedFile;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Paths that have a rule or lead to one. Each takes some 100 bytes, and those that are directories are opened by every scan.
const MAX_RULES: usize = 1 << 17;
/// The longest path that a system call takes: nothing is found by a longer one.
const MAX_PATH: usize = 4095;

/// What is never exported: the target has its own, or gets them from the rebuild (docs/SEMANTICS.md).
pub const BUILT_IN_EXCLUDES: [&str; 26] = [
    "/.files",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/init",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/tmp",
    "/usr/bin/env",
    "/var/.updated",
    "/var/cache",
    "/var/empty",
    // What codchi-arrive goes by on a target: nothing of a machine may get there.
    "/var/lib/codchi-arrive",
    "/var/lib/nixos",
    "/var/lib/systemd",
    "/var/lock",
    "/var/log",
    // The host's X cookie, pushed into the home by Codchi: a credential of the host, not of the machine.
    "/home/codchi/.Xauthority",
];

/// Where the home is shown.
pub const HOME: &str = "/home/codchi";

/// What to leave out and what to keep, as the user said it.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// gitignore-style patterns, anchored when they hold a slash.
    pub exclude: Vec<String>,
    /// Paths that win over the built-in list.
    pub include: Vec<String>,
}

impl Selection {
    /// Whether every pattern and path of it can be used.
    pub fn check(&self) -> Result<(), RuleError> {
        Rules::new(self, &[], false).map(|_| ())
    }
}

/// A selection that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// The pattern is no gitignore pattern.
    #[error("--exclude {pattern}: not a pattern: {why}")]
    Pattern {
        /// As given.
        pattern: String,
        /// What the parser says.
        why: String,
    },
    /// Not a path inside the machine.
    #[error(
        "--include {0}: not an absolute path in the machine (no '.', '..' or empty components)"
    )]
    Path(String),
    /// Longer than any path that can be opened.
    #[error("--include {}...: longer than {MAX_PATH} bytes; name a directory above it", .0.chars().take(60).collect::<String>())]
    Long(String),
    /// More than can be kept.
    #[error(
        "too many --include: their paths have more than {MAX_RULES} names; include the directories above them"
    )]
    Many,
}

/// The special thing about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Only on the way to something special.
    Way,
    Exclude,
    Include,
    /// The home goes here, whatever the rootfs has.
    Graft,
    /// A generated file, by index.
    Generated(usize),
}

/// A path that has a rule, or leads to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleId(u32);

#[derive(Debug)]
struct Node {
    children: BTreeMap<Box<[u8]>, RuleId>,
    action: Action,
    /// A generated file lies below: the directory exists whatever the disk has.
    generated_below: bool,
    /// The graft lies below: likewise, but the disk's attributes are used where it has a directory.
    graft_below: bool,
    include_below: bool,
}

/// All rules of one machine.
#[derive(Debug)]
pub(super) struct Rules {
    nodes: Vec<Node>,
    patterns: Option<Gitignore>,
}

/// What a name in a directory is, before the disk is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not in the exported tree.
    Hidden,
    /// Whatever the disk has, nothing special below.
    Disk,
    /// Whatever the disk has, with rules below; of the disk only what an include names where `hidden`.
    DiskWith {
        rule: RuleId,
        hidden: bool,
    },
    /// A directory that must be there: the disk's attributes if it has a directory here, else made up.
    Way {
        rule: RuleId,
    },
    /// A directory that generated files need: 0755 0:0 whatever the disk has.
    Made {
        rule: RuleId,
        hidden: bool,
    },
    Graft {
        rule: RuleId,
    },
    Generated(usize),
}

impl Rules {
    pub(super) const ROOT: RuleId = RuleId(0);

    pub(super) fn new(
        selection: &Selection,
        generated: &[GeneratedFile],
        home: bool,
    ) -> Result<Self, RuleError> {
        let mut rules = Self { nodes: vec![Node::new()], patterns: None };
        for path in BUILT_IN_EXCLUDES {
            rules.add(path.as_bytes(), Action::Exclude)?;
        }
        for path in &selection.include {
            let inner = path.strip_prefix('/').ok_or_else(|| RuleError::Path(path.clone()))?;
            let inner = inner.strip_suffix('/').unwrap_or(inner);
            if inner.split('/').any(|c| matches!(c, "" | "." | "..")) || inner.contains('\0') {
                return Err(RuleError::Path(path.clone()));
            }
            if inner.len() > MAX_PATH {
                return Err(RuleError::Long(path.clone()));
            }
            rules.add(inner.as_bytes(), Action::Include)?;
        }
        if home {
            rules.add(HOME.as_bytes(), Action::Graft)?;
        }
        for (i, file) in generated.iter().enumerate() {
            rules.add(file.path, Action::Generated(i))?;
        }
        if !selection.exclude.is_empty() {
            let mut builder = GitignoreBuilder::new("/");
            for pattern in &selection.exclude {
                // gitignore's comments and blanks: whoever types one here means something else.
                if pattern.trim().is_empty() || pattern.starts_with('#') || pattern == "!" {
                    return Err(RuleError::Pattern {
                        pattern: pattern.clone(),
                        why: "it matches nothing; a leading # is written \\#".into(),
                    });
                }
                builder.add_line(None, pattern).map_err(|e| RuleError::Pattern {
                    pattern: pattern.clone(),
                    why: e.to_string(),
                })?;
            }
            rules.patterns = Some(builder.build().map_err(|e| RuleError::Pattern {
                pattern: selection.exclude.join(" "),
                why: e.to_string(),
            })?);
        }
        Ok(rules)
    }

    fn add(&mut self, path: &[u8], action: Action) -> Result<(), RuleError> {
        let mut at = Self::ROOT;
        for name in path.split(|b| *b == b'/').filter(|c| !c.is_empty()) {
            let next = self.nodes.len();
            let Some(node) = self.nodes.get_mut(at.0 as usize) else { return Err(RuleError::Many) };
            match action {
                Action::Generated(_) => node.generated_below = true,
                Action::Graft => node.graft_below = true,
                Action::Include => node.include_below = true,
                Action::Exclude | Action::Way => {}
            }
            if let Some(child) = node.children.get(name) {
                at = *child;
                continue;
            }
            let child = u32::try_from(next).ok().filter(|_| next < MAX_RULES);
            let child = RuleId(child.ok_or(RuleError::Many)?);
            node.children.insert(name.into(), child);
            self.nodes.push(Node::new());
            at = child;
        }
        if let Some(node) = self.nodes.get_mut(at.0 as usize) {
            node.action = action;
        }
        Ok(())
    }

    fn node(&self, id: RuleId) -> Option<&Node> {
        self.nodes.get(id.0 as usize)
    }

    fn child(&self, at: RuleId, name: &[u8]) -> Option<RuleId> {
        self.node(at)?.children.get(name).copied()
    }

    /// Names with rules below `at`.
    pub(super) fn children(&self, at: Option<RuleId>) -> impl Iterator<Item = &[u8]> {
        at.and_then(|at| self.node(at)).into_iter().flat_map(|n| n.children.keys().map(|c| &**c))
    }

    /// Calls `each` with the path (absolute, without a slash at the end) of every directory that has rules for what is in it:
    /// the root's is empty.
    pub(super) fn directories<E>(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        // One path at a time: all of them together may take gigabytes.
        let mut path = Vec::new();
        let mut pending = vec![(0, [].as_slice(), Self::ROOT)];
        while let Some((parent, name, rule)) = pending.pop() {
            let Some(node) = self.node(rule).filter(|node| !node.children.is_empty()) else {
                continue;
            };
            path.truncate(parent);
            if rule != Self::ROOT {
                path.push(b'/');
                path.extend_from_slice(name);
            }
            each(&path)?;
            let children = node.children.iter();
            pending.extend(children.map(|(name, child)| (path.len(), &**name, *child)));
        }
        Ok(())
    }

    /// The rule of `name` below `at`.
    pub(super) fn rule_of(&self, at: Option<RuleId>, name: &[u8]) -> Option<RuleId> {
        at.and_then(|at| self.child(at, name))
    }

    /// Names below `at`, which is not hidden itself, of which the disk may have more than the exported tree.
    pub(super) fn hidden_children(
        &self,
        at: Option<RuleId>,
    ) -> impl Iterator<Item = (&[u8], LeftOut)> {
        let children = at.and_then(|at| self.node(at)).into_iter().flat_map(|n| &n.children);
        children.filter_map(|(name, rule)| match self.node(*rule)?.action {
            Action::Exclude => Some((&**name, LeftOut::BuiltIn)),
            Action::Graft => Some((&**name, LeftOut::BelowHome)),
            _ => None,
        })
    }

    /// What `name` is in a directory with the rules `at`; `hidden` where the directory itself is excluded.
    pub(super) fn verdict(&self, at: Option<RuleId>, hidden: bool, name: &[u8]) -> Verdict {
        let otherwise = if hidden { Verdict::Hidden } else { Verdict::Disk };
        let Some(rule) = at.and_then(|at| self.child(at, name)) else { return otherwise };
        let Some(node) = self.node(rule) else { return otherwise };
        let hidden = match node.action {
            Action::Generated(i) => return Verdict::Generated(i),
            Action::Graft => return Verdict::Graft { rule },
            Action::Exclude => true,
            Action::Include => false,
            Action::Way => hidden,
        };
        if node.generated_below {
            Verdict::Made { rule, hidden }
        } else if node.graft_below {
            Verdict::Way { rule }
        } else if hidden && !node.include_below {
            Verdict::Hidden
        } else {
            Verdict::DiskWith { rule, hidden }
        }
    }

    /// Whether the user's patterns leave `path` (absolute, in the machine) out.
    pub(super) fn excluded_by_user(&self, dir: &[u8], name: &[u8], is_dir: bool) -> bool {
        let Some(patterns) = &self.patterns else { return false };
        let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
        path.extend_from_slice(dir);
        path.push(b'/');
        path.extend_from_slice(name);
        patterns.matched(Path::new(OsStr::from_bytes(&path)), is_dir).is_ignore()
    }
}

impl Node {
    fn new() -> Self {
        Self {
            children: BTreeMap::new(),
            action: Action::Way,
            generated_below: false,
            graft_below: false,
            include_below: false,
        }
    }
}
