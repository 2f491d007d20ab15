//! Archives on their way to a client.

use std::{
    io::{self, Write},
    sync::Arc,
};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::engine::Engine;
use crate::{
    api,
    failure::{Class, Failure},
    image::{ArchiveFormat, ExportOptions},
};

/// Bytes in one message: 1 MiB, well below what a client takes.
const CHUNK: usize = 1 << 20;
/// Messages that may wait for a client.
const WAITING: usize = 4;

/// The stream that a client reads.
pub(super) type ChunkStream = ReceiverStream<Result<api::Chunk, Status>>;

/// Sends what is written, in chunks.
pub(super) struct Chunks {
    sender: mpsc::Sender<Result<api::Chunk, Status>>,
    data: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(CHUNK - self.data.len());
        self.data.extend_from_slice(&bytes[..len]);
        if self.data.len() == CHUNK {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        let data = std::mem::take(&mut self.data);
        let sent = self.sender.blocking_send(Ok(api::Chunk { data }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone"))
    }
}

/// A stream of what a thread writes.
pub(super) fn stream(
    write: impl FnOnce(Chunks) -> Result<(), Failure> + Send + 'static,
) -> ChunkStream {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::task::spawn_blocking(move || {
        let chunks = Chunks { sender: sender.clone(), data: Vec::with_capacity(CHUNK) };
        if let Err(failure) = write(chunks) {
            // A client that has gone needs no reason
            let _ = sender.blocking_send(Err(failure.into()));
        }
    });
    ReceiverStream::new(receiver)
}

/// Exports in a task of its own.
pub(super) fn export(engine: Arc<Engine>, request: api::ExportRequest) -> ChunkStream {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let result = run(engine, request, sender.clone()).await;
        if let Err(failure) = result {
            // A client that has gone needs no reason
            let _ = sender.send(Err(failure.into())).await;
        }
    });
    ReceiverStream::new(receiver)
}

async fn run(
    engine: Arc<Engine>,
    request: api::ExportRequest,
    sender: mpsc::Sender<Result<api::Chunk, Status>>,
) -> Result<(), Failure> {
    let finder = Arc::clone(&engine);
    let find = move || {
        let references = request.references.iter();
        references.map(|reference| finder.find_image(reference)).collect::<Result<Vec<_>, _>>()
    };
    let found = tokio::task::spawn_blocking(find).await;
    let images = found.unwrap_or_else(|e| Err(Failure::new(Class::Other, e)))?;
    let format = match api::ArchiveFormat::try_from(request.format) {
        Ok(api::ArchiveFormat::Docker) => ArchiveFormat::Docker,
        _ => ArchiveFormat::Oci,
    };
    let options = ExportOptions { images, format, all_platforms: request.all_platforms };
    let chunks = Chunks { sender, data: Vec::with_capacity(CHUNK) };
    engine.images.export(options, chunks).await
}
