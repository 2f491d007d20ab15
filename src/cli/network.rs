//! The part of the grammar that says how registries are reached.

use clap::Args;

use crate::registry::RegistryOptions;

/// How registries are reached: options of the daemon, and of login.
#[derive(Debug, Clone, Args)]
pub(super) struct NetworkArgs {
    /// Directories of hosts.toml files, separated by colons [default: certs.d in /etc/peel,
    /// /etc/containerd, /etc/docker]
    #[arg(long, env = "PEEL_HOSTS_DIR", value_name = "DIRS", help_heading = "Network")]
    pub hosts_dir: Option<std::ffi::OsString>,
    /// Most bytes a second in each direction, all transfers together; with k, M or G
    #[arg(
        long,
        env = "PEEL_BANDWIDTH",
        value_name = "BYTES",
        value_parser = bandwidth,
        help_heading = "Network"
    )]
    pub bandwidth: Option<std::num::NonZeroU64>,
    /// Seconds without a byte after which a transfer is taken up anew [default: 30]
    #[arg(
        long,
        env = "PEEL_STALL_TIMEOUT",
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        help_heading = "Network"
    )]
    pub stall_timeout: Option<u64>,
    /// Serve statistics for Prometheus over HTTP, at /metrics of this loopback address
    #[arg(
        long,
        env = "PEEL_METRICS",
        value_name = "ADDRESS:PORT",
        value_parser = loopback,
        help_heading = "Network"
    )]
    pub metrics: Option<std::net::SocketAddr>,
}

fn loopback(text: &str) -> Result<std::net::SocketAddr, String> {
    let address: std::net::SocketAddr =
        text.parse().map_err(|_| "expected an address and a port, as in 127.0.0.1:9750")?;
    let is_loopback = address.ip().is_loopback();
    is_loopback.then_some(address).ok_or_else(|| "not an address of the loopback interface".into())
}

impl NetworkArgs {
    /// The same for a registry client.
    pub(super) fn options(&self) -> RegistryOptions {
        let mut options = RegistryOptions { bandwidth: self.bandwidth, ..Default::default() };
        if let Some(dirs) = &self.hosts_dir {
            options.hosts_dirs = std::env::split_paths(dirs).collect();
        }
        if let Some(seconds) = self.stall_timeout {
            options.idle_timeout = std::time::Duration::from_secs(seconds);
        }
        options
    }

    /// The same on a command line.
    pub(super) fn arguments(&self) -> Vec<std::ffi::OsString> {
        let hosts = self.hosts_dir.clone().map(|dirs| ["--hosts-dir".into(), dirs]);
        let bandwidth = self.bandwidth.map(|b| ["--bandwidth".into(), b.to_string().into()]);
        let stall = self.stall_timeout.map(|s| ["--stall-timeout".into(), s.to_string().into()]);
        let metrics = self.metrics.map(|m| ["--metrics".into(), m.to_string().into()]);
        hosts.into_iter().chain(bandwidth).chain(stall).chain(metrics).flatten().collect()
    }
}

/// A number of bytes, with k, M or G for thousands.
fn bandwidth(text: &str) -> Result<std::num::NonZeroU64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err("expected bytes a second, as in 500k, 20M or 1G".to_owned()),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor));
    let number = number.and_then(std::num::NonZeroU64::new);
    number.ok_or_else(|| "expected bytes a second, above zero".to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use clap::Parser as _;

    use super::{
        super::args::{Cli, Command},
        *,
    };

    #[test]
    fn network_options_come_through() {
        let line = "peel daemon --hosts-dir /a:/b --bandwidth 20M --stall-timeout 5";
        let cli = Cli::try_parse_from(line.split(' ')).map(|cli| cli.command);
        let Ok(Command::Daemon(args)) = cli else { panic!("daemon") };
        let options = args.network.options();
        assert_eq!(options.hosts_dirs, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(options.bandwidth.map(std::num::NonZeroU64::get), Some(20_000_000));
        assert_eq!(options.idle_timeout.as_secs(), 5);
        let passed_on = args.network.arguments().join(" ".as_ref());
        assert_eq!(passed_on, "--hosts-dir /a:/b --bandwidth 20000000 --stall-timeout 5");
        for (text, expected) in
            [("1", Some(1)), ("5k", Some(5_000)), ("0", None), ("x", None), ("99999999999G", None)]
        {
            let found = bandwidth(text).ok().map(std::num::NonZeroU64::get);
            assert_eq!(found, expected, "{text}");
        }
    }
}
