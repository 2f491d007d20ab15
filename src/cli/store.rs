//! `tag`, `history`, `check`, `df`, `prune`, `label`, `pin`.

use std::io::{IsTerminal as _, Write as _};

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{
    Context,
    images::{canonical, name_or_digest},
    output::{self, age, incomplete, note, or_dash, print},
};
use crate::{
    api,
    failure::{Class, Failure},
};

/// Longest command that is shown uncut.
const SHOWN: usize = 45;

/// `peel prune`.
#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Only images that were neither pulled nor mounted for so long: 30m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "0")]
    pub unused_for: u64,
    /// Say what would go, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Seconds, from a number with or without a unit.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return Err("expected a time, as in 30m, 12h or 7d".to_owned()),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    number.ok_or_else(|| "expected a time, as in 30m, 12h or 7d".to_owned())
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn bytes(value: &Value) -> String {
    HumanBytes(value.as_u64().unwrap_or(0)).to_string()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn parse(document: api::Document) -> Result<Value, Failure> {
    serde_json::from_str(&document.json).map_err(|_| incomplete("JSON"))
}

pub(super) async fn tag(context: &Context, reference: &str, target: &str) -> Result<(), Failure> {
    let request =
        api::TagImageRequest { reference: name_or_digest(reference)?, target: canonical(target)? };
    let image = context.connect().await?.tag_image(request).await?.into_inner();
    note(format_args!("tagged {}", image.name));
    Ok(())
}

pub(super) async fn history(
    context: &Context,
    reference: &str,
    no_trunc: bool,
    json: bool,
) -> Result<(), Failure> {
    let reference = name_or_digest(reference)?;
    let request = api::InspectImageRequest { reference, docker: false };
    let answer = context.connect().await?.inspect_image(request).await?.into_inner();
    let image: Value = serde_json::from_str(&answer.json).map_err(|_| incomplete("JSON"))?;
    let steps = steps(&image);
    if json {
        return output::json(&Value::Array(steps));
    }
    let rows: Vec<_> = steps
        .iter()
        .map(|step| {
            let by = text(&step["created_by"]).split_whitespace().collect::<Vec<_>>().join(" ");
            let by = match no_trunc || by.chars().count() <= SHOWN {
                true => by,
                false => format!("{}…", by.chars().take(SHOWN - 1).collect::<String>()),
            };
            let size = match step["size"].as_u64() {
                Some(size) => HumanBytes(size).to_string(),
                None => "0 B".to_owned(),
            };
            let layer = text(&step["layer"]);
            let layer = layer.split(':').next_back().unwrap_or_default();
            let layer = layer.get(..12).unwrap_or("-").to_owned();
            let created = text(&step["created"]);
            [layer, or_dash(&created), by, size, text(&step["comment"])]
        })
        .collect();
    output::table(["LAYER", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &rows)
}

/// The steps of an image's history, the last first, each with its layer where it made one.
fn steps(image: &Value) -> Vec<Value> {
    let layers = list(&image["layers"]);
    let history = list(&image["config"]["content"]["history"]);
    let mut next = layers.iter();
    let mut steps: Vec<_> = history
        .iter()
        .map(|step| {
            let is_empty = step["empty_layer"].as_bool() == Some(true);
            let layer = if is_empty { None } else { next.next() };
            let field = |name: &str| step[name].as_str().unwrap_or_default();
            json!({
                "created": field("created"),
                "created_by": field("created_by"),
                "comment": field("comment"),
                "layer": layer.map(|layer| &layer["digest"]),
                "size": layer.map(|layer| &layer["size"]),
                "tar_size": layer.map(|layer| &layer["index"]["tar_size"]),
            })
        })
        .collect();
    // An image may say nothing of its layers
    steps.extend(next.map(|layer| {
        json!({
            "created": "", "created_by": "", "comment": "",
            "layer": layer["digest"], "size": layer["size"],
            "tar_size": layer["index"]["tar_size"],
        })
    }));
    steps.reverse();
    steps
}

pub(super) async fn check(
    context: &Context,
    references: Vec<String>,
    json: bool,
) -> Result<(), Failure> {
    let references = references.iter().map(|reference| name_or_digest(reference));
    let request = api::CheckImagesRequest { references: references.collect::<Result<_, _>>()? };
    let found = parse(context.connect().await?.check_images(request).await?.into_inner())?;
    let incomplete = list(&found).iter().filter(|image| image["complete"] != json!(true));
    let incomplete: Vec<_> = incomplete.map(|image| text(&image["name"])).collect();
    if json {
        output::json(&found)?;
    } else {
        let rows: Vec<_> = list(&found)
            .iter()
            .map(|image| {
                let missing = list(&image["missing"]);
                let status = match missing.len() {
                    0 => "complete".to_owned(),
                    n => format!("incomplete ({n} missing)"),
                };
                let size = format!("{} of {}", bytes(&image["here"]), bytes(&image["size"]));
                let indexed = format!("{} of {}", image["indexed"], image["layers"]);
                [text(&image["name"]), status, size, indexed]
            })
            .collect();
        output::table(["IMAGE", "STATUS", "SIZE", "INDEXED"], &rows)?;
        for image in list(&found) {
            for blob in list(&image["missing"]) {
                let (kind, digest) = (text(&blob["kind"]), text(&blob["digest"]));
                note(format_args!("{}: missing {kind} {digest}", text(&image["name"])));
            }
        }
    }
    match incomplete.first() {
        None => Ok(()),
        Some(first) => {
            let message = format!("incomplete: {}", incomplete.join(", "));
            let hint = format!("fetch what is missing with: peel pull {first}");
            Err(Failure::new(Class::BadData, message).hint(hint))
        }
    }
}

pub(super) async fn df(context: &Context, json: bool) -> Result<(), Failure> {
    let request = api::DiskUsageRequest {};
    let found = parse(context.connect().await?.disk_usage(request).await?.into_inner())?;
    if json {
        return output::json(&found);
    }
    let totals = found["totals"].as_object().into_iter().flatten();
    let rows: Vec<_> = totals
        .map(|(kind, total)| [kind.clone(), text(&total["count"]), bytes(&total["size"])])
        .collect();
    output::table(["KIND", "COUNT", "SIZE"], &rows)?;
    let images = list(&found["images"]);
    if !images.is_empty() {
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                let used = match image["mounted_at_ns"].as_i64() {
                    None | Some(0) => "never".to_owned(),
                    Some(at) => age(at),
                };
                let pinned = if image["pinned"] == json!(true) { "pinned" } else { "" };
                [
                    text(&image["name"]),
                    bytes(&image["size"]),
                    bytes(&image["shared"]),
                    bytes(&image["unique"]),
                    used,
                    pinned.to_owned(),
                ]
            })
            .collect();
        print("\n")?;
        output::table(["IMAGE", "SIZE", "SHARED", "UNIQUE", "MOUNTED", ""], &rows)?;
    }
    let snapshots = list(&found["snapshots"]);
    if !snapshots.is_empty() {
        let row = |s: &Value| [text(&s["name"]), text(&s["image"]), bytes(&s["size"])];
        print("\n")?;
        output::table(
            ["SNAPSHOT", "IMAGE", "SIZE"],
            &snapshots.iter().map(row).collect::<Vec<_>>(),
        )?;
    }
    Ok(())
}

