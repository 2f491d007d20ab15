//! A naive unpacker: maps of whole paths, one entry after the other, one layer after the other.
//! It knows nothing of arenas, sorted lists or records.

use std::collections::{BTreeMap, BTreeSet};

use crate::testing::Item;

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Directory,
    File(Vec<u8>),
    Symlink(String),
    Pipe,
    /// A hard link to a path of the layers below.
    Lower(String),
}

#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) body: Body,
    /// Mode, owner and time; `None` for a directory that is not listed.
    pub(super) header: Option<(u32, u32, u64)>,
    pub(super) xattrs: Xattrs,
    opaque: bool,
    /// Position of the first appearance, and of the entry that gave the header.
    first: usize,
    last: usize,
}

impl Inode {
    fn directory(first: usize) -> Self {
        let xattrs = Xattrs::new();
        Self { body: Body::Directory, header: None, xattrs, opaque: false, first, last: 0 }
    }
}

/// Paths without a slash at either end; the root is the empty path.
pub(super) type Paths = BTreeMap<String, usize>;

#[derive(Clone, Debug)]
pub(super) struct LayerModel {
    pub(super) paths: Paths,
    pub(super) inodes: Vec<Inode>,
    whiteouts: BTreeSet<String>,
    /// Directories made and entries seen, for [`Inode::first`].
    clock: usize,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn is_below(path: &str, parent: &str) -> bool {
    !path.is_empty() && (parent.is_empty() || path.starts_with(&format!("{parent}/")))
}

/// `path` as seen from the directory `from`, without `.` and `..`.
fn clean(from: &str, path: &str) -> Vec<String> {
    let start = if path.starts_with('/') { "" } else { from };
    let mut names: Vec<String> = Vec::new();
    for name in start.split('/').chain(path.split('/')) {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name.to_owned()),
        }
    }
    names
}

fn remove(paths: &mut Paths, path: &str) {
    paths.retain(|other, _| other != path && !is_below(other, path));
}

/// Resolves the directories of a path; `Err` where one is no directory or links do not end. Names
/// that are not there stay as they are.
fn resolve(paths: &Paths, inodes: &[Inode], names: &[String]) -> Result<String, Refused> {
    let mut names = names.to_vec();
    'again: for _ in 0..=255 {
        let mut at = String::new();
        for (index, name) in names.iter().enumerate() {
            let next = join(&at, name);
            match paths.get(&next).map(|inode| &inodes[*inode].body) {
                None => return Ok(join(&at, &names[index..].join("/"))),
                Some(Body::Directory) => at = next,
                Some(Body::Symlink(target)) => {
                    let rest = names[index + 1..].to_vec();
                    names = clean(&at, target);
                    names.extend(rest);
                    continue 'again;
                }
                Some(_) => return Err(Refused),
            }
        }
        return Ok(at);
    }
    Err(Refused)
}

impl LayerModel {
    pub(super) fn new() -> Self {
        Self {
            paths: Paths::from([(String::new(), 0)]),
            inodes: vec![Inode::directory(0)],
            whiteouts: BTreeSet::new(),
            clock: 0,
        }
    }

    fn add(&mut self, path: &str, mut inode: Inode) -> usize {
        self.clock += 1;
        inode.first = self.clock;
        self.inodes.push(inode);
        self.paths.insert(path.to_owned(), self.inodes.len() - 1);
        self.inodes.len() - 1
    }

    fn replace(&mut self, path: &str) {
        remove(&mut self.paths, path);
        self.whiteouts.retain(|other| !is_below(other, path));
    }

