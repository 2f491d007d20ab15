//! Slots and records across ends of the process, wanted and not.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use peel_index::Slot;

use super::*;

fn slots(metadata: &Metadata, count: usize) -> Vec<u32> {
    (0..count).map(|_| metadata.slots().allocate().expect("slot").number()).collect()
}

#[test]
fn no_slot_is_handed_out_twice() {
    let dir = temporary();
    let mut seen = BTreeSet::new();
    let mut take = |metadata: &Metadata, count| {
        for slot in slots(metadata, count) {
            assert!(seen.last().is_none_or(|last| *last < slot), "slot {slot} after {seen:?}");
            seen.insert(slot);
        }
    };
    // Reopening, in the middle of a reservation and at its end
    for count in [1, 15, 16, 17, 40] {
        take(&open_sound(dir.path()), count);
    }
    let old_export = {
        let metadata = open_sound(dir.path());
        metadata.export_if_dirty().expect("export");
        fs::read(dir.path().join("export.json")).expect("read")
    };
    take(&open_sound(dir.path()), 100);
    // An old export and no database: the file knows better
    fs::write(dir.path().join("export.json"), &old_export).expect("write");
    fs::remove_dir_all(dir.path().join("db")).expect("remove");
    take(&open(dir.path()).metadata, 20);
    // No file, or a damaged one: the database knows
    fs::remove_file(dir.path().join("slots")).expect("remove");
    take(&open_sound(dir.path()), 20);
    let line = fs::read_to_string(dir.path().join("slots")).expect("read");
    fs::write(dir.path().join("slots"), line.replacen("0000", "0001", 1)).expect("write");
    take(&open_sound(dir.path()), 20);
    // Neither: what stands on disk, also once it is removed
    let highest = Slot::new(5000).expect("slot");
    for remaining in [Some(highest), None] {
        fs::remove_dir_all(dir.path().join("db")).expect("remove");
        if let Some(slot) = remaining {
            fs::remove_file(dir.path().join("slots")).expect("remove");
            fs::write(dir.path().join("export.json"), &old_export).expect("write");
            open(dir.path()).metadata.slots().raise(slot);
        } else {
            let metadata = open(dir.path()).metadata;
            assert!(slots(&metadata, 1)[0] > 5000);
        }
    }
}

#[test]
fn slots_end_at_24_bits() {
    let dir = temporary();
    let metadata = open_sound(dir.path());
    metadata.slots().raise(Slot::new(Slot::MAX.number() - 2).expect("slot"));
    assert_eq!(slots(&metadata, 2), [Slot::MAX.number() - 1, Slot::MAX.number()]);
    for _ in 0..2 {
        let error = metadata.slots().allocate().expect_err("exhausted");
        assert!(matches!(error, MetadataError::SlotsExhausted { .. }), "{error}");
    }
    drop(metadata);
    let error = open_sound(dir.path()).slots().allocate().expect_err("exhausted");
    assert!(matches!(error, MetadataError::SlotsExhausted { .. }), "{error}");
}

const WRITER_DIR: &str = "PEEL_TEST_METADATA_WRITER";

/// Writes for ever, and says what was acknowledged.
fn write_for_ever(dir: &Path) -> ! {
    let metadata = open_sound(dir);
    let mut out = std::io::stdout();
    for n in 0.. {
        let slot = metadata.slots().allocate().expect("slot").number();
        let id = metadata.transaction(|tx| {
            let id = tx.next_id(IdKind::Snapshot)?;
            tx.put_snapshot(&snapshot(id, &format!("s{id}")))?;
            if n % 3 == 2 {
                tx.remove_snapshot(id - 1)?;
            }
            Ok::<_, MetadataError>(id)
        });
        if n % 20 == 19 {
            metadata.export_if_dirty().expect("export");
        }
        writeln!(out, "durable: {} {slot} {}", id.expect("commit"), n % 3 == 2).expect("write");
    }
    unreachable!("the loop has no end")
}

#[test]
fn a_killed_writer_loses_nothing_acknowledged() {
    if let Some(dir) = env::var_os(WRITER_DIR) {
        write_for_ever(Path::new(&dir));
    }
    let dir = temporary();
    let mut expected = BTreeSet::new();
    let mut slots_seen = BTreeSet::new();
    let mut last = 0;
    for round in 0..6 {
        let mut child = Command::new(env::current_exe().expect("this test"))
            .args(["--exact", "metadata::tests::crash::a_killed_writer_loses_nothing_acknowledged"])
            .args(["--nocapture", "--test-threads=1"])
            .env(WRITER_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("child");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let mut count = 0;
        // The first line comes when the store is open; then it is killed wherever it stands
        while let Some(Ok(line)) = lines.next() {
            if count == 0 && line.contains("durable: ") {
                std::thread::sleep(Duration::from_millis(20 + round * 37));
                child.kill().expect("kill");
            }
            let Some(rest) = line.split_once("durable: ").map(|(_, rest)| rest) else {
                continue;
            };
            let fields: Vec<&str> = rest.split(' ').collect();
            let [id, slot, removed] = fields[..] else {
                continue;
            };
            last = id.parse().expect("id");
            expected.insert(last);
            if removed == "true" {
                expected.remove(&(last - 1));
            }
            assert!(slots_seen.insert(slot.parse::<u32>().expect("slot")), "slot {slot} again");
            count += 1;
        }
        assert_eq!(child.wait().expect("wait").signal(), Some(libc::SIGKILL));
        assert!(count > 0, "round {round}");
        let metadata = open_sound(dir.path());
        let mut found: BTreeSet<u64> =
            metadata.snapshots().expect("list").iter().map(|s| s.id).collect();
        // One more may have been committed but not yet said
        if found.remove(&(last + 1)) && !found.contains(&last) {
            expected.remove(&last);
        }
        assert_eq!(found, expected, "round {round}");
        metadata.remove_snapshot(last + 1).expect("remove");
        let next = metadata.slots().allocate().expect("slot").number();
        assert!(slots_seen.last().is_none_or(|slot| *slot < next));
        slots_seen.insert(next);
    }
}
