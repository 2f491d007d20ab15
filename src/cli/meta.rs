//! `content`, `metadata`, `completion`, `man`.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{CommandFactory as _, Subcommand};
use indicatif::HumanBytes;
use serde_json::Value;

use super::{
    Context,
    archive::spool,
    args::Cli,
    output::{self, incomplete, note, print},
};
use crate::{
    api,
    client::{self, path_bytes},
    failure::{Class, Failure},
    metadata::Metadata,
};

/// `peel content`.
#[derive(Debug, Subcommand)]
pub(super) enum ContentCommand {
    /// List blobs with their labels
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a blob, verified
    Get {
        /// The blob
        #[arg(value_name = "DIGEST")]
        digest: String,
        /// Write it to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Put a blob in; it is kept for a day, or for as long as something refers to it
    Ingest {
        /// The file, or - for standard input
        #[arg(value_name = "FILE", default_value = "-")]
        file: PathBuf,
        /// Refuse it unless this is its digest
        #[arg(long, value_name = "DIGEST", default_value = "", hide_default_value = true)]
        expected_digest: String,
        /// Refuse it unless it has so many bytes
        #[arg(long, value_name = "BYTES")]
        expected_size: Option<u64>,
        /// Label it, such as containerd.io/gc.root=yes
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Set labels of a blob; KEY= takes one away
    Label {
        /// The blob
        #[arg(value_name = "DIGEST")]
        digest: String,
        /// The labels
        #[arg(required = true, value_name = "KEY=VALUE")]
        labels: Vec<String>,
    },
    /// Remove blobs that no image needs
    Rm {
        /// The blobs
        #[arg(required = true, value_name = "DIGEST")]
        digests: Vec<String>,
        /// Remove them though images need them
        #[arg(short, long)]
        force: bool,
    },
}

/// `peel metadata`.
#[derive(Debug, Subcommand)]
pub(super) enum MetadataCommand {
    /// Print all records
    Dump {
        /// Print JSON, which restore takes
        #[arg(long)]
        json: bool,
    },
    /// Put records in the place of those that are here; no daemon may run
    Restore {
        /// What dump --json has printed
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

fn parse(document: api::Document) -> Result<Value, Failure> {
    serde_json::from_str(&document.json).map_err(|_| incomplete("JSON"))
}

pub(super) fn label_list(labels: Vec<String>) -> Result<Vec<api::Label>, Failure> {
    let label = |text: String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => {
            Ok(api::Label { key: key.to_owned(), value: value.to_owned() })
        }
        _ => {
            let message = format!("malformed label: expected KEY=VALUE, found {text:?}");
            Err(Failure::new(Class::Usage, message))
        }
    };
    labels.into_iter().map(label).collect()
}

pub(super) async fn content(context: &Context, command: ContentCommand) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    match command {
        ContentCommand::Ls { json } => {
            let found = client.list_content(api::ListContentRequest {}).await?.into_inner();
            let found = parse(found)?;
            if json {
                return output::json(&found);
            }
            let rows = found.as_array().into_iter().flatten().map(|blob| {
                let labels = blob["labels"].as_object().into_iter().flatten();
                let labels: Vec<_> = labels
                    .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                    .collect();
                let size = HumanBytes(blob["size"].as_u64().unwrap_or(0)).to_string();
                [blob["digest"].as_str().unwrap_or_default().to_owned(), size, labels.join(",")]
            });
            output::table(["DIGEST", "SIZE", "LABELS"], &rows.collect::<Vec<_>>())
        }
        ContentCommand::Get { digest, output } => {
            let request = api::GetContentRequest { digest };
            let mut chunks = client.get_content(request).await?.into_inner();
            let shown = output.as_deref().unwrap_or(Path::new("standard output")).display();
            let failed = |e: io::Error| Failure::io(&e, format!("cannot write {shown}: {e}"));
            let mut out: Box<dyn io::Write> = match &output {
                Some(path) => Box::new(fs::File::create(path).map_err(failed)?),
                None => Box::new(io::stdout()),
            };
            while let Some(chunk) = chunks.message().await? {
                out.write_all(&chunk.data).map_err(failed)?;
            }
            out.flush().map_err(failed)
        }
        ContentCommand::Ingest { file, expected_digest, expected_size, labels } => {
            let spooled = if file == Path::new("-") { Some(spool()?) } else { None };
            let path = match &spooled {
                Some(file) => file.path().to_owned(),
                None => fs::canonicalize(&file)
                    .map_err(|e| Failure::io(&e, format!("cannot open {}: {e}", file.display())))?,
            };
            let request = api::IngestContentRequest {
                path: path_bytes(&path),
                expected_digest,
                expected_size,
                labels: label_list(labels)?,
            };
            let digest = client.ingest_content(request).await?.into_inner().digest;
            print(&format!("{digest}\n"))
        }
        ContentCommand::Label { digest, labels } => {
            let request = api::LabelContentRequest { digest, labels: label_list(labels)? };
            let labels = client.label_content(request).await?.into_inner().labels;
            let lines = labels.iter().map(|label| format!("{}={}\n", label.key, label.value));
            print(&lines.collect::<String>())
        }
        ContentCommand::Rm { digests, force } => {
            output::for_all(digests, async |digest| {
                let request = api::RemoveContentRequest { digest: digest.clone(), force };
                client.remove_content(request).await?;
                note(format_args!("removed {digest}"));
                Ok(())
            })
            .await
        }
    }
}

pub(super) async fn metadata(context: &Context, command: MetadataCommand) -> Result<(), Failure> {
    match command {
        MetadataCommand::Dump { json } => {
            let request = api::DumpMetadataRequest {};
            let text = context.connect().await?.dump_metadata(request).await?.into_inner().json;
            if json {
                return print(&text);
            }
            let found: Value = serde_json::from_str(&text).map_err(|_| incomplete("JSON"))?;
            print(&tree(&found))
        }
        MetadataCommand::Restore { file } => {
            if client::keeper_runs(&context.paths) {
                return Err(Failure::new(Class::Conflict, "the daemon runs")
                    .hint("end it with: peel daemon stop"));
            }
            let dir = context.paths.root().join("metadata");
            let (records, aside) = Metadata::replace(&dir, &file)?;
            if let Some(aside) = aside {
                note(format_args!("what was there is in {} now", aside.display()));
            }
            note(format_args!("restored {records} records; the next start takes them up"));
            Ok(())
        }
    }
}

/// All records, as a tree.
fn tree(found: &Value) -> String {
    let mut text = format!("metadata (generation {})\n", found["generation"]);
    let tables: Vec<_> = found["records"].as_object().into_iter().flatten().collect();
    for (number, (table, records)) in tables.iter().enumerate() {
        let is_last = number + 1 == tables.len();
        text.push_str(&format!("{}{table}\n", branch(is_last)));
        branches(records, if is_last { "    " } else { "│   " }, &mut text);
    }
    text
}

fn branch(is_last: bool) -> &'static str {
    if is_last { "└── " } else { "├── " }
}

fn branches(value: &Value, indent: &str, text: &mut String) {
    let is_plain = |value: &Value| !value.is_object() && !value.is_array();
    let named: Vec<(String, &Value)> = match value {
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(name, value)| *name != "v" && !value.is_null());
            fields.map(|(name, value)| (name.clone(), value)).collect()
        }
        Value::Array(items) => {
            let name = |item: &Value| {
                let names = ["name", "key", "digest", "target", "id"];
                let found = names
                    .iter()
                    .map(|name| &item[*name])
                    .find(|found| is_plain(found) && !found.is_null());
                found.map(plain)
            };
            let items = items.iter().enumerate();
            items.map(|(n, item)| (name(item).unwrap_or_else(|| n.to_string()), item)).collect()
        }
        _ => Vec::new(),
    };
    for (number, (name, value)) in named.iter().enumerate() {
        let is_last = number + 1 == named.len();
        let edge = branch(is_last);
        match value {
            value if is_plain(value) && value.is_string() && plain(value) == *name => {
                text.push_str(&format!("{indent}{edge}{name}\n"));
            }
            value if is_plain(value) => {
                text.push_str(&format!("{indent}{edge}{name}: {}\n", plain(value)));
            }
            value => {
                text.push_str(&format!("{indent}{edge}{name}\n"));
                let below = format!("{indent}{}", if is_last { "    " } else { "│   " });
                branches(value, &below, text);
            }
        }
    }
}

