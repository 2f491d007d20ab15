//! Registries as they are met: that redirect, answer odd things, end tokens in the middle of a layer,
//! say nothing, are behind a proxy; and what is known before a pull begins.

mod support;

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use peel_index::{Algorithm, Hasher};
use serde_json::{Value, json};
use support::{
    Peel, can_mount,
    image::{Layer, Layout, noise},
    proxy::{Fault, Proxy, Request},
    registry::{PASSWORD, Registry, TokenServer, USER, authority, can_serve, signed},
    run,
};

const LARGE: usize = 3_000_000;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image of a large and a small layer; its manifest.
fn layout(peel: &Peel) -> (Layout, Value) {
    let mut layout = Layout::new(peel.path("layout"));
    let layers = vec![
        Layer::new().file("large", 0o644, noise(91, LARGE)),
        Layer::new().file("small", 0o644, noise(92, 100_000)),
    ];
    let manifest = layout.image("v1", layers, json!({}));
    (layout, manifest)
}

fn size(descriptor: &Value) -> u64 {
    descriptor["size"].as_u64().expect("size")
}

/// Bytes of all blobs of an image.
fn bytes(manifest: &Value) -> u64 {
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().map(size).sum::<u64>() + size(&manifest["config"])
}

fn is_large(request: &Request, manifest: &Value) -> bool {
    request.is_blob()
        && request.path.contains(manifest["layers"][0]["digest"].as_str().expect("text"))
}

#[track_caller]
fn is_whole(peel: &Peel, reference: &str) {
    peel.peel(["mount", reference, "m"]).ok();
    assert!(fs::read(peel.path("m/large")).expect("read") == noise(91, LARGE));
    assert!(fs::read(peel.path("m/small")).expect("read") == noise(92, 100_000));
    peel.peel(["umount", "m"]).ok();
}

#[test]
fn credentials_do_not_follow_a_redirect() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let (layout, manifest) = layout(&peel);
    let registry = Registry::with_passwords();
    let credentials = format!("--dest-creds={USER}:{PASSWORD}");
    registry.push(&layout.reference("v1"), "team/app:v1", &[&credentials]);
    let storage = Registry::start();
    storage.push(&layout.reference("v1"), "team/app:v1", &[]);
    // The storage breaks as well: the rest comes from there, by way of the registry or not
    let large = manifest.clone();
    let storage =
        Proxy::start(&storage.host, move |r| match is_large(r, &large) && r.earlier == 0 {
            true => Fault::Cut(1_000_000),
            false => Fault::None,
        });
    let to = storage.host.clone();
    let front = Proxy::start(&registry.host, move |r| match r.is_blob() {
        true => {
            let signed = format!("http://{to}{}?signature=x%2Fy", r.path);
            Fault::Status(307, vec![("location".to_owned(), signed)])
        }
        false => Fault::None,
    });
    fs::create_dir_all(peel.path("docker")).expect("directory");
    let secret = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let config = json!({ "auths": { &front.host: { "auth": secret } } });
    fs::write(peel.path("docker/config.json"), config.to_string()).expect("write");
    let reference = format!("{}/team/app:v1", front.host);
    peel.peel(["pull", "-q", &reference]).ok();
    is_whole(&peel, &reference);
    assert!(
        front
            .seen()
            .iter()
            .filter(|r| r.is_blob())
            .all(|r| r.headers.contains_key("authorization"))
    );
    let asked = storage.seen();
    assert_eq!(asked.iter().filter(|r| r.is_blob()).count(), 4);
    assert!(asked.iter().all(|r| !r.headers.contains_key("authorization")), "{asked:?}");
    assert!(asked.iter().all(|r| r.path.ends_with("?signature=x%2Fy")));
    assert_eq!(storage.blob_bytes(), bytes(&manifest));
}

#[test]
fn a_token_that_expires_in_the_middle_of_a_layer() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let (layout, manifest) = layout(&peel);
    // It says that they live for longer than the registry takes them
    let tokens = TokenServer::start(&peel, 5, 300, false);
    let registry = Registry::with_tokens(&tokens);
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    let before = tokens.asked().len();
    let large = manifest.clone();
    let proxy =
        Proxy::start(&registry.host, move |r| match is_large(r, &large) && r.earlier == 0 {
            true => Fault::Stall(1_000_000),
            false => Fault::None,
        });
    // Silent for longer than the token lives
    run(peel.command().env("PEEL_STALL_TIMEOUT", "7").arg("images")).ok();
    let reference = format!("{}/team/app:v1", proxy.host);
    peel.peel(["pull", "-q", &reference]).ok();
    is_whole(&peel, &reference);
    assert_eq!(tokens.asked().split_off(before), ["GET nobody repository:team/app:pull"; 2]);
    let ranges: Vec<_> =
        proxy.seen().iter().filter(|r| is_large(r, &manifest)).map(Request::from).collect();
    // Asked with the old token, and with the new one
    assert_eq!(ranges, [None, Some(1_000_000), Some(1_000_000)]);
    assert_eq!(proxy.blob_bytes(), bytes(&manifest));
}

