//! `daemon stop`, `status`, `logs`, `version`.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use serde_json::json;

use super::{
    Context,
    output::{self, age, print},
};
use crate::{
    api,
    client::{self, bytes_path},
    failure::{Class, Failure},
};

/// A stop waits for unmounts and for the metadata to be written.
const STOP_LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn stop(context: &Context, force: bool) -> Result<(), Failure> {
    match client::connect(&context.paths).await? {
        Some(mut client) => {
            client.stop(api::StopRequest { force }).await?;
            client::wait_stopped(&context.paths, STOP_LIMIT).await
        }
        None => {
            eprintln!("no daemon runs on {}", context.paths.socket().display());
            Ok(())
        }
    }
}

pub(super) async fn status(context: &Context, json: bool) -> Result<(), Failure> {
    let Some(mut client) = client::connect(&context.paths).await? else {
        let socket = context.paths.socket();
        if json {
            output::json(&json!({ "running": false, "socket": socket.to_string_lossy() }))?;
        }
        return Err(Failure::new(
            Class::NotFound,
            format!("no daemon runs on {}", socket.display()),
        )
        .hint("most commands start one; peel daemon runs it in the foreground"));
    };
    let answer =
        tokio::time::timeout(Duration::from_secs(10), client.status(api::StatusRequest {}));
    let Ok(answer) = answer.await else {
        let keeper = client::keeper_status(&context.paths).unwrap_or_default();
        let message = format!("the worker does not answer; the keeper says: {keeper}");
        return Err(Failure::new(Class::Unavailable, message).hint("see peel logs"));
    };
    let status = answer?.into_inner();
    let root = bytes_path(&status.root).to_string_lossy();
    let state = bytes_path(&status.state).to_string_lossy();
    if json {
        return output::json(&json!({
            "running": true,
            "version": status.version,
            "keeper": { "pid": status.keeper_pid },
            "worker": { "pid": status.worker_pid, "started_at_ns": status.worker_started_at_ns },
            "restarts": status.restarts,
            "mounts": status.mounts,
            "images": status.images,
            "snapshots": status.snapshots,
            "root": root,
            "state": state,
            "socket": context.paths.socket().to_string_lossy(),
            "log": context.paths.log().to_string_lossy(),
        }));
    }
    print(&format!(
        "version    {}\nkeeper     pid {}\nworker     pid {}, started {}, {} restarts\n\
         mounts     {}\nimages     {}\nsnapshots  {}\nroot       {root}\nstate      {state}\n\
         socket     {}\nlog        {}\n",
        status.version,
        status.keeper_pid,
        status.worker_pid,
        age(status.worker_started_at_ns),
        status.restarts,
        status.mounts,
        status.images,
        status.snapshots,
        context.paths.socket().display(),
        context.paths.log().display(),
    ))
}

pub(super) async fn logs(context: &Context, follow: bool, lines: usize) -> Result<(), Failure> {
    let path = context.paths.log();
    let failed = |e: std::io::Error| {
        Failure::io(&e, format!("cannot read the log {}: {e}", path.display()))
            .hint("no daemon has run with this state directory yet")
    };
    let mut file = File::open(&path).map_err(failed)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(failed)?;
    let text = String::from_utf8_lossy(&text);
    let all: Vec<_> = text.lines().collect();
    for line in &all[all.len().saturating_sub(lines)..] {
        print(&format!("{line}\n"))?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut more = Vec::new();
        file.read_to_end(&mut more).map_err(failed)?;
        print(&String::from_utf8_lossy(&more))?;
        // A log that was set aside goes on in a new file
        let grown = std::fs::metadata(&path).map(|m| m.len()).unwrap_or_default();
        if grown < file.stream_position().map_err(failed)? {
            file = File::open(&path).map_err(failed)?;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
        }
    }
}

pub(super) fn version(json: bool) {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        println!("{:#}", json!({ "name": "peel", "version": version }));
    } else {
        println!("peel {version}");
    }
}
