//! Registries that want to know who asks: passwords, tokens, helpers, certificates.

mod support;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use serde_json::{Value, json};
use support::{
    Peel, Ran, eventually,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy},
    registry::{PASSWORD, REFRESH, Registry, TokenServer, USER, authority, can_serve, signed},
    walk,
};

/// An image of two layers, of which the second is small.
fn layout(peel: &Peel) -> Layout {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().file("a", 0o644, noise(31, 2_000_000)),
        Layer::new().file("b", 0o644, noise(32, 100_000)),
    ];
    layout.image("v1", layers, json!({}));
    layout
}

/// Runs `peel login` with a password on standard input.
fn login(peel: &Peel, host: &str, user: &str, password: &str) -> Ran {
    let mut command = peel.command();
    command.args(["login", "-u", user, "--password-stdin", host]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start");
    writeln!(child.stdin.take().expect("piped"), "{password}").expect("write");
    let output = child.wait_with_output().expect("wait");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn config(peel: &Peel) -> Value {
    let text = fs::read(peel.path("docker/config.json")).expect("read");
    serde_json::from_slice(&text).expect("JSON")
}

/// No file of the daemon holds a secret, its log included.
#[track_caller]
fn keeps_no(peel: &Peel, secret: &str) {
    for dir in [peel.root(), peel.state()] {
        for file in walk(&dir).filter(|path| path.is_file()) {
            let bytes = fs::read(&file).unwrap_or_default();
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{} holds {secret:?}", file.display());
        }
    }
}

#[test]
fn passwords() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::with_passwords();
    let credentials = format!("--dest-creds={USER}:{PASSWORD}");
    registry.push(&layout.reference("v1"), "team/app:v1", &[&credentials]);
    let (host, reference) = (&registry.host, format!("{}/team/app:v1", registry.host));

    let error = peel.peel(["pull", &reference]).fails(8);
    assert!(error.contains("authentication required") && error.contains("peel login"), "{error}");
    let error = login(&peel, host, USER, "wrong").fails(8);
    assert!(error.contains("does not take these credentials"), "{error}");
    assert!(!peel.path("docker/config.json").exists());

    let told = login(&peel, host, USER, PASSWORD);
    assert!(told.stderr.contains("unencrypted") && told.code == Some(0), "{told:?}");
    let file = fs::metadata(peel.path("docker/config.json")).expect("file");
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    // base64 of ann:sesame
    assert_eq!(config(&peel)["auths"][host], json!({ "auth": "YW5uOnNlc2FtZQ==" }));
    let digest = peel.peel(["pull", &reference]).ok();
    assert_eq!(digest.trim(), registry.raw("team/app:v1", &["--creds", "ann:sesame"]).0);
    let pushed = peel.peel(["push", &reference, &format!("{host}/other:v1")]).ok();
    assert_eq!(pushed, digest);
    for secret in [PASSWORD, "YW5uOnNlc2FtZQ=="] {
        keeps_no(&peel, secret);
    }

    // What one user brought serves nobody else
    peel.peel(["rm", &reference]).ok();
    peel.peel(["logout", host]).ok();
    assert_eq!(config(&peel)["auths"], json!({}));
    peel.peel(["pull", &reference]).fails(8);
    // A registry's own page is told from a registry
    let error = login(&peel, "localhost:1", USER, PASSWORD).fails(6);
    assert!(error.contains("cannot reach localhost:1"), "{error}");
}

/// A helper that keeps one secret in a file, and counts how often it is asked.
fn helper(peel: &Peel, name: &str) -> std::path::PathBuf {
    let dir = peel.path("bin");
    fs::create_dir_all(&dir).expect("directory");
    let program = dir.join(format!("docker-credential-{name}"));
    let store = peel.path("kept");
    fs::write(
        &program,
        format!(
            "#!/bin/sh\n\
             cd {store}\n\
             case $1 in\n\
             get) read -r server; echo get >>asked\n\
                 [ -e \"$(echo \"$server\" | tr / _)\" ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
                 cat \"$(echo \"$server\" | tr / _)\" ;;\n\
             store) cat >new; server=$(sed 's/.*\"ServerURL\":\"\\([^\"]*\\)\".*/\\1/' new); mv new \"$(echo \"$server\" | tr / _)\" ;;\n\
             erase) read -r server; rm \"$(echo \"$server\" | tr / _)\" ;;\n\
             esac\n",
            store = store.display()
        ),
    )
    .expect("write");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("mode");
    fs::create_dir_all(store).expect("directory");
    dir
}

fn path_with(dir: &Path) -> std::ffi::OsString {
    let old = std::env::var_os("PATH").unwrap_or_default();
    let all = [dir.to_owned()].into_iter().chain(std::env::split_paths(&old).collect::<Vec<_>>());
    std::env::join_paths(all).expect("path")
}

#[test]
fn helpers_keep_what_is_kept() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::with_passwords();
    let credentials = format!("--dest-creds={USER}:{PASSWORD}");
    registry.push(&layout.reference("v1"), "team/app:v1", &[&credentials]);
    let path = path_with(&helper(&peel, "test"));
    fs::create_dir_all(peel.path("docker")).expect("directory");
    fs::write(peel.path("docker/config.json"), r#"{"credsStore":"test","keep":1}"#).expect("write");
    let peel_with = |args: &[&str]| support::run(peel.command().env("PATH", &path).args(args));
    let reference = format!("{}/team/app:v1", registry.host);
    // The daemon is started without the helper on its path: it is the client that runs it
    peel.peel(["images"]).ok();
    peel_with(&["pull", &reference]).fails(8);

    let mut command = peel.command();
    command.env("PATH", &path).args(["login", "-u", USER, "--password-stdin", &registry.host]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start");
    write!(child.stdin.take().expect("piped"), "{PASSWORD}").expect("write");
    let output = child.wait_with_output().expect("wait");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("docker-credential-test"), "{told}");
    let text = config(&peel);
    assert_eq!((&text["keep"], &text["auths"][&registry.host]), (&json!(1), &json!({})));
    assert!(!text.to_string().contains(PASSWORD));
    peel_with(&["pull", &reference]).ok();
    keeps_no(&peel, PASSWORD);
    peel_with(&["logout", &registry.host]).ok();
    peel_with(&["rm", &reference]).ok();
    peel_with(&["pull", &reference]).fails(8);
}

#[test]
fn fresh_credentials_are_asked_for_in_the_middle_of_a_pull() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::with_passwords();
    let credentials = format!("--dest-creds={USER}:{PASSWORD}");
    registry.push(&layout.reference("v1"), "team/app:v1", &[&credentials]);
    let path = path_with(&helper(&peel, "test"));
    let proxy = Proxy::start(&registry.host, |r| match r.is_blob() {
        true => Fault::Slow(1_000_000),
        false => Fault::None,
    });
    let keep = |password: &str| {
        let answer = json!({ "ServerURL": proxy.host, "Username": USER, "Secret": password });
        fs::write(peel.path("kept").join(&proxy.host), answer.to_string()).expect("write");
    };
    keep(PASSWORD);
    fs::create_dir_all(peel.path("docker")).expect("directory");
    let helpers = json!({ "credHelpers": { &proxy.host: "test" } });
    fs::write(peel.path("docker/config.json"), helpers.to_string()).expect("write");
    let reference = format!("{}/team/app:v1", proxy.host);
    let ran = thread::scope(|scope| {
        let pull = scope.spawn(|| {
            let mut command = peel.command();
            command.env("PATH", &path).args(["pull", "-q", "--jobs", "1", &reference]);
            support::run(&mut command)
        });
        eventually("the first layer comes", || proxy.blob_bytes() > 100_000);
        // The password changes: the registry and the helper know
        keep("open");
        let changed = "ann:$2y$04$abcdefghijklmnopqrstuu5cldSTjqTa.nw4QeJC5.F6G/ueChgIa\n";
        fs::write(registry.dir().join("htpasswd"), changed).expect("write");
        pull.join().expect("thread")
    });
    ran.ok();
    let asked = fs::read_to_string(peel.path("kept/asked")).expect("read");
    assert_eq!(asked.lines().count(), 2, "once at first, once when it was refused");
}

