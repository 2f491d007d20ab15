//! The inflater against zlib: the same verdict, the same bytes, the same end, however it is fed; and
//! from every checkpoint the rest.

use super::{
    super::inflate::{Inflate, SLACK, Status, Stop, WINDOW},
    deflate::{Codes, DeflateWriter, random_code},
    gzip::gzip,
    oracle::{self, Verdict},
    *,
};

/// A place where decoding can be resumed.
struct Checkpoint {
    consumed: usize,
    bits: u8,
    produced: usize,
    /// Bytes decoded when the next one came.
    until: usize,
    /// What was looked at until then.
    window: Vec<u8>,
}

/// Decodes with pieces of input and of room of the sizes given, in a buffer that slides.
fn pieces(
    input: &[u8],
    mut given: impl FnMut() -> usize,
    mut room: impl FnMut() -> usize,
    checkpoints: &mut Vec<Checkpoint>,
) -> Verdict {
    let mut inflate = Inflate::new();
    let (mut out, mut at) = (vec![0; 3 * WINDOW], 0);
    let (mut output, mut consumed) = (Vec::new(), 0);
    let mut end = given().clamp(1, input.len().max(1)).min(input.len());
    inflate.set_floor(&[]);
    let mut open: Option<Checkpoint> = None;
    let status = loop {
        if at > 2 * WINDOW {
            out.copy_within(at - WINDOW..at, 0);
            at = WINDOW;
        }
        let enough = at + room().max(1);
        let len = if enough.is_multiple_of(2) { enough } else { enough + SLACK };
        let len = len.min(out.len());
        let step = inflate.run(&input[consumed..end], &mut out[..len], at, enough, Stop::Boundary);
        output.extend_from_slice(&out[at..at + step.produced]);
        at += step.produced;
        consumed += step.consumed;
        match step.status {
            Status::Output => assert!(at >= enough.min(len)),
            Status::Input => {
                assert_eq!(consumed, end, "input is left");
                if end == input.len() {
                    break Status::Input;
                }
                end = (end + given().max(1)).min(input.len());
            }
            Status::Boundary { bits } => {
                if let Some(mut done) = open.take() {
                    inflate.sparse_window(&mut done.window);
                    done.until = output.len();
                    checkpoints.push(done);
                }
                let before = output.len().min(WINDOW);
                inflate.set_floor(&out[at - before..at]);
                let (produced, until, window) = (output.len(), 0, Vec::new());
                open = Some(Checkpoint { consumed, bits, produced, until, window });
            }
            Status::End | Status::Corrupt => break step.status,
        }
    };
    if let (Some(mut done), Status::End) = (open, status) {
        inflate.sparse_window(&mut done.window);
        done.until = output.len();
        checkpoints.push(done);
    }
    Verdict { status, consumed, output }
}

/// All at once, to a single buffer.
fn at_once(input: &[u8], most: usize) -> Verdict {
    let mut output = vec![0; most + SLACK];
    let step = Inflate::new().run(input, &mut output, 0, most, Stop::Never);
    output.truncate(step.produced);
    Verdict { status: step.status, consumed: step.consumed, output }
}

/// Compares with zlib in several splits; returns what zlib says.
fn compare(input: &[u8], random: &mut Random) -> Status {
    let expected = oracle::inflate(input, &[]);
    let same = |found: &Verdict, how: &str| {
        assert_eq!(found.status, expected.status, "{how}: {} bytes in", found.consumed);
        if expected.status != Status::Corrupt {
            assert_eq!(found.consumed, expected.consumed, "{how}");
            assert!(found.output == expected.output, "{how}: the output differs");
        }
    };
    same(&at_once(input, expected.output.len() + 600_000), "at once");
    let mut checkpoints = Vec::new();
    let large = pieces(input, || usize::MAX, || 60_000, &mut checkpoints);
    same(&large, "in one piece");
    let mut seed = Random::new(random.next());
    let small = pieces(input, || random.below(100), || seed.below(700), &mut Vec::new());
    same(&small, "in small pieces");
    if input.len() < 3000 {
        same(&pieces(input, || 1, || 1, &mut Vec::new()), "byte by byte");
    }
    if expected.status == Status::End {
        let step = 1 + checkpoints.len() / 40;
        checkpoints.iter().step_by(step).for_each(|at| assert_resumes(input, at, &expected));
    }
    expected.status
}

