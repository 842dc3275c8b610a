//! The end of a child process when the test process dies.
//!
//! The watchdog is a shell that reads from a pipe only the test process can write to. When that process ends, however it
//! ends, the read ends too, and the shell kills the child and removes its directory. (The kernel's own "die with your
//! parent" is tied to the parent's *thread*, and a test's threads come and go.)

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

const SCRIPT: &str = r#"
trap "" INT TERM HUP
read -r word
[ "$word" = done ] && exit 0
kill -9 "$1" 2>/dev/null
[ -n "$2" ] || exit 0
sleep 1
rm -rf -- "$2"
"#;

/// Watches over one child process.
#[derive(Debug)]
pub struct Watchdog {
    shell: Option<Child>,
}

impl Watchdog {
    /// Kills `pid`, and removes the directory `scratch`, if this process dies before [`Watchdog::call_off`].
    pub fn over(pid: u32, scratch: Option<&Path>) -> anyhow::Result<Watchdog> {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "watchdog"])
            .arg(pid.to_string())
            .arg(scratch.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot start a watchdog")?;
        Ok(Watchdog { shell: Some(shell) })
    }

    /// Sends it home: to be done while the child's pid cannot be another's yet, or at once after.
    pub fn call_off(&mut self) {
        if let Some(mut shell) = self.shell.take() {
            if let Some(mut pipe) = shell.stdin.take() {
                pipe.write_all(b"done\n").ok();
            }
            shell.wait().ok();
        }
    }
}
