//! Starts as numbers and times, without a layer.

use proptest::prelude::*;

use super::{course::FILE_LIMIT, *};

fn step(span: u32, reach: u32) -> Step {
    Step { span, reach }
}

fn course(spans: &[u32]) -> Course {
    Course(spans.iter().map(|span| step(*span, 100)).collect())
}

fn spans(course: &Course) -> Vec<u32> {
    course.0.iter().map(|step| step.span).collect()
}

fn blob() -> peel_index::Digest {
    peel_index::Digest::sha256(b"a blob")
}

/// Reads of these spans one after the other, a millisecond each from `at` on.
fn reads(starts: &Starts, at: Instant, spans: &[u32]) -> Vec<Note> {
    let read = |(n, span): (u64, &u32)| starts.note(*span, 100, at + Duration::from_millis(n));
    (0..).zip(spans).map(read).collect()
}

fn all(starts: &Starts) -> Vec<u32> {
    let next = || starts.next(Course::default);
    std::iter::from_fn(next).map(|next| next.step.span).collect()
}

#[test]
fn a_file_that_is_not_as_it_was_written_counts_for_nothing() {
    let course = Course(vec![step(7, 1 << 20), step(0, 1), step(u32::MAX, u32::MAX)]);
    let bytes = course.encode(&blob());
    assert_eq!(Course::decode(&bytes, &blob()), Some(course));
    assert_eq!(Course::decode(&bytes, &peel_index::Digest::sha256(b"another")), None);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(Course::decode(&damaged, &blob()), None, "byte {at}");
        assert_eq!(Course::decode(&bytes[..at], &blob()), None, "cut at {at}");
    }
    let full = Course((0..LIMIT as u32).map(|n| step(n, n)).collect());
    assert_eq!(full.encode(&blob()).len() as u64, FILE_LIMIT);
    assert_eq!(Course::decode(&full.encode(&blob()), &blob()), Some(full.clone()));
    let long = Course([full.0, vec![step(LIMIT as u32, 1)]].concat());
    assert_eq!(Course::decode(&long.encode(&blob()), &blob()), None);
}

#[test]
fn what_a_start_says_about_the_next() {
    let before = course(&[5, 1, 9, 3]);
    let after = |noted: &[u32]| spans(&before.followed_by(course(noted).0));
    assert_eq!(after(&[3, 9, 1, 5]), [5, 1, 9, 3], "nothing new");
    assert_eq!(after(&[9]), [5, 1, 9, 3], "most of it was in the page cache");
    assert_eq!(after(&[9, 5, 2]), [9, 5, 2], "what it is used for now");
    assert_eq!(after(&[20, 9, 21]), [5, 1, 9, 3, 20, 21], "another program");
    assert_eq!(after(&[]), [5, 1, 9, 3]);
    let deeper = before.followed_by(vec![step(9, 5000)]);
    assert_eq!(deeper.0[2], step(9, 5000));
    let many = Course((0..LIMIT as u32).map(|n| step(n, 1)).collect());
    let more = many.followed_by(vec![step(5000, 1), step(0, 1)]);
    assert_eq!((more.0.len(), more.0[1].span, more.0[LIMIT - 1].span), (LIMIT, 2, 5000));
}

