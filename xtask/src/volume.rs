//! A small disk of our own: an ext4 image on a loop device, in a mount namespace that dies with us.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};

/// Set in the process that lives in the namespaces.
const INSIDE: &str = "DIBS_XTASK_INSIDE";

/// Goes on in mount and process namespaces of our own, so that neither a mount nor a server can outlive this
/// process, however it ends. `Err` says why that is not possible here.
pub(crate) fn enter() -> Result<(), String> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err("mounting needs root".into());
    }
    if !Path::new("/dev/loop-control").exists() {
        return Err("there are no loop devices".into());
    }
    let ours = std::env::current_exe().map_err(|e| e.to_string())?;
    let flags = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"];
    let possible = Command::new("unshare").args(flags).arg("true").output();
    if !possible.is_ok_and(|o| o.status.success()) {
        return Err("namespaces cannot be made".into());
    }
    let error = Command::new("unshare")
        .args(flags)
        .arg(ours)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    Err(format!("cannot run unshare: {error}"))
}

/// Says loudly that nothing was tested. A caller that must not skip looks for the word.
pub(crate) fn skipped(what: &str, reason: &str) {
    println!("SKIPPED: {what}: {reason}");
    println!("0 run, 1 skipped");
}

/// A mounted image. Dropping it unmounts it.
pub(crate) struct Volume {
    pub(crate) mounted: PathBuf,
}

impl Volume {
    /// Makes an empty ext4 image of so many MiB.
    pub(crate) fn format(image: &Path, mib: u64) -> anyhow::Result<()> {
        File::create(image)?.set_len(mib << 20)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image))
    }

    /// Mounts an image. The file system commits its own journal only when it is told to, so that a copy of the
    /// image is of one moment.
    pub(crate) fn mount(image: &Path, at: &Path) -> anyhow::Result<Volume> {
        std::fs::create_dir_all(at)?;
        run(Command::new("mount").args(["-t", "ext4", "-o", "loop,commit=600"]).arg(image).arg(at))?;
        Ok(Volume { mounted: at.to_owned() })
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.mounted)) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Checks a file system that is not mounted, journal replayed, without repairing anything.
pub(crate) fn fsck(image: &Path) -> anyhow::Result<()> {
    let output =
        Command::new("e2fsck").args(["-f", "-n"]).arg(image).output().context("cannot run e2fsck")?;
    ensure!(output.status.success(), "e2fsck: {}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