#[test]
fn tokens_that_live_for_five_seconds() {
    if !can_serve() {
        return;
    }
    // The server says so, or the registry finds out
    for says in [5, 300] {
        let peel = Peel::new();
        let layout = layout(&peel);
        let tokens = TokenServer::start(&peel, 5, says, false);
        let registry = Registry::with_tokens(&tokens);
        registry.push(&layout.reference("v1"), "team/app:v1", &[]);
        let digest = registry.raw("team/app:v1", &[]).0;
        let before = tokens.asked().len();
        // The first layer outlasts the token: the rest needs another
        let proxy = Proxy::start(&registry.host, |r| match (r.is_blob(), r.earlier) {
            (true, 0) => Fault::Slow(300_000),
            _ => Fault::None,
        });
        let reference = format!("{}/team/app:v1", proxy.host);
        let pulled = peel.peel(["pull", "-q", "--jobs", "1", &reference]).ok();
        assert_eq!(pulled.trim(), digest);
        let asked = tokens.asked().split_off(before);
        assert_eq!(asked, ["GET nobody repository:team/app:pull"; 2], "it says {says}");

        // A push needs more, and lives as long
        let target = format!("{}/team/copy:v1", proxy.host);
        let before = tokens.asked().len();
        assert_eq!(peel.peel(["push", &reference, &target]).ok().trim(), digest);
        let asked = tokens.asked().split_off(before);
        assert!(asked.iter().any(|a| a.contains("repository:team/copy:pull,push")), "{asked:?}");
        assert!(asked.iter().any(|a| a.contains("repository:team/app:pull")), "{asked:?}");
        assert_eq!(registry.raw("team/copy:v1", &[]).0, digest);
    }
}

