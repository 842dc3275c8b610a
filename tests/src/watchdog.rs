//! Kills a child process when the test process dies.
//!
//! The watchdog is a shell that reads from a pipe, whose other end only the test process keeps open. When that process
//! ends, however it ends, the shell reaches the end of the pipe, kills the child and removes what it leaves behind. The
//! shell starts before the child, and the child sends it its process id before it executes its program, so a child is
//! watched at all times. (The kernel's parent-death signal is tied to the parent's *thread*, and a test's threads come
//! and go.)

use std::ffi::OsStr;
use std::io::{PipeWriter, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// The watchdog's script. Its argument is a directory to remove, or empty. A killed Postgres leaves a shared memory
/// segment behind, and a machine has room for only some thousands, so the segment named in the directory is removed,
/// too.
const WATCH: &str = r#"
trap "" INT TERM HUP
read -r pid
case "$pid" in "" | done) exit 0 ;; esac
read -r word
[ "$word" = done ] && exit 0
kill -9 "$pid" 2>/dev/null
[ -n "$1" ] || exit 0
sleep 1
segment=$(sed -n "7s/.* //p" "$1/data/postmaster.pid" 2>/dev/null)
[ -z "$segment" ] || ipcrm -m "$segment"
rm -rf -- "$1"
"#;

/// The child's script, which reports the child's process id and then executes the program. Its arguments are the file
/// that the program reads, the program, and the program's own arguments.
const REPORT: &str = r#"
echo $$ >&0
input=$1
shift
exec "$@" <"$input"
"#;

/// Watches over one child process.
#[derive(Debug)]
pub struct Watchdog {
    shell: Option<Child>,
    pipe: Option<PipeWriter>,
}

/// A command to be started under a watchdog.
#[derive(Debug)]
pub struct Watched(Command);

impl Watched {
    /// A command that runs `program` with the file `input` as its standard input.
    pub fn new(program: impl AsRef<OsStr>, input: impl AsRef<OsStr>) -> Watched {
        let mut command = Command::new("sh");
        command.args(["-c", REPORT, "child"]).arg(input).arg(program);
        Watched(command)
    }

    /// The command itself, to add arguments and settings. Its standard input is used for the watchdog.
    pub fn command(&mut self) -> &mut Command {
        &mut self.0
    }
}

impl Watchdog {
    /// Starts a command under a watchdog, which also removes the directory `scratch` if this process dies.
    pub fn start(watched: Watched, scratch: Option<&Path>) -> anyhow::Result<(Child, Watchdog)> {
        let (from_us, to_it) = std::io::pipe()?;
        let shell = Command::new("sh")
            .args(["-c", WATCH, "watchdog"])
            .arg(scratch.unwrap_or(Path::new("")))
            .stdin(from_us)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start a watchdog")?;
        let watchdog = Watchdog {
            shell: Some(shell),
            pipe: Some(to_it.try_clone()?),
        };
        // The child's copy of the pipe is closed when it executes the program.
        let Watched(mut command) = watched;
        let child = command.stdin(to_it).spawn()?;
        Ok((child, watchdog))
    }

    /// Stops the watchdog. Call this before the child's process id can be reused, or right after.
    pub fn call_off(&mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            pipe.write_all(b"done\n").ok();
        }
        if let Some(mut shell) = self.shell.take() {
            shell.wait().ok();
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.call_off();
    }
}
