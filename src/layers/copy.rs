//! What a layer puts on disk while it is indexed: its seekable copy, and of large ones the windows.

use std::{
    fs::File,
    io::{self, Read, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::{LayersError, persist, temporary};

/// Where the seekable copy of a layer, and its windows, are collected while it is pulled.
pub struct CopyFile {
    file: tempfile::NamedTempFile,
    len: u64,
    /// Without a name; most layers need none.
    windows: Option<File>,
    dir: PathBuf,
}

impl CopyFile {
    pub(super) fn new(dir: &Path) -> Result<Self, LayersError> {
        Ok(Self { file: temporary(dir)?, len: 0, windows: None, dir: dir.to_owned() })
    }

    /// Appends to the copy.
    ///
    /// # Errors
    /// Of the file, with its path.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), LayersError> {
        self.len += bytes.len() as u64;
        let path = self.file.path().to_owned();
        self.file.write_all(bytes).map_err(LayersError::io("write", path))
    }

    /// Appends what [`peel_index::LayerBuilder::take_windows`] gave.
    ///
    /// # Errors
    /// Of the file, with its directory.
    pub fn append_windows(&mut self, bytes: &[u8]) -> Result<(), LayersError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let failed = |action| LayersError::io(action, self.dir.clone());
        let file = match &mut self.windows {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(&self.dir).map_err(failed("create"))?),
        };
        file.write_all(bytes).map_err(failed("write"))
    }

    /// Puts the copy, if there is any, in its place; gives the windows.
    pub(super) fn install(self, path: &Path) -> Result<impl Read + use<>, LayersError> {
        if self.len > 0 {
            persist(self.file, path)?;
        }
        let windows: Box<dyn Read> = match self.windows {
            Some(mut file) => {
                file.rewind().map_err(LayersError::io("read", self.dir))?;
                Box::new(file)
            }
            None => Box::new(io::empty()),
        };
        Ok(windows)
    }
}