    pub(super) fn apply(&mut self, item: &Item, position: usize) -> Result<(), Refused> {
        let text = String::from_utf8(item.path.clone()).expect("text");
        let names = clean("", &text);
        let Some((base, parents)) = names.split_last() else {
            if item.kind.is_dir() {
                self.header(0, item, position);
            }
            return Ok(());
        };
        let parent = resolve(&self.paths, &self.inodes, parents)?;
        let mut made = String::new();
        for name in parent.split('/').filter(|name| !name.is_empty()) {
            made = join(&made, name);
            if !self.paths.contains_key(&made) {
                self.add(&made, Inode::directory(0));
            }
        }
        if base == ".wh..wh..opq" {
            let inode = self.paths[&parent];
            self.inodes[inode].opaque = true;
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(".wh.") {
            self.whiteouts.insert(join(&parent, hidden));
            return Ok(());
        }
        let path = join(&parent, base);
        let existing = self.paths.get(&path).copied();
        let link = String::from_utf8(item.link.clone()).expect("text");
        let inode = if item.kind.is_dir() {
            match existing {
                Some(inode) if self.inodes[inode].body == Body::Directory => inode,
                _ => {
                    self.replace(&path);
                    self.add(&path, Inode::directory(0))
                }
            }
        } else if item.kind.is_hard_link() {
            let names = clean("", &link);
            let (base, parents) = names.split_last().ok_or(Refused)?;
            let target = join(&resolve(&self.paths, &self.inodes, parents)?, base);
            if target == path {
                return Ok(());
            }
            let inode = match self.paths.get(&target) {
                Some(inode) if self.inodes[*inode].body == Body::Directory => return Err(Refused),
                Some(inode) => *inode,
                None => self.lower(target),
            };
            if existing != Some(inode) {
                self.replace(&path);
                self.paths.insert(path, inode);
            }
            inode
        } else {
            self.replace(&path);
            let body = match item.kind {
                tar::EntryType::Symlink => Body::Symlink(link),
                tar::EntryType::Fifo => Body::Pipe,
                _ => Body::File(item.content.clone()),
            };
            self.add(&path, Inode { body, ..Inode::directory(0) })
        };
        self.header(inode, item, position);
        Ok(())
    }

    fn lower(&mut self, target: String) -> usize {
        let body = Body::Lower(target);
        let living = self.paths.values().find(|inode| self.inodes[**inode].body == body);
        if let Some(inode) = living {
            return *inode;
        }
        self.clock += 1;
        self.inodes.push(Inode { body, ..Inode::directory(self.clock) });
        self.inodes.len() - 1
    }

    fn header(&mut self, inode: usize, item: &Item, position: usize) {
        let inode = &mut self.inodes[inode];
        set_header(inode, (item.mode, item.uid, item.mtime), item.xattrs.iter().cloned());
        inode.last = position;
    }
}

fn set_header(
    inode: &mut Inode,
    (mode, uid, mtime): (u32, u32, u64),
    xattrs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
) {
    let mode = if matches!(inode.body, Body::Symlink(_)) { 0o777 } else { mode };
    inode.header = Some((mode, uid, mtime));
    if inode.body != Body::Directory {
        inode.xattrs.remove(&b"security.capability"[..]);
    }
    inode.xattrs.extend(xattrs);
}

/// The merged tree.
#[derive(Clone, Debug)]
pub(super) struct TreeModel {
    pub(super) paths: Paths,
    pub(super) inodes: Vec<Inode>,
}

impl TreeModel {
    pub(super) fn new() -> Self {
        Self { paths: Paths::from([(String::new(), 0)]), inodes: vec![Inode::directory(0)] }
    }

    fn add(&mut self, path: &str, inode: Inode) {
        self.inodes.push(inode);
        self.paths.insert(path.to_owned(), self.inodes.len() - 1);
    }

    pub(super) fn apply(&mut self, layer: &LayerModel) -> Result<(), Refused> {
        // Inode of the tree by inode of the layer
        let mut known = self.lower_links(layer)?;
        let mut grafts = BTreeSet::new();
        self.directory(layer, "", "", &mut known, &mut grafts);
        while let Some((_, from, holder, target)) = grafts.pop_first() {
            let to = self.make(clean(&holder, &target))?;
            self.directory(layer, &from, &to, &mut known, &mut grafts);
        }
        Ok(())
    }

