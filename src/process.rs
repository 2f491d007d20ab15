//! What a process uses, from `/proc/<pid>`.
//!
//! Source: proc_pid_status(5), proc_pid_stat(5), proc_pid_limits(5).

use std::{
    fs, io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Clock ticks a second in `/proc/<pid>/stat`: `USER_HZ` of include/asm-generic/param.h.
const TICKS: f64 = 100.0;

/// What a process uses at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its id.
    pub pid: u32,
    /// Resident anonymous memory, in bytes.
    pub rss_anon: u64,
    /// Resident memory of mapped files, in bytes; the kernel takes it back when it needs it.
    pub rss_file: u64,
    /// Resident shared memory, in bytes.
    pub rss_shmem: u64,
    /// Most that was ever resident at once, in bytes.
    pub peak: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Descriptors that may be open; `None` for no limit.
    pub descriptor_limit: Option<u64>,
    /// Time since its start.
    pub uptime: Duration,
}

impl Usage {
    /// Of the process with this id.
    ///
    /// # Errors
    /// Where proc cannot be read: the process is gone, or another user's.
    pub fn of(pid: u32) -> io::Result<Self> {
        let dir = Path::new("/proc").join(pid.to_string());
        let read = |name: &str| fs::read_to_string(dir.join(name));
        let status = read("status")?;
        let field = |name| number_after(&status, name).unwrap_or(0);
        Ok(Self {
            pid,
            rss_anon: field("RssAnon:") << 10,
            rss_file: field("RssFile:") << 10,
            rss_shmem: field("RssShmem:") << 10,
            peak: field("VmHWM:") << 10,
            threads: field("Threads:"),
            descriptors: fs::read_dir(dir.join("fd"))?.count() as u64,
            descriptor_limit: number_after(&read("limits")?, "Max open files"),
            uptime: uptime(&read("stat")?, &fs::read_to_string("/proc/uptime")?),
        })
    }

    /// When it was started, in nanoseconds of Unix time.
    pub fn started_at_ns(&self) -> i64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(now.saturating_sub(self.uptime).as_nanos()).unwrap_or(i64::MAX)
    }
}

/// The first number of the line that starts with `name`. Memory is given in kB.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `stat` has the start in clock ticks since boot, `/proc/uptime` the seconds since boot.
fn uptime(stat: &str, uptime: &str) -> Duration {
    // The second field is the program's name in parentheses, with whatever characters it has
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let start = after_name.split_whitespace().nth(19).and_then(|ticks| ticks.parse::<u64>().ok());
    let since_boot = uptime.split_whitespace().next().and_then(|s| s.parse::<f64>().ok());
    let (Some(start), Some(since_boot)) = (start, since_boot) else { return Duration::ZERO };
    Duration::try_from_secs_f64((since_boot - start as f64 / TICKS).max(0.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let usage = Usage::of(std::process::id()).expect("our own");
        assert!(usage.rss_anon > 0 && usage.peak >= usage.rss_anon, "{usage:?}");
        assert!(usage.threads >= 1 && usage.descriptors >= 3, "{usage:?}");
        assert!(usage.uptime < Duration::from_secs(24 * 3600), "{usage:?}");
        assert!(Usage::of(u32::MAX).is_err());
    }

    #[test]
    fn fields() {
        let text = "Name:\tx\nVmHWM:\t  123 kB\nRssAnon:\t      45 kB\nThreads:\t7\n";
        assert_eq!(number_after(text, "VmHWM:"), Some(123));
        assert_eq!(number_after(text, "RssAnon:"), Some(45));
        assert_eq!(number_after(text, "Threads:"), Some(7));
        assert_eq!(number_after(text, "RssShmem:"), None);
        let limits = "Max open files            unlimited            unlimited  files\n";
        assert_eq!(number_after(limits, "Max open files"), None);
    }

    #[test]
    fn names_may_hold_anything() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 300 0";
        assert_eq!(uptime(stat, "13.50 1.0"), Duration::from_millis(10_500));
        assert_eq!(uptime("", "1.0"), Duration::ZERO);
    }
}
