//! Blobs written by the compressors that people use.

use std::{
    io::{Read, Write},
    process::{Command, Stdio},
    sync::OnceLock,
    thread,
};

use super::*;

fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let mut random = Random::new(42);
        let mut data = random.text(2 << 20);
        data.extend(random.mixture(2 << 20));
        data.extend(random.bytes(1 << 20));
        data
    })
}

/// Pipes `data` through a command. None, loudly, where there is no such tool.
fn pipe(command: &[&str], data: &'static [u8]) -> Option<Vec<u8>> {
    let spawned = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let required = std::env::var_os("PEEL_REQUIRE_TOOLS").is_some_and(|v| v == "1");
            assert!(!required, "{}: {error}, and PEEL_REQUIRE_TOOLS is set", command[0]);
            eprintln!("SKIPPED: {} cannot be run: {error}", command[0]);
            return None;
        }
    };
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(data));
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success(), "{command:?}");
    Some(output)
}

fn check_tool(command: &[&str]) -> Option<Decoded> {
    let blob = pipe(command, sample())?;
    let (tar, decoded) = decode(&blob, Limits::default()).unwrap();
    assert!(tar == sample(), "{command:?}");
    assert_spans(&blob, &tar, &decoded, Limits::default());
    let (tar, small) = decode_split(&blob, SMALL, || 10_007).unwrap();
    assert!(tar == sample(), "{command:?}");
    assert_spans(&blob, &tar, &small, SMALL);
    Some(decoded)
}

#[test]
fn gzip_cli() {
    for level in ["-1", "-6", "-9"] {
        if let Some(decoded) = check_tool(&["gzip", "-c", level]) {
            assert_eq!(copied(&decoded), 0);
            assert!((4..=5).contains(&decoded.spans.len()));
        }
    }
}

#[test]
fn pigz_cli() {
    for arguments in [&["-p", "4"][..], &["-p", "4", "-i"], &["-0"], &["-p", "2", "-R"]] {
        let command = [&["pigz", "-c"], arguments].concat();
        if let Some(decoded) = check_tool(&command) {
            assert_eq!(copied(&decoded), 0);
        }
    }
}

#[test]
fn bgzip_cli() {
    if let Some(decoded) = check_tool(&["bgzip", "-c"]) {
        assert_eq!(copied(&decoded), 0);
        assert!((4..=5).contains(&decoded.spans.len()));
    }
}

#[test]
fn zstd_cli() {
    for arguments in [&["-1"][..], &["-3", "--no-check"], &["-T2", "-3"], &["-3", "--long=27"]] {
        let command = [&["zstd", "-q", "-c"], arguments].concat();
        if let Some(decoded) = check_tool(&command) {
            // One frame
            assert_eq!(copied(&decoded), sample().len() as u64);
        }
    }
}