#[test]
fn the_second_start_follows_the_first() {
    let starts = Starts::new();
    let at = Instant::now() + Duration::from_secs(1);
    let first = reads(&starts, at, &[8, 8, 2, 5, 2]);
    assert!(first[0].began && first[1..].iter().all(|note| !note.began), "{first:?}");
    assert!(all(&starts).is_empty(), "there was none before");
    assert!(!starts.note(2, 300, at).follow);
    assert_eq!(starts.ended(at + Duration::from_secs(1), false, Course::default), Ended::UnderWay);
    let end = at + Duration::from_secs(3);
    let kept = Course(vec![step(8, 100), step(2, 300), step(5, 100)]);
    assert_eq!(starts.ended(end, false, Course::default), Ended::Changed(kept.clone()));
    assert_eq!(starts.ended(end, false, Course::default), Ended::Not, "once");
    assert!(all(&starts).is_empty(), "not before the next start");

    // A read soon after begins none
    assert_eq!(reads(&starts, end, &[8]), [Note::default()]);
    let note = reads(&starts, end + REST, &[8])[0];
    assert_eq!(note, Note { began: true, follow: true });
    assert_eq!(all(&starts), [8, 2, 5]);
    assert_eq!(starts.ended(end + REST + LENGTH, false, Course::default), Ended::Not);

    // As does one of another worker
    let starts = Starts::new();
    assert_eq!(starts.note(8, 1, at), Note { began: true, follow: true }, "not known yet");
    let next = starts.next(|| kept.clone()).expect("a step");
    assert_eq!((next.step, next.tell, next.more), (kept.0[0], kept.0[1..].to_vec(), true));
    let next = starts.next(Course::default).expect("a step");
    assert_eq!((next.step, next.tell, next.more), (kept.0[1], vec![], true), "told once");
}

#[test]
fn a_start_ends_by_the_clock_when_it_is_full_and_at_the_end_of_the_process() {
    let at = Instant::now() + Duration::from_secs(1);
    let starts = Starts::new();
    reads(&starts, at, &[1]);
    let late = at + LENGTH;
    assert!(!starts.note(2, 1, late).began);
    assert_eq!(starts.note(3, 1, late), Note::default(), "over");
    let Ended::Changed(kept) = starts.ended(late, false, Course::default) else { panic!("ended") };
    assert_eq!(spans(&kept), [1]);

    let starts = Starts::new();
    let many: Vec<u32> = (0..5000).collect();
    reads(&starts, at, &many);
    let Ended::Changed(kept) = starts.ended(at, false, Course::default) else { panic!("full") };
    assert_eq!(kept.0.len(), LIMIT);

    let starts = Starts::new();
    reads(&starts, at, &[4]);
    assert_eq!(starts.ended(at, true, Course::default), Ended::Changed(course(&[4])));
}

#[test]
fn following_waits_for_room_and_goes_where_the_reader_is() {
    let long: Vec<u32> = (0..100).collect();
    let starts = Starts::new();
    let at = Instant::now() + Duration::from_secs(1);
    reads(&starts, at, &[0]);
    let first = starts.next(|| course(&long)).expect("a step").step;
    starts.put_back(first, true);
    assert_eq!(starts.next(Course::default), None, "no room");
    assert!(starts.note(1, 1, at).follow);
    assert_eq!(starts.next(Course::default).map(|next| next.step), Some(first), "room again");
    starts.put_back(first, false);
    assert_eq!(starts.next(Course::default).map(|next| next.step), Some(first));
    // A bit ahead is nothing
    assert!(starts.note(10, 1, at).follow);
    assert_eq!(starts.next(Course::default).map(|next| next.step.span), Some(1));
    assert!(starts.note(60, 1, at).follow);
    assert_eq!(starts.next(Course::default).map(|next| next.step.span), Some(61));
    assert!(!starts.note(99, 1, at).follow, "nothing comes after it");
    assert!(all(&starts).is_empty());
    // What is not on the course changes nothing
    assert!(!starts.note(1000, 1, at).follow);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// However starts differ: no span twice, never too many, and what was read last is there.
    #[test]
    fn courses_stay_in_bounds(
        all in prop::collection::vec(prop::collection::vec((0..3000_u32, any::<u32>()), 0..LIMIT), 1..6),
    ) {
        let mut course = Course::default();
        for start in all {
            let mut noted: Vec<Step> = Vec::new();
            for (span, reach) in start {
                if noted.iter().all(|step| step.span != span) {
                    noted.push(step(span, reach));
                }
            }
            course = course.followed_by(noted.clone());
            let mut spans = spans(&course);
            prop_assert!(spans.len() <= LIMIT);
            prop_assert!(noted.iter().all(|step| spans.contains(&step.span)));
            spans.sort_unstable();
            spans.dedup();
            prop_assert_eq!(spans.len(), course.0.len());
            prop_assert_eq!(Course::decode(&course.encode(&blob()), &blob()), Some(course.clone()));
        }
    }
}
