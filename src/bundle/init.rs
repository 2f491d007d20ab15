//! What a container gets beside its image, as with Docker: files of its own for its name and its
//! network, and what they are mounted on.
//!
//! ```text
//! bundle/hosts        bound on  /etc/hosts
//! bundle/hostname               /etc/hostname
//! bundle/resolv.conf            /etc/resolv.conf
//! ```
//! What the image lacks of these paths stands in a layer of its own, [`InitLayer`].
//!
//! [`InitLayer`]: crate::snapshot::InitLayer

use super::config::Network;

/// A file of the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFile {
    /// Its name in the bundle.
    pub name: &'static str,
    /// What is in it.
    pub content: Vec<u8>,
}

/// Names in the bundle, each with the path in the container.
pub const FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// What the host has of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFiles {
    /// Its `/etc/hosts`.
    pub hosts: Vec<u8>,
    /// Its `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
    /// Its name.
    pub hostname: String,
}

/// The files of a container of this name; none is the host's, as the runtime gives it.
pub fn files(hostname: Option<&str>, network: Network, host: &HostFiles) -> [BundleFile; 3] {
    let hostname = hostname.filter(|name| !name.is_empty()).unwrap_or(&host.hostname);
    let hosts = match network {
        Network::Host => host.hosts.clone(),
        Network::None => format!(
            "127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\n\
             ff02::1\tip6-allnodes\n\
             ff02::2\tip6-allrouters\n\
             127.0.0.1\t{hostname}\n"
        )
        .into_bytes(),
    };
    let contents = [hosts, format!("{hostname}\n").into_bytes(), host.resolv_conf.clone()];
    let mut contents = contents.into_iter();
    FILES.map(|(name, _)| BundleFile { name, content: contents.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{PLACES, Place};

    #[test]
    fn files_are_the_containers_or_the_hosts() {
        let host = HostFiles {
            hosts: b"10.0.0.1 far\n".into(),
            resolv_conf: b"nameserver 10.0.0.2\n".into(),
            hostname: "big".to_owned(),
        };
        let text = |files: &[BundleFile; 3]| {
            files.clone().map(|file| (file.name, String::from_utf8(file.content).expect("text")))
        };
        let [hosts, hostname, resolv] = text(&files(Some("box"), Network::None, &host));
        assert!(hosts.1.starts_with("127.0.0.1\tlocalhost\n") && hosts.1.ends_with("\tbox\n"));
        assert_eq!((hosts.0, hostname), ("hosts", ("hostname", "box\n".to_owned())));
        assert_eq!(resolv, ("resolv.conf", "nameserver 10.0.0.2\n".to_owned()));
        let [hosts, hostname, _] = text(&files(Some(""), Network::Host, &host));
        assert_eq!((hosts.1.as_str(), hostname.1.as_str()), ("10.0.0.1 far\n", "big\n"));
    }

    #[test]
    fn every_file_has_its_place() {
        for (_, path) in FILES {
            let place = PLACES.iter().find(|(place, _)| path.strip_prefix('/') == Some(*place));
            assert_eq!(place.map(|(_, place)| *place), Some(Place::File), "{path}");
        }
        assert!(PLACES.is_sorted_by_key(|(path, _)| *path));
    }
}
