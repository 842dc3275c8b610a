//! The data directory from which every private Postgres starts: created once for each build directory, copied for each
//! server.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};

use crate::watchdog::Watched;

/// The superuser of every private Postgres. It must not share its name with one of dsync's schemas: that would put the
/// schema on its search path and hide missing qualifications.
pub(crate) const USER: &str = "harness";
/// Its password over TCP, which must never appear in a program's output.
pub(crate) const PASSWORD: &str = "private-postgres-password";
/// The database in every private Postgres.
pub(crate) const DATABASE: &str = "dsync";
/// The oldest supported major version.
const OLDEST: u32 = 15;

/// The machine's Postgres, and the user that may run it.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    pub(crate) bin: PathBuf,
    /// The user to run it as if this process is root, because Postgres refuses to run as root.
    pub(crate) owner: Option<Owner>,
}

/// A user and its group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Installation {
    /// The newest Postgres on this machine.
    pub(crate) fn find() -> anyhow::Result<Installation> {
        let on_path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&on_path).collect();
        // Debian keeps the server's programs out of the path, in a directory for each version.
        let mut versions: Vec<u32> = std::fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        versions.sort_unstable();
        places.extend(
            versions
                .iter()
                .rev()
                .map(|v| PathBuf::from(format!("/usr/lib/postgresql/{v}/bin"))),
        );
        let bin = places
            .into_iter()
            .find(|bin| {
                bin.join("initdb").is_file() && major_version(bin).is_some_and(|major| major >= OLDEST)
            })
            .with_context(|| {
                format!("found no Postgres {OLDEST} or newer on this machine; ops/test installs it")
            })?;
        Ok(Installation {
            bin,
            owner: Owner::if_root()?,
        })
    }

    /// A command of this installation, run as the user that may.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut path = self.bin.join(program);
        // If the path has links to only some of the programs, the others are beside the targets of the links.
        if let (false, Ok(server)) = (path.is_file(), self.bin.join("postgres").canonicalize()) {
            path = server.with_file_name(program);
        }
        let mut command = Command::new(path);
        self.prepare(&mut command);
        command
    }

    /// The server itself.
    pub(crate) fn server(&self) -> Watched {
        let mut watched = Watched::new(self.bin.join("postgres"), "/dev/null");
        self.prepare(watched.command());
        watched
    }

    fn prepare(&self, command: &mut Command) {
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TZ", "UTC");
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid).current_dir("/");
        }
    }

    /// Makes the user that runs Postgres the owner of a path.
    pub(crate) fn own(&self, path: &Path) -> anyhow::Result<()> {
        if let Some(owner) = self.owner {
            std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid))?;
        }
        Ok(())
    }

    /// The template, created by the first caller.
    pub(crate) fn template(&self) -> anyhow::Result<PathBuf> {
        let home = harness_dir()?;
        std::fs::create_dir_all(&home)?;
        let version = words_of(self.command("postgres").arg("--version"))?;
        let version: String = version
            .chars()
            .filter(|c| c.is_ascii_digit() || *c == '.')
            .collect();
        let template = home.join(format!("postgres-{version}-v2"));
        let lock = File::create(home.join("lock"))?;
        lock.lock()?;
        if !template.exists() {
            let made = self.make()?;
            let unfinished = home.join("unfinished");
            if unfinished.exists() {
                std::fs::remove_dir_all(&unfinished)?;
            }
            copy(&made.path().join("data"), &unfinished)?;
            std::fs::rename(&unfinished, &template)?;
        }
        Ok(template)
    }

    /// Creates a cluster in a temporary directory, because the user that runs Postgres may not be allowed to write to
    /// the build directory.
    fn make(&self) -> anyhow::Result<tempfile::TempDir> {
        let dir = tempfile::Builder::new().prefix("dsync-initdb-").tempdir()?;
        self.own(dir.path())?;
        let password = dir.path().join("password");
        std::fs::write(&password, PASSWORD)?;
        self.own(&password)?;
        let data = dir.path().join("data");
        let mut initdb = self.command("initdb");
        initdb.arg("--pgdata").arg(&data).arg("--pwfile").arg(&password);
        initdb.args([
            "--username",
            USER,
            "--encoding",
            "UTF8",
            "--locale",
            "C.UTF-8",
            "--no-sync",
        ]);
        // Passwords in plain text, over the loopback only, because hashing them is slow in a debug build.
        initdb.args([
            "--auth-host",
            "password",
            "--auth-local",
            "trust",
            "--wal-segsize",
            "4",
        ]);
        words_of(&mut initdb)?;
        let statement = dir.path().join("statement");
        std::fs::write(&statement, format!("create database {DATABASE}\n"))?;
        let mut single = self.command("postgres");
        single
            .args(["--single", "-F", "-D"])
            .arg(&data)
            .arg("postgres")
            .stdin(File::open(statement)?);
        words_of(&mut single)?;
        Ok(dir)
    }
}

impl Owner {
    pub(crate) fn if_root() -> anyhow::Result<Option<Owner>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd")?;
        let line = users.lines().find(|line| line.starts_with("postgres:"));
        let line =
            line.context("Postgres refuses to run as root, and there is no user `postgres` to run it as")?;
        let mut ids = line.split(':').skip(2);
        let mut id = || {
            ids.next()
                .and_then(|id| id.parse().ok())
                .context("cannot read /etc/passwd")
        };
        Ok(Some(Owner {
            uid: id()?,
            gid: id()?,
        }))
    }
}

/// The major version of the `postgres` in a directory, if there is one that runs.
fn major_version(bin: &Path) -> Option<u32> {
    let shown = words_of(Command::new(bin.join("postgres")).arg("--version")).ok()?;
    let number = shown
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Copies a directory with everything in it, owners included.
pub(crate) fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    words_of(
        Command::new("cp")
            .args(["--archive", "--reflink=auto", "--no-target-directory"])
            .arg(from)
            .arg(to),
    )?;
    Ok(())
}

/// The directory into which programs are built, such as `target/debug`.
pub(crate) fn build_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let mut dir = program.parent().context("this program's path has no directory")?;
    if dir.ends_with("deps") || dir.ends_with("examples") {
        dir = dir.parent().context("no build directory")?;
    }
    Ok(dir.to_owned())
}

fn harness_dir() -> anyhow::Result<PathBuf> {
    Ok(build_dir()?
        .parent()
        .context("no target directory")?
        .join("harness"))
}

/// Runs a command to its end. Returns its standard output, or an error with its standard error.
pub(crate) fn words_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{} failed: {complaint}",
        command.get_program().display()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
