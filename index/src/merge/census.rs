//! The first walk: how many there are of everything, and of which files the names that show are not
//! as many as their layer says.

use super::{
    error::MergeError,
    stack::{Directory, File, LayerInode, Stack},
    walk::{Event, Walk},
};
use crate::{
    attr::{Attr, FileKind},
    format::HeapFull,
    tree::Totals,
};

/// A layer's file that shows under other than as many names as its layer says.
pub(super) struct Changed {
    inode: LayerInode,
    pub(super) names: u32,
    /// Number in the tree, once it has one; 0 before.
    pub(super) number: u32,
}

pub(super) struct Census {
    /// How many names each directory has; depth first, the root included.
    pub(super) directories: Vec<u32>,
    /// The directories that lend their attributes, in order of those that borrow: of each that is
    /// cut and has no listed part.
    pub(super) lenders: Vec<Option<LayerInode>>,
    /// By inode, ascending.
    changed: Vec<Changed>,
    /// Names that show, by group.
    pub(super) group_names: Vec<u32>,
    /// All names, the root not counted.
    pub(super) entries: u64,
    pub(super) totals: Totals,
}

impl Census {
    /// The file of a layer, if its number of names has changed.
    pub(super) fn changed(&mut self, inode: LayerInode) -> Option<&mut Changed> {
        let found = self.changed.binary_search_by_key(&inode, |changed| changed.inode).ok()?;
        self.changed.get_mut(found)
    }

    /// How many inodes the tree itself will have.
    pub(super) fn inodes(&self) -> usize {
        let groups = self.group_names.iter().filter(|names| **names != 0).count();
        self.directories.len() + self.changed.len() + groups
    }

    fn count(&mut self, attr: &Attr) {
        self.totals.inodes += 1;
        if attr.kind == FileKind::Regular {
            self.totals.bytes = self.totals.bytes.saturating_add(attr.size);
        }
    }
}

/// Walks the tree, of at most `limit` names.
pub(super) fn take(stack: &mut Stack<'_>, limit: u64) -> Result<Census, MergeError> {
    let mut census = Census {
        directories: Vec::new(),
        lenders: Vec::new(),
        changed: Vec::new(),
        group_names: vec![0; stack.groups.len()],
        entries: 0,
        totals: Totals::default(),
    };
    // Names of inodes that may have several, by inode
    let mut shared: Vec<LayerInode> = Vec::new();
    let (mut walk, root) = Walk::new(stack);
    let mut open: Vec<usize> = vec![0];
    census.add(stack, &walk, &root)?;
    while let Some(event) = walk.next(stack) {
        if let Event::Leave = event {
            open.pop();
            continue;
        }
        census.entries += 1;
        if census.entries > limit {
            return Err(HeapFull { what: "names in a tree", limit }.into());
        }
        if let Some(directory) = open.last() {
            census.directories[*directory] += 1;
        }
        match event {
            Event::Enter { directory, .. } => {
                open.push(census.directories.len());
                census.add(stack, &walk, &directory)?;
            }
            Event::File { file: File::Group(group), .. } => {
                census.group_names[group as usize] += 1;
            }
            Event::File { file: File::Layer((layer, number)), .. } => {
                // A layer's one name of a file is one path, however often the layer occurs
                match stack.layer(layer).inode(number).filter(|attr| attr.nlink == 1) {
                    Some(attr) => census.count(&attr),
                    None => shared.push((layer, number)),
                }
            }
            Event::Leave => {}
        }
    }
    census.settle(stack, shared);
    Ok(census)
}

impl Census {
    fn add<'a>(
        &mut self,
        stack: &mut Stack<'a>,
        walk: &Walk<'a>,
        directory: &Directory,
    ) -> Result<(), MergeError> {
        if directory.borrows() {
            self.lenders.push(stack.lender(directory.top, walk.path())?);
        }
        self.directories.push(0);
        self.totals.inodes += 1;
        Ok(())
    }

    /// Counts the files that may have several names.
    fn settle(&mut self, stack: &Stack<'_>, mut shared: Vec<LayerInode>) {
        shared.sort_unstable();
        for names in shared.chunk_by(|one, other| one == other) {
            let (inode, names) = (names[0], names.len() as u32);
            let Some(attr) = stack.layer(inode.0).inode(inode.1) else { continue };
            self.count(&attr);
            if attr.nlink != names {
                self.changed.push(Changed { inode, names, number: 0 });
            }
        }
        for group in (0..).take(self.group_names.len()) {
            if self.group_names[group as usize] != 0
                && let Some(attr) = stack.attr(group)
            {
                self.count(&attr);
            }
        }
    }
}
