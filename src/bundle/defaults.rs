//! What every container gets, whatever its image: containerd's defaults (see `config`).

use std::path::Path;

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxDeviceCgroup, LinuxDeviceType,
    LinuxNamespace, LinuxNamespaceType, LinuxResources, Mount,
};

use super::config::Network;

/// Version of the runtime spec that the configuration keeps to; everything in it is as old.
pub(super) const VERSION: &str = "1.0.2";

pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Hidden from the container: they tell about the host or act on it.
pub(super) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

pub(super) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The 14 that containerd and Docker leave to root in a container. None are inheritable or
/// ambient, so that a process of another user has none.
pub(super) fn capabilities() -> LinuxCapabilities {
    let set: Capabilities = [
        Capability::AuditWrite,
        Capability::Chown,
        Capability::DacOverride,
        Capability::Fowner,
        Capability::Fsetid,
        Capability::Kill,
        Capability::Mknod,
        Capability::NetBindService,
        Capability::NetRaw,
        Capability::Setfcap,
        Capability::Setgid,
        Capability::Setpcap,
        Capability::Setuid,
        Capability::SysChroot,
    ]
    .into();
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    capabilities
}

pub(super) fn namespaces(network: Network) -> Vec<LinuxNamespace> {
    let own = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ];
    let network = (network == Network::None).then_some(LinuxNamespaceType::Network);
    let namespace = |typ| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ);
        namespace
    };
    own.into_iter().chain(network).map(namespace).collect()
}

/// All devices denied, then those of every container allowed; any may be made, none opened.
pub(super) fn resources() -> LinuxResources {
    use LinuxDeviceType::{B, C};
    let rule = |allow, typ, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(allow).set_typ(typ).set_major(major).set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rule
    };
    let open = |major, minor| rule(true, Some(C), Some(major), minor, "rwm");
    let mut resources = LinuxResources::default();
    resources.set_devices(Some(vec![
        rule(false, None, None, None, "rwm"),
        rule(true, Some(C), None, None, "m"),
        rule(true, Some(B), None, None, "m"),
        open(1, Some(3)), // null
        open(1, Some(5)), // zero
        open(1, Some(7)), // full
        open(1, Some(8)), // random
        open(1, Some(9)), // urandom
        open(5, Some(0)), // tty
        open(5, Some(1)), // console
        open(5, Some(2)), // ptmx
        open(136, None),  // pts/*
    ]));
    resources
}

pub(super) fn mounts() -> Vec<Mount> {
    const STRICT: [&str; 3] = ["nosuid", "noexec", "nodev"];
    let with = |options: &[&'static str]| [&STRICT, options].concat();
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    vec![
        special("/proc", "proc", "proc", &STRICT),
        special("/dev", "tmpfs", "tmpfs", &dev),
        special("/dev/pts", "devpts", "devpts", &pts),
        special("/dev/shm", "tmpfs", "shm", &with(&["mode=1777", "size=65536k"])),
        special("/dev/mqueue", "mqueue", "mqueue", &STRICT),
        special("/sys", "sysfs", "sysfs", &with(&["ro"])),
        special("/sys/fs/cgroup", "cgroup", "cgroup", &with(&["relatime", "ro"])),
    ]
}

fn special(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.to_owned()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(|&option| option.to_owned()).collect()));
    mount
}

/// A file of the host at its own path, read-only.
pub(super) fn host_file(path: &str) -> Mount {
    bind(Path::new(path), Path::new(path), &["rbind", "ro"].map(str::to_owned))
}

pub(super) fn bind(source: &Path, destination: &Path, options: &[String]) -> Mount {
    let mut options = options.to_vec();
    if !options.iter().any(|option| option == "bind" || option == "rbind") {
        options.insert(0, "rbind".to_owned());
    }
    let mut mount = Mount::default();
    mount
        .set_destination(destination.to_owned())
        .set_typ(Some("bind".to_owned()))
        .set_source(Some(source.to_owned()))
        .set_options(Some(options));
    mount
}
