//! Against servers that misbehave; the well-behaved one is in `tests/registry.rs`.

mod access;
mod mirrors;
mod server;
mod transfers;
mod uploads;

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use peel_index::Digest;

use self::server::{Reply, Seen, Server};
use super::*;
use crate::oci::{
    ACCEPTED_MANIFESTS, Descriptor, MAX_MANIFEST_SIZE, MEDIA_TYPE_OCI_INDEX,
    MEDIA_TYPE_OCI_MANIFEST, RegistryReference, Repository,
};

const MANIFEST: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;
const TYPED: (&str, &str) = ("Content-Type", MEDIA_TYPE_OCI_INDEX);

fn client() -> Registry {
    client_of(3)
}

fn client_of(attempts: u32) -> Registry {
    Registry::new(RegistryOptions {
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_millis(400),
        attempts,
        backoff: Duration::from_millis(5),
        hosts_dirs: Vec::new(),
        ..RegistryOptions::default()
    })
    .unwrap()
}

fn reference(server: &Server, rest: &str) -> RegistryReference {
    format!("{}/{rest}", server.address).parse().unwrap()
}

fn layer(bytes: &[u8]) -> Descriptor {
    Descriptor::new("layer", Digest::sha256(bytes), bytes.len() as u64)
}

/// Reads a blob to its end; what came, and how it ended.
async fn drain(
    client: &Registry,
    repository: &Repository,
    descriptor: &Descriptor,
) -> (Vec<u8>, Result<(), RegistryError>) {
    let mut stream = match client.blob(repository, descriptor, 0).await {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut bytes = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(error) => {
                assert!(stream.next().await.is_none(), "an error ends the stream");
                return (bytes, Err(error));
            }
        }
    }
    assert_eq!(stream.received(), bytes.len() as u64);
    (bytes, Ok(()))
}

#[tokio::test]
async fn a_manifest_is_asked_for_as_the_spec_says() {
    let server = Server::start(|_, _| Reply::new("200 OK", &[TYPED], MANIFEST));
    let (descriptor, bytes) = client().resolve(&reference(&server, "a/b:v1")).await.unwrap();
    assert_eq!(bytes, MANIFEST);
    let expected = Descriptor::new(MEDIA_TYPE_OCI_INDEX, Digest::sha256(MANIFEST), 34);
    assert_eq!(descriptor, expected);
    let [Seen { method, path, headers, .. }] = &server.seen()[..] else { panic!("one request") };
    assert_eq!((method.as_str(), path.as_str()), ("GET", "/v2/a/b/manifests/v1"));
    for media_type in ACCEPTED_MANIFESTS {
        assert!(headers["accept"].contains(media_type));
    }
    assert_eq!(headers["user-agent"], concat!("peel/", env!("CARGO_PKG_VERSION")));
    assert!(!headers.contains_key("authorization"));
}