#[test]
fn answers_that_are_no_image() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let (layout, _) = layout(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    let digest = format!("sha256:{}", "0".repeat(64));
    let old = json!({ "schemaVersion": 1, "name": "a", "tag": "b", "fsLayers": [], "history": [] });
    let layer = json!({ "mediaType": "text/plain", "digest": digest, "size": 5 });
    let chart = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": {
        "mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": digest, "size": 2 },
        "layers": [layer] });
    let table: [(&'static str, Vec<u8>, &str); 6] = [
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            old.to_string().into(),
            "found: Docker schema 1",
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+json",
            old.to_string().into(),
            "found: Docker schema 1",
        ),
        (MANIFEST, chart.to_string().into(), "application/vnd.cncf.helm"),
        ("text/html", b"<html>sign in</html>".to_vec(), "is no JSON"),
        (MANIFEST, Vec::new(), "team/app"),
        (MANIFEST, b"[1, 2".to_vec(), "team/app"),
    ];
    for (media_type, body, expected) in table {
        let shown = format!("{media_type}: {}", String::from_utf8_lossy(&body));
        let proxy = Proxy::start(&registry.host, move |r| match r.path.contains("/manifests/") {
            true => Fault::Answer(media_type, body.clone()),
            false => Fault::None,
        });
        let ran = peel.peel(["pull", "-q", &format!("{}/team/app:v1", proxy.host)]);
        let error = ran.fails(5);
        assert!(error.contains(expected) && error.contains("hint: "), "{shown}: {error}");
        assert_eq!(proxy.blob_bytes(), 0);
    }
    assert_eq!(peel.json(["images", "--json"]), json!([]));
}

#[test]
fn what_descriptors_carry_is_not_asked_for() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let (mut layout, mut manifest) = layout(&peel);
    let registry = Registry::start();
    let small = manifest["layers"][1]["digest"].as_str().expect("text").to_owned();
    let config = manifest["config"]["digest"].as_str().expect("text").to_owned();
    let read = |digest: &str| STANDARD.encode(fs::read(layout.blob_path(digest)).expect("read"));
    manifest["layers"][1]["data"] = json!(read(&small));
    manifest["config"]["data"] = json!(read(&config));
    let descriptor = layout.blob(MANIFEST, manifest.to_string().as_bytes());
    layout.tag("inline", descriptor.clone());
    let proxy = Proxy::start(&registry.host, |_| Fault::None);
    let reference = format!("{}/team/app:v1", proxy.host);
    peel.peel(["pull", "-q", &layout.reference("inline")]).ok();
    let pushed = peel.peel(["push", &layout.reference("inline"), &reference]).ok();
    assert_eq!(pushed.trim(), descriptor["digest"]);
    peel.peel(["rm", &layout.reference("inline")]).ok();
    let before = proxy.seen().len();
    assert_eq!(peel.peel(["pull", "-q", &reference]).ok(), pushed);
    is_whole(&peel, &reference);
    let asked = proxy.seen().split_off(before);
    assert!(
        !asked.iter().any(|r| r.path.contains(&small) || r.path.contains(&config)),
        "{asked:?}"
    );
    assert_eq!(asked.iter().filter(|r| r.is_blob()).count(), 1);
}

