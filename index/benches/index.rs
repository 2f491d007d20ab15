//! Measures the index over one layer; `scripts/bench-index` compares with other tools.
//!
//! ```text
//! index generate ENTRIES FILE      writes a tar of small files
//! index pipeline THREADS BLOB OUT  digest, decode, parse, write the index with fsync
//! index inflate BLOB               decoding alone, no digest, no tree
//! index read BLOB INDEX            open, merge, look-ups, readdir, cold reads, the tar again
//! ```
//! Prints one line a figure: name, value. Times are in seconds, the whole process included where it
//! does one thing.

use std::{
    env,
    error::Error,
    fs::{self, File},
    io::{BufWriter, Read as _, Seek as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::Arc,
    time::Instant,
};

use peel_index::{
    Algorithm, Layer, LayerBuilder, NodeId, Slot, SpanSource, StreamDecoder, TarStream, Tree, merge,
};

type Outcome = Result<(), Box<dyn Error>>;

/// What a read takes from a blob at once.
const CHUNK: usize = 256 << 10;
const ROUNDS: usize = 7;
const COLD_READS: u64 = 400;
const COLD_READ: usize = 4096;
/// Files in a directory of the generated tar.
const PER_DIRECTORY: u32 = 100;

fn main() -> Outcome {
    let arguments: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["generate", entries, file] => generate(entries.parse()?, file),
        ["pipeline", threads, blob, out] => pipeline(threads != "1", blob, out),
        ["inflate", blob] => inflate(blob),
        ["read", blob, index] => read(blob, index),
        // cargo test and cargo bench run this without arguments
        _ => {
            println!("usage: see scripts/bench-index");
            Ok(())
        }
    }
}

fn tell(name: &str, value: f64) {
    println!("{name} {value:.9}");
}

fn generate(entries: u32, file: &str) -> Outcome {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(file)?));
    for number in 0..entries {
        let mut header = tar::Header::new_ustar();
        let directory = number / PER_DIRECTORY;
        let parent = format!("usr/share/d{:03}/d{directory:06}", directory / 100);
        header.set_mtime(1_700_000_000 + u64::from(number % 1000));
        if number % PER_DIRECTORY == 0 {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, parent, &[][..])?;
        } else {
            let content = format!("content of file {number}\n");
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            let path = format!("{parent}/file{number}.txt");
            tar.append_data(&mut header, path, content.as_bytes())?;
        }
    }
    Ok(tar.into_inner()?.flush()?)
}

/// Calls `take` with the blob, chunk by chunk.
fn stream(blob: &str, mut take: impl FnMut(&[u8]) -> Outcome) -> Outcome {
    let (mut file, mut chunk) = (File::open(blob)?, vec![0; CHUNK]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(()),
            len => take(&chunk[..len])?,
        }
    }
}

fn pipeline(spread: bool, blob: &str, out: &str) -> Outcome {
    let started = Instant::now();
    let mut builder = LayerBuilder::new(Algorithm::Sha256);
    if spread {
        builder.spread();
    }
    let mut copy = BufWriter::new(File::create(format!("{out}.copy"))?);
    let mut windows = tempfile::tempfile()?;
    stream(blob, |chunk| {
        builder.push(chunk)?;
        windows.write_all(&builder.take_windows())?;
        Ok(copy.write_all(&builder.take_copy())?)
    })?;
    let built = builder.finish()?;
    copy.write_all(&built.copy_rest)?;
    let copy = copy.into_inner()?;
    // Most layers have none, and then nothing of it is kept
    if built.copy_len > 0 {
        copy.sync_all()?;
    }
    let mut index = File::create(out)?;
    let slot = Slot::new(1).ok_or("no slot")?;
    windows.rewind()?;
    built.write_to(slot, &mut index, windows)?;
    index.sync_all()?;
    tell("pipeline_seconds", started.elapsed().as_secs_f64());
    tell("tar_bytes", built.tar_len as f64);
    tell("index_bytes", index.metadata()?.len() as f64);
    tell("peak_kib", status("VmHWM")?);
    Ok(())
}

fn inflate(blob: &str) -> Outcome {
    let started = Instant::now();
    let mut decoder = StreamDecoder::new();
    stream(blob, |chunk| {
        decoder.push(chunk, &mut |_| Ok(()))?;
        decoder.take_copy();
        Ok(())
    })?;
    decoder.finish(&mut |_| Ok(()))?;
    tell("inflate_seconds", started.elapsed().as_secs_f64());
    Ok(())
}

