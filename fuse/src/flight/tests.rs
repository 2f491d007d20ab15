use std::{sync::Arc, thread};

use super::{
    table::{BARRED, SLOTS, SUSPECTS},
    *,
};

fn read(unique: u64, ino: u64, at: u64) -> Call {
    Call { unique, kind: Kind::Read, ino, at, len: 4096 }
}

fn again(call: Call) -> Call {
    Call { unique: call.unique | RESENT, ..call }
}

/// Another process's view of the same table.
fn reopened(flights: &Flights) -> Flights {
    Flights::open(flights.as_fd().try_clone_to_owned().expect("dup")).expect("the same version")
}

/// Leaves a request as it is when its worker dies.
fn die_of(flights: &Flights, call: &Call) {
    std::mem::forget(reopened(flights).begin(call).expect("not barred"));
}

/// The same from several threads at once, as one thread has one slot.
fn die_of_all(flights: &Flights, calls: &[Call]) {
    let worker = &reopened(flights);
    thread::scope(|scope| {
        for call in calls {
            scope.spawn(move || std::mem::forget(worker.begin(call).expect("not barred")));
        }
    });
}

#[test]
fn two_deaths_in_a_row_bar_a_request_and_what_touches_it() {
    let keeper = Flights::create().expect("memory file");
    let call = read(10, 7, 8192);
    die_of(&reopened(&keeper), &call);
    assert_eq!(keeper.bury(Death::Fault), []);
    die_of(&reopened(&keeper), &again(call));
    let culprit = Culprit { kind: Kind::Read, ino: 7, at: 8192, len: 4096 };
    assert_eq!(keeper.bury(Death::Fault), [culprit]);
    assert_eq!(culprit.to_string(), "read of inode 0x7, 4096 bytes at 8192");

    let worker = reopened(&keeper);
    for touching in [again(call), read(20, 7, 8192 + 4095), read(22, 7, 4097)] {
        assert_eq!(worker.begin(&touching).err(), Some(culprit), "{touching:?}");
    }
    for beside in [read(24, 7, 12288), read(26, 7, 4096), read(28, 8, 8192)] {
        assert!(worker.begin(&beside).is_ok(), "{beside:?}");
    }
    let other = Call { kind: Kind::Getattr, ..call };
    assert!(worker.begin(&other).is_ok());
}

#[test]
fn a_second_place_bars_the_whole_file_for_that_operation() {
    let keeper = Flights::create().expect("memory file");
    for at in [0, 1 << 20] {
        let call = read(10 + at, 7, at);
        die_of(&keeper, &call);
        keeper.bury(Death::Fault);
        die_of(&keeper, &again(call));
        assert_eq!(keeper.bury(Death::Fault).len(), 1);
    }
    assert!(keeper.begin(&read(99, 7, 5 << 30)).is_err());
    assert!(keeper.begin(&read(99, 6, 5 << 30)).is_ok());
}

#[test]
fn kills_from_outside_blame_nobody() {
    let keeper = Flights::create().expect("memory file");
    let call = read(10, 7, 0);
    for _ in 0..9 {
        die_of(&keeper, &again(call));
        assert_eq!(keeper.bury(Death::Other), []);
    }
    // Nor do they acquit
    die_of(&keeper, &again(call));
    keeper.bury(Death::Fault);
    keeper.bury(Death::Other);
    die_of(&keeper, &again(call));
    assert_eq!(keeper.bury(Death::Fault).len(), 1);
}

#[test]
fn bystanders_are_served() {
    let keeper = Flights::create().expect("memory file");
    let (culprit, bystander) = (read(10, 7, 0), read(12, 8, 0));
    die_of_all(&keeper, &[culprit, bystander]);
    assert_eq!(keeper.bury(Death::Fault), []);
    // The next worker takes one at a time
    let worker = Arc::new(reopened(&keeper));
    let first = worker.begin(&again(culprit)).expect("once more");
    let waiting = thread::spawn({
        let worker = Arc::clone(&worker);
        move || worker.begin(&again(bystander)).map(drop)
    });
    let same_file = thread::spawn({
        let worker = Arc::clone(&worker);
        move || worker.begin(&read(14, 7, 1 << 20)).map(drop)
    });
    let others = worker.begin(&read(16, 9, 0));
    assert!(others.is_ok(), "what nobody suspects goes on");
    thread::sleep(Duration::from_millis(50));
    assert!(!waiting.is_finished() && !same_file.is_finished());
    let judged = {
        let table = reopened(&keeper);
        table.bury(Death::Fault)
    };
    assert_eq!(judged.iter().map(|c| c.ino).collect::<Vec<_>>(), [7]);
    drop(first);
    assert_eq!(waiting.join().expect("no panic"), Ok(()));
    assert!(same_file.join().expect("no panic").is_ok(), "it began before the verdict");
}

