//! Statistics in the messages of the API.

use super::{Behaviour, Distribution, Family, Sample, Stats, Unit, Value};
use crate::api;

impl From<Unit> for api::metric::Unit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Count => Self::Count,
            Unit::Bytes => Self::Bytes,
            Unit::Nanoseconds => Self::Nanoseconds,
            Unit::Seconds => Self::Seconds,
        }
    }
}

impl From<api::metric::Unit> for Unit {
    fn from(unit: api::metric::Unit) -> Self {
        match unit {
            api::metric::Unit::Count => Self::Count,
            api::metric::Unit::Bytes => Self::Bytes,
            api::metric::Unit::Nanoseconds => Self::Nanoseconds,
            api::metric::Unit::Seconds => Self::Seconds,
        }
    }
}

impl From<Behaviour> for api::metric::Behaviour {
    fn from(behaviour: Behaviour) -> Self {
        match behaviour {
            Behaviour::Counter => Self::Counter,
            Behaviour::Gauge => Self::Gauge,
            Behaviour::Histogram => Self::Histogram,
        }
    }
}

impl From<api::metric::Behaviour> for Behaviour {
    fn from(behaviour: api::metric::Behaviour) -> Self {
        match behaviour {
            api::metric::Behaviour::Counter => Self::Counter,
            api::metric::Behaviour::Gauge => Self::Gauge,
            api::metric::Behaviour::Histogram => Self::Histogram,
        }
    }
}

impl From<Family> for api::Metric {
    fn from(family: Family) -> Self {
        Self {
            name: family.name,
            unit: api::metric::Unit::from(family.unit).into(),
            behaviour: api::metric::Behaviour::from(family.behaviour).into(),
            labels: family.labels,
            help: family.help,
            samples: family.samples.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<api::Metric> for Family {
    fn from(metric: api::Metric) -> Self {
        Self {
            unit: metric.unit().into(),
            behaviour: metric.behaviour().into(),
            name: metric.name,
            labels: metric.labels,
            help: metric.help,
            samples: metric.samples.into_iter().filter_map(sample).collect(),
        }
    }
}

impl From<Sample> for api::Sample {
    fn from(sample: Sample) -> Self {
        use api::sample::Value as Wire;
        let value = match sample.value {
            Value::Number(number) => Wire::Number(number),
            Value::Distribution(Distribution { buckets, sum, max }) => {
                let (upper_bounds, counts) = buckets.into_iter().unzip();
                Wire::Distribution(api::Distribution { upper_bounds, counts, sum, max })
            }
        };
        Self { labels: sample.labels, value: Some(value) }
    }
}

/// `None` for a sample of a kind that this version does not know.
fn sample(sample: api::Sample) -> Option<Sample> {
    use api::sample::Value as Wire;
    let value = match sample.value? {
        Wire::Number(number) => Value::Number(number),
        Wire::Distribution(api::Distribution { upper_bounds, counts, sum, max }) => {
            let buckets = upper_bounds.into_iter().zip(counts).collect();
            Value::Distribution(Distribution { buckets, sum, max })
        }
    };
    Some(Sample { labels: sample.labels, value })
}

impl From<api::StatsResponse> for Stats {
    fn from(answer: api::StatsResponse) -> Self {
        Self {
            version: answer.version,
            at_ns: answer.at_ns,
            worker_pid: answer.worker_pid,
            worker_started_at_ns: answer.worker_started_at_ns,
            families: answer.metrics.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Stats> for api::StatsResponse {
    fn from(stats: Stats) -> Self {
        Self {
            version: stats.version,
            at_ns: stats.at_ns,
            worker_pid: stats.worker_pid,
            worker_started_at_ns: stats.worker_started_at_ns,
            metrics: stats.families.into_iter().map(Into::into).collect(),
        }
    }
}
