//! What a process costs, as Linux tells it.

use std::{fs, time::Duration};

use anyhow::Context;

/// Time on a processor so far, user and system. In steps of 10 ms.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // The name may have spaces; it ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
}

/// Resident memory, in MiB.
pub(crate) fn rss_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the process is gone")?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 =
        line.split_whitespace().next().and_then(|n| n.parse().ok()).context("VmRSS is no number")?;
    Ok(kib / 1024.0)
}

/// The processor and how many of it there are, for the head of a table.
pub(crate) fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ").map(|(_, n)| n));
    let count = std::thread::available_parallelism().map_or(0, |n| n.get());
    format!("{count} × {}", name.unwrap_or("unknown processor"))
}
