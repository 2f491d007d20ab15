//! Entries of a tar, and the tar.
//!
//! The name and the fields that the naive model uses are those of `testing` in peel-index.

use tar::{EntryType, Header};

/// Blocks of tar.
const BLOCK: usize = 512;

/// An entry of a tar.
#[derive(Clone, Debug)]
pub struct Item {
    /// The path as written.
    pub path: Vec<u8>,
    /// What the entry makes.
    pub kind: EntryType,
    /// The link target as written.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Modification time in seconds.
    pub mtime: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Content of a file.
    pub content: Vec<u8>,
    /// Extended attributes, name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Further PAX records, key and value.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Item {
    /// An entry with nothing but a path.
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryType) -> Self {
        let (link, content) = (Vec::new(), Vec::new());
        let (xattrs, records) = (Vec::new(), Vec::new());
        let (mode, uid, mtime, device) = (0o644, 0, 1, (0, 0));
        Self { path: path.into(), kind, link, mode, uid, mtime, device, content, xattrs, records }
    }
}

/// Appends a PAX record: its length, which counts itself, key and value.
fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let digits = |len: usize| len.to_string().len();
    let mut len = rest + digits(rest);
    len = rest + digits(len);
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn push_entry(out: &mut Vec<u8>, header: &mut Header, content: &[u8]) {
    header.set_size(content.len() as u64);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Appends an entry, with a PAX header before it where it needs one.
pub fn push_item(out: &mut Vec<u8>, item: &Item) {
    let mut header = Header::new_ustar();
    let mut records = Vec::new();
    // Straight into the field: the crate would refuse `..` and clean the rest
    match header.as_old_mut().name.get_mut(..item.path.len()) {
        Some(field) => field.copy_from_slice(&item.path),
        None => push_record(&mut records, b"path", &item.path),
    }
    match header.as_old_mut().linkname.get_mut(..item.link.len()) {
        Some(field) => field.copy_from_slice(&item.link),
        None => push_record(&mut records, b"linkpath", &item.link),
    }
    for (name, value) in &item.xattrs {
        push_record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    for (key, value) in &item.records {
        push_record(&mut records, key, value);
    }
    if !records.is_empty() {
        let mut extended = Header::new_ustar();
        extended.set_entry_type(EntryType::XHeader);
        push_entry(out, &mut extended, &records);
    }
    header.set_entry_type(item.kind);
    header.set_mode(item.mode);
    header.set_uid(item.uid.into());
    header.set_gid(0);
    header.set_mtime(item.mtime);
    header.set_device_major(item.device.0).expect("a ustar header");
    header.set_device_minor(item.device.1).expect("a ustar header");
    push_entry(out, &mut header, &item.content);
}

/// The tar of some entries.
pub fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        push_item(&mut out, item);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

/// Writes right checksums into all blocks that look like ustar or GNU headers, so that what the
/// fuzzer changes in one is looked at.
pub fn fix_checksums(tar: &mut [u8]) {
    for block in tar.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            let mut header = Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
    }
}
