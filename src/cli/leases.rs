//! `leases`.

use clap::Subcommand;
use serde_json::Value;

use super::{
    Context,
    images::name_or_digest,
    meta::label_list,
    output::{self, age, incomplete, note, or_dash, print},
    store::duration,
};
use crate::{api, failure::Failure, metadata::now_ns};

/// `peel leases`.
#[derive(Debug, Subcommand)]
pub(super) enum LeasesCommand {
    /// List leases, those of pulls included
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Keep images or blobs, whatever is removed, until the lease ends
    Create {
        /// Name of the lease; one is made up where none is given
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        id: String,
        /// How long it lasts: 30m, 12h, 7d; 0 for ever
        #[arg(long, value_name = "TIME", value_parser = duration, default_value = "24h")]
        expires: u64,
        /// Label it
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// Images that are here, or digests of blobs
        #[arg(value_name = "REF|DIGEST")]
        resources: Vec<String>,
    },
    /// End leases, and remove what nothing else keeps
    Rm {
        /// The leases
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

pub(super) async fn leases(context: &Context, command: LeasesCommand) -> Result<(), Failure> {
    match command {
        LeasesCommand::Ls { json } => {
            let mut client = context.connect().await?;
            let found = client.list_leases(api::ListLeasesRequest {}).await?.into_inner().json;
            let found: Value = serde_json::from_str(&found).map_err(|_| incomplete("JSON"))?;
            if json {
                return output::json(&found);
            }
            let rows: Vec<_> = found.as_array().into_iter().flatten().map(row).collect();
            output::table(["NAME", "CREATED", "EXPIRES", "BLOBS", "LABELS"], &rows)
        }
        LeasesCommand::Create { id, expires, labels, resources } => {
            let resources = resources.iter().map(|resource| name_or_digest(resource));
            let request = api::CreateLeaseRequest {
                id,
                expires_seconds: expires,
                labels: label_list(labels)?,
                resources: resources.collect::<Result<_, _>>()?,
            };
            let id = context.connect().await?.create_lease(request).await?.into_inner().id;
            print(&format!("{id}\n"))
        }
        LeasesCommand::Rm { names } => {
            let mut client = context.connect().await?;
            output::for_all(names, async |id| {
                client.remove_lease(api::RemoveLeaseRequest { id: id.clone() }).await?;
                note(format_args!("removed lease {id}"));
                Ok(())
            })
            .await
        }
    }
}

fn row(lease: &Value) -> [String; 5] {
    let expires = match lease["expires_at_ns"].as_i64() {
        None => "never".to_owned(),
        Some(at) if at <= now_ns() => "now".to_owned(),
        Some(at) => format!("in {} s", at.saturating_sub(now_ns()) / 1_000_000_000),
    };
    let labels = lease["labels"].as_object().into_iter().flatten();
    let labels = labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    [
        lease["id"].as_str().unwrap_or_default().to_owned(),
        age(lease["created_at_ns"].as_i64().unwrap_or_default()),
        expires,
        lease["blobs"].as_array().map_or(0, Vec::len).to_string(),
        or_dash(&labels.collect::<Vec<_>>().join(",")),
    ]
}
