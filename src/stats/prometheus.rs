//! Statistics in Prometheus' text format.
//!
//! A metric `requests` becomes `peel_requests_total`; one in nanoseconds is given in seconds, which
//! is the unit that Prometheus wants. Buckets of a histogram count up, as its `le` says. Source:
//! Prometheus, "Exposition formats", text-based format 0.0.4.

use std::fmt::Write as _;

use super::{Behaviour, Distribution, Family, Stats, Unit, Value};

/// What a response in this format says it is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const NANOSECONDS: f64 = 1e9;

impl Stats {
    /// All of it as text for a scraper.
    pub fn to_prometheus(&self) -> String {
        let mut text = String::new();
        let version = escape(&self.version);
        text.push_str("# HELP peel_build_info What runs.\n# TYPE peel_build_info gauge\n");
        put(&mut text, format_args!("peel_build_info{{version=\"{version}\"}} 1"));
        for family in &self.families {
            family.put(&mut text);
        }
        text
    }
}

impl Family {
    /// The name that Prometheus' users expect.
    pub fn prometheus_name(&self) -> String {
        let unit = match self.unit {
            Unit::Count => "",
            Unit::Bytes => "_bytes",
            Unit::Nanoseconds | Unit::Seconds => "_seconds",
        };
        let total = if self.behaviour == Behaviour::Counter { "_total" } else { "" };
        format!("peel_{}{unit}{total}", self.name)
    }

    fn put(&self, text: &mut String) {
        let name = self.prometheus_name();
        let kind = match self.behaviour {
            Behaviour::Counter => "counter",
            Behaviour::Gauge => "gauge",
            Behaviour::Histogram => "histogram",
        };
        let help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
        put(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
        for sample in &self.samples {
            let pairs = self.labels.iter().zip(&sample.labels);
            let labels: Vec<_> =
                pairs.map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
            match &sample.value {
                Value::Number(number) => {
                    let number = self.number(*number);
                    put(text, format_args!("{name}{} {number}", braces(&labels, None)));
                }
                Value::Distribution(distribution) => {
                    self.put_histogram(text, &name, &labels, distribution);
                }
            }
        }
    }

    fn put_histogram(
        &self,
        text: &mut String,
        name: &str,
        labels: &[String],
        distribution: &Distribution,
    ) {
        let mut count = 0;
        for (bound, more) in &distribution.buckets {
            count += more;
            let bound = self.number(*bound);
            put(text, format_args!("{name}_bucket{} {count}", braces(labels, Some(&bound))));
        }
        put(text, format_args!("{name}_bucket{} {count}", braces(labels, Some("+Inf"))));
        let (sum, labels) = (self.number(distribution.sum), braces(labels, None));
        put(text, format_args!("{name}_sum{labels} {sum}\n{name}_count{labels} {count}"));
    }

    fn number(&self, number: u64) -> String {
        match self.unit {
            #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
            Unit::Nanoseconds => (number as f64 / NANOSECONDS).to_string(),
            Unit::Count | Unit::Bytes | Unit::Seconds => number.to_string(),
        }
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail
    let _ = writeln!(text, "{line}");
}

fn braces(labels: &[String], bound: Option<&str>) -> String {
    let bound = bound.map(|bound| format!("le=\"{bound}\""));
    let all: Vec<_> = labels.iter().map(String::as_str).chain(bound.as_deref()).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Sample;

    #[test]
    fn every_kind_of_metric() {
        let family = |name: &str, unit, behaviour, labels: &[&str], samples| Family {
            name: name.to_owned(),
            unit,
            behaviour,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            help: format!("What {name} says."),
            samples,
        };
        let sample = |labels: &[&str], value| Sample {
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            value,
        };
        let latency = Distribution {
            buckets: vec![(1_000, 2), (2_500_000, 1)],
            sum: 2_502_000,
            max: 2_500_000,
        };
        let stats = Stats {
            version: "1 \"x\"".to_owned(),
            at_ns: 0,
            worker_pid: 1,
            worker_started_at_ns: 0,
            families: vec![
                family(
                    "requests",
                    Unit::Count,
                    Behaviour::Counter,
                    &["kind"],
                    vec![
                        sample(&["lookup"], Value::Number(3)),
                        sample(&["a\\\n"], Value::Number(0)),
                    ],
                ),
                family(
                    "cache",
                    Unit::Bytes,
                    Behaviour::Gauge,
                    &[],
                    vec![sample(&[], Value::Number(9))],
                ),
                family(
                    "latency",
                    Unit::Nanoseconds,
                    Behaviour::Histogram,
                    &["kind"],
                    vec![sample(&["read"], Value::Distribution(latency))],
                ),
            ],
        };
        let expected = r##"# HELP peel_build_info What runs.
# TYPE peel_build_info gauge
peel_build_info{version="1 \"x\""} 1
# HELP peel_requests_total What requests says.
# TYPE peel_requests_total counter
peel_requests_total{kind="lookup"} 3
peel_requests_total{kind="a\\\n"} 0
# HELP peel_cache_bytes What cache says.
# TYPE peel_cache_bytes gauge
peel_cache_bytes 9
# HELP peel_latency_seconds What latency says.
# TYPE peel_latency_seconds histogram
peel_latency_seconds_bucket{kind="read",le="0.000001"} 2
peel_latency_seconds_bucket{kind="read",le="0.0025"} 3
peel_latency_seconds_bucket{kind="read",le="+Inf"} 3
peel_latency_seconds_sum{kind="read"} 0.002502
peel_latency_seconds_count{kind="read"} 3
"##;
        assert_eq!(stats.to_prometheus(), expected);
    }
}
