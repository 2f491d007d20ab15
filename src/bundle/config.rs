//! A runtime configuration from an image's configuration.
//!
//! The rules are those of OCI image-spec `conversion.md`, the defaults those of containerd's `oci`
//! package (what `ctr run` gives), with these decisions:
//!
//! - `noNewPrivileges` is on, as with `ctr run`: `sudo` and file capabilities do not work in the
//!   container. Docker leaves it off.
//! - No tmpfs on `/run`: as with Docker and Kubernetes, what the image has there stays visible.
//! - A cgroup namespace of its own and a read-only `/sys/fs/cgroup`.
//! - No seccomp filter, no AppArmor or SELinux label: as `ctr run` without such flags. Docker's
//!   filter is a list of 400 system calls that would have to be kept up to date.
//! - `cgroupsPath` stays empty, so that runc chooses by the container's name.
//! - Labels that a runtime would obey on the host are left out of the annotations, with a warning.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Process, Root, Spec, User};

use super::{defaults, error::BundleError, init, user};

/// What an image's configuration says about running it; the fields of OCI image-spec `config.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleImage {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments.
    pub cmd: Vec<String>,
    /// Working directory; `/` where none is set.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group`, `uid:gid`, `uid:group` or `user:gid`; root where none is set.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The signal that stops it.
    pub stop_signal: Option<String>,
    /// `port`, `port/tcp` or `port/udp`.
    pub exposed_ports: BTreeSet<String>,
    /// Operating system.
    pub os: Option<String>,
    /// Processor architecture.
    pub architecture: Option<String>,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// When it was made, as written.
    pub created: Option<String>,
}

/// Which network the container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A network namespace of its own with a loopback device only.
    #[default]
    None,
    /// The host's, with its `/etc/resolv.conf` and `/etc/hosts` (which have to exist).
    Host,
}

/// A directory or file of the host to be seen in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleMount {
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Absolute path in the container. A default mount of the same destination gives way.
    pub destination: PathBuf,
    /// As in fstab; `rbind` is added where neither it nor `bind` is given.
    pub options: Vec<String>,
}

/// What the caller wants otherwise than the image says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BundleOptions {
    /// Takes the place of the image's cmd, not of its entrypoint; empty: nothing is replaced.
    pub args: Vec<String>,
    /// Takes the place of the image's entrypoint; its cmd is then left out as well.
    pub entrypoint: Option<Vec<String>>,
    /// `NAME=value` overrides, `NAME` removes.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: Option<String>,
    /// As [`BundleImage::user`].
    pub user: Option<String>,
    /// Host name; runc takes over the host's where none is set.
    pub hostname: Option<String>,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// Whether the rootfs is read-only within the container.
    pub readonly_rootfs: bool,
    /// The network.
    pub network: Network,
    /// Whether the bundle has [`FILES`](super::FILES), to be seen in the container.
    pub files: bool,
    /// Further mounts, in order.
    pub mounts: Vec<BundleMount>,
    /// Further annotations; they win over the image's.
    pub annotations: BTreeMap<String, String>,
}

/// Annotations by which runtimes do things on the host: systemd unit properties and CRIU files
/// (runc), hooks and handlers (crun), paths of hypervisors (Kata). An image must not set them.
const OBEYED: [&str; 4] = ["org.systemd.property.", "org.criu.", "run.oci.", "io.katacontainers."];

