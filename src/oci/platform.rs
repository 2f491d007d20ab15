//! Platforms and which of them run on which.
//!
//! Source: OCI image-spec, image-index.md, and containerd's `platforms` package, whose
//! normalisation and order of preference are kept.

use std::{fmt, str::FromStr};

/// An operating system and a CPU, in the normal form: Go's names, no variant where it is the
/// architecture's usual one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a platform: expected OS/ARCH or OS/ARCH/VARIANT such as linux/arm64, found: {found:?}"
)]
pub struct PlatformError {
    /// What stood there.
    pub found: String,
}

impl Platform {
    /// A platform from its three parts, brought to the normal form; an empty variant is none.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.unwrap_or_default().to_ascii_lowercase();
        // Variants are written with and without their v
        let variant = match variant.as_bytes() {
            [b'0'..=b'9', ..] => format!("v{variant}"),
            _ => variant,
        };
        let architecture = architecture.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "i686" | "386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v),
            ("aarch64" | "arm64", "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", v) => ("arm64", v),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "") => ("arm", "v7"),
            (architecture, v) => (architecture, v),
        };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: (!variant.is_empty()).then(|| variant.to_owned()),
        }
    }

    /// The platform of this machine.
    pub fn host() -> Self {
        let little = cfg!(target_endian = "little");
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if little => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, None)
    }

    /// The operating system, as Go names it.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture, as Go names it.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant, where it is not the usual one.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `candidate` suits this platform: 0 is best; `None` does not run.
    ///
    /// As containerd's `Only`: an older variant of the same CPU suits, then the 32-bit
    /// architecture of the same family.
    pub fn rank(&self, candidate: &Self) -> Option<usize> {
        if self.os != candidate.os {
            return None;
        }
        self.suitable().iter().position(|(architecture, variant)| {
            *architecture == candidate.architecture
                && variant.as_deref() == candidate.variant.as_deref()
        })
    }

    /// Architectures and variants that run here, best first.
    fn suitable(&self) -> Vec<(&str, Option<String>)> {
        let own = (self.architecture.as_str(), self.variant.clone());
        let version = |fallback| {
            let digits = self.variant.as_deref().and_then(|v| v.strip_prefix('v'));
            digits.map_or(Some(fallback), |digits| digits.parse::<u32>().ok())
        };
        let older_arm = |from: u32| {
            (5..=from.min(8)).rev().map(|v| ("arm", Some(format!("v{v}")))).collect::<Vec<_>>()
        };
        let mut all = vec![own];
        match self.architecture.as_str() {
            "amd64" => {
                let older = version(1).unwrap_or(1).min(4);
                all.extend((2..older).rev().map(|v| ("amd64", Some(format!("v{v}")))));
                all.push(("amd64", None));
                all.push(("386", None));
            }
            "arm" => all.extend(version(7).map_or(Vec::new(), |v| older_arm(v.saturating_sub(1)))),
            "arm64" => {
                all.extend(self.older_arm64().into_iter().map(|v| ("arm64", v)));
                all.extend(older_arm(8));
            }
            _ => {}
        }
        all
    }

    /// Variants of arm64 that this one can run, newest first: v9.N runs v9 and v8.(N+5), and each
    /// v8.N all before it.
    fn older_arm64(&self) -> Vec<Option<String>> {
        let text = self.variant.as_deref().unwrap_or("v8");
        let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
        let (Some(major), Ok(minor)) =
            (major.strip_prefix('v').and_then(|m| m.parse::<u32>().ok()), minor.parse::<u32>())
        else {
            return vec![None];
        };
        let minor = minor.min(15);
        let name = |major: u32, minor: u32| match (major, minor) {
            (8, 0) => None,
            (major, 0) => Some(format!("v{major}")),
            (major, minor) => Some(format!("v{major}.{minor}")),
        };
        let mut older = Vec::new();
        if major == 9 {
            older.extend((0..minor).rev().map(|m| name(9, m)));
        }
        let eights = if major == 9 { minor + 6 } else { minor };
        older.extend((0..eights).rev().map(|m| name(8, m)));
        if older.last() != Some(&None) {
            older.push(None);
        }
        older
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// `OS/ARCH[/VARIANT]`; a known architecture or operating system alone is completed from this
    /// machine's.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError { found: text.to_owned() };
        let word = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(word) {
            return Err(wrong());
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            [one] => {
                let host = Self::host();
                let guess = Self::new(&host.os, one, None);
                if KNOWN_ARCHITECTURES.contains(&guess.architecture.as_str()) {
                    return Ok(guess);
                }
                let guess = Self::new(one, &host.architecture, host.variant.as_deref());
                KNOWN_SYSTEMS.contains(&guess.os.as_str()).then_some(guess).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

const KNOWN_ARCHITECTURES: [&str; 12] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64",
    "s390x", "wasm",
];
const KNOWN_SYSTEMS: [&str; 4] = ["linux", "windows", "darwin", "freebsd"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_to_the_normal_form() {
        let table = [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("macos/arm64", "darwin/arm64"),
            ("unknown/unknown", "unknown/unknown"),
        ];
        for (text, normal) in table {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal, "{text}");
        }
        assert_eq!("arm64".parse::<Platform>().unwrap().architecture(), "arm64");
        assert_eq!(
            "linux".parse::<Platform>(),
            Ok(Platform::new("linux", Platform::host().architecture(), None))
        );
        for text in ["", "/", "linux/", "a/b/c/d", "li nux/amd64", "nonsense", "linux//v8"] {
            let error = text.parse::<Platform>().expect_err(text);
            assert!(error.to_string().contains("expected OS/ARCH"), "{error}");
        }
    }

    #[test]
    fn preference_is_containerds() {
        // wanted, candidates from best to worst, candidates that do not run
        let table: &[(&str, &[&str], &[&str])] = &[
            ("linux/amd64", &["linux/amd64", "linux/386"], &["linux/amd64/v2", "linux/arm64"]),
            (
                "linux/amd64/v3",
                &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"],
                &["linux/amd64/v4"],
            ),
            (
                "linux/arm64",
                &["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
                &["linux/arm64/v9", "linux/arm64/v8.1", "linux/amd64", "windows/arm64"],
            ),
            (
                "linux/arm64/v9",
                &["linux/arm64/v9", "linux/arm64/v8.5", "linux/arm64/v8.1", "linux/arm64"],
                &["linux/arm64/v9.1", "linux/arm64/v8.6"],
            ),
            (
                "linux/arm/v7",
                &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
                &["linux/arm/v8", "linux/arm64"],
            ),
            ("linux/riscv64", &["linux/riscv64"], &["linux/amd64", "unknown/unknown"]),
        ];
        for (wanted, better, never) in table {
            let wanted: Platform = wanted.parse().unwrap();
            let rank = |text: &str| wanted.rank(&text.parse().unwrap());
            let ranks: Vec<_> = better.iter().map(|text| rank(text).expect(text)).collect();
            assert!(ranks.is_sorted_by(|a, b| a < b), "{wanted}: {ranks:?}");
            for text in *never {
                assert_eq!(rank(text), None, "{wanted} {text}");
            }
        }
    }

    #[test]
    fn hostile_variants_are_harmless() {
        for variant in ["v99999999999", "v9.4294967295", "v", "v8.", "vx", "v4294967295"] {
            for architecture in ["arm64", "arm", "amd64"] {
                let platform = Platform::new("linux", architecture, Some(variant));
                assert!(platform.rank(&platform).is_some(), "{platform}");
            }
        }
    }

    #[test]
    fn this_machine_is_known() {
        assert_eq!(Platform::host().os(), "linux");
        assert!(KNOWN_ARCHITECTURES.contains(&Platform::host().architecture()));
    }
}
