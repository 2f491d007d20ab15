//! Every metric of the daemon: one table of what it is and how it is read.
//!
//! Metrics are read when somebody asks, and nothing is kept. All but those of the processes and of
//! the records count since this worker started.

use peel_fuse::metrics::{BusyPollSnapshot, Snapshot};

use super::engine::Engine;
use crate::{
    failure::Failure,
    layers::{CacheStats, LayerCounts},
    process::Usage,
    stats::{
        Behaviour::{Counter, Gauge, Histogram},
        Definition, Family, Sample, Stats,
        Unit::{Bytes, Count, Nanoseconds, Seconds},
        Value,
    },
};

/// What metrics are read from, taken at one moment.
struct Sources {
    fuse: Snapshot,
    cache: CacheStats,
    layers: LayerCounts,
    worker: Usage,
    /// Where it can be looked at.
    keeper: Option<Usage>,
    restarts: u64,
    images: u64,
    mounts: u64,
    snapshots: u64,
    pulls: [(&'static str, u64); 2],
    containerd_layers: [(&'static str, u64); 2],
}

impl Sources {
    fn processes(&self) -> impl Iterator<Item = (&'static str, &Usage)> {
        std::iter::once(("worker", &self.worker)).chain(self.keeper.iter().map(|k| ("keeper", k)))
    }
}

/// One metric.
struct Row(Definition, fn(&Sources) -> Vec<Sample>);

/// Label of a metric of requests.
const KIND: &[&str] = &["kind"];
/// Label of a metric of both processes.
const PROCESS: &[&str] = &["process"];

/// All metrics, in the order in which they are shown.
const TABLE: &[Row] = &[
    Row(
        Definition {
            name: "requests",
            unit: Count,
            behaviour: Counter,
            labels: KIND,
            help: "Requests of the kernel",
        },
        |s| by_kind(s, |kind| Value::Number(kind.requests)),
    ),
    Row(
        Definition {
            name: "request_errors",
            unit: Count,
            behaviour: Counter,
            labels: KIND,
            help: "Requests answered with an error that callers should not see every day",
        },
        |s| by_kind(s, |kind| Value::Number(kind.errors)),
    ),
    Row(
        Definition {
            name: "request_latency",
            unit: Nanoseconds,
            behaviour: Histogram,
            labels: KIND,
            help: "From a request's arrival in the worker to its answer",
        },
        |s| by_kind(s, |kind| Value::Distribution(kind.latency.clone())),
    ),
    Row(
        Definition {
            name: "read_queue",
            unit: Nanoseconds,
            behaviour: Histogram,
            labels: &[],
            help: "From a read's arrival in the worker to its beginning",
        },
        |s| vec![Sample { labels: vec![], value: Value::Distribution(s.fuse.read_queue.clone()) }],
    ),
    Row(
        Definition {
            name: "negative_lookups",
            unit: Count,
            behaviour: Counter,
            labels: &[],
            help: "Lookups of names that do not exist; among the lookups too",
        },
        |s| one(s.fuse.negative_lookups),
    ),
    Row(
        Definition {
            name: "requests_resent",
            unit: Count,
            behaviour: Counter,
            labels: &[],
            help: "Requests that an earlier worker had taken and not answered",
        },
        |s| one(s.fuse.resent),
    ),
    Row(
        Definition {
            name: "requests_under_way",
            unit: Count,
            behaviour: Gauge,
            labels: &[],
            help: "Requests that are not answered yet",
        },
        |s| one(s.fuse.under_way()),
    ),
    Row(
        Definition {
            name: "reads_queued",
            unit: Count,
            behaviour: Gauge,
            labels: &[],
            help: "Reads that wait for a thread",
        },
        |s| one(s.fuse.queued_reads()),
    ),
    Row(
        Definition {
            name: "busy_polls",
            unit: Count,
            behaviour: Counter,
            labels: &["result"],
            help: "Times that the next request was looked out for, and came soon or did not",
        },
        |s| {
            let BusyPollSnapshot { found, missed, .. } = s.fuse.busy_poll;
            labelled([("found", found), ("missed", missed)].into_iter())
        },
    ),
    Row(
        Definition {
            name: "busy_poll",
            unit: Nanoseconds,
            behaviour: Counter,
            labels: &[],
            help: "What that took of one core",
        },
        |s| one(u64::try_from(s.fuse.busy_poll.took.as_nanos()).unwrap_or(u64::MAX)),
    ),
    Row(
        Definition {
            name: "served",
            unit: Bytes,
            behaviour: Counter,
            labels: &[],
            help: "Content of files given to the kernel",
        },
        |s| one(s.fuse.read_bytes),
    ),
    Row(
        Definition {
            name: "inflated",
            unit: Bytes,
            behaviour: Counter,
            labels: &[],
            help: "Tar decompressed",
        },
        |s| one(s.cache.inflated_bytes),
    ),
    Row(
        Definition {
            name: "verified",
            unit: Bytes,
            behaviour: Counter,
            labels: &[],
            help: "Compressed bytes read, and checked against their digests",
        },
        |s| one(s.cache.compressed_bytes),
    ),
    Row(
        Definition {
            name: "faults",
            unit: Count,
            behaviour: Counter,
            labels: &["cause"],
            help: "Requests that failed for a reason that the log tells",
        },
        |s| labelled(s.fuse.faults.iter().map(|(fault, count)| (fault.name(), *count))),
    ),
    Row(
        Definition {
            name: "cache",
            unit: Bytes,
            behaviour: Gauge,
            labels: &[],
            help: "What the span cache holds",
        },
        |s| one(s.cache.bytes),
    ),
    Row(
        Definition {
            name: "cache_capacity",
            unit: Bytes,
            behaviour: Gauge,
            labels: &[],
            help: "What the span cache holds at most",
        },
        |s| one(s.cache.capacity),
    ),
    Row(
        Definition {
            name: "cache_spans",
            unit: Count,
            behaviour: Gauge,
            labels: &[],
            help: "Spans in the span cache",
        },
        |s| one(s.cache.spans),
    ),
    Row(
        Definition {
            name: "cache_requests",
            unit: Count,
            behaviour: Counter,
            labels: &["result"],
            help: "Spans asked for: there, begun, gone on with, or waited for",
        },
        |s| {
            let CacheStats { hits, misses, continued, waits, .. } = s.cache;
            let all = [("hit", hits), ("miss", misses), ("continued", continued), ("wait", waits)];
            labelled(all.into_iter())
        },
    ),
    Row(
        Definition {
            name: "cache_ahead",
            unit: Count,
            behaviour: Counter,
            labels: &["fate"],
            help: "Spans decoded ahead of any request; of these, asked for later, and dropped unused",
        },
        |s| {
            let CacheStats { ahead_started, ahead_used, ahead_wasted, .. } = s.cache;
            let all = [("started", ahead_started), ("used", ahead_used), ("wasted", ahead_wasted)];
            labelled(all.into_iter())
        },
    ),
    Row(
        Definition {
            name: "starts",
            unit: Count,
            behaviour: Counter,
            labels: &[],
            help: "Times that a layer came into use",
        },
        |s| one(s.cache.starts),
    ),
    Row(
        Definition {
            name: "start_spans",
            unit: Count,
            behaviour: Counter,
            labels: &[],
            help: "Of the spans decoded ahead, those that were read when a layer last came into use",
        },
        |s| one(s.cache.start_spans),
    ),
    Row(
        Definition {
            name: "cache_served",
            unit: Bytes,
            behaviour: Counter,
            labels: &[],
            help: "Taken from decoded spans",
        },
        |s| one(s.cache.served_bytes),
    ),
    Row(
        Definition {
            name: "cache_evictions",
            unit: Count,
            behaviour: Counter,
            labels: &[],
            help: "Spans dropped to make room",
        },
        |s| one(s.cache.evictions),
    ),
    Row(
        Definition {
            name: "cache_failures",
            unit: Count,
            behaviour: Counter,
            labels: &[],
            help: "Spans that could not be decoded",
        },
        |s| one(s.cache.failures),
    ),
    Row(
        Definition {
            name: "layers",
            unit: Count,
            behaviour: Gauge,
            labels: &["state"],
            help: "Indexes of layers; of these, those that are open",
        },
        |s| labelled([("stored", s.layers.layers), ("open", s.layers.open_layers)].into_iter()),
    ),
    Row(
        Definition {
            name: "trees",
            unit: Count,
            behaviour: Gauge,
            labels: &["state"],
            help: "Merged trees of images; of these, those that are open",
        },
        |s| labelled([("stored", s.layers.trees), ("open", s.layers.open_trees)].into_iter()),
    ),
    Row(
        Definition {
            name: "open_blobs",
            unit: Count,
            behaviour: Gauge,
            labels: &[],
            help: "Blobs and seekable copies that are open, each with a descriptor",
        },
        |s| one(s.layers.open_blobs),
    ),
    Row(
        Definition { name: "images", unit: Count, behaviour: Gauge, labels: &[], help: "Images" },
        |s| one(s.images),
    ),
    Row(
        Definition { name: "mounts", unit: Count, behaviour: Gauge, labels: &[], help: "Mounts" },
        |s| one(s.mounts),
    ),
    Row(
        Definition {
            name: "snapshots",
            unit: Count,
            behaviour: Gauge,
            labels: &[],
            help: "Snapshots that hold what was written",
        },
        |s| one(s.snapshots),
    ),
    Row(
        Definition {
            name: "pulls",
            unit: Count,
            behaviour: Counter,
            labels: &["result"],
            help: "Pulls of images by peel's own commands",
        },
        |s| labelled(s.pulls.into_iter()),
    ),
    Row(
        Definition {
            name: "containerd_layers",
            unit: Count,
            behaviour: Counter,
            labels: &["result"],
            help: "Layers that containerd asked for: indexed instead of unpacked, or left to it",
        },
        |s| labelled(s.containerd_layers.into_iter()),
    ),
    Row(
        Definition {
            name: "memory",
            unit: Bytes,
            behaviour: Gauge,
            labels: &["process", "kind"],
            help: "Resident memory; of files it is the page cache's, and peak is the most ever",
        },
        |s| {
            let kinds = |usage: &Usage| {
                let Usage { rss_anon, rss_shmem, rss_file, peak, .. } = *usage;
                [("anon", rss_anon), ("shmem", rss_shmem), ("file", rss_file), ("peak", peak)]
            };
            let samples = s.processes().flat_map(|(process, usage)| {
                kinds(usage).map(|(kind, bytes)| sample(&[process, kind], bytes))
            });
            samples.collect()
        },
    ),
    Row(
        Definition {
            name: "threads",
            unit: Count,
            behaviour: Gauge,
            labels: PROCESS,
            help: "Threads",
        },
        |s| labelled(s.processes().map(|(process, usage)| (process, usage.threads))),
    ),
    Row(
        Definition {
            name: "descriptors",
            unit: Count,
            behaviour: Gauge,
            labels: PROCESS,
            help: "Open descriptors",
        },
        |s| labelled(s.processes().map(|(process, usage)| (process, usage.descriptors))),
    ),
    Row(
        Definition {
            name: "descriptor_limit",
            unit: Count,
            behaviour: Gauge,
            labels: PROCESS,
            help: "Descriptors that may be open; not there where there is no limit",
        },
        |s| {
            let limits =
                s.processes().filter_map(|(process, u)| Some((process, u.descriptor_limit?)));
            labelled(limits)
        },
    ),
    Row(
        Definition {
            name: "uptime",
            unit: Seconds,
            behaviour: Gauge,
            labels: PROCESS,
            help: "Time since the start",
        },
        |s| labelled(s.processes().map(|(process, usage)| (process, usage.uptime.as_secs()))),
    ),
    Row(
        Definition {
            name: "worker_restarts",
            unit: Count,
            behaviour: Gauge,
            labels: &[],
            help: "Workers since the keeper started, but for the first",
        },
        |s| one(s.restarts),
    ),
];

fn sample(labels: &[&str], number: u64) -> Sample {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    Sample { labels, value: Value::Number(number) }
}

fn one(number: u64) -> Vec<Sample> {
    vec![sample(&[], number)]
}

fn labelled<'a>(numbers: impl Iterator<Item = (&'a str, u64)>) -> Vec<Sample> {
    numbers.map(|(label, number)| sample(&[label], number)).collect()
}

fn by_kind(
    sources: &Sources,
    value: fn(&peel_fuse::metrics::KindSnapshot) -> Value,
) -> Vec<Sample> {
    let kinds = sources.fuse.kinds.iter();
    let samples =
        kinds.map(|kind| Sample { labels: vec![kind.kind.name().to_owned()], value: value(kind) });
    samples.collect()
}

/// Reads every metric.
///
/// # Errors
/// Where the metadata or this process's own entry in proc cannot be read.
pub(super) fn collect(
    engine: &Engine,
    fuse: Snapshot,
    restarts: u64,
    worker_started_at_ns: i64,
) -> Result<Stats, Failure> {
    let worker_pid = std::process::id();
    let worker = Usage::of(worker_pid)
        .map_err(|e| Failure::io(&e, format!("cannot read /proc/{worker_pid}: {e}")))?;
    let sources = Sources {
        fuse,
        cache: engine.layers.cache_stats(),
        layers: engine.layers.counts(),
        worker,
        keeper: rustix::process::getppid()
            .and_then(|pid| Usage::of(pid.as_raw_nonzero().get().unsigned_abs()).ok()),
        restarts,
        images: engine.metadata.images()?.len() as u64,
        mounts: engine.live_mounts()?.iter().filter(|(_, live)| *live).count() as u64,
        snapshots: engine.metadata.snapshots()?.len() as u64,
        pulls: [
            ("good", engine.counters.pulls.value()),
            ("failed", engine.counters.pulls_failed.value()),
        ],
        containerd_layers: [
            ("indexed", engine.counters.layers_taken.value()),
            ("declined", engine.counters.layers_declined.value()),
        ],
    };
    Ok(Stats {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        at_ns: crate::metadata::now_ns(),
        worker_pid,
        worker_started_at_ns,
        families: families(&sources),
    })
}

fn families(sources: &Sources) -> Vec<Family> {
    TABLE.iter().map(|Row(definition, read)| Family::new(definition, read(sources))).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn sources() -> Sources {
        let usage = Usage::of(std::process::id()).expect("our own");
        Sources {
            fuse: peel_fuse::metrics::Metrics::default().snapshot(),
            cache: CacheStats { hits: 5, ..CacheStats::default() },
            layers: LayerCounts { layers: 3, open_layers: 2, ..LayerCounts::default() },
            worker: usage.clone(),
            keeper: Some(usage),
            restarts: 1,
            images: 2,
            mounts: 3,
            snapshots: 4,
            pulls: [("good", 5), ("failed", 6)],
            containerd_layers: [("indexed", 7), ("declined", 8)],
        }
    }

    #[test]
    fn every_sample_fits_its_definition() {
        let mut keys = HashSet::new();
        for family in families(&sources()) {
            let key = family.key();
            assert!(!family.help.is_empty() && !family.samples.is_empty(), "{key}");
            let mut labels = HashSet::new();
            for sample in &family.samples {
                assert_eq!(sample.labels.len(), family.labels.len(), "{key}");
                assert!(labels.insert(sample.labels.clone()), "{key}: {:?} twice", sample.labels);
                let histogram = matches!(sample.value, Value::Distribution(_));
                assert_eq!(histogram, family.behaviour == Histogram, "{key}");
            }
            assert!(keys.insert(key.clone()), "{key} twice");
        }
    }

    #[test]
    fn the_document_lists_all() {
        let rows = families(&sources()).into_iter().map(|family| {
            let labels: Vec<_> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let kind = format!("{:?}", family.behaviour).to_lowercase();
            let (name, help) = (family.prometheus_name(), &family.help);
            format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", "))
        });
        let expected: String = rows.collect();
        let document = include_str!("CONTAINERD.md");
        assert!(document.contains(&expected), "expected in CONTAINERD.md:\n{expected}");
    }

    #[test]
    fn numbers_come_from_where_they_are_counted() {
        let stats = Stats {
            version: String::new(),
            at_ns: 0,
            worker_pid: 1,
            worker_started_at_ns: 0,
            families: families(&sources()),
        };
        assert_eq!(stats.number("cache_requests", &["hit"]), 5);
        assert_eq!(stats.number("layers", &["open"]), 2);
        assert_eq!(stats.number("worker_restarts", &[]), 1);
        assert!(stats.number("memory_bytes", &["keeper", "anon"]) > 0);
        assert_eq!(stats.total("requests"), 0);
    }
}
