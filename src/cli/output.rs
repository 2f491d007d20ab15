//! What is printed, and how.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::failure::{Class, Failure};

/// Writes a line to standard error; a reader that has gone away is no reason to stop half-way.
pub(super) fn note(text: impl std::fmt::Display) {
    // There is nobody left to tell
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints an error and its hint to standard error.
pub(super) fn failure(failure: &Failure) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let label = |text: &str, code: &str| {
        if colour { format!("\x1b[1;{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    note(format_args!("{} {}", label("error:", "31"), failure.message));
    if let Some(hint) = &failure.hint {
        note(format_args!("{} {hint}", label("hint:", "36")));
    }
}

/// Writes to standard output; a reader that has gone away is no error.
///
/// # Errors
/// Any other failure to write.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_more(text).map(|_| ())
}

/// The same; false where nobody reads any more.
///
/// # Errors
/// Any other failure to write.
pub(super) fn print_more(text: &str) -> Result<bool, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::io(&e, format!("cannot write to standard output: {e}"))),
    }
}

/// Prints a JSON document.
pub(super) fn json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&format!("{value:#}\n"))
}

/// Prints rows under a header, columns as wide as they need to be.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: &[[String; N]],
) -> Result<(), Failure> {
    print(&self::rows(header, rows))
}

/// Rows under a header as text.
pub(super) fn rows<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].len()]).max().unwrap_or_default()
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in std::iter::once(&header.map(str::to_owned)).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago a time was, in its largest unit.
pub(super) fn age(unix_ns: i64) -> String {
    let then = UNIX_EPOCH + Duration::from_nanos(unix_ns.try_into().unwrap_or_default());
    let seconds = SystemTime::now().duration_since(then).unwrap_or_default().as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..86400 => (seconds / 3600, "hour"),
        _ => (seconds / 86400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// Runs `each` on every item; goes on after a failure, and tells the first at the end.
pub(super) async fn for_all<T>(
    items: Vec<T>,
    mut each: impl AsyncFnMut(T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut first: Option<Failure> = None;
    for item in items {
        if let Err(error) = each(item).await {
            match &first {
                None => first = Some(error),
                Some(_) => failure(&error),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// A text that is not there.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// An unexpected answer of the daemon.
pub(super) fn incomplete(what: &str) -> Failure {
    Failure::new(Class::Other, format!("the daemon's answer lacks {what}"))
        .hint("is it of another version? end it with: peel daemon stop")
}