/// The runtime configuration of a container of `image` whose rootfs is `rootfs` beside it.
///
/// `passwd` and `group` are the bytes of the image's `/etc/passwd` and `/etc/group`, where it has
/// them (see [`rootfs_file`](super::rootfs_file)).
pub fn config_json(
    image: &BundleImage,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
    options: &BundleOptions,
) -> Result<Spec, BundleError> {
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(options.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(defaults::VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(options.hostname.clone())
        .set_process(Some(process(image, passwd, group, options)?))
        .set_mounts(Some(mounts(options)?))
        .set_annotations(Some(annotations(image, options)))
        .set_linux(Some(linux(options.network)));
    Ok(spec)
}

/// The text of a `config.json`: indented, and the same for the same configuration (the maps and
/// sets of `oci_spec` have no order of their own).
pub fn to_json(spec: &Spec) -> Result<String, BundleError> {
    let mut document = serde_json::to_value(spec)?;
    if let Some(annotations) = document.pointer_mut("/annotations").and_then(|v| v.as_object_mut())
    {
        annotations.sort_keys();
    }
    let capabilities = document.pointer_mut("/process/capabilities");
    for set in capabilities.and_then(|v| v.as_object_mut()).into_iter().flat_map(|v| v.values_mut())
    {
        if let Some(names) = set.as_array_mut() {
            names.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    let mut text = serde_json::to_string_pretty(&document)?;
    text.push('\n');
    Ok(text)
}

/// An empty text in an image's configuration means that nothing is set.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

fn process(
    image: &BundleImage,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
    options: &BundleOptions,
) -> Result<Process, BundleError> {
    let user = given(options.user.as_ref()).or(given(image.user.as_ref())).unwrap_or_default();
    let ids = user::resolve(user, passwd, group)?;
    let mut user = User::default();
    user.set_uid(ids.uid).set_gid(ids.gid).set_additional_gids(Some(ids.groups));
    // Its default limit of 1024 open files is containerd's as well
    let mut process = Process::default();
    process
        .set_terminal(Some(options.terminal))
        .set_user(user)
        .set_args(Some(args(image, options)?))
        .set_env(Some(env(image, options)?))
        .set_cwd(cwd(image, options)?)
        .set_capabilities(Some(defaults::capabilities()))
        .set_no_new_privileges(Some(true));
    Ok(process)
}

fn args(image: &BundleImage, options: &BundleOptions) -> Result<Vec<String>, BundleError> {
    let (entrypoint, cmd) = match &options.entrypoint {
        Some(entrypoint) => (entrypoint, &[][..]),
        None => (&image.entrypoint, image.cmd.as_slice()),
    };
    let cmd = if options.args.is_empty() { cmd } else { &options.args };
    let args = [entrypoint.as_slice(), cmd].concat();
    if args.first().is_none_or(String::is_empty) {
        return Err(BundleError::NoCommand);
    }
    args.iter().try_for_each(|arg| no_zero_byte("argument", arg))?;
    Ok(args)
}

fn env(image: &BundleImage, options: &BundleOptions) -> Result<Vec<String>, BundleError> {
    let mut env: Vec<String> = Vec::new();
    // What runc would refuse and no shell could set is no reason to refuse the image
    let usable = image.env.iter().filter(|entry| entry.find('=').is_some_and(|at| at > 0));
    for entry in usable {
        no_zero_byte("environment of the image", entry)?;
        set(&mut env, entry);
    }
    if env.is_empty() {
        env.push(defaults::PATH.to_owned());
    }
    if options.terminal && !env.iter().any(|entry| name(entry) == "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    for entry in &options.env {
        no_zero_byte("environment variable", entry)?;
        if name(entry).is_empty() {
            return Err(BundleError::Env { found: entry.clone() });
        }
        if entry.contains('=') {
            set(&mut env, entry);
        } else {
            env.retain(|other| name(other) != entry);
        }
    }
    Ok(env)
}

fn name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

fn set(env: &mut Vec<String>, entry: &str) {
    match env.iter_mut().find(|other| name(other) == name(entry)) {
        Some(other) => entry.clone_into(other),
        None => env.push(entry.to_owned()),
    }
}

fn cwd(image: &BundleImage, options: &BundleOptions) -> Result<PathBuf, BundleError> {
    let cwd = match (given(options.cwd.as_ref()), given(image.working_dir.as_ref())) {
        (Some(cwd), _) if !cwd.starts_with('/') => {
            return Err(BundleError::Relative {
                field: "working directory",
                found: cwd.to_owned(),
            });
        }
        (Some(cwd), _) => cwd.into(),
        // The runtime takes absolute paths only; builders write them, old ones left the slash out
        (None, Some(cwd)) => Path::new("/").join(cwd),
        (None, None) => "/".into(),
    };
    no_zero_byte("working directory", &cwd.to_string_lossy())?;
    Ok(cwd)
}

fn no_zero_byte(field: &'static str, value: &str) -> Result<(), BundleError> {
    if value.contains('\0') {
        return Err(BundleError::ZeroByte { field, value: value.to_owned() });
    }
    Ok(())
}

fn mounts(options: &BundleOptions) -> Result<Vec<oci_spec::runtime::Mount>, BundleError> {
    let mut mounts = defaults::mounts();
    if options.network == Network::Host {
        mounts.extend(["/etc/resolv.conf", "/etc/hosts"].map(defaults::host_file));
    }
    if options.files {
        let access = if options.readonly_rootfs { "ro" } else { "rw" };
        let options = ["rbind", "rprivate", access].map(str::to_owned);
        for (name, destination) in init::FILES {
            let destination = Path::new(destination);
            mounts.retain(|mount| mount.destination() != destination);
            // Relative to the bundle
            mounts.push(defaults::bind(Path::new(name), destination, &options));
        }
    }
    for given in &options.mounts {
        for (field, path) in
            [("mount source", &given.source), ("mount destination", &given.destination)]
        {
            let found = path.to_string_lossy().into_owned();
            if path.to_str().is_none() {
                return Err(BundleError::NotUtf8 { field, found });
            }
            if !path.is_absolute() {
                return Err(BundleError::Relative { field, found });
            }
            no_zero_byte(field, &found)?;
        }
        mounts.retain(|mount| *mount.destination() != given.destination);
        mounts.push(defaults::bind(&given.source, &given.destination, &given.options));
    }
    Ok(mounts)
}

fn annotations(image: &BundleImage, options: &BundleOptions) -> HashMap<String, String> {
    let ports: Vec<&str> = image.exposed_ports.iter().map(String::as_str).collect();
    let ports = (!ports.is_empty()).then(|| ports.join(","));
    let implied = [
        ("os", &image.os),
        ("architecture", &image.architecture),
        ("variant", &image.variant),
        ("author", &image.author),
        ("created", &image.created),
        ("stopSignal", &image.stop_signal),
        ("exposedPorts", &ports),
    ];
    let implied = implied.into_iter().filter_map(|(key, value)| {
        Some((format!("org.opencontainers.image.{key}"), given(value.as_ref())?.to_owned()))
    });
    let labels = image.labels.iter().filter(|(key, _)| {
        let obeyed = OBEYED.iter().any(|prefix| key.starts_with(prefix));
        if obeyed {
            tracing::warn!(label = %key, "label left out: a runtime would obey it on the host");
        }
        !obeyed && !key.is_empty()
    });
    let own = |(key, value): (&String, &String)| (key.clone(), value.clone());
    implied.chain(labels.map(own)).chain(options.annotations.iter().map(own)).collect()
}

fn linux(network: Network) -> Linux {
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(defaults::namespaces(network)))
        .set_resources(Some(defaults::resources()))
        .set_masked_paths(Some(defaults::MASKED.map(str::to_owned).into()))
        .set_readonly_paths(Some(defaults::READ_ONLY.map(str::to_owned).into()));
    linux
}
