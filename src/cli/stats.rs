//! `stats`: what is served, how fast, and what it takes.

use std::{path::Path, time::Duration};

use indicatif::HumanBytes;

use super::{
    Context,
    args::StatsArgs,
    output::{self, note, print, print_more},
};
use crate::{
    api,
    client::{self, Client},
    failure::{Class, Failure},
    stats::{Distribution, Stats, Value},
};

/// A worker that is well answers in milliseconds, but the machine may be busy: that is when
/// statistics are asked for.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Lines between two headers of `--watch`.
const LINES: usize = 20;

pub(super) async fn stats(context: &Context, args: StatsArgs) -> Result<(), Failure> {
    let Some(mut client) = client::connect(&context.paths).await? else {
        let socket = context.paths.socket();
        let message = format!("no daemon runs on {}", socket.display());
        return Err(Failure::new(Class::NotFound, message)
            .hint("most commands start one; peel daemon runs it in the foreground"));
    };
    let now = ask(context, &mut client).await?;
    let first = match &args.since {
        None => now.clone(),
        Some(file) => since(&now, earlier(&now, file)?),
    };
    match args.watch {
        Some(seconds) => watch(context, client, now, seconds, args.json).await,
        None if args.json => output::json(&first.to_json()),
        None if args.prometheus => print(&first.to_prometheus()),
        None => print(&text(&first)),
    }
}

async fn ask(context: &Context, client: &mut Client) -> Result<Stats, Failure> {
    match tokio::time::timeout(ANSWER_LIMIT, client.stats(api::StatsRequest {})).await {
        Ok(Ok(answer)) => Ok(answer.into_inner().into()),
        Ok(Err(error)) if !api::is_lost(&error) => Err(error.into()),
        Ok(Err(_)) | Err(_) => Err(client::no_answer(&context.paths)),
    }
}

/// What an earlier `stats --json` has printed.
fn earlier(now: &Stats, file: &Path) -> Result<Stats, Failure> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|e| Failure::io(&e, format!("cannot read {shown}: {e}")))?;
    let json = serde_json::from_str(&text).ok().and_then(|json| now.earlier(&json));
    json.ok_or_else(|| {
        Failure::new(Class::BadData, format!("no statistics in {shown}"))
            .hint(format!("make it with: peel stats --json > {shown}"))
    })
}

/// The difference, or everything where another worker counts by now.
fn since(now: &Stats, earlier: Stats) -> Stats {
    now.since(&earlier).unwrap_or_else(|| {
        note("the worker was started again meanwhile: counts are since then");
        now.clone()
    })
}

async fn watch(
    context: &Context,
    mut client: Client,
    mut before: Stats,
    seconds: u64,
    json: bool,
) -> Result<(), Failure> {
    let mut every = tokio::time::interval(Duration::from_secs(seconds));
    every.tick().await;
    for line in 0.. {
        every.tick().await;
        let now = ask(context, &mut client).await?;
        let elapsed = Duration::from_nanos(now.at_ns.saturating_sub(before.at_ns).unsigned_abs());
        let step = since(&now, before);
        before = now;
        let header =
            if line % LINES == 0 { format!("{}\n", columns(COLUMNS)) } else { String::new() };
        let more = match json {
            true => print_more(&format!("{}\n", step.to_json()))?,
            false => print_more(&format!("{header}{}\n", columns(rates(&step, elapsed))))?,
        };
        if !more {
            break;
        }
    }
    Ok(())
}

/// Columns of `--watch`.
const COLUMNS: [&str; 10] = [
    "req/s",
    "lookup/s",
    "read/s",
    "read p50",
    "read p99",
    "served/s",
    "inflated/s",
    "cache",
    "anon",
    "waiting",
];

fn columns<T: AsRef<str>>(cells: [T; 10]) -> String {
    let cells = cells.iter().map(|cell| format!("{:>11}", cell.as_ref()));
    cells.collect::<Vec<_>>().join("")
}

fn rates(step: &Stats, elapsed: Duration) -> [String; 10] {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let rate = |number: u64| (number as f64 / seconds).round() as u64;
    let reads = step.distribution("request_latency_ns", &["read"]);
    let quantile = |share| time(reads.quantile(share));
    [
        rate(step.total("requests")).to_string(),
        rate(step.number("requests", &["lookup"])).to_string(),
        rate(step.number("requests", &["read"])).to_string(),
        quantile(0.5),
        quantile(0.99),
        bytes(rate(step.number("served_bytes", &[]))),
        bytes(rate(step.number("inflated_bytes", &[]))),
        bytes(step.number("cache_bytes", &[])),
        bytes(step.number("memory_bytes", &["worker", "anon"])),
        step.number("requests_under_way", &[]).to_string(),
    ]
}

fn bytes(number: u64) -> String {
    HumanBytes(number).to_string()
}

