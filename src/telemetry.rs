//! Logs of the daemon.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::Mutex,
};

use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// A log larger than this is set aside when a daemon starts: 16 MiB.
const LOG_MAX: u64 = 16 << 20;

/// Opens the log for appending; an overlong one becomes `<log>.1`.
///
/// # Errors
/// Of the file.
pub fn open_log(path: &Path) -> io::Result<File> {
    if fs::metadata(path).is_ok_and(|m| m.len() > LOG_MAX) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Sends what `filter` lets through to the log file, and to standard error too where `stderr`.
///
/// # Errors
/// Where the filter is none, or a subscriber is there already.
pub fn init(log: File, filter: &str, stderr: bool) -> Result<(), Box<dyn std::error::Error>> {
    // fuser reports replies that the kernel no longer wants as errors of its own
    let filter = EnvFilter::try_new(format!("fuser=off,{filter}"))?;
    // A line that cannot be written, as on a full disk, would be told to a standard error that is
    // the same file, and a failure there is a panic
    let file = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(Mutex::new(log));
    let stderr = stderr.then(|| {
        tracing_subscriber::fmt::layer()
            .with_ansi(false)
            .log_internal_errors(false)
            .with_writer(io::stderr)
            .boxed()
    });
    tracing_subscriber::registry().with(filter).with(file).with(stderr).try_init()?;
    Ok(())
}
