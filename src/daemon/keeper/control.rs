//! The keeper's own socket: answers while no worker does.
//!
//! A client writes one word (`status`, `reload`, `end`) and gets one JSON document. One that writes
//! nothing, as older versions do, gets the status.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    time::Duration,
};

use serde_json::Value;

/// What a client may take to write its word: it has connected to do so.
const PATIENCE: Duration = Duration::from_millis(100);
/// What it may take to read its answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// What the keeper is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// How it is.
    Status,
    /// To become what its program file is now.
    Reload,
    /// To end at once, whatever is mounted and whatever the worker does.
    End,
    /// Something that only another version knows.
    Unknown,
}

/// A client that waits for its answer.
pub(super) struct Asker(UnixStream);

impl Asker {
    pub(super) fn answer(mut self, document: &Value) {
        // Who asked may have gone away
        let _ = writeln!(self.0, "{document}");
    }
}

/// Takes the next client, where there is one.
pub(super) fn next(listener: &UnixListener) -> Option<(Ask, Asker)> {
    let (mut stream, _) = listener.accept().ok()?;
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(ANSWER_PATIENCE)).ok()?;
    let mut word = [0; 32];
    let len = stream.read(&mut word).unwrap_or(0);
    let ask = match word[..len].trim_ascii() {
        b"" | b"status" => Ask::Status,
        b"reload" => Ask::Reload,
        b"end" => Ask::End,
        _ => Ask::Unknown,
    };
    Some((ask, Asker(stream)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_word_one_document() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).expect("bind");
        let table = [
            ("", Ask::Status),
            ("status\n", Ask::Status),
            ("reload\n", Ask::Reload),
            ("end", Ask::End),
            ("dance\n", Ask::Unknown),
        ];
        for (word, expected) in table {
            let mut client = UnixStream::connect(&path).expect("connect");
            client.write_all(word.as_bytes()).expect("write");
            let (ask, asker) = next(&listener).expect("a client");
            assert_eq!(ask, expected, "{word:?}");
            asker.answer(&json!({ "a": 1 }));
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("read");
            assert_eq!(answer, "{\"a\":1}\n");
        }
    }
}
