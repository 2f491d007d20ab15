//! Index files taken apart and closed again with right checksums, after `index/FORMAT.md` alone.

use crate::input::Random;

/// Length of the header in bytes.
const HEADER: usize = 128;
/// Length of an entry of the section table in bytes.
const ENTRY: usize = 56;
/// Sections begin at multiples of this.
const ALIGNMENT: usize = 64;
/// Sections that numbering depends on.
const NUMBERING: [u32; 7] = [2, 3, 4, 5, 6, 7, 10];

/// A file without its checksums.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Magic, version, kind, builder and slot.
    start: [u8; 24],
    /// Kind and content.
    sections: Vec<(u32, Vec<u8>)>,
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

impl Parts {
    /// Takes a file apart whose header, table and ranges make sense.
    pub fn of(file: &[u8]) -> Option<Self> {
        let start = *file.first_chunk()?;
        let mut sections = Vec::new();
        for index in 0..number(file, 24)?.min(64) as usize {
            let at = HEADER + index * ENTRY;
            let (offset, len) = (long(file, at + 8)?, long(file, at + 16)?);
            let content = file.get(offset..)?.get(..len)?;
            sections.push((number(file, at)?, content.to_vec()));
        }
        Some(Self { start, sections })
    }

    /// The file in its one layout.
    pub fn close(&self) -> Vec<u8> {
        let mut table = Vec::new();
        let mut numbering = blake3::Hasher::new_derive_key("peel 2026 index numbering");
        let mut body = vec![0; HEADER + self.sections.len() * ENTRY];
        for (kind, content) in &self.sections {
            body.resize(body.len().next_multiple_of(ALIGNMENT), 0);
            let checksum = blake3::hash(content);
            table.extend_from_slice(&u64::from(*kind).to_le_bytes());
            table.extend_from_slice(&(body.len() as u64).to_le_bytes());
            table.extend_from_slice(&(content.len() as u64).to_le_bytes());
            table.extend_from_slice(checksum.as_bytes());
            body.extend_from_slice(content);
            if NUMBERING.contains(kind) {
                numbering.update(&kind.to_le_bytes());
                numbering.update(&(content.len() as u64).to_le_bytes());
                numbering.update(checksum.as_bytes());
            }
        }
        let mut header = Vec::with_capacity(HEADER);
        header.extend_from_slice(&self.start);
        header.extend_from_slice(&(self.sections.len() as u64).to_le_bytes());
        header.extend_from_slice(&(body.len() as u64).to_le_bytes());
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(numbering.finalize().as_bytes());
        header.extend_from_slice(&blake3::hash(&table).as_bytes()[..16]);
        let checksum = blake3::hash(&header);
        header.extend_from_slice(checksum.as_bytes());
        body[..HEADER].copy_from_slice(&header);
        body[HEADER..HEADER + table.len()].copy_from_slice(&table);
        body
    }

    /// Changes one thing: with `mutate`, which changes bytes in any way, or by a step that keeps the
    /// records of a section whole.
    pub fn mutate(&mut self, random: &mut Random, mutate: impl FnOnce(&mut Vec<u8>)) {
        let (count, is_tree) = (self.sections.len(), self.start[12] == 2);
        match (random.below(64), self.sections.get_mut(random.below(count))) {
            (0, _) => self.start[8 + random.below(16)] ^= 1 << random.below(8),
            (1, Some((kind, _))) => *kind ^= 1 << random.below(32),
            (2, Some(_)) => drop(self.sections.remove(random.below(count))),
            (3..24, Some((_, content))) => mutate(content),
            (_, Some((kind, content))) => step(record_len(*kind, is_tree), content, random),
            (_, None) => {}
        }
    }
}

/// Lengths of the records of a section, of a tree or a layer.
fn record_len(kind: u32, is_tree: bool) -> usize {
    match kind {
        1 => 8,
        2 => 64,
        3 if is_tree => 16,
        3 => 12,
        7 => 24,
        8 => 72,
        10 => 112,
        _ => 1,
    }
}

/// A step that keeps records whole.
fn step(record: usize, content: &mut Vec<u8>, random: &mut Random) {
    let from = random.below(content.len() / record) * record;
    let to = random.below(content.len() / record) * record;
    if content.len() < from.max(to) + record {
        return content.extend(vec![0; record]);
    }
    let width = [1, 2, 4, 8][random.below(4)].min(record);
    let within = random.below(record / width) * width;
    let (source, target) = (from + within, to + within);
    match random.below(8) {
        0 => content.copy_within(from..from + record, to),
        1 => drop(content.drain(from..from + record)),
        2 => {
            let copy = content[from..from + record].to_vec();
            drop(content.splice(to..to, copy));
        }
        3 => content.copy_within(source..source + width, target),
        4 => content[target..target + width].fill([0, 0xff][random.below(2)]),
        5 => content[target] ^= 1 << random.below(8),
        6 => content[target] = content[target].wrapping_add(1),
        _ => content[target] = content[target].wrapping_sub(1),
    }
}