#[test]
fn a_refresh_token_takes_the_place_of_a_password() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let tokens = TokenServer::start(&peel, 60, 60, true);
    let registry = Registry::with_tokens(&tokens);
    let credentials = format!("--dest-creds={USER}:{PASSWORD}");
    registry.push(&layout.reference("v1"), "team/app:v1", &[&credentials]);
    let reference = format!("{}/team/app:v1", registry.host);
    let error = peel.peel(["pull", &reference]).fails(8);
    assert!(error.contains("refuses access"), "{error}");
    login(&peel, &registry.host, USER, "wrong").fails(8);
    login(&peel, &registry.host, USER, PASSWORD).ok();
    let kept = &config(&peel)["auths"][&registry.host];
    assert_eq!(kept["identitytoken"], REFRESH);
    let before = tokens.asked().len();
    peel.peel(["pull", &reference]).ok();
    let asked = tokens.asked().split_off(before);
    assert_eq!(asked, ["POST refresh-token repository:team/app:pull"]);
    keeps_no(&peel, REFRESH);
    // One that was taken back
    peel.peel(["rm", &reference]).ok();
    let text = config(&peel).to_string().replace(REFRESH, "another");
    fs::write(peel.path("docker/config.json"), text).expect("write");
    peel.peel(["pull", &reference]).fails(8);
}

