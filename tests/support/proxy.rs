//! A proxy that spoils what it passes on, before a registry that is well.
//!
//! One request a connection; the registry sees the proxy's name as the client wrote it.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// A request as it came in; header names in lower case.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    /// How many requests for the same path came before.
    pub earlier: usize,
}

impl Request {
    /// Whether it is for a blob's bytes.
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }

    /// The first byte of the range that is asked for.
    pub fn from(&self) -> Option<u64> {
        let range = self.headers.get("range")?;
        range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is done to a request or its answer.
#[derive(Clone, Debug)]
pub enum Fault {
    None,
    /// The answer's body ends after so many bytes, with the connection.
    Cut(u64),
    /// It falls silent after so many bytes, for longer than anybody waits.
    Stall(u64),
    /// So many bytes a second.
    Slow(u64),
    /// This status, without asking the registry.
    Status(u16, Vec<(String, String)>),
    /// The registry does not hear of the range.
    NoRange,
    /// A Content-Range that was not asked for.
    WrongRange,
    /// The body's byte at this place is another one.
    Flip(u64),
    /// The bytes announced are one fewer than there are.
    WrongLength,
    /// No length is told, and the body ends after so many bytes, with the connection.
    NoLength(u64),
    /// This type and body, without asking the registry.
    Answer(&'static str, Vec<u8>),
    /// No answer at all, for longer than anybody waits.
    Silent,
    /// The request's body ends after so many bytes, with the connection.
    CutRequest(u64),
}

type Spoil = dyn Fn(&Request) -> Fault + Send + Sync;

/// A proxy that runs until the process ends.
pub struct Proxy {
    pub host: String,
    seen: Arc<Mutex<Vec<Request>>>,
    blob_bytes: Arc<AtomicU64>,
    at_once: Arc<AtOnce>,
}

/// Transfers of blobs that are under way, and the most there were.
#[derive(Default)]
struct AtOnce {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// Ends when dropped.
struct Transfer<'a>(&'a AtOnce);

impl AtOnce {
    fn begin(&self) -> Transfer<'_> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        Transfer(self)
    }
}

impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Proxy {
    /// Starts one before `registry`, a host and port.
    pub fn start(
        registry: &str,
        spoil: impl Fn(&Request) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let host = listener.local_addr().expect("address").to_string();
        let proxy = Self {
            host,
            seen: Arc::default(),
            blob_bytes: Arc::default(),
            at_once: Arc::default(),
        };
        let (seen, blob_bytes) = (Arc::clone(&proxy.seen), Arc::clone(&proxy.blob_bytes));
        let at_once = Arc::clone(&proxy.at_once);
        let registry = registry.to_owned();
        let spoil: Arc<Spoil> = Arc::new(spoil);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (registry, spoil) = (registry.clone(), Arc::clone(&spoil));
                let (seen, bytes) = (Arc::clone(&seen), Arc::clone(&blob_bytes));
                let at_once = Arc::clone(&at_once);
                // Either side may hang up
                thread::spawn(move || {
                    drop(pass(client, &registry, &*spoil, &seen, &bytes, &at_once))
                });
            }
        });
        proxy
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().expect("lock").clone()
    }

    /// The most blobs that were passed on at the same time.
    pub fn most_at_once(&self) -> usize {
        self.at_once.most.load(Ordering::SeqCst)
    }

    /// Bytes of blobs that were passed on.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes.load(Ordering::SeqCst)
    }
}

