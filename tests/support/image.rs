//! Images made by the `tar` crate, as OCI layouts.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use peel_index::Digest;
use serde_json::{Value, json};

/// One layer: a tar that grows.
pub struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(size);
        header
    }

    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        let mut header = Self::header(tar::EntryType::Directory, mode, 0);
        self.0.append_data(&mut header, path, &[][..]).expect("append");
        self
    }

    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.owned_file(path, mode, (0, 0), content)
    }

    pub fn owned_file(
        mut self,
        path: &str,
        mode: u32,
        (uid, gid): (u64, u64),
        content: impl AsRef<[u8]>,
    ) -> Self {
        let content = content.as_ref();
        let mut header = Self::header(tar::EntryType::Regular, mode, content.len() as u64);
        header.set_uid(uid);
        header.set_gid(gid);
        self.0.append_data(&mut header, path, content).expect("append");
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, 0);
        self.0.append_link(&mut header, path, target).expect("append");
        self
    }

    /// A device, or a fifo where the kind is one.
    pub fn node(
        mut self,
        path: &str,
        kind: tar::EntryType,
        mode: u32,
        (major, minor): (u32, u32),
    ) -> Self {
        let mut header = Self::header(kind, mode, 0);
        header.set_device_major(major).expect("major");
        header.set_device_minor(minor).expect("minor");
        self.0.append_data(&mut header, path, &[][..]).expect("append");
        self
    }

    pub fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = Self::header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).expect("append");
        self
    }

    pub fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        let marked = Path::new(dir).join(format!(".wh.{name}"));
        self.file(marked.to_str().expect("text"), 0o644, "")
    }

    pub fn tar(self) -> Vec<u8> {
        self.0.into_inner().expect("finish")
    }
}

/// Bytes that do not compress, and are the same every time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = || {
        // xorshift64; source: Marsaglia, "Xorshift RNGs", 2003
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// An OCI layout that is being filled.
pub struct Layout {
    pub dir: PathBuf,
    manifests: Vec<Value>,
}

impl Layout {
    pub fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).expect("directory");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
        Self { dir, manifests: Vec::new() }
    }

    pub fn blob_path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs").join(digest.replacen(':', "/", 1))
    }

    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::sha256(bytes).to_string();
        fs::write(self.blob_path(&digest), bytes).expect("write");
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image of gzip layers under a tag; returns its manifest.
    pub fn image(&mut self, tag: &str, layers: Vec<Layer>, config: Value) -> Value {
        let mut diff_ids = Vec::new();
        let mut descriptors = Vec::new();
        for layer in layers {
            let tar = layer.tar();
            diff_ids.push(Digest::sha256(&tar).to_string());
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(&tar).expect("compress");
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            descriptors.push(self.blob(media_type, &gzip.finish().expect("compress")));
        }
        self.manifest(tag, descriptors, &diff_ids, config)
    }

    pub fn manifest(
        &mut self,
        tag: &str,
        layers: Vec<Value>,
        diff_ids: &[String],
        config: Value,
    ) -> Value {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": arch,
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = serde_json::to_vec(&config).expect("JSON");
        let config = self.blob("application/vnd.oci.image.config.v1+json", &config);
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": config,
            "layers": layers,
        });
        let bytes = serde_json::to_vec(&manifest).expect("JSON");
        let descriptor = self.blob(media_type, &bytes);
        self.tag(tag, descriptor);
        manifest
    }

    /// Puts a descriptor into index.json.
    pub fn tag(&mut self, tag: &str, mut descriptor: Value) {
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        self.manifests.push(descriptor);
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        fs::write(self.dir.join("index.json"), index.to_string()).expect("write");
    }

    /// The reference of a tag.
    pub fn reference(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.dir.display())
    }
}

/// A static busybox as /bin/busybox with the applets these tests use.
pub fn busybox() -> Layer {
    let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut layer = Layer::new()
        .dir("bin", 0o755)
        .dir("etc", 0o755)
        .dir("proc", 0o555)
        .dir("dev", 0o755)
        .dir("sys", 0o555)
        .dir("tmp", 0o1777)
        .file("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\nann:x:1000:1001::/:/bin/sh\n")
        .file("etc/group", 0o644, "root:x:0:\nann:x:1001:\nwheel:x:10:ann\n")
        .file("bin/busybox", 0o755, busybox);
    for applet in ["sh", "cat", "ls", "id", "rm", "echo", "env", "pwd", "sleep", "mkdir"] {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer
}