/// Nanoseconds with three digits and the unit that suits them.
fn time(nanoseconds: Option<u64>) -> String {
    let Some(ns) = nanoseconds else { return "-".to_owned() };
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "us"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    match value {
        0.0..9.995 => format!("{value:.2} {unit}"),
        0.0..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

fn text(stats: &Stats) -> String {
    let number = |key: &str, labels: &[&str]| stats.number(key, labels);
    let size = |key: &str, labels: &[&str]| bytes(stats.number(key, labels));
    let mut text = String::new();
    for process in ["worker", "keeper"] {
        let memory = |kind| size("memory_bytes", &[process, kind]);
        let restarts = match (process, number("worker_restarts", &[])) {
            ("worker", 1) => ", 1 restart".to_owned(),
            ("worker", n) => format!(", {n} restarts"),
            _ => String::new(),
        };
        text.push_str(&format!(
            "{process}     up {} s{restarts}; {} anonymous, {} shared, {} of files, {} at most; \
             {} threads, {} of {} descriptors\n",
            number("uptime_seconds", &[process]),
            memory("anon"),
            memory("shmem"),
            memory("file"),
            memory("peak"),
            number("threads", &[process]),
            number("descriptors", &[process]),
            match number("descriptor_limit", &[process]) {
                0 => "any number of".to_owned(),
                limit => limit.to_string(),
            },
        ));
    }
    text.push_str(&format!(
        "images     {}; {} of {} layers, {} of {} trees and {} blobs open; {} mounts, {} snapshots\n",
        number("images", &[]),
        number("layers", &["open"]),
        number("layers", &["stored"]),
        number("trees", &["open"]),
        number("trees", &["stored"]),
        number("open_blobs", &[]),
        number("mounts", &[]),
        number("snapshots", &[]),
    ));
    let cache = |result| number("cache_requests", &[result]);
    let ahead = |fate| number("cache_ahead", &[fate]);
    text.push_str(&format!(
        "cache      {} of {} in {} spans; {} hits, {} misses, {} continued, {} waits, {} dropped\n\
         ahead      {} spans, {} used, {} wasted; {} of them known from the last of {} starts\n\
         content    {} served, {} inflated, {} verified\n\
         requests   {} under way, {} reads queued, {} sent again, {} lookups of what is not there\n\
         polls      {} found a request, {} did not; {} of a core\n\
         faults     {}\n\n",
        size("cache_bytes", &[]),
        size("cache_capacity_bytes", &[]),
        number("cache_spans", &[]),
        cache("hit"),
        cache("miss"),
        cache("continued"),
        cache("wait"),
        number("cache_evictions", &[]),
        ahead("started"),
        ahead("used"),
        ahead("wasted"),
        number("start_spans", &[]),
        number("starts", &[]),
        size("served_bytes", &[]),
        size("inflated_bytes", &[]),
        size("verified_bytes", &[]),
        number("requests_under_way", &[]),
        number("reads_queued", &[]),
        number("requests_resent", &[]),
        number("negative_lookups", &[]),
        number("busy_polls", &["found"]),
        number("busy_polls", &["missed"]),
        time(Some(number("busy_poll_ns", &[]))),
        faults(stats),
    ));
    text.push_str(&requests(stats));
    text
}

fn faults(stats: &Stats) -> String {
    let family = stats.families.iter().find(|family| family.key() == "faults");
    let samples = family.map(|family| family.samples.as_slice()).unwrap_or_default();
    let found = samples.iter().filter_map(|sample| match sample.value {
        Value::Number(number) if number > 0 => {
            Some(format!("{number} {}", sample.labels.join(" ")))
        }
        _ => None,
    });
    match found.collect::<Vec<_>>() {
        none if none.is_empty() => "none".to_owned(),
        some => format!("{}; peel logs says more", some.join(", ")),
    }
}

/// A table of the kinds of requests that came.
fn requests(stats: &Stats) -> String {
    let row = |name: &str, count: u64, errors: String, latency: &Distribution| {
        let quantile = |share| time(latency.quantile(share));
        let max = (latency.count() > 0).then_some(latency.max);
        [
            name.to_owned(),
            count.to_string(),
            errors,
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            time(max),
        ]
    };
    let family = stats.families.iter().find(|family| family.key() == "requests");
    let kinds = family.iter().flat_map(|family| &family.samples).map(|sample| &sample.labels);
    let mut rows: Vec<_> = kinds
        .filter_map(|labels| {
            let labels: Vec<_> = labels.iter().map(String::as_str).collect();
            let count = stats.number("requests", &labels);
            let errors = stats.number("request_errors", &labels).to_string();
            let latency = stats.distribution("request_latency_ns", &labels);
            (count > 0).then(|| row(&labels.join(" "), count, errors, &latency))
        })
        .collect();
    let queue = stats.distribution("read_queue_ns", &[]);
    if queue.count() > 0 {
        rows.push(row("read, queued", queue.count(), "-".to_owned(), &queue));
    }
    output::rows(["REQUEST", "COUNT", "ERRORS", "P50", "P90", "P99", "MAX"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 us"),
            (9_994, "9.99 us"),
            (9_996, "10.0 us"),
            (99_960, "100 us"),
            (1_500_000, "1.50 ms"),
            (34_000_000_000, "34.0 s"),
        ];
        for (ns, shown) in table {
            assert_eq!(time(Some(ns)), shown, "{ns}");
        }
        assert_eq!(time(None), "-");
    }
}