/// The median of some runs, in seconds.
fn median<T>(mut work: impl FnMut() -> Result<T, Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let started = Instant::now();
        std::hint::black_box(work()?);
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}

fn read(blob: &str, index: &str) -> Outcome {
    let bytes: Arc<Vec<u8>> = Arc::new(fs::read(index)?);
    tell("open_seconds", median(|| Ok(Layer::open(Arc::clone(&bytes) as _)?))?);
    let layer = Arc::new(Layer::open(bytes)?);
    let inodes = f64::from(layer.inode_count());
    tell("entries", inodes);
    tell("merge_seconds", median(|| Ok(merge(&[&layer], None)?))?);
    let tree = merge(&[&layer], None)?.encode(Slot::new(2).ok_or("no slot")?);
    let tree: Arc<Vec<u8>> = Arc::new(tree);
    tell("tree_open_seconds", median(|| Ok(Tree::open(Arc::clone(&tree) as _)?))?);
    let tree = Tree::open(tree)?;
    walk(&tree)?;
    cold_reads(&layer, blob, &format!("{index}.copy"))?;
    tar_again(&layer, blob, &format!("{index}.copy"))
}

/// Every name of every directory, listed and then looked up.
fn walk(tree: &Tree) -> Outcome {
    let mut names: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut pending = vec![1];
    while let Some(directory) = pending.pop() {
        for position in 0.. {
            let Some(entry) = tree.entry(directory, position) else { break };
            names.push((directory, entry.name.to_vec()));
            if let (peel_index::FileKind::Directory, NodeId::Tree { number, .. }) =
                (entry.kind, entry.node)
            {
                pending.push(number);
            }
        }
    }
    let count = names.len() as f64;
    let seconds = median(|| {
        let directories = names.iter().map(|(directory, _)| *directory);
        let mut last = 0;
        let new = |d: &u32| std::mem::replace(&mut last, *d) != *d;
        Ok(directories.filter(new).map(|d| list(tree, d)).sum::<usize>())
    })?;
    tell("readdir_entries_per_second", count / seconds);
    let seconds = median(|| {
        Ok(names.iter().filter(|(directory, name)| tree.lookup(*directory, name).is_some()).count())
    })?;
    tell("lookups_per_second", count / seconds);
    Ok(())
}

fn list(tree: &Tree, directory: u32) -> usize {
    (0..).map_while(|position| tree.entry(directory, position)).map(|entry| entry.name.len()).sum()
}

/// 4 KiB at random places of the tar, each from a span that has to be read and decoded.
fn cold_reads(layer: &Layer, blob: &str, copy: &str) -> Outcome {
    let (blob, copy) = (File::open(blob)?, File::open(copy)?);
    let mut times = Vec::new();
    let mut state = 88_172_645_463_325_252_u64;
    for _ in 0..COLD_READS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let offset = state % layer.tar_len();
        let started = Instant::now();
        let number = layer.span_at(offset).ok_or("no span")?;
        let span = layer.span(number).ok_or("no span")?;
        let source = if span.source == SpanSource::Blob { &blob } else { &copy };
        let mut range = vec![0; span.len as usize];
        source.read_exact_at(&mut range, span.offset)?;
        let mut reader = layer.begin_span(number, range)?;
        let begin = (offset - span.tar_offset) as usize;
        let end = reader.tar_len().min(begin + COLD_READ);
        reader.advance(end)?;
        std::hint::black_box(&reader.decoded()[begin..end]);
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    tell("cold_read_seconds", times[times.len() / 2]);
    Ok(())
}

fn tar_again(layer: &Arc<Layer>, blob: &str, copy: &str) -> Outcome {
    let (blob, copy) = (File::open(blob)?, File::open(copy)?);
    let started = Instant::now();
    let mut stream = TarStream::new(Arc::clone(layer));
    let mut range = Vec::new();
    while let Some(span) = stream.wanted() {
        let source = if span.source == SpanSource::Blob { &blob } else { &copy };
        range.resize(span.len as usize, 0);
        source.read_exact_at(&mut range, span.offset)?;
        std::hint::black_box(stream.push(&range)?);
    }
    tell("tar_again_seconds", started.elapsed().as_secs_f64());
    Ok(())
}

/// A figure of this process in KiB.
fn status(name: &str) -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string(Path::new("/proc/self/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).ok_or("no such figure")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
