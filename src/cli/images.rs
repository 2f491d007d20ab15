//! `pull`, `images`, `rm`, `inspect`.

use std::time::{Duration, Instant};

use indicatif::HumanBytes;
use serde_json::json;

use super::{
    Context,
    args::PullArgs,
    output::{self, age, incomplete, note, print},
    progress::{Progress, short},
    registry::give_credentials,
};
use crate::{
    api::{self, pull_event::Event},
    client::Client,
    failure::{Class, Failure},
    oci::Reference,
};

/// How long a pull is begun again after its connection first broke: some restarts and reloads.
const BROKEN_LIMIT: Duration = Duration::from_secs(60);
/// Pause before that: the next worker needs a moment.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// The reference in its canonical form, a directory made absolute: the daemon lives elsewhere.
pub(super) fn canonical(reference: &str) -> Result<String, Failure> {
    let parsed: Reference = reference.parse().map_err(|e| {
        Failure::new(Class::Usage, e).hint("examples: nginx:1.27, ghcr.io/x/y:tag, oci:DIR:TAG")
    })?;
    let cwd = std::env::current_dir()
        .map_err(|e| Failure::io(&e, format!("cannot find the current directory: {e}")))?;
    Ok(parsed.absolute(&cwd).to_string())
}

pub(super) async fn pull(context: &Context, args: PullArgs) -> Result<(), Failure> {
    let reference = canonical(&args.reference)?;
    let mut client = context.connect().await?;
    let request = api::PullRequest {
        reference,
        platform: args.platform.unwrap_or_default(),
        all_platforms: args.all_platforms,
        jobs: args.jobs,
        gives_credentials: true,
    };
    let image = pull_image(&mut client, request, args.quiet).await?;
    print(&format!("{}\n", image.target))
}

/// Pulls with progress on standard error.
pub(super) async fn pull_image(
    client: &mut Client,
    request: api::PullRequest,
    quiet: bool,
) -> Result<api::Image, Failure> {
    let mut progress = Progress::new(quiet);
    let mut broken: Option<Instant> = None;
    loop {
        let status = match pull_once(client, request.clone(), &mut progress).await {
            Ok(pulled) => return pulled.ok_or_else(|| incomplete("the image")),
            Err(status) => status,
        };
        // A worker that died or made room for another: what is here already is not pulled again
        let since = *broken.get_or_insert_with(Instant::now);
        if !api::is_lost(&status) || is_gone(&status) || since.elapsed() > BROKEN_LIMIT {
            return Err(status.into());
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Whether nobody listens any more: the daemon was stopped, and no worker will follow.
fn is_gone(status: &tonic::Status) -> bool {
    use std::io::{Error, ErrorKind};
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let kind = error.downcast_ref::<Error>().map(Error::kind);
        if matches!(kind, Some(ErrorKind::NotFound | ErrorKind::ConnectionRefused)) {
            return true;
        }
        source = error.source();
    }
    false
}

/// One attempt; the image, unless the daemon said nothing of it.
async fn pull_once(
    client: &mut Client,
    request: api::PullRequest,
    progress: &mut Progress,
) -> Result<Option<api::Image>, tonic::Status> {
    let mut events = client.pull(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Resolved(resolved)) => progress.resolved(&resolved),
            Some(Event::Layer(layer)) => progress.layer(&layer),
            Some(Event::Credentials(wanted)) => give_credentials(client, wanted).await?,
            Some(Event::Done(image)) => {
                progress.done(&image.name, image.size);
                return Ok(Some(image));
            }
            Some(Event::Pushed(_)) | None => {}
        }
    }
    Ok(None)
}

/// The image as it is here; pulled first where it is not.
pub(super) async fn ensure(
    client: &mut Client,
    reference: &str,
    platform: Option<String>,
) -> Result<(), Failure> {
    let request = api::InspectImageRequest { reference: reference.to_owned(), docker: false };
    match client.inspect_image(request).await.map_err(Failure::from) {
        Ok(answer) => {
            let image = answer.into_inner().image.ok_or_else(|| incomplete("the image"))?;
            match platform {
                Some(wanted) if wanted != image.platform => {
                    let message = format!(
                        "{reference} is here for another platform: expected {wanted}, found {}",
                        image.platform
                    );
                    let hint = format!("peel pull --platform {wanted} {reference}");
                    Err(Failure::new(Class::Conflict, message).hint(hint))
                }
                _ => Ok(()),
            }
        }
        Err(failure) if failure.class == Class::NotFound => {
            let platform = platform.unwrap_or_default();
            let reference = reference.to_owned();
            let request = api::PullRequest {
                reference,
                platform,
                gives_credentials: true,
                ..api::PullRequest::default()
            };
            pull_image(client, request, false).await.map(|_| ())
        }
        Err(failure) => Err(failure),
    }
}

pub(super) async fn list(context: &Context, json: bool) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    let images = client.list_images(api::ListImagesRequest {}).await?.into_inner().images;
    if json {
        return output::json(&images.iter().map(to_json).collect());
    }
    let rows: Vec<_> = images
        .iter()
        .map(|image| {
            [
                image.name.clone(),
                short(&image.target),
                image.platform.clone(),
                image.layers.to_string(),
                HumanBytes(image.size).to_string(),
                age(image.updated_at_ns),
            ]
        })
        .collect();
    output::table(["IMAGE", "DIGEST", "PLATFORM", "LAYERS", "SIZE", "PULLED"], &rows)
}

fn to_json(image: &api::Image) -> serde_json::Value {
    json!({
        "name": image.name,
        "digest": image.target,
        "manifest": image.manifest,
        "config": image.config,
        "chain_id": image.chain_id,
        "platform": image.platform,
        "layers": image.layers,
        "size": image.size,
        "created_at_ns": image.created_at_ns,
        "updated_at_ns": image.updated_at_ns,
    })
}

pub(super) async fn remove(context: &Context, references: Vec<String>) -> Result<(), Failure> {
    let mut client = context.connect().await?;
    output::for_all(references, async |reference| {
        let request = api::RemoveImageRequest { reference: name_or_digest(&reference)? };
        let removed = client.remove_image(request).await?.into_inner();
        note(format_args!("removed {}: {} freed", removed.name, HumanBytes(removed.freed)));
        Ok(())
    })
    .await
}

pub(super) async fn inspect(
    context: &Context,
    reference: String,
    docker: bool,
) -> Result<(), Failure> {
    let request = api::InspectImageRequest { reference: name_or_digest(&reference)?, docker };
    let answer = context.connect().await?.inspect_image(request).await?.into_inner();
    print(&format!("{}\n", answer.json))
}

/// Images here are also found by digest, which is no reference.
pub(super) fn name_or_digest(text: &str) -> Result<String, Failure> {
    if text.parse::<peel_index::Digest>().is_ok() { Ok(text.to_owned()) } else { canonical(text) }
}