/// From the checkpoint, with what is recorded of the window, the rest comes out.
fn assert_resumes(input: &[u8], at: &Checkpoint, expected: &Verdict) {
    let begin = at.consumed - usize::from(at.bits > 0);
    let rest = &expected.output[at.produced..at.until];
    let mut inflate = Inflate::new();
    let used = inflate.resume(&input[begin..], at.bits, &at.window);
    let mut out = vec![0; rest.len()];
    let (mut filled, mut used) = (0, begin + used);
    // In two halves, so that the window is needed by both
    for enough in [rest.len().min(1000) / 2, rest.len()] {
        let step = inflate.run(&input[used..], &mut out, filled, enough, Stop::Never);
        assert!(matches!(step.status, Status::Output | Status::End), "{:?}", step.status);
        filled += step.produced;
        used += step.consumed;
    }
    assert_eq!(filled, rest.len());
    assert!(out == rest, "resumed at {} it differs", at.consumed);
}

/// Blocks of all kinds, with codes as odd as can be.
fn odd_stream(random: &mut Random, wrong: bool) -> Vec<u8> {
    let mut writer = DeflateWriter::default();
    let mut produced = 0;
    let blocks = 1 + random.below(6);
    for block in 1..=blocks {
        let last = block == blocks;
        match random.below(6) {
            0 => {
                let len = [0, 1, random.below(300), random.below(70_000).min(65_535)];
                let len = len[random.below(4)];
                let content = random.bytes(len);
                writer.stored(last, &content);
                produced += content.len();
            }
            1 => writer.empty_fixed(last),
            2 => {
                writer.begin_fixed(last);
                let mut fixed = vec![8; 288];
                fixed[144..256].fill(9);
                fixed[256..280].fill(7);
                let codes = Codes { litlens: fixed, distances: vec![5; 32] };
                odd_block(&mut writer, random, &codes, &mut produced, wrong);
            }
            _ => {
                let litlens = 257 + random.below(30);
                let longest = [9, 11, 12, 15][random.below(4)];
                let distances = match random.below(6) {
                    0 => vec![0],
                    1 => vec![1],
                    2 => [vec![0; random.below(29)], vec![1]].concat(),
                    _ => {
                        let symbols = 2 + random.below(29);
                        random_code(random, symbols, 15, &[])
                    }
                };
                let litlens = match random.below(12) {
                    // An end of block and nothing else
                    0 => [vec![0; 256], vec![1]].concat(),
                    _ => random_code(random, litlens, longest, &[256]),
                };
                let codes = Codes { litlens, distances };
                writer.begin_dynamic(last, &codes, random);
                odd_block(&mut writer, random, &codes, &mut produced, wrong);
            }
        }
    }
    writer.into_bytes()
}

/// Symbols at random up to the end of the block, as the codes have them.
fn odd_block(
    writer: &mut DeflateWriter,
    random: &mut Random,
    codes: &Codes,
    produced: &mut usize,
    wrong: bool,
) {
    let Codes { litlens, distances } = codes;
    let near = random.below(2) == 0;
    for _ in 0..random.below(400) {
        let symbol = match random.below(3) {
            0 => 257 + random.below(litlens.len() - 257 + usize::from(litlens.len() == 257)),
            _ => random.below(256),
        };
        if symbol < 256 {
            *produced += usize::from(writer.symbol(litlens, symbol, 0, 0));
            continue;
        }
        let reach = (*produced).min(WINDOW);
        let fits = |&symbol: &usize| symbol < 30 && distance(symbol).0 <= reach;
        let symbols = (0..distances.len()).filter(|&symbol| distances[symbol] > 0);
        let far: Vec<usize> = symbols.filter(|symbol| wrong || fits(symbol)).collect();
        if far.is_empty() || litlens.get(symbol).is_none_or(|&len| len == 0) {
            continue;
        }
        if symbol > 285 && !wrong {
            continue;
        }
        let (base, count) = length(symbol);
        let more = random.next() as u32 & ((1 << count) - 1);
        writer.symbol(litlens, symbol, more, count);
        let chosen =
            if near { far[random.below(far.len().min(5))] } else { far[random.below(far.len())] };
        let (from, count) = distance(chosen);
        let room = (*produced).min(WINDOW).saturating_sub(from) as u32;
        let most = (1 << count) - 1;
        let back = match random.below(3) {
            _ if wrong && random.below(50) == 0 => random.next() as u32 & most,
            0 => most.min(room),
            _ => random.below(most.min(room) as usize + 1) as u32,
        };
        writer.symbol(distances, chosen, back, count);
        *produced += base + more as usize;
    }
    writer.symbol(litlens, 256, 0, 0);
}

