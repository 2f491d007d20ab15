//! Pulls from Debian's `docker-registry`, into a content store that skopeo reads.
//!
//! Skipped with a word where docker-registry or skopeo is missing, unless `PEEL_REQUIRE_TOOLS=1`.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use peel::{
    content::{ContentError, ContentStore, Expected, OciLayout},
    oci::{
        Descriptor, ImageConfig, ImageManifest, MAX_CONFIG_SIZE, MAX_MANIFEST_SIZE,
        MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_OCI_CONFIG, MEDIA_TYPE_OCI_INDEX,
        MEDIA_TYPE_OCI_MANIFEST, Platform, RegistryReference, Selection, Step,
    },
    registry::{Missing, Registry, RegistryError, RegistryOptions},
};
use peel_index::Digest;
use serde_json::json;
use tempfile::TempDir;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A registry of its own on a free loopback port; ends with the test.
struct DockerRegistry {
    dir: TempDir,
    host: String,
    process: Child,
}

impl DockerRegistry {
    fn start(settings: &str) -> Self {
        Self::on(Ipv4Addr::LOCALHOST.into(), settings)
    }

    /// Starts one on an address; `settings` come behind those of the http section.
    fn on(ip: IpAddr, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Another process may take the port first, so try again
        for _ in 0..5 {
            let host = TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap().to_string();
            let storage = dir.path().join("storage");
            let config = format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n{settings}",
                storage.display()
            );
            let file = dir.path().join("config.yml");
            fs::write(&file, config).unwrap();
            let log = fs::File::create(dir.path().join("log")).unwrap();
            let mut process = Command::new("docker-registry")
                .arg("serve")
                .arg(file)
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            let begun = Instant::now();
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect(&host).is_ok() {
                    return Self { dir, host, process };
                }
                assert!(begun.elapsed() < Duration::from_secs(20), "the registry does not listen");
                thread::sleep(Duration::from_millis(20));
            }
        }
        panic!("docker-registry: {}", fs::read_to_string(dir.path().join("log")).unwrap());
    }

    fn reference(&self, rest: &str) -> RegistryReference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }

    /// Where it keeps the bytes of a blob.
    fn stored(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Says so and returns true where the tools are missing.
fn skip() -> bool {
    let missing = |tool: &&str| Command::new(tool).arg("--version").output().is_err();
    let Some(tool) = ["docker-registry", "skopeo"].iter().find(|tool| missing(tool)) else {
        return false;
    };
    assert!(std::env::var_os("PEEL_REQUIRE_TOOLS").is_none(), "{tool} is required");
    eprintln!("SKIPPED: {tool} is not installed");
    true
}

fn skopeo(arguments: &[&str]) {
    let output = Command::new("skopeo").arg("--insecure-policy").args(arguments).output().unwrap();
    assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
}

/// An OCI layout that is being made.
struct Layout(TempDir);

impl Layout {
    /// A layout whose `v1` is an index of an image for amd64 and one for arm64.
    fn new() -> Self {
        let layout = Self(tempfile::tempdir().unwrap());
        let path = layout.0.path();
        fs::create_dir_all(path.join("blobs/sha256")).unwrap();
        fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let images = ["amd64", "arm64"].map(|architecture| layout.image(architecture));
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_OCI_INDEX,
            "manifests": images,
        });
        let mut entry = layout.put(MEDIA_TYPE_OCI_INDEX, index.to_string().as_bytes());
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(path.join("index.json"), index.to_string()).unwrap();
        layout
    }

    fn put(&self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = Digest::sha256(bytes);
        fs::write(self.0.path().join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()})
    }

    fn image(&self, architecture: &str) -> serde_json::Value {
        let layers = ["lower", "upper"].map(|name| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_ustar();
            header.set_size(architecture.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, name, architecture.as_bytes()).unwrap();
            let tar = tar.into_inner().unwrap();
            let mut gzip =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            gzip.write_all(&tar).unwrap();
            (Digest::sha256(&tar).to_string(), self.put(GZIP, &gzip.finish().unwrap()))
        });
        let diff_ids: Vec<_> = layers.iter().map(|(diff_id, _)| diff_id).collect();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_OCI_MANIFEST,
            "config": self.put(MEDIA_TYPE_OCI_CONFIG, config.to_string().as_bytes()),
            "layers": layers.map(|(_, layer)| layer),
        });
        let mut entry = self.put(MEDIA_TYPE_OCI_MANIFEST, manifest.to_string().as_bytes());
        entry["platform"] = json!({"architecture": architecture, "os": "linux"});
        entry
    }

    fn push(&self, registry: &DockerRegistry, name: &str, options: &[&str]) {
        let source = format!("oci:{}:v1", self.0.path().display());
        let target = format!("docker://{}/{name}", registry.host);
        let copy = ["copy", "--dest-tls-verify=false", &source, &target];
        skopeo(&[&copy[..], options].concat());
    }

    fn blobs(&self) -> HashMap<String, Vec<u8>> {
        files(&self.0.path().join("blobs/sha256"))
    }
}

