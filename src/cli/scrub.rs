//! `peel scrub`.

use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::{
    Context,
    args::ScrubArgs,
    images::name_or_digest,
    output::{self, incomplete, note, print},
};
use crate::{
    api::{self, finding::Outcome, scrub_event::Event},
    failure::{Class, Failure},
};

pub(super) async fn scrub(context: &Context, args: ScrubArgs) -> Result<(), Failure> {
    let reference = args.reference.as_deref().map(name_or_digest).transpose()?.unwrap_or_default();
    let mut client = context.connect().await?;
    let request = api::ScrubRequest { reference, check_only: args.check };
    let mut events = client.scrub(request).await?.into_inner();
    let mut findings = Vec::new();
    let totals = loop {
        match events.message().await?.ok_or_else(|| incomplete("the totals"))?.event {
            Some(Event::Finding(finding)) => {
                if !args.json.json {
                    print(&line(&finding))?;
                }
                findings.push(finding);
            }
            Some(Event::Done(totals)) => break totals,
            Some(Event::Progress(_)) | None => {}
        }
    };
    if args.json.json {
        let findings: Vec<_> = findings.iter().map(to_json).collect();
        output::json(&json!({
            "blobs": totals.blobs,
            "documents": totals.documents,
            "indexes": totals.indexes,
            "trees": totals.trees,
            "snapshots": totals.snapshots,
            "bytes": totals.bytes,
            "found": totals.found,
            "left": totals.left,
            "findings": findings,
        }))?;
    } else {
        note(format_args!(
            "{} read: {} blobs, {} documents, {} indexes, {} trees, {} snapshots and the \
             metadata; {} damaged, {} mended",
            HumanBytes(totals.bytes),
            totals.blobs,
            totals.documents,
            totals.indexes,
            totals.trees,
            totals.snapshots,
            totals.found,
            totals.found - totals.left.min(totals.found),
        ));
    }
    match totals.left {
        0 => Ok(()),
        left => {
            let failure =
                Failure::new(Class::BadData, format!("{left} damaged files are left as they are"));
            Err(match args.check {
                true => failure.hint("mend them with: peel scrub"),
                false => failure.hint("pull the image again from where it can be had: peel pull"),
            })
        }
    }
}

fn is_mended(finding: &api::Finding) -> bool {
    finding.outcome() == Outcome::Mended
}

fn line(finding: &api::Finding) -> String {
    let api::Finding { kind, what, images, problem, remark, .. } = finding;
    let images =
        if images.is_empty() { String::new() } else { format!(" of {}", images.join(", ")) };
    let state = if is_mended(finding) { "mended" } else { "damaged" };
    format!("{state}: {kind} {what}{images}: {problem} ({remark})\n")
}

fn to_json(finding: &api::Finding) -> Value {
    json!({
        "kind": finding.kind,
        "what": finding.what,
        "images": finding.images,
        "problem": finding.problem,
        "mended": is_mended(finding),
        "remark": finding.remark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_everything() {
        let finding = api::Finding {
            kind: "blob".to_owned(),
            what: "sha256:ab".to_owned(),
            images: vec!["a:1".to_owned(), "b:2".to_owned()],
            problem: "wrong digest".to_owned(),
            outcome: Outcome::Left.into(),
            remark: "nobody has it".to_owned(),
        };
        let expected = "damaged: blob sha256:ab of a:1, b:2: wrong digest (nobody has it)\n";
        assert_eq!(line(&finding), expected);
        let mended = api::Finding { outcome: Outcome::Mended.into(), images: vec![], ..finding };
        assert_eq!(line(&mended), "mended: blob sha256:ab: wrong digest (nobody has it)\n");
    }
}