/// A start line and the headers behind it, in order.
struct Head {
    line: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(from: &mut impl io::BufRead) -> io::Result<Self> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            from.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Self { line: line.trim_end().to_owned(), headers })
    }

    fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        let mut text = format!("{}\r\n", self.line);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        to.write_all(format!("{text}\r\n").as_bytes())
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    fn length(&self) -> u64 {
        self.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

fn pass(
    mut client: TcpStream,
    registry: &str,
    spoil: &Spoil,
    seen: &Mutex<Vec<Request>>,
    blob_bytes: &AtomicU64,
    at_once: &AtOnce,
) -> io::Result<()> {
    let mut from_client = BufReader::new(client.try_clone()?);
    let mut head = Head::read(&mut from_client)?;
    let mut words = head.line.split(' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    let (method, path) = (word(), word());
    let request = {
        let mut seen = seen.lock().expect("lock");
        let earlier = seen.iter().filter(|r| r.path == path && r.method == method).count();
        let headers = head.headers.iter().cloned().collect();
        let request = Request { method, path, headers, earlier };
        seen.push(request.clone());
        request
    };
    let mut transfer = request.is_blob().then(|| at_once.begin());
    let fault = spoil(&request);
    if let Fault::Status(status, headers) = &fault {
        io::copy(&mut (&mut from_client).take(head.length()), &mut io::sink())?;
        let mut headers = headers.clone();
        headers.push(("content-length".to_owned(), "0".to_owned()));
        headers.push(("connection".to_owned(), "close".to_owned()));
        return Head { line: format!("HTTP/1.1 {status} Spoilt"), headers }.write(&mut client);
    }
    if let Fault::Answer(media_type, body) = &fault {
        let headers = [("content-type", *media_type), ("content-length", &body.len().to_string())];
        let headers = headers.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        Head { line: "HTTP/1.1 200 OK".to_owned(), headers }.write(&mut client)?;
        return if request.method == "HEAD" { Ok(()) } else { client.write_all(body) };
    }
    if matches!(fault, Fault::Silent) {
        thread::sleep(Duration::from_secs(120));
        return Ok(());
    }
    let mut server = TcpStream::connect(registry)?;
    head.set("connection", "close");
    if matches!(fault, Fault::NoRange) {
        head.headers.retain(|(name, _)| name != "range");
    }
    head.write(&mut server)?;
    if head.header("transfer-encoding").is_some() {
        return Err(io::Error::other("requests in chunks are not passed on"));
    }
    let sent = match fault {
        Fault::CutRequest(bytes) => bytes.min(head.length()),
        _ => head.length(),
    };
    io::copy(&mut (&mut from_client).take(sent), &mut server)?;
    if sent < head.length() {
        return Ok(());
    }
    let mut from_server = BufReader::new(server);
    let mut answer = Head::read(&mut from_server)?;
    let length = answer.length();
    match fault {
        Fault::WrongRange => {
            answer.set("content-range", &format!("bytes 0-{}/{length}", length - 1))
        }
        Fault::NoLength(_) => answer.headers.retain(|(name, _)| name != "content-length"),
        Fault::WrongLength => answer.set("content-length", &(length - 1).to_string()),
        _ => {}
    }
    answer.set("connection", "close");
    answer.write(&mut client)?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let mut done = 0;
    loop {
        let step = match fault {
            Fault::Slow(rate) => (rate / 20).max(1),
            Fault::Cut(at) | Fault::Stall(at) | Fault::NoLength(at) => (at - done).min(16 << 10),
            _ => 64 << 10,
        };
        if step == 0 {
            if matches!(fault, Fault::Stall(_)) {
                thread::sleep(Duration::from_secs(120));
            }
            return Ok(());
        }
        let mut chunk = Vec::new();
        (&mut from_server).take(step).read_to_end(&mut chunk)?;
        if chunk.is_empty() {
            return Ok(());
        }
        if let Fault::Flip(at) = fault
            && let Some(byte) = at.checked_sub(done).and_then(|at| chunk.get_mut(at as usize))
        {
            *byte ^= 1;
        }
        // Of what it refuses a registry says something else
        if request.is_blob() && answer.line.contains(" 20") {
            blob_bytes.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        done += chunk.len() as u64;
        if done == length {
            // Who has the last byte may begin with the next blob
            transfer.take();
        }
        client.write_all(&chunk)?;
        if let Fault::Slow(_) = fault {
            thread::sleep(Duration::from_millis(50));
        }
    }
}
