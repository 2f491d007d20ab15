//! Statistics over the wire, as JSON, and as differences.

use serde_json::json;

use super::*;
use crate::api;

const REQUESTS: Definition = Definition {
    name: "requests",
    unit: Unit::Count,
    behaviour: Behaviour::Counter,
    labels: &["kind"],
    help: "requests",
};
const LATENCY: Definition = Definition {
    name: "latency",
    unit: Unit::Nanoseconds,
    behaviour: Behaviour::Histogram,
    labels: &[],
    help: "latency",
};
const MEMORY: Definition = Definition {
    name: "memory",
    unit: Unit::Bytes,
    behaviour: Behaviour::Gauge,
    labels: &["process", "kind"],
    help: "memory",
};

fn number(labels: &[&str], number: u64) -> Sample {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    Sample { labels, value: Value::Number(number) }
}

fn stats(requests: [u64; 2], buckets: Vec<(u64, u64)>, memory: u64) -> Stats {
    let sum = buckets.iter().map(|(upper, count)| upper * count).sum();
    let max = buckets.last().map_or(0, |(upper, _)| *upper);
    let latency = Value::Distribution(Distribution { buckets, sum, max });
    let [lookup, read] = requests;
    Stats {
        version: "1.2.3".to_owned(),
        at_ns: 5,
        worker_pid: 7,
        worker_started_at_ns: -1,
        families: vec![
            Family::new(&REQUESTS, vec![number(&["lookup"], lookup), number(&["read"], read)]),
            Family::new(&LATENCY, vec![Sample { labels: Vec::new(), value: latency }]),
            Family::new(
                &MEMORY,
                vec![number(&["worker", "file"], memory), number(&["keeper", "file"], 1)],
            ),
        ],
    }
}

#[test]
fn over_the_wire() {
    let sent = stats([1, u64::MAX], vec![(255, 3), (1023, 1)], 9);
    assert_eq!(Stats::from(api::StatsResponse::from(sent.clone())), sent);
}

#[test]
fn as_json_and_back() {
    let stats = stats([3, 4], vec![(255, 3), (1023, 1)], 9);
    let json = stats.to_json();
    assert_eq!(json["requests"], json!({ "lookup": 3, "read": 4 }));
    assert_eq!(json["memory_bytes"], json!({ "worker": { "file": 9 }, "keeper": { "file": 1 } }));
    assert_eq!(
        json["latency_ns"],
        json!({ "count": 4, "sum": 1788, "max": 1023, "p50": 255, "p90": 1023, "p99": 1023,
                "buckets": [[255, 3], [1023, 1]] })
    );
    assert_eq!(stats.earlier(&json), Some(stats.clone()));
    for bad in [json!(null), json!({}), json!([1]), json!({ "worker_pid": -1 })] {
        assert_eq!(stats.earlier(&bad), None, "{bad}");
    }
}

#[test]
fn differences_are_of_counters_and_histograms() {
    let before = stats([1, 10], vec![(255, 3)], 9);
    let now = stats([4, 10], vec![(255, 5), (1023, 2)], 3);
    let since = now.since(&before).expect("of one worker");
    assert_eq!(since.number("requests", &["lookup"]), 3);
    assert_eq!(since.total("requests"), 3);
    assert_eq!(since.distribution("latency_ns", &[]).buckets, [(255, 2), (1023, 2)]);
    assert_eq!(since.number("memory_bytes", &["worker", "file"]), 3, "a gauge is as it is");

    let mut lacking = before.to_json();
    lacking["requests"] = json!({ "read": 10 });
    let before = now.earlier(&lacking).expect("whole otherwise");
    let since = now.since(&before).expect("of one worker");
    assert_eq!(since.number("requests", &["lookup"]), 4, "counts in full");

    let other = Stats { worker_pid: 8, ..before };
    assert_eq!(now.since(&other), None);
}

#[test]
fn what_is_not_there_is_zero() {
    let stats = stats([1, 2], Vec::new(), 3);
    assert_eq!(stats.number("requests", &["none"]), 0);
    assert_eq!(stats.total("none"), 0);
    assert_eq!(stats.distribution("requests", &["read"]), Distribution::default());
}
