//! Debian's docker-registry, and a token server of our own, as the tests need them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use super::{Peel, eventually, has_tool, run};

/// The user that registries with passwords let in.
pub const USER: &str = "ann";
/// Her password.
pub const PASSWORD: &str = "sesame";
/// As `htpasswd -B` makes it.
const HTPASSWD: &str = "ann:$2y$04$abcdefghijklmnopqrstuuinwY/tkBVrn3xrxQI/TgnMHhkvl85RW\n";

/// Whether the tools for these tests are there.
pub fn can_serve() -> bool {
    super::can_mount() && ["docker-registry", "skopeo", "openssl"].iter().all(|tool| has_tool(tool))
}

/// A registry on a loopback port, gone when dropped.
pub struct Registry {
    child: Child,
    pub host: String,
    dir: tempfile::TempDir,
}

impl Registry {
    /// One that lets everybody in.
    pub fn start() -> Self {
        Self::with(&|_| json!({}))
    }

    /// One that lets manifests name layers that are elsewhere.
    pub fn with_urls() -> Self {
        let allow = json!({ "manifests": { "urls": { "allow": ["^http://127\\.0\\.0\\.1:"] } } });
        Self::with(&|_| json!({ "validation": allow }))
    }

    /// One that wants [`USER`] and [`PASSWORD`].
    pub fn with_passwords() -> Self {
        Self::with(&|dir| {
            let file = dir.join("htpasswd");
            fs::write(&file, HTPASSWD).expect("write");
            json!({ "auth": { "htpasswd": { "realm": "test", "path": file } } })
        })
    }

    /// One that sends its clients to a token server.
    pub fn with_tokens(tokens: &TokenServer) -> Self {
        let (realm, bundle) = (tokens.realm(), tokens.certificate.clone());
        Self::with(&|_| {
            let token = json!({
                "realm": realm,
                "service": SERVICE,
                "issuer": ISSUER,
                "rootcertbundle": bundle,
            });
            json!({ "auth": { "token": token } })
        })
    }

    /// One that speaks TLS with a certificate for `localhost`; clients need one of their own where
    /// `clients` names who signs it.
    pub fn with_tls(pair: &Pair, clients: Option<&Path>) -> Self {
        Self::with(&|_| {
            let mut tls = json!({ "certificate": pair.certificate, "key": pair.key });
            if let Some(authority) = clients {
                tls["clientcas"] = json!([authority]);
            }
            json!({ "http": { "tls": tls } })
        })
    }

    fn with(settings: &dyn Fn(&Path) -> Value) -> Self {
        let dir = tempfile::Builder::new().prefix("peel-registry-").tempdir().expect("directory");
        // A port that was free a moment ago
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let host = listener.local_addr().expect("address").to_string();
        drop(listener);
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "error" },
            "storage": { "filesystem": { "rootdirectory": dir.path().join("data") } },
            "http": { "addr": host, "secret": "of no use", "relativeurls": true },
        });
        merge(&mut config, settings(dir.path()));
        let file = dir.path().join("config.yml");
        // JSON is YAML
        fs::write(&file, config.to_string()).expect("write");
        let log = fs::File::create(dir.path().join("log")).expect("log");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry");
        eventually("the registry listens", || TcpStream::connect(&host).is_ok());
        Self { child, host, dir }
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Copies an image into it.
    pub fn push(&self, from: &str, name: &str, options: &[&str]) {
        let to = format!("docker://{}/{name}", self.host);
        let copy = ["--insecure-policy", "copy", "--all", "--dest-tls-verify=false"];
        run(Command::new("skopeo").args(copy).args(options).args([from, &to])).ok();
    }

    /// The digest and the bytes of what a name stands for, as skopeo sees it.
    pub fn raw(&self, name: &str, options: &[&str]) -> (String, String) {
        let name = format!("docker://{}/{name}", self.host);
        let inspect = ["inspect", "--raw", "--tls-verify=false"];
        let raw = run(Command::new("skopeo").args(inspect).args(options).arg(&name)).ok();
        (peel_index::Digest::sha256(raw.as_bytes()).to_string(), raw)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A certificate and its key.
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

fn openssl(args: &[&str]) {
    run(Command::new("openssl").args(args)).ok();
}

/// A certificate authority of one's own.
pub fn authority(peel: &Peel, name: &str) -> Pair {
    let (certificate, key) = (peel.path(&format!("{name}.crt")), peel.path(&format!("{name}.key")));
    let (out, keyout) = (certificate.to_str().expect("text"), key.to_str().expect("text"));
    openssl(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &format!("/CN=peel {name}"),
        "-out",
        out,
        "-keyout",
        keyout,
    ]);
    Pair { certificate, key }
}

/// A certificate for `localhost` and 127.0.0.1, or for a client, that an authority has signed.
pub fn signed(peel: &Peel, by: &Pair, name: &str) -> Pair {
    let of = |end: &str| peel.path(&format!("{name}.{end}"));
    let (certificate, key, request, extensions) = (of("crt"), of("key"), of("csr"), of("ext"));
    let text = |path: &Path| path.to_str().expect("text").to_owned();
    let usage = "subjectAltName=DNS:localhost,DNS:registry.invalid,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    fs::write(&extensions, usage).expect("write");
    openssl(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        &format!("/CN=peel {name}"),
        "-out",
        &text(&request),
        "-keyout",
        &text(&key),
    ]);
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        &text(&request),
        "-CA",
        &text(&by.certificate),
        "-CAkey",
        &text(&by.key),
        "-CAcreateserial",
        "-extfile",
        &text(&extensions),
        "-out",
        &text(&certificate),
    ]);
    Pair { certificate, key }
}

