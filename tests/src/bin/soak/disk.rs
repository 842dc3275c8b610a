//! Small disks that the servers can run out of: one in memory for each, mounted where only this process and its
//! children see it.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

const BALLAST: &str = "ballast";

/// A small disk. Unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
}

impl Disk {
    /// Mounts a disk of `megabytes` over the directory `at`, and copies the directory's contents to it.
    pub(crate) fn over(at: &Path, megabytes: usize) -> anyhow::Result<Disk> {
        let owner = std::fs::metadata(at)?;
        let kept = tempfile::Builder::new().prefix("dsync-disk-").tempdir()?;
        let copy = |from: &Path, to: &Path| run(Command::new("cp").args(["-a", "-T"]).arg(from).arg(to));
        copy(at, kept.path())?;
        let options = format!("size={megabytes}m,mode=0700");
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at))?;
        let disk = Disk { at: at.to_owned() };
        copy(kept.path(), at)?;
        chown(at, Some(owner.uid()), Some(owner.gid()))?;
        Ok(disk)
    }

    /// Fills it completely.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = File::create(self.at.join(BALLAST))?;
        let stuff = vec![0; 64 << 10];
        for size in [stuff.len(), 512] {
            while ballast.write_all(&stuff[..size]).is_ok() {}
        }
        Ok(())
    }

    /// Frees the space again.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        std::fs::remove_file(self.at.join(BALLAST)).context("cannot remove the ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("--lazy").arg(&self.at)).ok();
    }
}

/// Whether this process may mount: if it is root, in a mount namespace of its own (see `main`).
pub(crate) fn possible() -> bool {
    let Ok(dir) = tempfile::tempdir() else {
        return false;
    };
    Disk::over(dir.path(), 1).is_ok()
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {complaint}");
    Ok(())
}