#[tokio::test]
async fn the_document_says_its_type_where_the_header_is_vague() {
    let typed = format!(r#"{{"mediaType":"{MEDIA_TYPE_OCI_MANIFEST}"}}"#);
    let plain = ("Content-Type", "text/plain; charset=utf-8");
    let server = Server::start(move |_, _| Reply::new("200 OK", &[plain], typed.as_bytes()));
    let (descriptor, _) = client().resolve(&reference(&server, "a")).await.unwrap();
    assert_eq!(descriptor.media_type, MEDIA_TYPE_OCI_MANIFEST);
}

#[tokio::test]
async fn head_describes_or_says_nothing() {
    let digest = Digest::sha256(MANIFEST).to_string();
    let server = Server::start(move |number, seen| {
        assert_eq!(seen.method, "HEAD");
        let digest = ("Docker-Content-Digest", digest.as_str());
        match number {
            0 => Reply::new("200 OK", &[TYPED, digest], MANIFEST).cut(MANIFEST.len()),
            1 => Reply::new("200 OK", &[TYPED], MANIFEST).cut(MANIFEST.len()),
            _ => Reply::new("404 Not Found", &[], b""),
        }
    });
    let (client, reference) = (client(), reference(&server, "a:v1"));
    let expected = Descriptor::new(MEDIA_TYPE_OCI_INDEX, Digest::sha256(MANIFEST), 34);
    assert_eq!(client.head(&reference).await.unwrap(), Some(expected));
    assert_eq!(client.head(&reference).await.unwrap(), None);
    let error = client.head(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn wrong_digests_are_found() {
    let other = Digest::sha256(b"other");
    let header = other.to_string();
    let server = Server::start(move |_, seen| {
        let digest = ("Docker-Content-Digest", header.as_str());
        match seen.path.contains("lying") {
            true => Reply::new("200 OK", &[TYPED, digest], MANIFEST),
            false => Reply::new("200 OK", &[TYPED], MANIFEST),
        }
    });
    let client = client();
    let asked = reference(&server, &format!("a@{other}"));
    let lying = reference(&server, "lying");
    let descriptor = Descriptor::new("", other, MANIFEST.len() as u64);
    let repository = asked.repository();
    let errors = [
        client.resolve(&asked).await.unwrap_err(),
        client.resolve(&lying).await.unwrap_err(),
        client.manifest(repository, &descriptor).await.unwrap_err(),
        client.read_blob(repository, &descriptor, 1_000).await.unwrap_err(),
    ];
    for error in errors {
        let RegistryError::Digest { expected, found, .. } = &error else { panic!("{error}") };
        assert_eq!((**expected, **found), (other, Digest::sha256(MANIFEST)));
        assert!(error.is_bad_data() && error.hint().is_some());
    }
    assert_eq!(server.seen().len(), 4, "damaged content is not asked for again");
}

#[tokio::test]
async fn a_manifest_of_another_length_is_refused() {
    let server = Server::start(|_, _| Reply::new("200 OK", &[TYPED], MANIFEST));
    let reference = reference(&server, "a");
    let client = client();
    let digest = Digest::sha256(MANIFEST);
    let longer = Descriptor::new("", digest, 35);
    let error = client.manifest(reference.repository(), &longer).await.unwrap_err();
    assert!(matches!(error, RegistryError::Length { expected: 35, found: 34, .. }), "{error}");
    let shorter = Descriptor::new("", digest, 33);
    let error = client.manifest(reference.repository(), &shorter).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 33, found: 34, .. }), "{error}");
}

#[tokio::test]
async fn documents_are_read_within_their_bound() {
    let server = Server::start(|_, seen| {
        let megabyte = vec![b' '; 1 << 20];
        match seen.path.contains("announced") {
            true => {
                Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n{".to_vec())
            }
            false => Reply::chunked(&[TYPED], &[&megabyte[..]; 6]),
        }
    });
    let client = client();
    for name in ["announced", "chunked"] {
        let error = client.resolve(&reference(&server, name)).await.unwrap_err();
        assert!(
            matches!(error, RegistryError::TooLarge { limit: MAX_MANIFEST_SIZE, .. }),
            "{error}"
        );
    }
    let large = Descriptor::new("", Digest::sha256(b""), 1_000);
    let reference = reference(&server, "a");
    let error = client.read_blob(reference.repository(), &large, 999).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooLarge { limit: 999, found: 1_000, .. }), "{error}");
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    let server =
        Server::start(|number, seen| match (seen.path.contains("manifests"), number % 3) {
            (_, 0) => Reply::new("503 Unavailable", &[], b"busy"),
            (true, 1) => Reply::new("200 OK", &[TYPED], MANIFEST).cut(1),
            (false, 1) => Reply::Reset,
            _ => Reply::new("200 OK", &[TYPED], MANIFEST),
        });
    let (client, reference) = (client(), reference(&server, "a:v1"));
    assert_eq!(client.resolve(&reference).await.unwrap().1, MANIFEST);
    assert_eq!(server.seen().len(), 3);
    let (bytes, end) = drain(&client, reference.repository(), &layer(MANIFEST)).await;
    assert!(end.is_ok() && bytes == MANIFEST, "{end:?}");
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn what_does_not_pass_is_told() {
    let server = Server::start(|_, seen| match seen.path.split('/').nth(2).unwrap_or_default() {
        "down" => Reply::new("502 Bad Gateway", &[], b"<html>no\x1b[31m upstream</html>"),
        "limited" => Reply::new("429 Slow", &[("Retry-After", "3600")], b""),
        "teapot" => Reply::new("418 I'm a teapot", &[], b""),
        "silent" => Reply::Stall(Vec::new()),
        other => panic!("{other}"),
    });
    let client = client();
    let resolve = async |name: &str| {
        let before = server.seen().len();
        let error = client.resolve(&reference(&server, name)).await.unwrap_err();
        (error, server.seen().len() - before)
    };
    let (error, tries) = resolve("down").await;
    let message = error.to_string();
    assert!(
        message.contains("expected status 200, found 502: <html>no [31m upstream"),
        "{message}"
    );
    assert!(message.contains(&format!("http://{}/v2/down/manifests/latest", server.address)));
    assert_eq!(tries, 3);
    let (error, tries) = resolve("limited").await;
    assert!(matches!(error, RegistryError::RateLimited { retry_after: Some(_), .. }), "{error}");
    assert_eq!(tries, 1, "nobody waits an hour");
    let (error, tries) = resolve("teapot").await;
    assert!(matches!(error, RegistryError::Status { status: 418, .. }), "{error}");
    assert_eq!(tries, 1);
    let (error, tries) = resolve("silent").await;
    assert!(matches!(error, RegistryError::Timeout { .. }), "{error}");
    assert_eq!(tries, 3);
}

