//! Import: every image of a layout or an archive, under names of this store.

use std::{path::PathBuf, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{
    Events, Images,
    pull::{Taking, blocking},
    source::Source,
};
use crate::{
    content::OciLayout,
    failure::{Class, Failure},
    metadata::ImageRecord,
    oci::{
        ANNOTATION_REF_NAME, Descriptor, ImageConfig, Manifest, Platform, Reference,
        RegistryReference,
    },
};

/// Annotation of an index's entry: the full name of the image; containerd writes it.
pub(super) const ANNOTATION_FULL_NAME: &str = "io.containerd.image.name";

/// What is to be imported.
pub struct ImportOptions {
    /// An archive, or the directory of a layout; absolute.
    pub path: PathBuf,
    /// Name for images that have a tag alone, or none; empty for one made from the path.
    pub name: String,
    /// os/arch[/variant]; empty for this machine's, or the only one there is.
    pub platform: String,
    /// Everything that an index names.
    pub all_platforms: bool,
}

impl Images {
    /// Takes every image of a layout or an archive; those that are here already keep their bytes.
    ///
    /// # Errors
    /// As [`Images::pull`]; what came before the first failure stays.
    pub async fn import(
        &self,
        options: ImportOptions,
        events: Events,
        cancel: CancellationToken,
    ) -> Result<Vec<ImageRecord>, Failure> {
        let (path, scratch) = (options.path.clone(), self.scratch());
        let layout = blocking(move || match path.is_dir() {
            true => Ok(OciLayout::open(&path)?),
            false => Ok(OciLayout::open_archive(&path, &scratch)?),
        });
        let layout = Arc::new(layout.await?);
        let wanted = match options.platform.as_str() {
            "" => Platform::host(),
            platform => platform.parse()?,
        };
        let mut names = Names::new(&options)?;
        let mut taken: Vec<(String, Descriptor)> = Vec::new();
        let count = layout.entries().count();
        for (tag, entry) in layout.entries() {
            let name = names.of(tag, entry, count == 1)?;
            // Entries of one name are the platforms of one image
            let entry = layout.resolve(tag, &wanted).unwrap_or(entry).clone();
            if !taken.iter().any(|(known, _)| *known == name) {
                taken.push((name, entry));
            }
        }
        if taken.is_empty() {
            let message = format!("no image in {}", options.path.display());
            return Err(Failure::new(Class::NotFound, message));
        }
        let mut records = Vec::new();
        for (name, target) in taken {
            let source = Arc::new(Source::Layout { layout: Arc::clone(&layout), target });
            let wanted = match options.platform.as_str() {
                "" => only_platform(&source).await?.unwrap_or_else(|| wanted.clone()),
                _ => wanted.clone(),
            };
            let all_platforms = options.all_platforms;
            let taking = Taking { source, name, origin: None, wanted, all_platforms, jobs: 0 };
            records.push(self.take(taking, &events, &cancel).await?);
        }
        Ok(records)
    }
}

/// The platform of what is no index: nothing is to be chosen there.
async fn only_platform(source: &Source) -> Result<Option<Platform>, Failure> {
    let (target, bytes) = source.resolve().await?;
    let Ok(Manifest::Image(manifest)) = Manifest::parse(&target, &bytes) else { return Ok(None) };
    let config = source.config(&manifest.config).await?;
    Ok(Some(ImageConfig::parse(&manifest, &config)?.platform))
}

/// What imported images are called.
struct Names {
    /// As the user gave it.
    given: Option<RegistryReference>,
    /// From the path.
    made: String,
}

impl Names {
    fn new(options: &ImportOptions) -> Result<Self, Failure> {
        let given = match options.name.as_str() {
            "" => None,
            name => match name.parse()? {
                Reference::Registry(name) => Some(name),
                other => {
                    let message = format!("cannot name an image {other}");
                    return Err(Failure::new(Class::Usage, message).hint("as in: example.com/x:1"));
                }
            },
        };
        let stem = options.path.file_stem().unwrap_or_default().to_string_lossy();
        let made: String = stem
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
            .collect();
        let parts: Vec<_> = made.split('-').filter(|part| !part.is_empty()).collect();
        let made = if parts.is_empty() { "import".to_owned() } else { parts.join("-") };
        Ok(Self { given, made: format!("localhost/{made}") })
    }

    /// The name of an entry.
    fn of(
        &mut self,
        tag: Option<&str>,
        entry: &Descriptor,
        is_only: bool,
    ) -> Result<String, Failure> {
        if let (Some(given), true) = (&self.given, is_only) {
            return Ok(given.to_string());
        }
        let full = entry.annotations.get(ANNOTATION_FULL_NAME).or_else(|| {
            let name = entry.annotations.get(ANNOTATION_REF_NAME)?;
            name.contains(['/', ':']).then_some(name)
        });
        if let (Some(full), None) = (full, &self.given) {
            return Ok(full.parse::<Reference>()?.name());
        }
        let base = match &self.given {
            Some(given) => given.repository().to_string(),
            None => self.made.clone(),
        };
        // Of a full name, what stands behind it
        let tag = tag.map(|tag| tag.rsplit(['/', ':']).next().unwrap_or(tag));
        let name = match tag {
            Some(tag) => format!("{base}:{tag}"),
            None if is_only => format!("{base}:latest"),
            None => format!("{base}@{}", entry.digest),
        };
        Ok(name.parse::<Reference>()?.name())
    }
}

#[cfg(test)]
mod tests {
    use peel_index::Digest;

    use super::*;
    use crate::oci::MEDIA_TYPE_OCI_MANIFEST;

    #[test]
    fn images_get_names() {
        let digest = Digest::sha256(b"x");
        let by_digest = format!("localhost/my-image@{digest}");
        // given, annotations, alone, the name
        type Row<'a> = (&'a str, Option<&'a str>, Option<&'a str>, bool, &'a str);
        let table: &[Row<'_>] = &[
            ("", None, Some("v1"), true, "localhost/my-image:v1"),
            ("", None, None, true, "localhost/my-image:latest"),
            ("", None, None, false, &by_digest),
            ("", None, Some("nginx:1"), false, "docker.io/library/nginx:1"),
            ("", Some("ghcr.io/x/y:2"), Some("2"), false, "ghcr.io/x/y:2"),
            ("a.example/b:3", None, Some("v1"), true, "a.example/b:3"),
            ("a.example/b", None, Some("v1"), false, "a.example/b:v1"),
            ("a.example/b", Some("ghcr.io/x/y:2"), Some("2"), false, "a.example/b:2"),
        ];
        for (given, full, tag, alone, expected) in table {
            let options = ImportOptions {
                path: "/somewhere/My_image!.tar".into(),
                name: (*given).to_owned(),
                platform: String::new(),
                all_platforms: false,
            };
            let mut entry = Descriptor::new(MEDIA_TYPE_OCI_MANIFEST, digest, 1);
            let mut annotate = |key: &str, value: &Option<&str>| {
                entry.annotations.extend(value.map(|value| (key.to_owned(), value.to_owned())));
            };
            annotate(ANNOTATION_FULL_NAME, full);
            annotate(ANNOTATION_REF_NAME, tag);
            let name = Names::new(&options).and_then(|mut names| names.of(*tag, &entry, *alone));
            assert_eq!(name.as_deref(), Ok(*expected));
        }
    }
}
