//! Uploads that break, and registries that are odd about them.

use std::{io::Write as _, sync::Mutex};

use super::*;

fn file(bytes: &[u8]) -> Arc<std::fs::File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(file)
}

fn push<'a>(
    client: &'a Registry,
    reference: &'a RegistryReference,
    bytes: &'a [u8],
    from: &'a [Repository],
) -> impl Future<Output = Result<Uploaded, RegistryError>> + 'a {
    let sent = Arc::new(|_| {});
    async move { client.push_blob(reference.repository(), &layer(bytes), file(bytes), from, sent).await }
}

/// Method and path without the digest.
fn lines(server: &Server) -> Vec<String> {
    let line = |seen: &Seen| {
        let path = seen.path.split("sha256").next().unwrap_or_default();
        format!("{} {path}", seen.method)
    };
    server.seen().iter().map(line).collect()
}

#[tokio::test]
async fn what_is_there_is_not_sent_and_what_is_near_is_mounted() {
    let server = Server::start(|_, seen| match (seen.method.as_str(), seen.path.as_str()) {
        ("HEAD", path) if path.contains("/has/") => Reply::new("200 OK", &[], b""),
        ("HEAD", _) => Reply::new("404 Not Found", &[], b"").cut(0),
        ("POST", path) if path.contains("from=near") => Reply::new("201 Created", &[], b""),
        ("POST", path) if path.contains("from=denied") => Reply::new("403 Forbidden", &[], b""),
        ("POST", _) => Reply::new("202 Accepted", &[("Location", "/up/1?state=x")], b""),
        ("PUT", _) => Reply::new("201 Created", &[], b""),
        (method, path) => panic!("{method} {path}"),
    });
    let client = client();
    let near = [reference(&server, "denied"), reference(&server, "near")];
    let near = near.map(|near| near.repository().clone());
    assert_eq!(
        push(&client, &reference(&server, "has"), b"x", &[]).await.unwrap(),
        Uploaded::Exists
    );
    let own = reference(&server, "own");
    assert_eq!(push(&client, &own, b"x", &near).await.unwrap(), Uploaded::Mounted);
    assert_eq!(push(&client, &own, b"x", &[]).await.unwrap(), Uploaded::Sent);
    assert_eq!(
        lines(&server),
        [
            "HEAD /v2/has/blobs/",
            "HEAD /v2/own/blobs/",
            "POST /v2/own/blobs/uploads/?mount=",
            "POST /v2/own/blobs/uploads/?mount=",
            "HEAD /v2/own/blobs/",
            "POST /v2/own/blobs/uploads/",
            "PUT /up/1?state=x&digest=",
        ]
    );
}

#[tokio::test]
async fn an_upload_goes_on_where_it_broke() {
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let had = Arc::new(Mutex::new(Vec::new()));
    let taken = Arc::clone(&had);
    let server = Server::start(move |_, seen| {
        let mut had = taken.lock().unwrap();
        let next = |status, had: &Vec<u8>| {
            let range = format!("0-{}", had.len().saturating_sub(1));
            let location = format!("/up/{}", had.len());
            Reply::new(status, &[("Location", &location), ("Range", &range)], b"")
        };
        match seen.method.as_str() {
            "HEAD" => Reply::new("404 Not Found", &[], b""),
            "POST" | "GET" => {
                next(if seen.method == "GET" { "204 No Content" } else { "202 Accepted" }, &had)
            }
            "PATCH" => {
                let range = format!("{}-{}", had.len(), 2_999_999);
                assert_eq!(seen.headers["content-range"], range);
                // The first takes a million bytes and hangs up
                let room = if had.is_empty() { 1_000_000 } else { usize::MAX };
                had.extend(&seen.body[..seen.body.len().min(room)]);
                if room < usize::MAX { Reply::Reset } else { next("202 Accepted", &had) }
            }
            "PUT" => Reply::new("201 Created", &[], b""),
            other => panic!("{other}"),
        }
    });
    let client = client();
    let uploaded = push(&client, &reference(&server, "a"), &bytes, &[]).await.unwrap();
    assert_eq!(uploaded, Uploaded::Sent);
    assert!(*had.lock().unwrap() == bytes);
    assert_eq!(
        lines(&server),
        [
            "HEAD /v2/a/blobs/",
            "POST /v2/a/blobs/uploads/",
            "PATCH /up/0",
            "GET /up/0",
            "PATCH /up/1000000",
            "PUT /up/3000000?digest=",
        ]
    );
}

#[tokio::test]
async fn an_upload_that_is_forgotten_begins_anew() {
    let bytes = vec![7; 2_000_000];
    let server = Server::start(|number, seen| match (seen.method.as_str(), number) {
        ("HEAD", _) => Reply::new("404 Not Found", &[], b""),
        ("POST", _) => Reply::new("202 Accepted", &[("Location", "/up")], b""),
        ("PATCH", 0..4) => Reply::Reset,
        ("PATCH", _) => Reply::new("202 Accepted", &[("Location", "/up")], b""),
        ("GET", _) => Reply::new("404 Not Found", &[], b""),
        ("PUT", _) => Reply::new("201 Created", &[], b""),
        (method, _) => panic!("{method}"),
    });
    let client = client();
    push(&client, &reference(&server, "a"), &bytes, &[]).await.unwrap();
    assert_eq!(
        lines(&server)[2..],
        ["PATCH /up", "GET /up", "POST /v2/a/blobs/uploads/", "PATCH /up", "PUT /up?digest=",]
    );
}

#[tokio::test]
async fn what_a_registry_refuses_is_told() {
    let other = Digest::sha256(b"other").to_string();
    let server = Server::start(move |_, seen| {
        let body = br#"{"errors":[{"code":"MANIFEST_INVALID","message":"no such blob"}]}"#;
        match seen.path.split('/').nth(2).unwrap_or_default() {
            "invalid" => Reply::new("400 Bad Request", &[], body),
            "denied" => Reply::new("403 Forbidden", &[], b""),
            "other" => Reply::new("201 Created", &[("Docker-Content-Digest", &other)], b""),
            "lost" => match seen.method.as_str() {
                "HEAD" => Reply::new("404 Not Found", &[], b""),
                _ => Reply::new("202 Accepted", &[], b""),
            },
            other => panic!("{other}"),
        }
    });
    let client = client();
    let manifest = Descriptor::new(MEDIA_TYPE_OCI_MANIFEST, Digest::sha256(MANIFEST), 34);
    let table = [
        ("invalid", "no such blob (MANIFEST_INVALID)"),
        ("denied", "refuses access"),
        ("other", "wrong digest of manifest latest"),
    ];
    for (name, expected) in table {
        let reference = reference(&server, name);
        let error = client.push_manifest(&reference, &manifest, MANIFEST.into(), true).await;
        let message = error.unwrap_err().to_string();
        assert!(message.contains(expected), "{name}: {message}");
    }
    let error = push(&client, &reference(&server, "lost"), b"x", &[]).await.unwrap_err();
    assert!(error.to_string().contains("expected a Location"), "{error}");
}