const SERVICE: &str = "test registry";
const ISSUER: &str = "test issuer";
/// What docker-registry forgives a token that has expired; source: distribution 2.8,
/// registry/auth/token.
const LEEWAY: u64 = 60;

/// A token server: signs what a registry believes for as long as it says.
pub struct TokenServer {
    host: String,
    pub certificate: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

struct Issuer {
    key: ring::signature::EcdsaKeyPair,
    certificate: String,
    life: u64,
    /// What it says of their life.
    says: u64,
    /// Whether nobody gets in without a password.
    closed: bool,
    random: ring::rand::SystemRandom,
}

impl TokenServer {
    /// One whose tokens live for so many seconds, and which says so much of their life.
    pub fn start(peel: &Peel, life: u64, says: u64, closed: bool) -> Self {
        let pair = authority(peel, "tokens");
        let der = |args: &[&str]| {
            let output = super::output(Command::new("openssl").args(args));
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        let path = |path: &Path| path.to_str().expect("text").to_owned();
        let key = ["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in"];
        let key = der(&[&key[..], &[&path(&pair.key)]].concat());
        let certificate =
            STANDARD.encode(der(&["x509", "-outform", "DER", "-in", &path(&pair.certificate)]));
        let random = ring::rand::SystemRandom::new();
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let key = ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, &key, &random).expect("key");
        let issuer = Arc::new(Issuer { key, certificate, life, says, closed, random });
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let host = listener.local_addr().expect("address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (issuer, log) = (Arc::clone(&issuer), Arc::clone(&log));
                // A client may hang up
                thread::spawn(move || drop(issuer.answer(stream, &log)));
            }
        });
        Self { host, certificate: pair.certificate, asked }
    }

    fn realm(&self) -> String {
        format!("http://{}/token", self.host)
    }

    /// What it was asked for: `GET user scope…` or `POST refresh-token scope…`.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("lock").clone()
    }
}

/// The refresh token of [`USER`].
pub const REFRESH: &str = "refresh token of ann";

impl Issuer {
    fn answer(&self, mut stream: TcpStream, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let (mut basic, mut length) = (None, 0);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            match name.to_ascii_lowercase().as_str() {
                "authorization" => {
                    let pair = value.strip_prefix("Basic ").and_then(|v| STANDARD.decode(v).ok());
                    basic = pair.and_then(|pair| String::from_utf8(pair).ok());
                }
                "content-length" => length = value.parse().unwrap_or(0),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        std::io::Read::read_exact(&mut reader, &mut body)?;
        let is_post = line.starts_with("POST");
        let query = match is_post {
            true => String::from_utf8_lossy(&body).into_owned(),
            false => line.split([' ', '?']).nth(2).unwrap_or_default().to_owned(),
        };
        let pairs = parse(&query);
        let all = |name: &str| -> Vec<String> {
            let found = pairs.iter().filter(|(key, _)| key == name);
            found.flat_map(|(_, value)| value.split(' ').map(str::to_owned)).collect()
        };
        let one = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
        let scopes = all("scope");
        let good = format!("{USER}:{PASSWORD}");
        let (who, refused) = match (is_post, &basic) {
            (true, _) => ("refresh-token", one("refresh_token") != Some(REFRESH)),
            (false, Some(pair)) => (USER, *pair != good),
            (false, None) => ("nobody", self.closed),
        };
        let method = if is_post { "POST" } else { "GET" };
        log.lock().expect("lock").push(format!("{method} {who} {}", scopes.join(" ")));
        let (status, body) = match refused {
            true => ("401 Unauthorized", json!({ "errors": [{ "code": "UNAUTHORIZED" }] })),
            false => {
                let mut answer = json!({ "token": self.token(&scopes), "expires_in": self.says });
                if one("offline_token") == Some("true") {
                    answer["refresh_token"] = json!(REFRESH);
                }
                ("200 OK", answer)
            }
        };
        let body = body.to_string();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        )
    }

    /// A signed token; source: RFC 7519, and distribution's documentation of its tokens.
    fn token(&self, scopes: &[String]) -> String {
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|scope| {
                let (resource, actions) = scope.rsplit_once(':')?;
                let (kind, name) = resource.split_once(':')?;
                let actions: Vec<_> = actions.split(',').collect();
                Some(json!({ "type": kind, "name": name, "actions": actions }))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("clock").as_secs();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": USER, "aud": SERVICE, "jti": "1",
            "iat": now - LEEWAY, "nbf": now - LEEWAY, "exp": now + self.life - LEEWAY,
            "access": access,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&self.random, text.as_bytes()).expect("sign");
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// The fields of a form or a query.
fn parse(text: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, tail @ ..] = rest {
            rest = tail;
            bytes.push(match (first, tail) {
                (b'+', _) => b' ',
                (b'%', [a, b, after @ ..]) => {
                    rest = after;
                    let hex = [*a, *b];
                    let hex = std::str::from_utf8(&hex).expect("text");
                    u8::from_str_radix(hex, 16).expect("hexadecimal")
                }
                (byte, _) => *byte,
            });
        }
        String::from_utf8(bytes).expect("text")
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (decode(key), decode(value))).collect()
}