    fn lower_links(&mut self, layer: &LayerModel) -> Result<BTreeMap<usize, usize>, Refused> {
        let living: BTreeSet<usize> = layer.paths.values().copied().collect();
        let mut links: Vec<usize> = living
            .into_iter()
            .filter(|i| matches!(layer.inodes[*i].body, Body::Lower(_)))
            .collect();
        links.sort_by_key(|inode| layer.inodes[*inode].last);
        let (mut known, mut split_off) = (BTreeMap::new(), BTreeMap::new());
        for link in links {
            let Body::Lower(target) = &layer.inodes[link].body else {
                continue;
            };
            let names = clean("", target);
            let (base, parents) = names.split_last().ok_or(Refused)?;
            let path = join(&resolve(&self.paths, &self.inodes, parents)?, base);
            let inode = *self.paths.get(&path).ok_or(Refused)?;
            if self.inodes[inode].body == Body::Directory {
                return Err(Refused);
            }
            let copy = *split_off.entry(path.clone()).or_insert_with(|| {
                self.inodes.push(self.inodes[inode].clone());
                self.paths.insert(path, self.inodes.len() - 1);
                self.inodes.len() - 1
            });
            let link_inode = &layer.inodes[link];
            let header = link_inode.header.expect("a hard link has one");
            set_header(&mut self.inodes[copy], header, link_inode.xattrs.clone());
            known.insert(link, copy);
        }
        Ok(known)
    }

    /// Applies the layer's directory `from` to the merged one at `to`.
    fn directory(
        &mut self,
        layer: &LayerModel,
        from: &str,
        to: &str,
        known: &mut BTreeMap<usize, usize>,
        grafts: &mut BTreeSet<(usize, String, String, String)>,
    ) {
        let source = &layer.inodes[layer.paths[from]];
        if source.opaque {
            self.paths.retain(|path, _| !is_below(path, to));
        }
        if source.header.is_some() {
            let inode = &mut self.inodes[self.paths[to]];
            (inode.header, inode.xattrs) = (source.header, source.xattrs.clone());
        }
        for hidden in layer.whiteouts.iter().filter(|path| split(path).0 == from) {
            remove(&mut self.paths, &join(to, split(hidden).1));
        }
        for (path, inode) in &layer.paths {
            if path.is_empty() || split(path).0 != from {
                continue;
            }
            let (target, own) = (join(to, split(path).1), &layer.inodes[*inode]);
            let below = self.paths.get(&target).map(|inode| self.inodes[*inode].body.clone());
            match (own.body == Body::Directory, below) {
                (true, Some(Body::Directory)) => {
                    self.directory(layer, path, &target, known, grafts)
                }
                (true, Some(Body::Symlink(link))) if own.header.is_none() => {
                    grafts.insert((own.first, path.clone(), to.to_owned(), link));
                }
                (true, _) => {
                    remove(&mut self.paths, &target);
                    self.add(&target, Inode::directory(0));
                    self.directory(layer, path, &target, known, grafts);
                }
                (false, _) => {
                    remove(&mut self.paths, &target);
                    let copy = *known.entry(*inode).or_insert_with(|| {
                        self.inodes.push(own.clone());
                        self.inodes.len() - 1
                    });
                    self.paths.insert(target, copy);
                }
            }
        }
    }

    /// The directory at a path, through symlinks; what is missing or in the way is replaced.
    fn make(&mut self, mut names: Vec<String>) -> Result<String, Refused> {
        'again: for _ in 0..=255 {
            let mut at = String::new();
            for (index, name) in names.iter().enumerate() {
                let next = join(&at, name);
                match self.paths.get(&next).map(|inode| self.inodes[*inode].body.clone()) {
                    Some(Body::Directory) => {}
                    Some(Body::Symlink(target)) => {
                        let rest = names[index + 1..].to_vec();
                        names = clean(&at, &target);
                        names.extend(rest);
                        continue 'again;
                    }
                    _ => self.add(&next, Inode::directory(0)),
                }
                at = next;
            }
            return Ok(at);
        }
        Err(Refused)
    }
}
