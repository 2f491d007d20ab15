//! The store at rest: whether what is on disk is what the process that has it open knows.

use std::{fs, path::Path};

use super::{
    Metadata, MetadataError,
    export::{self, Found},
    files::{self, io_error},
    open::{Checked, GENERATION_NAME, check},
    shared::sum_of,
    slots::SLOTS_NAME,
    transaction::View as _,
};

/// Where a copy of the database is opened.
const COPY: &str = "check";

/// What is wrong with the store's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The file or directory below `metadata/`.
    pub file: &'static str,
    /// What is wrong with it.
    pub problem: String,
    /// It is as it should be again. The database itself is restored at the next opening, from the
    /// export, which is then up to date.
    pub mended: bool,
}

impl Metadata {
    /// Reads all files of the store anew and compares them with what this process knows; where
    /// `mend`, writes again what is wrong, which for the database itself is done by the next
    /// [`open`](Self::open): the caller sees to that.
    ///
    /// Changes wait meanwhile.
    ///
    /// # Errors
    /// Where a file cannot be read or written, or the store has failed before.
    pub fn check(&self, mend: bool) -> Result<Vec<Fault>, MetadataError> {
        let mut faults = Vec::new();
        self.check_numbers(mend, &mut faults)?;
        self.check_export(mend, &mut faults)?;
        let writer = self.shared.writer()?;
        let found = sum_of(&self.shared.scan(b"")?);
        let problem = match self.check_copy() {
            _ if found != writer.sum => {
                let expected = writer.sum;
                Some(format!("sum of all records: expected {expected:032x}, found {found:032x}"))
            }
            Ok(None) => Some("it holds nothing".to_owned()),
            Ok(Some((generation, _))) if generation != writer.generation => {
                let expected = writer.generation;
                Some(format!("changes are missing: expected {expected}, found {generation}"))
            }
            Ok(Some((_, sum))) if sum != writer.sum => Some("other records".to_owned()),
            Ok(Some(_)) => None,
            Err(Bad::Damaged(reason)) => Some(reason),
            Err(Bad::Error(error)) => return Err(error),
        };
        drop(writer);
        faults.extend(problem.map(|problem| Fault { file: "db", problem, mended: false }));
        Ok(faults)
    }

    /// Generation and sum of what the database on disk holds.
    fn check_copy(&self) -> Result<Option<(u64, u128)>, Bad> {
        let copy = self.shared.dir.join(COPY);
        let removed = || match fs::remove_dir_all(&copy) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &copy)(e)),
            _ => Ok(()),
        };
        removed()?;
        let copied = copy_dir(&self.shared.dir.join("db"), &copy);
        let checked = copied.and_then(|()| check(&copy, None));
        let result = match checked {
            Ok(Checked::Sound(store, state)) => {
                drop(store);
                Ok(Some((state.generation, state.sum)))
            }
            Ok(Checked::Empty(_)) => Ok(None),
            Ok(Checked::Damaged(reason)) => Err(Bad::Damaged(reason)),
            Err(error) => Err(Bad::Error(error)),
        };
        removed()?;
        result
    }

    fn check_export(&self, mend: bool, faults: &mut Vec<Fault>) -> Result<(), MetadataError> {
        let problem = match export::read(&self.export_path)? {
            Found::Damaged(reason) => Some(reason),
            Found::Nothing | Found::Export(_) => None,
        };
        if let Some(problem) = problem {
            if mend {
                self.export_anew()?;
            }
            faults.push(Fault { file: "export.json", problem, mended: mend });
        }
        Ok(())
    }

    fn check_numbers(&self, mend: bool, faults: &mut Vec<Fault>) -> Result<(), MetadataError> {
        let dir = &self.shared.dir;
        let damaged = |name: &str| -> Result<bool, MetadataError> {
            let path = dir.join(name);
            Ok(path.exists() && files::read_number(&path, name)?.is_none())
        };
        for file in [GENERATION_NAME, SLOTS_NAME] {
            if !damaged(file)? {
                continue;
            }
            if mend && file == SLOTS_NAME {
                self.slots.write_anew()?;
            } else if mend {
                self.shared.set_mark()?;
            }
            // A mark is overwritten in place: what hangs over its end stays
            let mended = mend && !damaged(file)?;
            faults.push(Fault { file, problem: "damaged number".to_owned(), mended });
        }
        Ok(())
    }
}

enum Bad {
    Damaged(String),
    Error(MetadataError),
}

impl From<MetadataError> for Bad {
    fn from(error: MetadataError) -> Self {
        Self::Error(error)
    }
}

fn copy_dir(from: &Path, to: &Path) -> Result<(), MetadataError> {
    files::make_dir(to)?;
    for entry in fs::read_dir(from).map_err(io_error("list", from))? {
        let entry = entry.map_err(io_error("list", from))?;
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_dir(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(io_error("copy", &path))?;
        }
    }
    Ok(())
}
