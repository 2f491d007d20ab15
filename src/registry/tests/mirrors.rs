//! Mirrors, and what goes to which host.

use super::*;

/// A client whose hosts.toml of a server's address is this.
fn client_with(name: &str, text: &str) -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join(name);
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("hosts.toml"), text).unwrap();
    let options = RegistryOptions {
        attempts: 3,
        backoff: Duration::from_millis(5),
        idle_timeout: Duration::from_millis(400),
        hosts_dirs: vec![dir.path().to_owned()],
        ..RegistryOptions::default()
    };
    (dir, Registry::new(options).unwrap())
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_registry_last() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let lacking = Server::start(|_, _| Reply::new("404 Not Found", &[], b""));
    let good = Server::start(|_, _| Reply::new("200 OK", &[TYPED], MANIFEST));
    let own = Server::start(|_, _| panic!("a mirror has it"));
    let host = own.address.to_string();
    let (_dir, client) = client_with(
        &host,
        &format!(
            r#"
            [host."http://{gone}"]
            [host."http://{}"]
            [host."http://{}/cache"]
              capabilities = ["pull", "resolve"]
              [host."http://{}/cache".header]
                x-key = "secret"
            "#,
            lacking.address, good.address, good.address
        ),
    );
    let reference: RegistryReference = format!("{host}/a/b:v1").parse().unwrap();
    assert_eq!(client.resolve(&reference).await.unwrap().1, MANIFEST);
    let (bytes, end) = drain(&client, reference.repository(), &layer(MANIFEST)).await;
    assert!(end.is_ok() && bytes == MANIFEST, "{end:?}");
    assert_eq!(lacking.seen().len(), 2);
    let seen = good.seen();
    let ns = format!("?ns={}", host.replace(':', "%3A"));
    assert_eq!(seen[0].path, format!("/cache/v2/a/b/manifests/v1{ns}"));
    assert!(seen[1].path.starts_with("/cache/v2/a/b/blobs/sha256:"));
    assert!(seen[1].path.ends_with(&ns) && seen[1].headers["x-key"] == "secret");
}

#[tokio::test]
async fn capabilities_are_kept_to_and_failures_told() {
    let mirror = Server::start(|_, seen| match seen.path.contains("sha256:") {
        true => Reply::new("200 OK", &[TYPED], MANIFEST),
        false => panic!("{}", seen.path),
    });
    let own = Server::start(|_, seen| match seen.path.contains("missing") {
        true => Reply::new("404 Not Found", &[], b""),
        false => Reply::new("200 OK", &[TYPED], MANIFEST),
    });
    let host = own.address.to_string();
    let text = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n", mirror.address);
    let (_dir, client) = client_with(&host, &text);
    let of = |rest: &str| format!("{host}/{rest}").parse::<RegistryReference>().unwrap();
    // A tag is not the mirror's to say, a digest is
    client.resolve(&of("a:v1")).await.unwrap();
    assert!(mirror.seen().is_empty());
    client.resolve(&of(&format!("a@{}", Digest::sha256(MANIFEST)))).await.unwrap();
    assert_eq!((mirror.seen().len(), own.seen().len()), (1, 1));
    let other = Digest::sha256(b"other");
    let error = client.resolve(&of(&format!("missing@{other}"))).await.unwrap_err();
    assert!(matches!(error.innermost(), RegistryError::NotFound { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains(&format!("mirrors failed: {}", mirror.address)), "{message}");
    assert!(message.contains("wrong digest"), "{message}");

    let (_dir, client) = client_with(&host, "capabilities = [\"push\"]\n");
    let error = client.resolve(&of("a:v1")).await.unwrap_err();
    assert!(error.to_string().contains("has the capability resolve"), "{error}");
    let (_dir, client) = client_with(&host, "capabilities = \n");
    let error = client.resolve(&of("a:v1")).await.unwrap_err();
    assert!(error.to_string().contains("hosts.toml") && error.hint().is_some(), "{error}");
}

#[tokio::test]
async fn a_mirror_that_breaks_in_the_middle_is_followed_by_the_next_host() {
    let mirror = Server::start(|number, _| match number {
        0 => Reply::new("200 OK", &[], MANIFEST).cut(10),
        _ => Reply::new("500 Broken", &[], b""),
    });
    let own = Server::start(|_, seen| {
        assert_eq!(seen.headers["range"], "bytes=24-");
        Reply::new("206 Partial Content", &[("Content-Range", "bytes 24-33/34")], &MANIFEST[24..])
    });
    let host = own.address.to_string();
    let (_dir, client) = client_with(&host, &format!("[host.\"http://{}\"]\n", mirror.address));
    let reference: RegistryReference = format!("{host}/a").parse().unwrap();
    let (bytes, end) = drain(&client, reference.repository(), &layer(MANIFEST)).await;
    assert!(end.is_ok() && bytes == MANIFEST, "{end:?}");
    assert_eq!((mirror.seen().len(), own.seen().len()), (2, 1));
}