#[test]
fn those_that_cannot_be_told_apart_get_a_longer_trial() {
    let keeper = Flights::create().expect("memory file");
    let calls = [read(10, 7, 0), read(12, 8, 0)];
    let both = || {
        // As if the turn had not come in time
        for (slot, call) in keeper.table.slots().iter().zip(&calls) {
            slot.fill(call);
        }
    };
    for _ in 0..3 {
        both();
        assert_eq!(keeper.bury(Death::Fault), []);
    }
    both();
    assert_eq!(keeper.bury(Death::Fault).len(), 2);
}

#[test]
fn an_answered_suspect_is_none() {
    let keeper = Flights::create().expect("memory file");
    let call = read(10, 7, 0);
    die_of(&keeper, &call);
    keeper.bury(Death::Fault);
    drop(keeper.begin(&again(call)));
    assert!(!keeper.table.alert());
    die_of(&keeper, &again(call));
    assert_eq!(keeper.bury(Death::Fault), [], "not in a row");
    keeper.absolve();
    die_of(&keeper, &again(call));
    assert_eq!(keeper.bury(Death::Fault), []);
}

#[test]
fn more_culprits_than_room_forget_the_oldest() {
    let keeper = Flights::create().expect("memory file");
    for ino in 1..=BARRED as u64 + 1 {
        let call = Call { kind: Kind::Lookup, ..read(ino * 2, ino, name_hash(b"x")) };
        die_of(&keeper, &call);
        keeper.bury(Death::Fault);
        die_of(&keeper, &again(call));
        assert_eq!(keeper.bury(Death::Fault).len(), 1);
    }
    assert_eq!(keeper.barred().len(), BARRED);
    assert!(keeper.barred().iter().all(|c| c.ino != 1));
}

#[test]
fn progress_is_seen() {
    let flights = Flights::create().expect("memory file");
    let idle = flights.sample();
    assert!(!idle.is_stuck_since(&idle, false), "nothing is asked");
    assert!(idle.is_stuck_since(&idle, true), "nobody takes what waits");
    let read = flights.begin(&read(10, 7, 0)).expect("not barred");
    let reading = flights.sample();
    assert_eq!(reading.running.len(), 1);
    assert!(!reading.is_stuck_since(&idle, false), "it began just now");
    assert!(flights.sample().is_stuck_since(&reading, false));
    thread::scope(|scope| {
        let answer = || {
            let call = Call { kind: Kind::Getattr, ..tests::read(12, 8, 0) };
            drop(flights.begin(&call));
        };
        scope.spawn(answer);
    });
    assert!(flights.sample().is_stuck_since(&reading, false), "reads are held up all the same");
    assert!(!flights.sample().is_stuck_since(&reading, true) || !reading.running.is_empty());
    drop(read);
    assert!(!flights.sample().is_stuck_since(&reading, true));
}

#[test]
fn threads_beyond_the_last_slot_work_all_the_same() {
    let flights = Flights::create().expect("memory file");
    thread::scope(|scope| {
        for n in 0..SLOTS as u64 + 8 {
            let flights = &flights;
            scope.spawn(move || drop(flights.begin(&read(2 + n * 2, 7, 0))));
        }
    });
    let sample = flights.sample();
    assert!(sample.running.is_empty() && sample.reads >= SUSPECTS as u64 - 1, "{sample:?}");
}

#[test]
fn other_files_are_refused() {
    let file = tempfile::tempfile().expect("temporary file");
    assert!(Flights::open(file.try_clone().expect("dup").into()).is_err());
    file.set_len(1 << 20).expect("length");
    assert!(Flights::open(file.into()).is_err());
}