#[test]
fn digests_of_sha512_and_layers_of_zstd() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let (layout, manifest) = layout(&peel);
    let registry = Registry::start();
    let options = ["--dest-compress-format", "zstd", "--dest-force-compress-format"];
    // Older skopeos have no second option, and compress what is not compressed yet
    let plain = format!("dir:{}", peel.path("plain").display());
    let copy =
        ["--insecure-policy", "copy", "-q", "--dest-decompress", &layout.reference("v1"), &plain];
    run(Command::new("skopeo").args(copy)).ok();
    registry.push(&plain, "zstd:v1", &options[..2]);
    let (digest, raw) = registry.raw("zstd:v1", &[]);
    assert!(raw.contains("tar+zstd"), "{raw}");
    let reference = format!("{}/zstd:v1", registry.host);
    assert_eq!(peel.peel(["pull", "-q", &reference]).ok().trim(), digest);
    is_whole(&peel, &reference);

    // A registry that keeps blobs by sha512: what it has is told by its own digest of them
    let sha512 = |bytes: &[u8]| {
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(bytes);
        hasher.finish().to_string()
    };
    type Blobs = Vec<(String, Vec<u8>)>;
    let blobs: Arc<Mutex<Blobs>> = Arc::default();
    let mut other = manifest.clone();
    let mut of = |descriptor: &mut Value| {
        let path = layout.blob_path(descriptor["digest"].as_str().expect("text"));
        let bytes = fs::read(path).expect("read");
        descriptor["digest"] = json!(sha512(&bytes));
        blobs.lock().expect("lock").push((sha512(&bytes), bytes));
    };
    of(&mut other["config"]);
    other["layers"].as_array_mut().expect("layers").iter_mut().for_each(&mut of);
    let body = other.to_string();
    let expected = sha512(body.as_bytes());
    for spoilt in [false, true] {
        let (blobs, body) = (Arc::clone(&blobs), body.clone());
        let proxy = Proxy::start(&registry.host, move |r| {
            if r.path.contains("/manifests/") {
                return Fault::Answer(MANIFEST, body.clone().into());
            }
            let known = blobs.lock().expect("lock");
            let found = known.iter().find(|(digest, _)| r.path.ends_with(digest.as_str()));
            found.map_or(Fault::None, |(_, bytes)| {
                let mut bytes = bytes.clone();
                if spoilt && bytes.len() > 100_000 {
                    bytes[50_000] ^= 1;
                }
                Fault::Answer("application/octet-stream", bytes)
            })
        });
        let fresh = Peel::new();
        let reference = format!("{}/x@{expected}", proxy.host);
        let ran = fresh.peel(["pull", "-q", &reference]);
        match spoilt {
            false => {
                assert_eq!(ran.ok().trim(), expected);
                is_whole(&fresh, &reference);
            }
            true => {
                let error = ran.fails(5);
                assert!(error.contains("wrong digest") && error.contains("sha512:"), "{error}");
            }
        }
    }
}

#[test]
fn bodies_without_a_length_silence_and_a_spoilt_config() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    run(peel.command().env("PEEL_STALL_TIMEOUT", "1").arg("images")).ok();
    let (layout, manifest) = layout(&peel);
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    let config = manifest["config"]["digest"].as_str().expect("text").to_owned();
    let all = bytes(&manifest);
    type Spoil = Box<dyn Fn(&Request) -> Fault + Send + Sync>;
    let large = manifest.clone();
    let table: Vec<(&str, Spoil)> = vec![
        (
            "no length, cut",
            Box::new(move |r| match is_large(r, &large) && r.earlier == 0 {
                true => Fault::NoLength(1_000_000),
                false => Fault::None,
            }),
        ),
        (
            "no answer to the first question",
            Box::new(|r| match r.path.contains("/manifests/") && r.earlier == 0 {
                true => Fault::Silent,
                false => Fault::None,
            }),
        ),
        (
            "no answer for a blob",
            Box::new(|r| if r.is_blob() && r.earlier == 0 { Fault::Silent } else { Fault::None }),
        ),
    ];
    for (name, spoil) in table {
        let proxy = Proxy::start(&registry.host, spoil);
        let reference = format!("{}/team/app:v1", proxy.host);
        let ran = peel.peel(["pull", "-q", &reference]);
        assert_eq!(ran.code, Some(0), "{name}: {ran:?}");
        is_whole(&peel, &reference);
        peel.peel(["rm", &reference]).ok();
        assert_eq!(proxy.blob_bytes(), all, "{name}");
    }
    let spoilt = config.clone();
    let proxy = Proxy::start(&registry.host, move |r| match r.path.ends_with(&spoilt) {
        true => Fault::Flip(20),
        false => Fault::None,
    });
    let error = peel.peel(["pull", "-q", &format!("{}/team/app:v1", proxy.host)]).fails(5);
    assert!(error.contains("wrong digest") && error.contains(&config), "{error}");
    let proxy = Proxy::start(&registry.host, |r| match r.path.contains("/manifests/") {
        true => Fault::Silent,
        false => Fault::None,
    });
    let error = peel.peel(["pull", "-q", &format!("{}/team/app:v1", proxy.host)]).fails(6);
    assert!(error.contains("hint: "), "{error}");
}

#[test]
fn so_many_layers_at_a_time() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layer = |n: u64| Layer::new().file(&format!("f{n}"), 0o644, noise(n, 200_000));
    layout.image("v1", (1..9).map(layer).collect(), json!({}));
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    for (jobs, expected) in [("0", 3), ("1", 1), ("8", 8)] {
        let proxy = Proxy::start(&registry.host, |r| match r.is_blob() {
            true => Fault::Slow(400_000),
            false => Fault::None,
        });
        let reference = format!("{}/team/app:v1", proxy.host);
        peel.peel(["pull", "-q", "--jobs", jobs, &reference]).ok();
        assert_eq!(proxy.most_at_once(), expected, "--jobs {jobs}");
        peel.peel(["rm", &reference]).ok();
    }
}

