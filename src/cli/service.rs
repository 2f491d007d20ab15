//! `daemon stop`, `status`, `logs`, `version`.

use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    Context,
    output::{self, age, note, print, print_more},
};
use crate::{
    api,
    client::{self, bytes_path},
    failure::{Class, Failure},
    paths::Paths,
};

/// A stop waits for unmounts and for the metadata to be written.
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// A reload waits for calls under way, and for the metadata to be written and read.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);
/// A worker that is well unmounts hundreds of mounts in less.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// A worker that is well answers in milliseconds; one that is being restarted, in less than this.
const STATUS_LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn stop(context: &Context, force: bool) -> Result<(), Failure> {
    let paths = &context.paths;
    match client::connect(paths).await? {
        Some(mut client) => {
            let keeper = client::keeper_status(paths).and_then(|status| status["pid"].as_i64());
            let asked = client.stop(api::StopRequest { force });
            match tokio::time::timeout(ANSWER_LIMIT, asked).await {
                Ok(Ok(_)) => {}
                // Another command may have stopped it, or its worker may just have died
                Ok(Err(error)) if !api::is_lost(&error) => return Err(error.into()),
                Ok(Err(_)) | Err(_) if !client::keeper_runs(paths) => {}
                Ok(Err(_)) | Err(_) if force => end_keeper(paths)?,
                Ok(Err(_)) | Err(_) => return Err(client::no_answer(paths)),
            }
            client::wait_stopped(paths, keeper, STOP_LIMIT).await
        }
        None => {
            note(format_args!("no daemon runs on {}", context.paths.socket().display()));
            Ok(())
        }
    }
}

/// Tells the keeper, where the worker cannot: it ends without unmounting what is mounted.
fn end_keeper(paths: &Paths) -> Result<(), Failure> {
    let answer = client::ask_keeper(paths, "end", ANSWER_LIMIT);
    answer.map(drop).ok_or_else(|| client::no_answer(paths))
}

