//! Transfers that break: what is asked for again, and what comes of it.

use super::*;

/// A megabyte and a bit, no two parts of which are alike.
fn large() -> Vec<u8> {
    (0..1_300_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// An honest answer to a request for a part.
fn part(seen: &Seen, bytes: &[u8]) -> Reply {
    let Some(from) = from(seen) else { return Reply::new("200 OK", &[], bytes) };
    let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
    Reply::new("206 Partial Content", &[("Content-Range", &range)], &bytes[from..])
}

fn from(seen: &Seen) -> Option<usize> {
    let range = seen.headers.get("range")?;
    Some(range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().unwrap())
}

/// Ranges that were asked for, in order.
fn ranges(server: &Server) -> Vec<Option<usize>> {
    server.seen().iter().map(from).collect()
}

async fn blob(server: &Server, bytes: &[u8]) -> (Vec<u8>, Result<(), RegistryError>) {
    drain(&client(), reference(server, "a").repository(), &layer(bytes)).await
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_broke() {
    let bytes = large();
    let sent = bytes.clone();
    let server = Server::start(move |number, seen| {
        let left = sent.len() - from(seen).unwrap_or(0);
        match number {
            // Cut, reset, silent, refused, and well
            0 => part(seen, &sent).cut(left - 400_000),
            1 => Reply::Reset,
            2 => part(seen, &sent).cut(left - 300_000).stalled(),
            3 => Reply::new("503 Unavailable", &[], b""),
            _ => part(seen, &sent),
        }
    });
    let (found, end) = blob(&server, &bytes).await;
    end.unwrap();
    assert!(found == bytes);
    let asked = [None, Some(400_000), Some(400_000), Some(700_000), Some(700_000)];
    assert_eq!(ranges(&server), asked);
}

#[tokio::test]
async fn tries_without_progress_end() {
    let bytes = large();
    let sent = bytes.clone();
    let server = Server::start(move |number, seen| {
        let left = sent.len() - from(seen).unwrap_or(0);
        // 1 kB at a time is no progress
        part(seen, &sent).cut(left - if number == 0 { 500_000 } else { 1_000 })
    });
    let (found, end) = blob(&server, &bytes).await;
    let error = end.unwrap_err();
    assert!(matches!(error, RegistryError::Interrupted { .. }), "{error}");
    assert_eq!(ranges(&server), [None, Some(500_000), Some(501_000)]);
    assert_eq!(found.len(), 502_000);
    // Each of these goes far enough to count
    let sent = bytes.clone();
    let server = Server::start(move |_, seen| {
        let left = sent.len() - from(seen).unwrap_or(0);
        part(seen, &sent).cut(left.saturating_sub(270_000))
    });
    let (found, end) = blob(&server, &bytes).await;
    end.unwrap();
    assert!(found == bytes);
    assert_eq!(server.seen().len(), 5);
}

#[tokio::test]
async fn a_whole_in_place_of_a_part_is_skipped_into() {
    let bytes = large();
    let sent = bytes.clone();
    let server = Server::start(move |number, _| {
        let whole = Reply::new("200 OK", &[], &sent);
        if number == 0 { whole.cut(1_000_000) } else { whole }
    });
    let (found, end) = blob(&server, &bytes).await;
    end.unwrap();
    assert!(found == bytes);
    assert_eq!(ranges(&server), [None, Some(300_000)]);
}

#[tokio::test]
async fn a_wrong_range_is_not_believed() {
    let bytes = large();
    for wrong in ["bytes 0-99/1300000", "bytes 300000-1299999/1300001", "nonsense", ""] {
        let sent = bytes.clone();
        let server = Server::start(move |number, seen| match (number, from(seen)) {
            (0, _) => Reply::new("200 OK", &[], &sent).cut(1_000_000),
            (_, Some(from)) => {
                let headers = [("Content-Range", wrong)];
                Reply::new("206 Partial Content", &headers, &sent[from..])
            }
            (_, None) => Reply::new("200 OK", &[], &sent),
        });
        let (found, end) = blob(&server, &bytes).await;
        end.unwrap();
        assert!(found == bytes, "{wrong}");
        assert_eq!(ranges(&server), [None, Some(300_000), None], "{wrong}");
    }
    // Nor is a part that nobody asked for
    let sent = bytes.clone();
    let server = Server::start(move |_, _| {
        Reply::new("206 Partial Content", &[("Content-Range", "bytes 0-9/10")], &sent[..10])
    });
    let (found, end) = blob(&server, &bytes).await;
    assert!(found.is_empty());
    let message = end.unwrap_err().to_string();
    assert!(message.contains("206"), "{message}");
}

#[tokio::test]
async fn a_transfer_can_begin_anywhere() {
    let bytes = large();
    let sent = bytes.clone();
    let server = Server::start(move |_, seen| part(seen, &sent));
    let (client, reference) = (client(), reference(&server, "a"));
    let descriptor = layer(&bytes);
    for from in [1, 1_299_999, 1_300_000] {
        let stream = client.blob(reference.repository(), &descriptor, from).await.unwrap();
        assert!(stream.pieced().load(std::sync::atomic::Ordering::Relaxed));
        let parts: Vec<_> = stream.map(Result::unwrap).collect().await;
        let from = usize::try_from(from).unwrap();
        assert!(parts.concat() == bytes[from..], "{from}");
    }
    assert_eq!(ranges(&server), [Some(1), Some(1_299_999)], "nothing is missing of the last");
}

#[tokio::test]
async fn blobs_have_the_length_of_their_descriptor() {
    let bytes = b"0123456789";
    let server = Server::start(|_, seen| match seen.path.split('/').nth(2).unwrap_or_default() {
        "good" => Reply::new("200 OK", &[], bytes),
        "chunked" => Reply::chunked(&[], &[&bytes[..4], &bytes[4..]]),
        "announced" => Reply::new("200 OK", &[], &bytes[..9]),
        "short" => Reply::chunked(&[], &[&bytes[..4]]),
        "long" => Reply::chunked(&[], &[bytes, b"x"]),
        "cut" => Reply::new("200 OK", &[], bytes).cut(3),
        "silent" => Reply::new("200 OK", &[], bytes).cut(3).stalled(),
        other => panic!("{other}"),
    });
    let client = client();
    let descriptor = layer(bytes);
    // name, bytes that come through, tries, error
    let table = [
        ("good", 10, 1, None),
        ("chunked", 10, 1, None),
        ("announced", 0, 1, Some("expected 10 bytes, found 9")),
        ("short", 4, 3, Some("expected 10 bytes, found the end after 4")),
        ("long", 10, 1, Some("expected 10 bytes, found 11")),
        ("cut", 7, 3, Some("connection broke while reading blob sha256:")),
        ("silent", 7, 3, Some("no bytes in time while reading blob sha256:")),
    ];
    for (name, length, tries, expected) in table {
        let before = server.seen().len();
        let reference = reference(&server, name);
        let (found, end) = drain(&client, reference.repository(), &descriptor).await;
        assert_eq!(found, &bytes[..length], "{name}");
        assert_eq!(server.seen().len() - before, tries, "{name}");
        match (end, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) => {
                let message = error.to_string();
                assert!(message.contains(expected), "{name}: {message}");
                assert!(message.contains(&descriptor.digest.to_string()), "{message}");
            }
            (end, _) => panic!("{name}: {end:?}"),
        }
    }
}

#[tokio::test]
async fn a_part_keeps_its_token_to_itself() {
    // The registry redirects to storage, which breaks: what is asked for again goes by the registry
    let bytes = large();
    let sent = bytes.clone();
    let storage = Server::on("127.0.0.2", move |number, seen| {
        let reply = part(seen, &sent);
        if number == 0 { reply.cut(600_000) } else { reply }
    });
    let elsewhere = format!("http://{}/data?signature=secret", storage.address);
    let server = Server::start(move |_, seen| match seen.path.as_str() {
        path if path.starts_with("/token") => Reply::new("200 OK", &[], br#"{"token":"t"}"#),
        _ if seen.headers.contains_key("authorization") => {
            Reply::new("307 Temporary Redirect", &[("Location", &elsewhere)], b"")
        }
        _ => {
            let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.headers["host"]);
            Reply::new("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"")
        }
    });
    let (found, end) = blob(&server, &bytes).await;
    end.unwrap();
    assert!(found == bytes);
    assert_eq!(ranges(&storage), [None, Some(700_000)]);
    assert!(storage.seen().iter().all(|seen| !seen.headers.contains_key("authorization")));
}

#[tokio::test]
async fn the_bandwidth_is_kept_to() {
    let bytes = large();
    let sent = bytes.clone();
    let server = Server::start(move |_, seen| part(seen, &sent));
    let client = Registry::new(RegistryOptions {
        bandwidth: NonZeroU64::new(2_000_000),
        hosts_dirs: Vec::new(),
        ..RegistryOptions::default()
    });
    let begun = Instant::now();
    let reference = reference(&server, "a");
    let (found, end) = drain(&client.unwrap(), reference.repository(), &layer(&bytes)).await;
    end.unwrap();
    assert!(found == bytes);
    assert!(begun.elapsed() > Duration::from_millis(450), "{:?}", begun.elapsed());
}