fn plain(value: &Value) -> String {
    match value.as_str() {
        Some(text) if text.chars().any(char::is_control) => text.escape_debug().to_string(),
        Some(text) => text.to_owned(),
        None => value.to_string(),
    }
}

/// `peel completion`.
pub(super) fn completion(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "peel", &mut text);
    print(&String::from_utf8_lossy(&text))
}

/// `peel man`.
pub(super) fn man(dir: Option<PathBuf>) -> Result<(), Failure> {
    let mut command = Cli::command();
    command.build();
    let Some(dir) = dir else {
        return print(&page(command)?);
    };
    let mut pending = vec![command];
    while let Some(command) = pending.pop() {
        let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
        let path = dir.join(format!("{name}.1"));
        let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
        pending.extend(visible.filter(|sub| sub.get_name() != "help").cloned());
        let page = page(command)?;
        let failed =
            |e: io::Error| Failure::io(&e, format!("cannot write {}: {e}", path.display()));
        fs::write(&path, page).map_err(failed)?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Result<String, Failure> {
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut text);
    rendered.map_err(|e| Failure::io(&e, format!("cannot make a manual page: {e}")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_are_drawn_as_a_tree() {
        let found = json!({
            "generation": 7,
            "records": {
                "counters": { "mount": 3 },
                "images": [{ "v": 1, "name": "a:1", "target": { "size": 5 }, "chain_id": null }],
                "mounts": [],
            },
        });
        let expected = "\
metadata (generation 7)
├── counters
│   └── mount: 3
├── images
│   └── a:1
│       ├── name: a:1
│       └── target
│           └── size: 5
└── mounts
";
        assert_eq!(tree(&found), expected);
    }

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().expect("directory");
        man(Some(dir.path().to_owned())).expect("pages");
        for name in ["peel", "peel-pull", "peel-fs-ls", "peel-daemon-stop"] {
            let page = fs::read_to_string(dir.path().join(format!("{name}.1"))).expect(name);
            assert!(page.contains(".SH NAME"), "{name}");
        }
        assert!(!dir.path().join("peel-daemon-worker.1").exists());
    }
}