fn files(dir: &Path) -> HashMap<String, Vec<u8>> {
    let read = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap())).collect()
}

fn client() -> Registry {
    Registry::new(RegistryOptions::default()).unwrap()
}

#[derive(Debug)]
struct Pulled {
    root: Descriptor,
    manifest: ImageManifest,
    config: ImageConfig,
}

/// A pull as the image module does it: everything into the store.
async fn pull(
    client: &Registry,
    store: &ContentStore,
    reference: &RegistryReference,
    platform: &str,
) -> Result<Pulled, Box<dyn std::error::Error>> {
    let repository = reference.repository();
    let put = |descriptor: &Descriptor, bytes: &[u8]| {
        let mut ingest = store.begin(&descriptor.digest.to_string(), descriptor.into())?;
        ingest.write(bytes)?;
        ingest.commit()
    };
    let (root, bytes) = client.resolve(reference).await?;
    put(&root, &bytes)?;
    let mut selection = Selection::new(platform.parse()?, &root);
    let mut step = selection.visit(&root, &bytes)?;
    let manifest = loop {
        match step {
            Step::Image { manifest, .. } => break manifest,
            Step::Fetch(next) => {
                let bytes = client.manifest(repository, &next).await?;
                put(&next, &bytes)?;
                step = selection.visit(&next, &bytes)?;
            }
        }
    };
    let bytes = client.read_blob(repository, &manifest.config, MAX_CONFIG_SIZE).await?;
    put(&manifest.config, &bytes)?;
    let config = ImageConfig::parse(&manifest, &bytes)?;
    for layer in &manifest.layers {
        let layer = layer.descriptor();
        let mut stream = client.blob(repository, &layer, 0).await?;
        let mut ingest = store.begin(&layer.digest.to_string(), Expected::from(&layer))?;
        while let Some(chunk) = stream.next().await {
            ingest.write(&chunk?)?;
        }
        ingest.commit()?;
    }
    Ok(Pulled { root, manifest: *manifest, config })
}

