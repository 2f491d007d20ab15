//! Statistics as they are gathered, sent and shown.
//!
//! ```text
//! daemon  table: definition + how it is read → Family      rendered for a scraper, or
//!                                               │ api::Metric
//! client                                      Family → text, JSON, differences
//! ```
//! A family is a metric with its unit and one sample for each combination of labels. As JSON it is
//! a number, or an object by label (by two labels: of objects); its key is the name with the unit.

mod json;
pub mod prometheus;
mod wire;

pub use peel_fuse::metrics::Distribution;

/// What a metric counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things.
    Count,
    /// Bytes.
    Bytes,
    /// Nanoseconds.
    Nanoseconds,
    /// Seconds.
    Seconds,
}

impl Unit {
    /// What is appended to a metric's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Bytes => "_bytes",
            Self::Nanoseconds => "_ns",
            Self::Seconds => "_seconds",
        }
    }
}

/// How a metric behaves over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Only grows, from 0 at the worker's start.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts of values.
    Histogram,
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Definition {
    /// Its name, without unit.
    pub name: &'static str,
    /// What it counts in.
    pub unit: Unit,
    /// How it behaves.
    pub behaviour: Behaviour,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it says.
    pub help: &'static str,
}

/// A metric with its samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Family {
    /// Its name, without unit.
    pub name: String,
    /// What it counts in.
    pub unit: Unit,
    /// How it behaves.
    pub behaviour: Behaviour,
    /// Names of its labels.
    pub labels: Vec<String>,
    /// What it says.
    pub help: String,
    /// One for each combination of labels.
    pub samples: Vec<Sample>,
}

/// One value of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// One for each of the metric's labels.
    pub labels: Vec<String>,
    /// The value.
    pub value: Value,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Of a counter or gauge.
    Number(u64),
    /// Of a histogram.
    Distribution(Distribution),
}

impl Family {
    /// A metric of this definition.
    pub fn new(definition: &Definition, samples: Vec<Sample>) -> Self {
        let Definition { name, unit, behaviour, labels, help } = *definition;
        Self {
            name: name.to_owned(),
            unit,
            behaviour,
            labels: labels.iter().map(|&label| label.to_owned()).collect(),
            help: help.to_owned(),
            samples,
        }
    }

    /// Name and unit.
    pub fn key(&self) -> String {
        format!("{}{}", self.name, self.unit.suffix())
    }
}

/// All metrics of a daemon at one moment, or what became of them between two moments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Version of the daemon.
    pub version: String,
    /// When they were taken, in nanoseconds of Unix time.
    pub at_ns: i64,
    /// Process id of the worker that took them.
    pub worker_pid: u32,
    /// When that was started, in nanoseconds of Unix time: counters are from then on.
    pub worker_started_at_ns: i64,
    /// The metrics, in the order in which they are shown.
    pub families: Vec<Family>,
}

impl Stats {
    fn value(&self, key: &str, labels: &[&str]) -> Option<&Value> {
        let family = self.families.iter().find(|family| family.key() == key)?;
        Some(&family.samples.iter().find(|sample| sample.labels == labels)?.value)
    }

    /// A number; 0 where there is none of that name and those labels.
    pub fn number(&self, key: &str, labels: &[&str]) -> u64 {
        match self.value(key, labels) {
            Some(Value::Number(number)) => *number,
            Some(Value::Distribution(_)) | None => 0,
        }
    }

    /// The sum over all labels.
    pub fn total(&self, key: &str) -> u64 {
        let families = self.families.iter().filter(|family| family.key() == key);
        let samples = families.flat_map(|family| &family.samples);
        let numbers = samples.filter_map(|sample| match sample.value {
            Value::Number(number) => Some(number),
            Value::Distribution(_) => None,
        });
        numbers.sum()
    }

    /// A histogram; an empty one where there is none.
    pub fn distribution(&self, key: &str, labels: &[&str]) -> Distribution {
        match self.value(key, labels) {
            Some(Value::Distribution(distribution)) => distribution.clone(),
            Some(Value::Number(_)) | None => Distribution::default(),
        }
    }

    /// What became of counters and histograms since `earlier`; gauges stay as they are. `None`
    /// where another worker took those: its counters began anew.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        if (earlier.worker_pid, earlier.worker_started_at_ns)
            != (self.worker_pid, self.worker_started_at_ns)
        {
            return None;
        }
        let mut stats = self.clone();
        for family in stats.families.iter_mut().filter(|f| f.behaviour != Behaviour::Gauge) {
            let key = family.key();
            for sample in &mut family.samples {
                let labels: Vec<_> = sample.labels.iter().map(String::as_str).collect();
                match (&mut sample.value, earlier.value(&key, &labels)) {
                    (Value::Number(now), Some(Value::Number(before))) => {
                        *now = now.saturating_sub(*before);
                    }
                    (Value::Distribution(now), Some(Value::Distribution(before))) => {
                        *now = now.since(before);
                    }
                    // What was not there then counts in full
                    _ => {}
                }
            }
        }
        Some(stats)
    }
}

#[cfg(test)]
mod tests;
