//! Extended attributes.

use peel_index::NodeId;

use super::{Filesystem, node};
use crate::{error::Error, source::FileSource};

impl<S: FileSource> Filesystem<S> {
    /// The value of an extended attribute.
    ///
    /// # Errors
    /// [`Error::NoXattr`] where there is none. It is never "not provided": the kernel would hide
    /// file capabilities on the whole connection from then on.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>, Error> {
        self.steady(|| {
            let mut value = None;
            self.each_xattr(ino, &mut |found, content| {
                if found == name {
                    value = Some(content.to_vec());
                }
            })?;
            value.ok_or(Error::NoXattr)
        })
    }

    /// The names of all extended attributes, each followed by a NUL, as listxattr(2) wants them.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>, Error> {
        self.steady(|| {
            let mut names = Vec::new();
            self.each_xattr(ino, &mut |name, _| {
                // The kernel refuses the whole list for one empty name
                if !name.is_empty() && !name.contains(&0) {
                    names.extend_from_slice(name);
                    names.push(0);
                }
            })?;
            Ok(names)
        })
    }

    fn each_xattr(&self, ino: u64, each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        match node(ino)? {
            NodeId::Root => Ok(()),
            NodeId::Tree { slot, number } => {
                let tree = self.tree(slot, ino)?;
                tree.inode(number).ok_or(Error::Stale { ino })?;
                tree.xattrs(number).for_each(|(name, value)| each(name, value));
                Ok(())
            }
            NodeId::Layer { slot, number } => {
                let layer = self.layer(slot, ino)?;
                layer.inode(number).ok_or(Error::Stale { ino })?;
                layer.xattrs(number).for_each(|(name, value)| each(name, value));
                Ok(())
            }
        }
    }
}
