//! A tiny HTTP server that misbehaves as told: one request a connection.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// A request as it came in; header names in lower case.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: Vec<u8>,
}

/// What the server does with a request.
pub(super) enum Reply {
    /// Writes these bytes and closes the connection.
    Raw(Vec<u8>),
    /// Writes these bytes and then nothing, the connection open.
    Stall(Vec<u8>),
    /// Resets the connection.
    Reset,
}

impl Reply {
    /// An answer with a Content-Length.
    pub(super) fn new(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut bytes = head(status, headers);
        bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        bytes.extend(body);
        Self::Raw(bytes)
    }

    /// An answer in chunks, so without a length.
    pub(super) fn chunked(headers: &[(&str, &str)], chunks: &[&[u8]]) -> Self {
        let mut bytes = head("200 OK", headers);
        bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
        for chunk in chunks.iter().chain([&&[][..]]) {
            bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
            bytes.extend(*chunk);
            bytes.extend(b"\r\n");
        }
        Self::Raw(bytes)
    }

    /// The same without its last `n` bytes.
    pub(super) fn cut(self, n: usize) -> Self {
        match self {
            Self::Raw(mut bytes) => {
                bytes.truncate(bytes.len() - n);
                Self::Raw(bytes)
            }
            other => other,
        }
    }

    /// The same, but the connection stays open in silence.
    pub(super) fn stalled(self) -> Self {
        match self {
            Self::Raw(bytes) => Self::Stall(bytes),
            other => other,
        }
    }
}

fn head(status: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.into_bytes()
}

/// A server that runs until the process ends.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Starts one on a free port of a loopback address; `answer` gets how many requests came
    /// before, and the request.
    pub(super) fn on(
        ip: &str,
        answer: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                thread::spawn(move || {
                    // A client that goes away early is part of the tests
                    drop(serve(stream.unwrap(), &log, &*answer));
                });
            }
        });
        Self { address, seen }
    }

    pub(super) fn start(answer: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::on("127.0.0.1", answer)
    }

    /// The requests so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Seen>>,
    answer: &dyn Fn(usize, &Seen) -> Reply,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap_or_default().to_owned();
    let mut seen = Seen { method: word(), path: word(), headers: HashMap::new(), body: Vec::new() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        seen.headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    if let Some(length) = seen.headers.get("content-length") {
        seen.body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut seen.body)?;
    }
    let number = {
        let mut log = log.lock().unwrap();
        log.push(seen.clone());
        log.len() - 1
    };
    let mut stream = stream;
    match answer(number, &seen) {
        Reply::Raw(bytes) => stream.write_all(&bytes),
        Reply::Stall(bytes) => {
            stream.write_all(&bytes)?;
            // Until the client gives up
            stream.read(&mut [0; 1]).map(drop)
        }
        Reply::Reset => {
            // Unread bytes and no lingering make the close a reset
            let linger =
                rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO));
            linger.map_err(Into::into)
        }
    }
}
