//! A naive unpacker: maps of whole paths, one entry after the other, one layer after the other.
//! It knows nothing of arenas, sorted lists or records.

use std::collections::{BTreeMap, BTreeSet};

use crate::testing::Item;

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Mode, owner and time.
type Header = (u32, u32, u64);

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
    /// `None` for a directory that is not listed.
    pub(super) header: Option<Header>,
    pub(super) xattrs: Xattrs,
    opaque: bool,
    /// Position of the entry that gave the header.
    last: usize,
}

impl Inode {
    fn directory() -> Self {
        let xattrs = Xattrs::new();
        Self { body: Body::Directory, header: None, xattrs, opaque: false, last: 0 }
    }
}

/// Paths without a slash at either end; the root is the empty path.
pub(super) type Paths = BTreeMap<String, usize>;

#[derive(Clone, Debug)]
pub(super) struct LayerModel {
    pub(super) paths: Paths,
    pub(super) inodes: Vec<Inode>,
    whiteouts: BTreeSet<String>,
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
            inodes: vec![Inode::directory()],
            whiteouts: BTreeSet::new(),
        }
    }

    fn add(&mut self, path: &str, inode: Inode) -> usize {
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
                self.add(&made, Inode::directory());
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
                    self.add(&path, Inode::directory())
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
            self.add(&path, Inode { body, ..Inode::directory() })
        };
        self.header(inode, item, position);
        Ok(())
    }

    fn is_behind_whiteout(&self, path: &str) -> bool {
        self.whiteouts.iter().any(|hidden| hidden == path || is_below(path, hidden))
    }

    /// What is at a path, symlinks of this layer followed.
    fn alone(&self, path: &str) -> Alone {
        let mut names = clean("", path);
        'again: for _ in 0..=255 {
            let mut at = String::new();
            for (index, name) in names.iter().enumerate() {
                let next = join(&at, name);
                match self.paths.get(&next).map(|inode| &self.inodes[*inode].body) {
                    None if self.whiteouts.contains(&next) => return Alone::End,
                    None if self.is_behind_whiteout(&at) => return Alone::End,
                    None => return Alone::Nothing,
                    Some(Body::Directory) => at = next,
                    Some(Body::Symlink(target)) => {
                        let rest = names[index + 1..].to_vec();
                        names = clean(&at, target);
                        names.extend(rest);
                        continue 'again;
                    }
                    Some(_) => return Alone::End,
                }
            }
            return Alone::Directory(self.paths[&at]);
        }
        Alone::End
    }

    fn lower(&mut self, target: String) -> usize {
        let body = Body::Lower(target);
        let living = self.paths.values().find(|inode| self.inodes[**inode].body == body);
        if let Some(inode) = living {
            return *inode;
        }
        self.inodes.push(Inode { body, ..Inode::directory() });
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
    (mode, uid, mtime): Header,
    xattrs: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>,
) {
    let mode = if matches!(inode.body, Body::Symlink(_)) { 0o777 } else { mode };
    inode.header = Some((mode, uid, mtime));
    if inode.body != Body::Directory {
        inode.xattrs.remove(&b"security.capability"[..]);
    }
    inode.xattrs.extend(xattrs);
}

/// What one layer by itself has at a path.
enum Alone {
    Directory(usize),
    Nothing,
    /// Something else, or the end of what a whiteout of the layer lets through.
    End,
}

/// The merged tree.
#[derive(Clone, Debug)]
pub(super) struct TreeModel {
    pub(super) paths: Paths,
    pub(super) inodes: Vec<Inode>,
    /// The layers so far; their implicit directories have got their attributes.
    layers: Vec<LayerModel>,
}

impl TreeModel {
    pub(super) fn new() -> Self {
        let paths = Paths::from([(String::new(), 0)]);
        Self { paths, inodes: vec![Inode::directory()], layers: Vec::new() }
    }

    fn add(&mut self, path: &str, inode: Inode) {
        self.inodes.push(inode);
        self.paths.insert(path.to_owned(), self.inodes.len() - 1);
    }

    pub(super) fn apply(&mut self, layer: &LayerModel) -> Result<(), Refused> {
        // Inode of the tree by inode of the layer
        let mut known = self.lower_links(layer)?;
        let mut layer = layer.clone();
        for (path, inode) in layer.paths.clone() {
            let is_implicit = layer.inodes[inode].header.is_none();
            if layer.inodes[inode].body == Body::Directory && is_implicit && !path.is_empty() {
                let (header, xattrs) = self.lent(&layer, &path).unwrap_or_default();
                (layer.inodes[inode].header, layer.inodes[inode].xattrs) = (header, xattrs);
            }
        }
        self.directory(&layer, "", &mut known);
        self.layers.push(layer);
        Ok(())
    }

    /// Attributes for a directory of the next layer that it does not list.
    fn lent(&self, layer: &LayerModel, path: &str) -> Option<(Option<Header>, Xattrs)> {
        if layer.is_behind_whiteout(path) {
            return None;
        }
        for lower in self.layers.iter().rev() {
            match lower.alone(path) {
                Alone::Directory(inode) => {
                    let inode = &lower.inodes[inode];
                    return Some((inode.header, inode.xattrs.clone()));
                }
                Alone::Nothing => {}
                Alone::End => return None,
            }
        }
        None
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

    /// Applies a layer's directory.
    fn directory(&mut self, layer: &LayerModel, at: &str, known: &mut BTreeMap<usize, usize>) {
        let source = &layer.inodes[layer.paths[at]];
        if source.opaque {
            self.paths.retain(|path, _| !is_below(path, at));
        }
        if source.header.is_some() || !at.is_empty() {
            let inode = &mut self.inodes[self.paths[at]];
            (inode.header, inode.xattrs) = (source.header, source.xattrs.clone());
        }
        for hidden in layer.whiteouts.iter().filter(|path| split(path).0 == at) {
            remove(&mut self.paths, hidden);
        }
        for (path, inode) in &layer.paths {
            if path.is_empty() || split(path).0 != at {
                continue;
            }
            let own = &layer.inodes[*inode];
            let below = self.paths.get(path).map(|inode| &self.inodes[*inode].body);
            if own.body == Body::Directory {
                if below != Some(&Body::Directory) {
                    remove(&mut self.paths, path);
                    self.add(path, Inode::directory());
                }
                self.directory(layer, path, known);
            } else {
                remove(&mut self.paths, path);
                let copy = *known.entry(*inode).or_insert_with(|| {
                    self.inodes.push(own.clone());
                    self.inodes.len() - 1
                });
                self.paths.insert(path.clone(), copy);
            }
        }
    }
}
