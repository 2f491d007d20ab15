use super::*;
use crate::registry::RegistryOptions;

fn clients() -> Clients {
    Clients::new(&RegistryOptions::default()).unwrap()
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// URLs that are tried for a manifest.
fn urls(name: &str, dir: &Path) -> Vec<String> {
    let hosts = hosts_of(name, &[dir.to_owned()], &clients()).unwrap();
    hosts.iter().map(|host| host.url("/x/y/manifests/1").to_string()).collect()
}

#[test]
fn hosts_follow_from_the_name() {
    let clients = clients();
    let table = [
        ("docker.io", "https://registry-1.docker.io/v2/"),
        ("ghcr.io", "https://ghcr.io/v2/"),
        ("localhost", "http://localhost/v2/"),
        ("localhost:5000", "http://localhost:5000/v2/"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2/"),
        ("127.9.9.9", "http://127.9.9.9/v2/"),
        ("[::1]:5000", "http://[::1]:5000/v2/"),
        ("[::2]:5000", "https://[::2]:5000/v2/"),
        ("192.168.0.1:5000", "https://192.168.0.1:5000/v2/"),
        ("localhost.example.com", "https://localhost.example.com/v2/"),
        ("127.0.0.1.example.com", "https://127.0.0.1.example.com/v2/"),
    ];
    for (host, url) in table {
        assert_eq!(Host::plain(host, &clients).url("/").as_str(), url, "{host}");
    }
}

#[test]
fn mirrors_come_in_the_order_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "docker.io/hosts.toml",
        r#"
        server = "https://registry-1.docker.io"

        [host."https://zebra.example"]
          capabilities = ["pull", "resolve"]
          [host."https://zebra.example".header]
            x-key = ["a", "b"]
            x-other = "c"

        [host."http://10.0.0.1:5000/cache/"]
          capabilities = ["pull"]
          dial_timeout = "3s"

        [host."alpha.example/own/path"]
          override_path = true
          skip_verify = true
        "#,
    );
    assert_eq!(
        urls("docker.io", dir.path()),
        [
            "https://zebra.example/v2/x/y/manifests/1?ns=docker.io",
            "http://10.0.0.1:5000/cache/v2/x/y/manifests/1?ns=docker.io",
            "https://alpha.example/own/path/x/y/manifests/1?ns=docker.io",
            "https://registry-1.docker.io/v2/x/y/manifests/1",
        ]
    );
    let hosts = hosts_of("docker.io", &[dir.path().to_owned()], &clients()).unwrap();
    let can = |host: &Host| {
        [Capability::Pull, Capability::Resolve, Capability::Push].map(|c| host.can(c))
    };
    assert_eq!(can(&hosts[0]), [true, true, false]);
    assert_eq!(can(&hosts[1]), [true, false, false]);
    assert_eq!(can(&hosts[2]), [true; 3]);
    assert_eq!(hosts[0].headers.get_all("x-key").iter().count(), 2);
    assert_eq!(hosts[0].headers["x-other"], "c");
    assert_eq!((hosts[3].name.as_str(), hosts[0].name.as_str()), ("docker.io", "zebra.example"));
    // Without a server, the registry itself is the last
    write(dir.path(), "ghcr.io/hosts.toml", "[host.\"https://m.example\"]\n");
    assert_eq!(
        urls("ghcr.io", dir.path()),
        ["https://m.example/v2/x/y/manifests/1?ns=ghcr.io", "https://ghcr.io/v2/x/y/manifests/1",]
    );
}

#[test]
fn the_directory_is_found_as_containerd_does() {
    let dir = tempfile::tempdir().unwrap();
    let server = |at: &str| format!("server = \"https://{at}.example\"\n");
    write(dir.path(), "_default/hosts.toml", &server("default"));
    assert!(urls("r.example:5000", dir.path())[0].starts_with("https://default.example/v2/"));
    write(dir.path(), "r.example:5000/hosts.toml", &server("colon"));
    assert!(urls("r.example:5000", dir.path())[0].starts_with("https://colon.example/v2/"));
    write(dir.path(), "r.example_5000_/hosts.toml", &server("underscore"));
    assert!(urls("r.example:5000", dir.path())[0].starts_with("https://underscore.example/v2/"));
    let url = &urls("r.example:5000", dir.path())[0];
    assert!(url.ends_with("?ns=r.example%3A5000"), "{url}");
    // The first of several directories decides
    let first = tempfile::tempdir().unwrap();
    write(first.path(), "r.example:5000/hosts.toml", &server("first"));
    let dirs = [first.path().to_owned(), dir.path().to_owned()];
    let hosts = hosts_of("r.example:5000", &dirs, &clients()).unwrap();
    assert_eq!(hosts[0].authority(), "first.example");
}

#[test]
fn a_loopback_registry_with_a_certificate_speaks_https() {
    let dir = tempfile::tempdir().unwrap();
    let host = "localhost:5000";
    fs::create_dir_all(dir.path().join(host)).unwrap();
    assert!(urls(host, dir.path())[0].starts_with("http://"));
    write(dir.path(), "localhost:5000/hosts.toml", "skip_verify = true\n");
    assert!(urls(host, dir.path())[0].starts_with("https://"));
}

#[test]
fn what_is_wrong_is_told_with_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let error = |name: &str, text: &str| {
        write(dir.path(), name, text);
        hosts_of("x.io", &[dir.path().to_owned()], &clients()).unwrap_err().to_string()
    };
    let table = [
        ("server = ", "hosts.toml"),
        ("capabilities = [\"read\"]", "expected pull, resolve or push, found \"read\""),
        ("ca = \"none.crt\"", "no such file"),
        ("[host.\"ftp://x\"]", "expected an http or https URL"),
        ("client = [[\"a\", \"b\", \"c\"]]", "a certificate and its key"),
        ("[header]\n\"a b\" = \"c\"", "found \"a b\""),
        ("[host.\"https://m\"]\nca = 7", "host \"https://m\""),
    ];
    for (text, expected) in table {
        let message = error("x.io/hosts.toml", text);
        assert!(message.contains(expected) && message.contains("hosts.toml"), "{text}: {message}");
    }
    fs::remove_file(dir.path().join("x.io/hosts.toml")).unwrap();
    let message = error("x.io/client.cert", "");
    assert!(message.contains("no key beside it"), "{message}");
    fs::remove_file(dir.path().join("x.io/client.cert")).unwrap();
    let message =
        error("x.io/ca.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(message.contains("cannot use its certificates"), "{message}");
}