/// Base and extra bits (RFC 1951, section 3.2.5), the long way.
fn length(symbol: usize) -> (usize, u32) {
    match symbol - 257 {
        n @ 0..8 => (3 + n, 0),
        n @ 8..28 => (3 + ((4 + n % 4) << (n / 4 - 1)), n as u32 / 4 - 1),
        28 => (258, 0),
        _ => (0, 0),
    }
}

fn distance(symbol: usize) -> (usize, u32) {
    match symbol {
        0..4 => (symbol + 1, 0),
        4..30 => (1 + ((2 + symbol % 2) << (symbol / 2 - 1)), symbol as u32 / 2 - 1),
        _ => (0, 0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn odd_streams_are_read_as_zlib_reads_them(seed: u64) {
        let mut random = Random::new(seed);
        let stream = odd_stream(&mut random, false);
        prop_assert_eq!(compare(&stream, &mut random), Status::End);
        let cut = random.below(stream.len());
        prop_assert_ne!(compare(&stream[..cut], &mut random), Status::End);
    }

    #[test]
    fn wrong_streams_are_refused_as_zlib_refuses_them(seed: u64) {
        let mut random = Random::new(seed);
        let wrong = random.below(2) == 0;
        let mut stream = odd_stream(&mut random, wrong);
        compare(&stream, &mut random);
        for _ in 0..6 {
            // The headers are where most can go wrong
            let at = random.below(stream.len()).min(random.below(400));
            stream[at] ^= 1 << random.below(8);
            compare(&stream, &mut random);
        }
    }

    #[test]
    fn streams_of_compressors_are_read_also_when_they_are_damaged(
        seed: u64,
        level in 0..10u32,
        len in 0..200_000usize,
    ) {
        let mut random = Random::new(seed);
        let mut stream = gzip(&random.mixture(len), level).split_off(10);
        compare(&stream, &mut random);
        for _ in 0..4 {
            let at = random.below(stream.len());
            stream[at] ^= 1 << random.below(8);
            compare(&stream, &mut random);
        }
    }

    #[test]
    fn noise_is_refused_as_zlib_refuses_it(seed: u64, len in 0..600usize) {
        let mut random = Random::new(seed);
        let mut noise = random.bytes(len);
        if let Some(first) = noise.first_mut() {
            // A dynamic block, mostly, with counts that are possible
            *first = [0b1010_0100, 0b100, 0b101, 0b011, *first][random.below(5)];
        }
        compare(&noise, &mut random);
    }
}

/// Every header of two bytes, over zeros, ones, and something.
#[test]
fn all_beginnings_are_judged_as_zlib_judges_them() {
    let mut random = Random::new(1);
    let tails = [vec![0; 400], vec![255; 400], random.bytes(400)];
    for first in 0..=u16::MAX {
        let tail = &tails[usize::from(first) % 3];
        let stream = [&first.to_le_bytes()[..], tail].concat();
        let expected = oracle::inflate(&stream, &[]);
        let found = at_once(&stream, 1 << 20);
        assert_eq!(found.status, expected.status, "{first:04x}");
        if expected.status != Status::Corrupt {
            assert!(found == expected, "{first:04x}");
        }
    }
}

#[test]
fn the_longest_and_farthest_matches() {
    let mut random = Random::new(2);
    let mut writer = DeflateWriter::default();
    let before = random.bytes(WINDOW);
    writer.stored(false, &before);
    let mut litlens = vec![0; 286];
    (litlens[0], litlens[256], litlens[284], litlens[285]) = (2, 2, 2, 2);
    let codes = Codes { litlens: litlens.clone(), distances: [vec![0; 28], vec![1, 1]].concat() };
    writer.begin_dynamic(true, &codes, &mut random);
    for _ in 0..500 {
        assert!(
            writer.symbol(&litlens, 285, 0, 0) && writer.symbol(&codes.distances, 29, 0x1fff, 13)
        );
        // 258 written as 227 and 31
        assert!(
            writer.symbol(&litlens, 284, 31, 5) && writer.symbol(&codes.distances, 29, 0x1fff, 13)
        );
        assert!(writer.symbol(&litlens, 0, 0, 0));
    }
    assert!(writer.symbol(&litlens, 256, 0, 0));
    let stream = writer.into_bytes();
    assert_eq!(compare(&stream, &mut random), Status::End);
    assert_eq!(at_once(&stream, 1 << 20).output.len(), WINDOW + 500 * (258 + 258 + 1));
}

/// A match of every length at every small distance, with room for it and without.
#[test]
fn all_short_distances() {
    let mut random = Random::new(3);
    for distance in 1..=40_usize {
        let mut writer = DeflateWriter::default();
        writer.stored(false, &random.bytes(distance));
        writer.begin_fixed(true);
        let fixed: Vec<u8> = (0..288)
            .map(|symbol| match symbol {
                0..=143 | 280.. => 8,
                144..=255 => 9,
                _ => 7,
            })
            .collect();
        let of = |value: usize, base: &dyn Fn(usize) -> (usize, u32), symbols: usize| {
            let symbol = (0..symbols).rev().find(|&symbol| base(symbol).0 <= value).expect("one");
            let (from, count) = base(symbol);
            (symbol, (value - from) as u32, count)
        };
        for len in 3..=258 {
            let (symbol, more, count) = of(len, &|n| length(n + 257), 29);
            writer.symbol(&fixed, symbol + 257, more, count);
            let (symbol, more, count) = of(distance, &self::distance, 30);
            writer.symbol(&[5; 32], symbol, more, count);
        }
        writer.end_block();
        assert_eq!(compare(&writer.into_bytes(), &mut random), Status::End);
    }
}

#[test]
fn nothing_before_the_start_can_be_referred_to() {
    for (before, distance, status) in
        [(&b""[..], 1, Status::Corrupt), (b"a", 1, Status::End), (b"a", 2, Status::Corrupt)]
    {
        let mut writer = DeflateWriter::default();
        writer.begin_fixed(true);
        before.iter().for_each(|&byte| writer.literal(byte));
        writer.match3(distance);
        writer.end_block();
        assert_eq!(compare(&writer.into_bytes(), &mut Random::new(4)), status);
    }
}

#[test]
fn a_window_can_be_shorter_than_what_is_looked_for() {
    let mut writer = DeflateWriter::default();
    writer.begin_fixed(true);
    writer.match3(4);
    writer.end_block();
    let stream = writer.into_bytes();
    for window in [&b"wxyz"[..], b"xyz", b""] {
        let mut inflate = Inflate::new();
        assert_eq!(inflate.resume(&stream, 0, window), 0);
        let mut out = [0; 3];
        let step = inflate.run(&stream, &mut out, 0, 3, Stop::Never);
        let expected = oracle::inflate(&stream, window);
        assert_eq!(step.status, expected.status);
        if step.status == Status::End {
            assert_eq!(out, expected.output[..]);
        }
    }
}

#[test]
fn a_state_is_small() {
    let memory = Inflate::new().memory();
    assert!(memory < 13 << 10, "{memory}");
}
