//! Progress of a pull: a bar per layer on a terminal, plain lines otherwise.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use super::output::note;
use crate::api::{LayerProgress, Resolved, layer_progress::Stage};

/// Draws on standard error; standard output is for data.
pub(super) struct Progress {
    mode: Mode,
    started: Instant,
    words: &'static Words,
}

/// What is done to a layer.
struct Words {
    doing: &'static str,
    done: &'static str,
}

const PULL: Words = Words { doing: "pulling", done: "pulled" };
const PUSH: Words = Words { doing: "pushing", done: "pushed" };

enum Mode {
    Quiet,
    Plain { ended: BTreeMap<u32, Stage> },
    Bars { all: MultiProgress, bars: BTreeMap<u32, ProgressBar> },
}

impl Progress {
    /// Bars on a terminal, lines otherwise, nothing where `quiet`.
    pub(super) fn new(quiet: bool) -> Self {
        Self::of(quiet, &PULL)
    }

    /// The same for a push.
    pub(super) fn pushing(quiet: bool) -> Self {
        Self::of(quiet, &PUSH)
    }

    fn of(quiet: bool, words: &'static Words) -> Self {
        let mode = if quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() {
            Mode::Bars { all: MultiProgress::new(), bars: BTreeMap::new() }
        } else {
            Mode::Plain { ended: BTreeMap::new() }
        };
        Self { mode, started: Instant::now(), words }
    }

    /// The manifest is known.
    pub(super) fn resolved(&mut self, resolved: &Resolved) {
        let line = format!(
            "{} {} ({}), {} layers",
            self.words.doing,
            resolved.name,
            short(&resolved.manifest),
            resolved.layers.len()
        );
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Plain { .. } => note(format_args!("{line}")),
            Mode::Bars { all, .. } => {
                // A terminal that goes away takes its bars with it
                let _ = all.println(line);
            }
        }
        for layer in &resolved.layers {
            self.layer(layer);
        }
    }

    /// A layer moved on.
    pub(super) fn layer(&mut self, layer: &LayerProgress) {
        match &mut self.mode {
            Mode::Quiet => {}
            Mode::Plain { ended } => {
                if ended.get(&layer.index) != Some(&layer.stage())
                    && let Some(line) = ended_line(layer, self.words)
                {
                    note(format_args!("{line}"));
                    ended.insert(layer.index, layer.stage());
                }
            }
            Mode::Bars { all, bars } => {
                let bar = bars.entry(layer.index).or_insert_with(|| {
                    let bar = all.add(ProgressBar::new(layer.size));
                    bar.set_style(style());
                    bar.set_prefix(short(&layer.digest));
                    bar
                });
                bar.set_position(layer.received);
                match layer.stage() {
                    Stage::Waiting => bar.set_message("waiting"),
                    Stage::Running => bar.set_message(indexed(layer)),
                    Stage::Done => bar.finish_with_message(indexed(layer)),
                    Stage::Exists | Stage::Mounted => {
                        bar.set_position(layer.size);
                        bar.finish_with_message("exists");
                    }
                }
            }
        }
    }

    /// The image is there.
    pub(super) fn done(&self, name: &str, size: u64) {
        if !matches!(self.mode, Mode::Quiet) {
            let seconds = self.started.elapsed().as_secs_f64();
            let (done, size) = (self.words.done, HumanBytes(size));
            note(format_args!("{done} {name}: {size} in {seconds:.1} s"));
        }
    }
}

fn indexed(layer: &LayerProgress) -> String {
    match layer.indexed {
        0 => String::new(),
        bytes => format!("indexed {}", HumanBytes(bytes)),
    }
}

fn ended_line(layer: &LayerProgress, words: &Words) -> Option<String> {
    let digest = short(&layer.digest);
    match layer.stage() {
        Stage::Waiting | Stage::Running => None,
        Stage::Exists => Some(format!("layer {digest}: exists")),
        Stage::Mounted => Some(format!("layer {digest}: taken from another repository")),
        Stage::Done => {
            let mut line = format!("layer {digest}: {} {}", HumanBytes(layer.size), words.done);
            if layer.indexed > 0 {
                line.push_str(&format!(", {} indexed", HumanBytes(layer.indexed)));
            }
            Some(line)
        }
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {msg}";
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

/// The first twelve hexadecimal digits of a digest.
pub(super) fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(12).collect()
}