pub(super) async fn prune(context: &Context, args: PruneArgs) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    let request = |dry_run| api::PruneImagesRequest { unused_seconds: args.unused_for, dry_run };
    if !args.dry_run && !args.force {
        let found = client.prune_images(request(true)).await?.into_inner();
        for name in &found.names {
            note(format_args!("unused: {name}"));
        }
        if !found.names.is_empty() && !confirmed("remove them?")? {
            return Ok(());
        }
    }
    let done = client.prune_images(request(args.dry_run)).await?.into_inner();
    if args.json {
        let (images, freed) = (done.names, done.freed);
        return output::json(&json!({ "dry_run": args.dry_run, "images": images, "freed": freed }));
    }
    print(&done.names.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    let verb = if args.dry_run { "would be freed" } else { "freed" };
    note(format_args!("{} {verb}", HumanBytes(done.freed)));
    Ok(())
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::new(Class::Usage, "nobody is there to confirm this")
            .hint("remove them all the same with: peel prune --force"));
    }
    // There is nobody to tell where this fails
    let _ = write!(std::io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|e| Failure::io(&e, format!("cannot read the answer: {e}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) async fn label(
    context: &Context,
    reference: &str,
    labels: Vec<String>,
) -> Result<(), Failure> {
    let mut request = api::LabelImageRequest {
        reference: name_or_digest(reference)?,
        ..api::LabelImageRequest::default()
    };
    for label in labels {
        match label.split_once('=') {
            Some((key, "")) if !key.is_empty() => request.unset.push(key.to_owned()),
            Some((key, value)) if !key.is_empty() => {
                request.set.insert(key.to_owned(), value.to_owned());
            }
            _ => {
                let message = format!("malformed label: expected KEY=VALUE, found {label:?}");
                return Err(Failure::new(Class::Usage, message));
            }
        }
    }
    let labels = context.connect().await?.label_image(request).await?.into_inner().labels;
    let mut labels: Vec<_> = labels.into_iter().map(|(k, v)| format!("{k}={v}\n")).collect();
    labels.sort();
    print(&labels.concat())
}

pub(super) async fn pin(
    context: &Context,
    references: Vec<String>,
    pinned: bool,
) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    output::for_all(references, async |reference| {
        let request = api::PinImageRequest { reference: name_or_digest(&reference)?, pinned };
        let name = client.pin_image(request).await?.into_inner().name;
        note(format_args!("{} {name}", if pinned { "pinned" } else { "no longer pinned" }));
        Ok(())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table = [
            ("0", Some(0)),
            ("90", Some(90)),
            ("30m", Some(1800)),
            ("12h", Some(43_200)),
            ("7d", Some(604_800)),
            ("2w", Some(1_209_600)),
            ("d", None),
            ("-1d", None),
            ("1y", None),
            ("99999999999999999999d", None),
        ];
        for (text, expected) in table {
            assert_eq!(duration(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn steps_get_their_layers() {
        let image = json!({
            "layers": [{ "digest": "a", "size": 1 }, { "digest": "b", "size": 2 }, { "digest": "c", "size": 3 }],
            "config": { "content": { "history": [
                { "created_by": "ADD" },
                { "created_by": "ENV", "empty_layer": true },
                { "created_by": "RUN", "comment": "x" },
            ] } },
        });
        let steps = steps(&image);
        let found: Vec<_> =
            steps.iter().map(|s| (text(&s["created_by"]), text(&s["layer"]))).collect();
        let expected = [("", "c"), ("RUN", "b"), ("ENV", "null"), ("ADD", "a")];
        assert_eq!(found, expected.map(|(by, layer)| (by.to_owned(), layer.to_owned())));
    }
}
