//! The demonstration: a campaign of its own, and everything that makes such an event hard.

use std::time::{Duration, SystemTime};

use crate::args::{DemoArgs, Mode, RushArgs};
use crate::plan::RushPlan;
use crate::progress::Progress;
use crate::report::{Memory, Report};
use crate::run::{RushError, run};

/// One user in twenty cannot wait.
const EARLY: f64 = 0.05;
/// One claim in a hundred loses its connection.
const DROP: f64 = 0.01;
/// The campaign opens so long after it is created.
const OPENS_IN: Duration = Duration::from_secs(2);

/// A running server.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    /// Where it listens, such as `http://127.0.0.1:8080`.
    pub url: String,
    /// Its admin key, if it has one.
    pub admin_key: Option<String>,
    /// Its process, for its memory.
    pub pid: u32,
}

/// Creates a campaign of `stock` coupons that opens two seconds later, and lets everybody rush: every user
/// presses `press` times, some before the opening, some again after their connection broke. Then checks the
/// result. The report has the server's memory.
pub async fn demo(
    args: &DemoArgs,
    server: &ServerHandle,
    progress: &dyn Progress,
) -> Result<Report, RushError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let plan = RushPlan::try_from(RushArgs {
        url: server.url.clone(),
        // A kept data folder may be used again: each demonstration has a campaign of its own.
        campaign: format!("demo-{}", now.as_secs()),
        create_stock: Some(args.stock),
        opens_in: OPENS_IN,
        users: args.users,
        press: args.press,
        connections: args.connections,
        mode: Mode::Closed,
        rate: None,
        ramp: 0.0,
        early: EARLY,
        drop: DROP,
        user_prefix: "user-".to_owned(),
        keys: false,
        duration: None,
        patience: Duration::from_secs(30),
        admin_key: server.admin_key.clone(),
        json: false,
        no_check: false,
        seed: None,
    })?;
    let mut report = run(plan, progress).await?;
    report.server_memory = memory_of(server.pid);
    Ok(report)
}

/// The memory of a process, from `/proc/PID/status`; `None` where there is no such file.
pub fn memory_of(pid: u32) -> Option<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(Memory { resident: kib("VmRSS:")? * 1024, peak: kib("VmHWM:")? * 1024 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_process_is_known() {
        let memory = memory_of(std::process::id()).unwrap();
        assert!(memory.resident > 0 && memory.peak >= memory.resident);
        assert_eq!(memory_of(u32::MAX), None);
    }
}