/// Puts the program as it is installed now in the place of the daemon that runs.
pub(super) async fn reload(context: &Context) -> Result<(), Failure> {
    let paths = &context.paths;
    let none =
        || Failure::new(Class::NotFound, format!("no daemon runs on {}", paths.socket().display()));
    let before = client::keeper_status(paths).ok_or_else(none)?;
    let refused = |why: &Value| {
        let why = why.as_str().unwrap_or("the keeper is of another version").to_owned();
        Failure::new(Class::Conflict, format!("cannot reload: {why}"))
    };
    let asked = client::ask_keeper(paths, "reload", ANSWER_LIMIT);
    let asked = asked.ok_or_else(|| client::no_answer(paths))?;
    if asked["version"].is_null() {
        return Err(refused(&asked["error"]));
    }
    let deadline = tokio::time::Instant::now() + RELOAD_LIMIT;
    loop {
        // Out of reach for a moment, where the next keeper has just begun
        let now = client::keeper_status(paths).unwrap_or_default();
        if now["reload_error"].is_string() {
            return Err(refused(&now["reload_error"]));
        }
        if now["reloads"].as_u64() > before["reloads"].as_u64() && now["state"] == "running" {
            break;
        }
        if tokio::time::Instant::now() > deadline {
            return Err(client::no_answer(paths));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut client = client::connect(paths).await?.ok_or_else(none)?;
    client::again(async || client.status(api::StatusRequest {}).await).await?;
    note(format_args!("reloaded: peel {}", asked["version"].as_str().unwrap_or_default()));
    Ok(())
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
    let answer = tokio::time::timeout(STATUS_LIMIT, client.status(api::StatusRequest {}));
    let status = match answer.await {
        Ok(Ok(status)) => status.into_inner(),
        Ok(Err(error)) if !api::is_lost(&error) => return Err(error.into()),
        Ok(Err(_)) | Err(_) => {
            let keeper = client::keeper_status(&context.paths).unwrap_or_default();
            if json {
                output::json(&json!({
                    "running": false,
                    "keeper": keeper,
                    "worker": { "pid": keeper["worker"] },
                    "restarts": keeper["restarts"],
                    "socket": context.paths.socket().to_string_lossy(),
                    "log": context.paths.log().to_string_lossy(),
                }))?;
            } else if keeper.is_object() {
                print(&survival(&keeper))?;
            }
            return Err(client::no_answer(&context.paths));
        }
    };
    let keeper = client::keeper_status(&context.paths).unwrap_or_default();
    let root = bytes_path(&status.root).to_string_lossy();
    let state = bytes_path(&status.state).to_string_lossy();
    if json {
        return output::json(&json!({
            "running": true,
            "version": status.version,
            "keeper": keeper,
            "worker": { "pid": status.worker_pid, "started_at_ns": status.worker_started_at_ns },
            "restarts": status.restarts,
            "mounts": status.mounts,
            "unserved": status.unserved,
            "images": status.images,
            "snapshots": status.snapshots,
            "root": root,
            "state": state,
            "socket": context.paths.socket().to_string_lossy(),
            "log": context.paths.log().to_string_lossy(),
        }));
    }
    print(&format!(
        "version    {}\nkeeper     pid {}\nworker     pid {}, started {}, {} restarts\n{}\
         mounts     {}\nimages     {}\nsnapshots  {}\nroot       {root}\nstate      {state}\n\
         socket     {}\nlog        {}\n",
        status.version,
        status.keeper_pid,
        status.worker_pid,
        age(status.worker_started_at_ns),
        status.restarts,
        survival(&keeper)
            + &status
                .unserved
                .iter()
                .map(|m| format!("{:10} {m}\n", "unserved"))
                .collect::<String>(),
        status.mounts,
        status.images,
        status.snapshots,
        context.paths.socket().display(),
        context.paths.log().display(),
    ))
}

/// What the keeper says beyond the usual: lines only where there is something to tell.
fn survival(keeper: &Value) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, text: String| lines.push_str(&format!("{name:10} {text}\n"));
    match keeper["state"].as_str() {
        Some("running") | None => {}
        Some("backing off") => {
            let pause = keeper["next_start_ms"].as_u64().unwrap_or_default() as f64 / 1000.0;
            let deaths = &keeper["quick_deaths"];
            line(
                "state",
                format!("backing off: {deaths} quick deaths, next start in {pause:.1} s"),
            );
        }
        Some(state) => line("state", state.to_owned()),
    }
    if let Some(reason) = keeper["last_exit"]["reason"].as_str() {
        let at = keeper["last_exit"]["at_ns"].as_i64().unwrap_or_default();
        line("last exit", format!("{}: {reason}", age(at)));
    }
    let counts = [("reloads", "reloads"), ("keepers", "keepers replaced")];
    for (key, what) in counts {
        match keeper[key].as_u64() {
            None | Some(0) => {}
            Some(count) => line("survived", format!("{count} {what}")),
        }
    }
    if let Some(cleaned @ 1..) = keeper["cleaned"].as_u64() {
        line("cleaned", format!("{cleaned} mounts of a daemon that had died as a whole"));
    }
    for barred in keeper["barred"].as_array().into_iter().flatten() {
        let request = barred.as_str().unwrap_or_default();
        line("refused", format!("{request}: two workers died of it"));
    }
    lines
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
        if !print_more(&format!("{line}\n"))? {
            return Ok(());
        }
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut more = Vec::new();
        file.read_to_end(&mut more).map_err(failed)?;
        if (!more.is_empty() && !print_more(&String::from_utf8_lossy(&more))?) || !is_read() {
            return Ok(());
        }
        // A log that was set aside goes on in a new file
        let grown = std::fs::metadata(&path).map(|m| m.len()).unwrap_or_default();
        if grown < file.stream_position().map_err(failed)? {
            file = File::open(&path).map_err(failed)?;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
        }
    }
}

/// Whether somebody may still read standard output: a quiet log would never find out.
fn is_read() -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdout = std::io::stdout();
    let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
    let gone = PollFlags::ERR;
    !poll(&mut polled, Some(&Timespec::default())).is_ok_and(|_| polled[0].revents().contains(gone))
}

pub(super) fn version(json: bool) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if json {
        return output::json(&json!({ "name": "peel", "version": version }));
    }
    print(&format!("peel {version}\n"))
}
