//! What is measured, and the table of medians.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

/// Reads of 4 KiB by each of the random readers while the cache is cold.
const COLD_READS: u64 = 200;
/// The same while it is warm.
const WARM_READS: u64 = 50_000;
const PAGE: u64 = 4096;

/// The files that are read, at one place.
pub(crate) struct Files {
    pub(crate) big: PathBuf,
    pub(crate) small: Vec<PathBuf>,
}

/// A kind of work. A warm one runs right after the cold one that read the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    RandomCold,
    RandomColdBy4,
    SequentialCold,
    SequentialWarm,
    RandomWarm,
    RandomWarmBy4,
    SmallCold,
    SmallWarm,
}

impl Kind {
    pub(crate) const ALL: [Self; 8] = [
        Self::RandomCold,
        Self::RandomColdBy4,
        Self::SequentialCold,
        Self::SequentialWarm,
        Self::RandomWarm,
        Self::RandomWarmBy4,
        Self::SmallCold,
        Self::SmallWarm,
    ];

    pub(crate) fn is_cold(self) -> bool {
        matches!(
            self,
            Self::RandomCold | Self::RandomColdBy4 | Self::SequentialCold | Self::SmallCold
        )
    }

    fn name(self) -> &'static str {
        match self {
            Self::RandomCold => "random 4 KiB, 1 reader, cold",
            Self::RandomColdBy4 => "random 4 KiB, 4 readers, cold",
            Self::SequentialCold => "whole big file, cold",
            Self::SequentialWarm => "whole big file, warm",
            Self::RandomWarm => "random 4 KiB, 1 reader, warm",
            Self::RandomWarmBy4 => "random 4 KiB, 4 readers, warm",
            Self::SmallCold => "all small files, cold",
            Self::SmallWarm => "all small files, warm",
        }
    }

    /// Does it; gives the seconds it took.
    pub(crate) fn run(self, files: &Files, seed: u64) -> io::Result<f64> {
        if matches!(self, Self::SequentialWarm | Self::RandomWarm | Self::RandomWarmBy4) {
            // Others read between
            sequential(files)?;
        }
        if self == Self::SmallWarm {
            small(files)?;
        }
        let start = Instant::now();
        match self {
            Self::RandomCold => random(files, 1, COLD_READS, seed)?,
            Self::RandomColdBy4 => random(files, 4, COLD_READS, seed)?,
            Self::SequentialCold | Self::SequentialWarm => sequential(files)?,
            Self::RandomWarm => random(files, 1, WARM_READS, seed)?,
            Self::RandomWarmBy4 => random(files, 4, WARM_READS, seed)?,
            Self::SmallCold | Self::SmallWarm => small(files)?,
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Whether two files hold the same.
pub(crate) fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let len = one.metadata()?.len();
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for offset in (0..len).step_by(1 << 20) {
        let part = (len - offset).min(1 << 20) as usize;
        one.read_exact_at(&mut a[..part], offset)?;
        other.read_exact_at(&mut b[..part], offset)?;
        if a[..part] != b[..part] {
            return Ok(false);
        }
    }
    Ok(other.metadata()?.len() == len)
}

fn sequential(files: &Files) -> io::Result<()> {
    let mut room = vec![0; 1 << 20];
    let mut file = File::open(&files.big)?;
    while file.read(&mut room)? > 0 {}
    Ok(())
}

fn random(files: &Files, readers: u64, reads: u64, seed: u64) -> io::Result<()> {
    thread::scope(|scope| {
        let readers: Vec<_> = (0..readers)
            .map(|reader| {
                scope.spawn(move || {
                    let file = File::open(&files.big)?;
                    let pages = file.metadata()?.len() / PAGE;
                    let mut room = [0; PAGE as usize];
                    // xorshift64; source: Marsaglia, "Xorshift RNGs", 2003
                    let mut state = (seed + 1) * 1_000_003 + reader * 7919 + 1;
                    for _ in 0..reads {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        file.read_exact_at(&mut room, state % pages * PAGE)?;
                    }
                    io::Result::Ok(())
                })
            })
            .collect();
        readers.into_iter().try_for_each(|reader| reader.join().expect("no panic"))
    })
}

fn small(files: &Files) -> io::Result<()> {
    let mut content = Vec::new();
    for path in &files.small {
        content.clear();
        File::open(path)?.read_to_end(&mut content)?;
    }
    Ok(())
}

/// Seconds by kind and place.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<(Kind, &'static str), Vec<f64>>);

impl Table {
    pub(crate) fn note(&mut self, kind: Kind, place: &'static str, seconds: f64) {
        self.0.entry((kind, place)).or_default().push(seconds);
    }

    fn median(&self, kind: Kind, place: &'static str) -> f64 {
        let mut all = self.0.get(&(kind, place)).cloned().unwrap_or_default();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Milliseconds on ext4, and for each other place the ratio to that; to the overlay on ext4
    /// for the overlays.
    pub(crate) fn markdown(&self, places: &[(&'static str, PathBuf)]) -> String {
        let mut out = String::from("| work |");
        places.iter().for_each(|(name, _)| _ = write!(out, " {name} |"));
        out.push_str("\n| --- |");
        places.iter().for_each(|_| out.push_str(" --: |"));
        for kind in Kind::ALL {
            _ = write!(out, "\n| {} |", kind.name());
            for (name, _) in places {
                let base = match *name {
                    "ext4" | "plain-overlay" => None,
                    name if name.ends_with("overlay") => Some("plain-overlay"),
                    _ => Some("ext4"),
                };
                let median = self.median(kind, name);
                _ = match base {
                    None => write!(out, " {:.1} ms |", median * 1000.0),
                    Some(base) => write!(out, " {:.2} |", median / self.median(kind, base)),
                };
            }
        }
        out.push('\n');
        out
    }
}