fn store() -> (TempDir, ContentStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ContentStore::open(&dir.path().join("content")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn an_image_comes_over_byte_for_byte() {
    if skip() {
        return;
    }
    let registry = DockerRegistry::start("");
    let layout = Layout::new();
    layout.push(&registry, "test/app:v1", &["--all"]);
    let (dir, store) = store();
    let client = client();
    let reference = registry.reference("test/app:v1");

    let pulled = pull(&client, &store, &reference, "linux/arm64").await.unwrap();
    assert_eq!(pulled.root.media_type, MEDIA_TYPE_OCI_INDEX);
    assert_eq!(pulled.config.platform, "linux/arm64".parse().unwrap());
    assert_eq!((pulled.manifest.layers.len(), pulled.config.diff_ids.len()), (2, 2));
    assert_eq!(pulled.config.cmd, ["sh"]);
    pull(&client, &store, &reference, "linux/amd64").await.unwrap();
    assert_eq!(files(&store.root().join("blobs/sha256")), layout.blobs());
    let error = pull(&client, &store, &reference, "linux/s390x").await.unwrap_err();
    assert!(error.to_string().contains("found: linux/amd64, linux/arm64"), "{error}");

    let head = client.head(&reference).await.unwrap();
    assert_eq!(head.as_ref(), Some(&pulled.root));
    let by_digest = registry.reference(&format!("test/app@{}", pulled.root.digest));
    assert_eq!(client.resolve(&by_digest).await.unwrap().0, pulled.root);

    // What was pulled is a layout to read from, for peel and for others
    store.write_index(&[(reference.to_string(), pulled.root.clone())]).unwrap();
    let own = OciLayout::open(store.root()).unwrap();
    let found = own.resolve(Some(&reference.to_string()), &Platform::host()).unwrap();
    assert_eq!(found.digest, pulled.root.digest);
    own.read_blob(found, MAX_MANIFEST_SIZE).unwrap();
    let source = format!("oci:{}:{reference}", store.root().display());
    let copy = dir.path().join("copy");
    skopeo(&["copy", "--all", &source, &format!("oci:{}:v1", copy.display())]);
    assert_eq!(files(&copy.join("blobs/sha256")), layout.blobs());
}

#[tokio::test]
async fn docker_manifests_come_over_too() {
    if skip() {
        return;
    }
    let registry = DockerRegistry::start("");
    let options = ["--format", "v2s2", "--override-arch", "amd64"];
    Layout::new().push(&registry, "docker:v1", &options);
    let (_dir, store) = store();
    let reference = registry.reference("docker:v1");
    let pulled = pull(&client(), &store, &reference, "linux/amd64").await.unwrap();
    assert_eq!(pulled.root.media_type, MEDIA_TYPE_DOCKER_MANIFEST);
    assert_eq!(pulled.config.platform, "linux/amd64".parse().unwrap());
    // Manifest, config and two layers
    assert_eq!(store.blobs().unwrap().count(), 4);
}

#[tokio::test]
async fn what_is_not_there_is_told() {
    if skip() {
        return;
    }
    let registry = DockerRegistry::start("");
    Layout::new().push(&registry, "test/app:v1", &["--all"]);
    let client = client();
    let absent = Digest::sha256(b"absent");
    let table = [
        ("test/app:v2".to_owned(), Missing::Manifest, "/test/app:v2 does not exist".to_owned()),
        (format!("test/app@{absent}"), Missing::Manifest, format!("no manifest {absent}")),
    ];
    for (name, expected, message) in table {
        let error = client.resolve(&registry.reference(&name)).await.unwrap_err();
        let RegistryError::NotFound { missing, .. } = &error else { panic!("{error}") };
        assert_eq!(*missing, expected, "{name}");
        assert!(error.to_string().contains(&message), "{error}");
    }
    // This registry does not tell a missing repository from a missing tag
    let error = client.resolve(&registry.reference("nowhere:v1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    let app = registry.reference("test/app:v1");
    let blob = Descriptor::new("", absent, 1);
    let error = client.blob(app.repository(), &blob, 0).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotFound { missing: Missing::Blob, .. }), "{error}");
}

#[tokio::test]
async fn damaged_content_is_found_and_leaves_nothing() {
    if skip() {
        return;
    }
    let registry = DockerRegistry::start("");
    Layout::new().push(&registry, "test/app:v1", &["--all"]);
    let (_dir, store) = store();
    let client = client();
    let reference = registry.reference("test/app:v1");
    let good = pull(&client, &store, &reference, "linux/amd64").await.unwrap();
    let [layer, _] = &good.manifest.layers[..] else { panic!("two layers") };
    store.remove(&layer.digest).unwrap();

    let stored = registry.stored(&layer.digest);
    let mut bytes = fs::read(&stored).unwrap();
    bytes[20] ^= 1;
    fs::write(&stored, &bytes).unwrap();
    let error = pull(&client, &store, &reference, "linux/amd64").await.unwrap_err();
    let damaged = error.downcast_ref::<ContentError>().unwrap();
    assert!(
        matches!(damaged, ContentError::Digest { expected, .. } if **expected == layer.digest),
        "{damaged}"
    );
    assert!(!store.contains(&layer.digest).unwrap());

    fs::write(&stored, &bytes[..20]).unwrap();
    let error = pull(&client, &store, &reference, "linux/amd64").await.unwrap_err();
    assert!(error.to_string().contains(&layer.digest.to_string()), "{error}");
    assert!(!store.contains(&layer.digest).unwrap());
    assert_eq!(fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_registry_with_passwords_refuses() {
    if skip() {
        return;
    }
    let secrets = tempfile::NamedTempFile::new().unwrap();
    fs::write(secrets.path(), "user:$2y$05$wrong\n").unwrap();
    let auth =
        format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", secrets.path().display());
    let registry = DockerRegistry::start(&auth);
    let error = client().resolve(&registry.reference("test/app:v1")).await.unwrap_err();
    let RegistryError::Unauthorised { repository, .. } = &error else { panic!("{error}") };
    assert_eq!(*repository, format!("{}/test/app", registry.host));
    assert!(error.to_string().contains("authentication required"), "{error}");
}

/// A certificate for `ip`, signed by itself; none where openssl is missing.
fn certificate(dir: &Path, ip: IpAddr) -> Option<(PathBuf, PathBuf)> {
    let (certificate, key) = (dir.join("ca.pem"), dir.join("key.pem"));
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=peel test"])
        .args(["-addext", &format!("subjectAltName=IP:{ip}")])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .ok()?;
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Some((certificate, key))
}

/// The address under which this machine is no loopback host; no packet is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[test]
fn other_hosts_are_spoken_to_over_https() {
    const CHILD: &str = "PEEL_TEST_HTTPS_REGISTRY";
    if skip() {
        return;
    }
    let Ok(host) = std::env::var(CHILD) else {
        let dir = tempfile::tempdir().unwrap();
        let made = own_address().and_then(|ip| Some((ip, certificate(dir.path(), ip)?)));
        let Some((ip, (certificate, key))) = made else {
            let required = std::env::var_os("PEEL_REQUIRE_TOOLS").is_some();
            assert!(!required, "openssl and a network address are required");
            eprintln!("SKIPPED: openssl or an address other than loopback is missing");
            return;
        };
        let tls = format!(
            "  tls:\n    certificate: {}\n    key: {}\n",
            certificate.display(),
            key.display()
        );
        let registry = DockerRegistry::on(ip, &tls);
        Layout::new().push(&registry, "test/app:v1", &["--all"]);
        // Which certificates are trusted is the environment's, which is the whole process's
        for trusted in [true, false] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "other_hosts_are_spoken_to_over_https", "--nocapture"]);
            child.env(CHILD, &registry.host).env("NO_PROXY", "*");
            if trusted {
                child.env("SSL_CERT_FILE", &certificate).env_remove("SSL_CERT_DIR");
            }
            child.env("PEEL_TEST_TRUSTED", trusted.to_string());
            let output = child.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
        }
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = client();
        let reference = format!("{host}/test/app:v1").parse().unwrap();
        let answer = client.resolve(&reference).await;
        if std::env::var("PEEL_TEST_TRUSTED").unwrap() == "true" {
            let (_dir, store) = store();
            answer.unwrap();
            pull(&client, &store, &reference, "linux/amd64").await.unwrap();
            return;
        }
        let error = answer.unwrap_err();
        let RegistryError::Tls { host: found, .. } = &error else { panic!("{error}") };
        assert!(*found == host && error.hint().unwrap().contains("update-ca-certificates"));

        // Plain http where https is expected
        let ip = host.split(':').next().unwrap().parse().unwrap();
        let plain = DockerRegistry::on(ip, "");
        let error = client.resolve(&plain.reference("a:v1")).await.unwrap_err();
        assert!(error.to_string().contains(&plain.host), "{error}");
        assert!(error.hint().unwrap().contains("plain http"), "{error}");
    });
}