/// A proxy of HTTPS, which sees names and nothing else; what it was asked for.
fn tunnel(to: &str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let host = listener.local_addr().expect("address").to_string();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (log, to) = (Arc::clone(&asked), to.to_owned());
    let pass = move |mut client: TcpStream| -> std::io::Result<()> {
        let mut reader = BufReader::new(client.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        log.lock().expect("lock").push(line.trim_end().to_owned());
        while reader.read_line(&mut line)? > 2 {}
        let mut server = TcpStream::connect(&to)?;
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        let (mut back, mut forth) = (server.try_clone()?, client.try_clone()?);
        thread::spawn(move || std::io::copy(&mut back, &mut forth));
        std::io::copy(&mut reader, &mut server)?;
        Ok(())
    };
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let pass = pass.clone();
            // Either side may hang up
            thread::spawn(move || drop(pass(client)));
        }
    });
    (host, asked)
}

#[test]
fn tls_through_a_tunnel_and_without_a_look_at_the_certificate() {
    if !can_serve() {
        return;
    }
    let peel = Peel::new();
    let (layout, _) = layout(&peel);
    let ours = authority(&peel, "ours");
    let registry = Registry::with_tls(&signed(&peel, &ours, "server"), None);
    let (proxy, asked) = tunnel(&registry.host);
    let hosts = |name: &str, text: &str| {
        let dir = peel.path("certs.d").join(name);
        fs::create_dir_all(&dir).expect("directory");
        fs::write(dir.join("hosts.toml"), text).expect("write");
    };
    let authority = ours.certificate.display();
    hosts(
        "registry.invalid",
        &format!("server = \"https://registry.invalid\"\nca = \"{authority}\"\n"),
    );
    let mut start = peel.command();
    start
        .env("HTTPS_PROXY", format!("http://{proxy}"))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy");
    run(start.arg("images")).ok();
    peel.peel(["pull", "-q", &layout.reference("v1")]).ok();
    let reference = "registry.invalid/team/app:v1";
    let pushed = peel.peel(["push", &layout.reference("v1"), reference]).ok();
    peel.peel(["rm", &layout.reference("v1")]).ok();
    assert_eq!(peel.peel(["pull", "-q", reference]).ok(), pushed);
    is_whole(&peel, reference);
    let asked = asked.lock().expect("lock").clone();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|line| line == "CONNECT registry.invalid:443 HTTP/1.1"), "{asked:?}");

    // Whatever certificate it has
    let port = registry.host.rsplit(':').next().expect("port");
    let host = format!("localhost:{port}");
    let reference = format!("{host}/team/app:v1");
    hosts(&host, &format!("server = \"https://{host}\"\n"));
    assert!(peel.peel(["pull", &reference]).fails(6).contains("cannot trust"));
    hosts(&host, &format!("server = \"https://{host}\"\nskip_verify = true\n"));
    assert_eq!(peel.peel(["pull", "-q", &reference]).ok(), pushed);
}

#[test]
fn a_disk_that_is_too_small_is_known_before_a_layer_is_fetched() {
    if !can_serve() || !can_mount() {
        return;
    }
    let peel = Peel::new();
    let mut layout = Layout::new(peel.path("layout"));
    let layers = [93, 94].map(|n| Layer::new().file(&format!("f{n}"), 0o644, noise(n, 12 << 20)));
    let manifest = layout.image("v1", layers.into(), json!({}));
    let registry = Registry::start();
    registry.push(&layout.reference("v1"), "team/app:v1", &[]);
    let proxy = Proxy::start(&registry.host, |_| Fault::None);
    let reference = format!("{}/team/app:v1", proxy.host);
    fs::create_dir_all(peel.root()).expect("directory");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", peel.root(), "tmpfs", flags, c"size=20m").expect("tmpfs");
    let error = peel.peel(["pull", "-q", &reference]).fails(7);
    let needed: u64 = manifest["layers"].as_array().expect("layers").iter().map(size).sum();
    assert!(error.contains("no space left") && error.contains(&needed.to_string()), "{error}");
    let config = manifest["config"]["digest"].as_str().expect("text");
    let blobs: Vec<_> = proxy.seen().into_iter().filter(Request::is_blob).collect();
    assert!(blobs.iter().all(|r| r.path.ends_with(config)), "{blobs:?}");
    assert_eq!(peel.json(["images", "--json"]), json!([]));
    // What is here already needs no room a second time
    let resize = |bytes: u64| {
        rustix::mount::mount_remount(peel.root(), flags, format!("size={bytes}")).expect("resize")
    };
    resize(40 << 20);
    peel.peel(["pull", "-q", &reference]).ok();
    resize(32 << 20);
    peel.peel(["pull", "-q", &reference]).ok();
}