#[tokio::test]
async fn retry_after_is_kept_to() {
    let server = Server::start(|number, _| match number {
        0 => Reply::new("429 Slow", &[("Retry-After", "1")], b""),
        _ => Reply::new("200 OK", &[TYPED], MANIFEST),
    });
    let begun = Instant::now();
    client().resolve(&reference(&server, "a")).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn what_is_no_registry_is_told() {
    let html = ("Content-Type", "text/html");
    let server = Server::start(move |_, seen| {
        let path = seen.path.split('/').nth(2).unwrap_or_default();
        let digest = ("Docker-Content-Digest", "nonsense");
        match path {
            "page" => Reply::new("200 OK", &[html], b"<html>\n <b>Log in</b>"),
            "empty" => Reply::new("200 OK", &[], b""),
            "header" => Reply::new("200 OK", &[TYPED, digest], MANIFEST),
            "missing" => Reply::new("404 Not Found", &[html], b"<html>nothing here"),
            _ => Reply::Raw(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        }
    });
    let client = client();
    let table = [
        ("page", r#"no JSON: found "text/html" beginning "<html> <b>Log in</b>""#),
        ("empty", "no JSON"),
        ("header", r#"expected a digest in Docker-Content-Digest, found "nonsense""#),
        ("missing", "/missing:latest does not exist"),
        ("ssh", "connection broke while reading manifest latest"),
    ];
    for (name, expected) in table {
        let error = client.resolve(&reference(&server, name)).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    // A port that was free a moment ago
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let error = client().resolve(&format!("{closed}/a").parse().unwrap()).await.unwrap_err();
    let expected = format!("cannot reach {closed}: ");
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert!(error.to_string().contains("refused") && error.hint().is_some(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_redirect_to_another_host_does_not_carry_the_token() {
    let storage = Server::on("127.0.0.2", |_, _| Reply::new("200 OK", &[], MANIFEST));
    let elsewhere = format!("http://{}/data?signature=secret", storage.address);
    let server = Server::start(move |_, seen| match seen.path.as_str() {
        "/same" => Reply::new("200 OK", &[], MANIFEST),
        path if path.starts_with("/token") => Reply::new("200 OK", &[], br#"{"token":"t"}"#),
        path if seen.headers.contains_key("authorization") => {
            let location = if path.contains("other") { &elsewhere } else { "/same" };
            Reply::new("307 Temporary Redirect", &[("Location", location)], b"")
        }
        _ => {
            let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.headers["host"]);
            Reply::new("401 Unauthorized", &[("WWW-Authenticate", &challenge)], b"")
        }
    });
    let client = client();
    for name in ["same", "other"] {
        let reference = reference(&server, name);
        let (bytes, end) = drain(&client, reference.repository(), &layer(MANIFEST)).await;
        assert!(end.is_ok() && bytes == MANIFEST, "{name}: {end:?}");
    }
    let [seen] = &storage.seen()[..] else { panic!("one request") };
    for header in ["authorization", "referer", "cookie"] {
        assert!(!seen.headers.contains_key(header), "{header}: {seen:?}");
    }
    let same = server.seen().into_iter().find(|seen| seen.path == "/same").unwrap();
    assert_eq!(same.headers["authorization"], "Bearer t");
}

#[tokio::test]
async fn redirects_end() {
    let storage = Server::on("127.0.0.2", |_, _| {
        let challenge = r#"Bearer realm="http://127.0.0.2:1/token""#;
        Reply::new("401 Unauthorized", &[("WWW-Authenticate", challenge)], b"")
    });
    let elsewhere = format!("http://{}/data?signature=secret", storage.address);
    let closed = std::net::TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap();
    let server = Server::start(move |_, seen| {
        let closed = format!("http://{closed}/data?signature=secret");
        let location = match seen.path.split('/').nth(2) {
            Some("other") => &elsewhere,
            Some("closed") => &closed,
            Some("scheme") => "file:///etc/passwd",
            _ => "/v2/loop/again",
        };
        Reply::new("302 Found", &[("Location", location)], b"")
    });
    let client = client();
    let error = client.resolve(&reference(&server, "loop")).await.unwrap_err();
    assert!(error.to_string().contains("found \"too many of them\""), "{error}");
    let error = client.resolve(&reference(&server, "scheme")).await.unwrap_err();
    assert!(error.to_string().contains("no http or https URL"), "{error}");
    // The challenge of a storage host is not this registry's to answer
    let error = client.resolve(&reference(&server, "other")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorised { .. }), "{error}");
    let error = client.resolve(&reference(&server, "closed")).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Unreachable { .. }), "{error}");
    let all = format!("{error} {error:?}");
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    assert!(!all.contains("secret"), "{all}");
}

#[test]
fn without_ca_certificates_only_https_fails() {
    const CHILD: &str = "PEEL_TEST_NO_CERTIFICATES";
    let name = "registry::tests::without_ca_certificates_only_https_fails";
    if std::env::var_os(CHILD).is_none() {
        // The certificates' place is the environment's, which is the whole process's
        let empty = tempfile::tempdir().unwrap();
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .env("SSL_CERT_FILE", empty.path().join("none"))
            .env("SSL_CERT_DIR", empty.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = Server::start(|_, _| Reply::new("200 OK", &[TYPED], MANIFEST));
        let client = client();
        assert_eq!(client.resolve(&reference(&server, "a")).await.unwrap().1, MANIFEST);
        let remote = "registry.invalid/a".parse().unwrap();
        let error = client.resolve(&remote).await.unwrap_err();
        let RegistryError::NoCertificates { host } = &error else { panic!("{error}") };
        assert_eq!(host, "registry.invalid");
        assert!(error.hint().unwrap().contains("ca-certificates"));
    });
}

#[tokio::test]
async fn requests_run_in_tasks_side_by_side() {
    let server = Server::start(|_, _| Reply::new("200 OK", &[TYPED], MANIFEST));
    let client = Arc::new(client());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (client, reference) = (Arc::clone(&client), reference(&server, "a"));
        tasks.spawn(async move {
            let (descriptor, bytes) = client.resolve(&reference).await.unwrap();
            let repository = reference.repository();
            let mut again = vec![client.manifest(repository, &descriptor).await.unwrap()];
            again.push(client.read_blob(repository, &descriptor, 100).await.unwrap());
            let (blob, end) = drain(&client, repository, &descriptor).await;
            end.unwrap();
            again.push(blob.into());
            again.iter().all(|found| *found == bytes)
        });
    }
    assert!(tasks.join_all().await.into_iter().all(|equal| equal));
    assert_eq!(server.seen().len(), 32);
}
