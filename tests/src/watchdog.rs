//! The end of a child process when the test process dies.
//!
//! The watchdog is a shell that reads from a pipe only the test process can write to for long. When that process ends,
//! however it ends, the read ends too, and the shell kills the child and removes what it leaves. It is there before the
//! child is, and the child itself tells it its process id before it becomes the program it is to run: there is no moment
//! at which a child is not watched. (The kernel's own "die with your parent" is tied to the parent's *thread*, and a
//! test's threads come and go.)

use std::ffi::OsStr;
use std::io::{PipeWriter, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// What the watchdog runs, with a directory to remove or nothing. A Postgres that is killed leaves a segment of shared
/// memory behind, of which a machine takes only some thousands: it goes with the directory that names it.
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

/// What the child runs before it becomes the program: what that reads, and the program.
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
    /// Runs `program`, which reads the file `input`.
    pub fn new(program: impl AsRef<OsStr>, input: impl AsRef<OsStr>) -> Watched {
        let mut command = Command::new("sh");
        command.args(["-c", REPORT, "child"]).arg(input).arg(program);
        Watched(command)
    }

    /// To add arguments and settings to; its standard input is the watchdog's.
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
        // The child's copy of the pipe goes when it becomes the program.
        let Watched(mut command) = watched;
        let child = command.stdin(to_it).spawn()?;
        Ok((child, watchdog))
    }

    /// Sends it home: to be done while the child's pid cannot be another's yet, or at once after.
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
