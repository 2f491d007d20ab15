//! Statistics as JSON.
//!
//! ```json
//! { "version": "0.1.0", "at_ns": 0, "worker_pid": 7, "worker_started_at_ns": 0,
//!   "requests": { "lookup": 3 },
//!   "request_latency_ns": { "lookup": { "count": 3, "sum": 9000, "max": 4000, "p50": 2303,
//!                                       "p90": 4000, "p99": 4000, "buckets": [[2303, 2]] } },
//!   "memory_bytes": { "worker": { "anonymous": 1, "file": 1 } } }
//! ```

use serde_json::{Map, Value as Json, json};

use super::{Distribution, Family, Sample, Stats, Value};

/// Shares whose quantiles are given, and their names.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// Keys beside those of the metrics.
const AT: &str = "at_ns";
const PID: &str = "worker_pid";
const STARTED: &str = "worker_started_at_ns";
const VERSION: &str = "version";

fn of_distribution(distribution: &Distribution) -> Json {
    let mut object = Map::new();
    object.insert("count".to_owned(), distribution.count().into());
    object.insert("sum".to_owned(), distribution.sum.into());
    object.insert("max".to_owned(), distribution.max.into());
    for (name, share) in QUANTILES {
        object.insert(name.to_owned(), distribution.quantile(share).into());
    }
    object.insert("buckets".to_owned(), json!(distribution.buckets));
    object.into()
}

fn to_distribution(json: &Json) -> Option<Distribution> {
    let pair = |bucket: &Json| Some((bucket.get(0)?.as_u64()?, bucket.get(1)?.as_u64()?));
    let buckets = json["buckets"].as_array()?.iter().map(pair).collect::<Option<_>>()?;
    Some(Distribution { buckets, sum: json["sum"].as_u64()?, max: json["max"].as_u64()? })
}

impl Family {
    fn to_json(&self) -> Json {
        let mut json = Json::Null;
        for Sample { labels, value } in &self.samples {
            let place = labels.iter().fold(&mut json, |place, label| {
                if !place.is_object() {
                    *place = json!({});
                }
                &mut place[label]
            });
            *place = match value {
                Value::Number(number) => (*number).into(),
                Value::Distribution(distribution) => of_distribution(distribution),
            };
        }
        json
    }
}

impl Stats {
    /// All of it as one object.
    pub fn to_json(&self) -> Json {
        let mut object = Map::new();
        object.insert(VERSION.to_owned(), self.version.as_str().into());
        object.insert(AT.to_owned(), self.at_ns.into());
        object.insert(PID.to_owned(), self.worker_pid.into());
        object.insert(STARTED.to_owned(), self.worker_started_at_ns.into());
        for family in &self.families {
            object.insert(family.key(), family.to_json());
        }
        object.into()
    }

    /// Statistics of the same metrics as these, from [`to_json`](Self::to_json) of earlier ones;
    /// metrics that were not there then are left out. `None` where it is not of that form.
    pub fn earlier(&self, json: &Json) -> Option<Self> {
        let mut stats = Self {
            version: json[VERSION].as_str()?.to_owned(),
            at_ns: json[AT].as_i64()?,
            worker_pid: json[PID].as_u64()?.try_into().ok()?,
            worker_started_at_ns: json[STARTED].as_i64()?,
            families: self.families.clone(),
        };
        for family in &mut stats.families {
            let of_family = &json[family.key()];
            family.samples.retain_mut(|Sample { labels, value }| {
                let found = labels.iter().fold(of_family, |place, label| &place[label]);
                let earlier = match value {
                    Value::Number(_) => found.as_u64().map(Value::Number),
                    Value::Distribution(_) => to_distribution(found).map(Value::Distribution),
                };
                earlier.map(|earlier| *value = earlier).is_some()
            });
        }
        Some(stats)
    }
}