#[test]
fn private_authorities_and_client_certificates() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let ours = authority(&peel, "ours");
    let (server, client) = (signed(&peel, &ours, "server"), signed(&peel, &ours, "client"));
    let registry = Registry::with_tls(&server, Some(&ours.certificate));
    let port = registry.host.rsplit(':').next().expect("port");
    let host = format!("localhost:{port}");
    let reference = format!("{host}/team/app:v1");
    let hosts = |text: &str| {
        let dir = peel.path("certs.d").join(&host);
        fs::create_dir_all(&dir).expect("directory");
        fs::write(dir.join("hosts.toml"), text).expect("write");
    };
    let show = |path: &Path| path.display().to_string();
    let (ca, certificate, key) =
        (show(&ours.certificate), show(&client.certificate), show(&client.key));
    let https = format!("server = \"https://{host}\"\n");

    // Filled by peel itself: skopeo would need certificates of its own
    let image = layout.reference("v1");
    peel.peel(["pull", &image]).ok();
    let table = [
        (https.clone(), 6, "cannot trust"),
        (format!("{https}ca = \"{ca}\"\n"), 6, "certificate"),
        (format!("{https}skip_verify = true\n"), 6, "certificate"),
        (format!("{https}ca = \"/none\"\n"), 5, "no such file: /none"),
        (format!("{https}ca = \"{key}\"\nclient = \"{ca}\"\n"), 5, "cannot use its certificates"),
    ];
    for (text, code, expected) in table {
        hosts(&text);
        let error = peel.peel(["push", &image, &reference]).fails(code);
        assert!(error.contains(expected), "{text}: {error}");
    }
    hosts(&format!("{https}ca = \"{ca}\"\nclient = [[\"{certificate}\", \"{key}\"]]\n"));
    let digest = peel.peel(["push", &image, &reference]).ok();
    assert_eq!(peel.peel(["pull", &reference]).ok(), digest);
    peel.peel(["rm", &reference]).ok();

    // Docker's way: files beside each other
    let dir = peel.path("certs.d").join(&host);
    fs::remove_file(dir.join("hosts.toml")).expect("remove");
    fs::copy(&ours.certificate, dir.join("ca.crt")).expect("copy");
    fs::copy(&client.certificate, dir.join("client.cert")).expect("copy");
    fs::copy(&client.key, dir.join("client.key")).expect("copy");
    assert_eq!(peel.peel(["pull", &reference]).ok(), digest);
}

#[test]
fn mirrors_stand_in_for_a_registry() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    let digest = registry.raw("team/app:v1", &[]).0;
    let mirror = Proxy::start(&registry.host, |_| Fault::None);
    let broken = Proxy::start(&registry.host, |_| Fault::Status(503, Vec::new()));
    let dir = peel.path("certs.d/registry.invalid");
    fs::create_dir_all(&dir).expect("directory");
    let hosts = format!("[host.\"http://{}\"]\n[host.\"http://{}\"]\n", broken.host, mirror.host);
    fs::write(dir.join("hosts.toml"), hosts).expect("write");
    let reference = "registry.invalid/team/app:v1";
    assert_eq!(peel.peel(["pull", "-q", reference]).ok().trim(), digest);
    assert!(!broken.seen().is_empty());
    assert!(mirror.seen().iter().all(|r| r.path.ends_with("?ns=registry.invalid")));
    // Nobody has it: the registry's own failure is told, and the mirrors'
    let error = peel.peel(["pull", "registry.invalid/team/none:v1"]).fails(6);
    assert!(error.contains("cannot reach registry.invalid"), "{error}");
    assert!(error.contains(&format!("mirrors failed: {}", broken.host)), "{error}");
}

#[test]
fn proxies_come_from_the_daemons_environment() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let layout = layout(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    // A proxy of HTTP is asked for whole URLs
    let proxy = Proxy::start(&registry.host, |_| Fault::None);
    let dir = peel.path("certs.d/registry.invalid");
    fs::create_dir_all(&dir).expect("directory");
    fs::write(dir.join("hosts.toml"), "server = \"http://registry.invalid\"\n").expect("write");
    let mut start: Command = peel.command();
    start.env("HTTP_PROXY", format!("http://{}", proxy.host)).env_remove("NO_PROXY");
    support::run(start.env_remove("no_proxy").arg("images")).ok();
    peel.peel(["pull", "-q", "registry.invalid/team/app:v1"]).ok();
    assert!(proxy.seen().iter().all(|r| r.path.starts_with("http://registry.invalid/v2/")));
    // Registries on this machine are not asked through it
    let before = proxy.seen().len();
    peel.peel(["pull", "-q", &format!("{}/team/app:v1", registry.host)]).ok();
    assert_eq!(proxy.seen().len(), before);
}
