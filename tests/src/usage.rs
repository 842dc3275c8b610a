//! A process's CPU time and memory, as the kernel counts them. For benchmarks, where rates suffer from whatever else
//! the machine does.

use anyhow::{Context as _, ensure};
use sqlx::PgPool;

/// The kernel's clock ticks per second, the same on every Linux that matters here.
const TICKS: f64 = 100.0;

/// CPU seconds that all threads of process `pid` have used since it started, in user and kernel mode.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let fields = stat(pid)?;
    Ok((fields[11] + fields[12]) / TICKS)
}

/// CPU seconds that the database server behind `pool` and everything it started have used.
pub async fn database_cpu_seconds(pool: &PgPool) -> anyhow::Result<f64> {
    let pids: Vec<i32> = sqlx::query_scalar("select pid from pg_stat_activity")
        .fetch_all(pool)
        .await?;
    let (mut ticks, mut server) = (0.0, None);
    for pid in pids {
        // If it has ended by now, the server's count includes it.
        let Ok(fields) = stat(u32::try_from(pid)?) else {
            continue;
        };
        ticks += fields[11] + fields[12];
        server.get_or_insert(fields[1]);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a process id"
    )]
    let server = stat(server.context("no server")? as u32)?;
    ticks += server[11..15].iter().sum::<f64>();
    Ok(ticks / TICKS)
}

/// The fields of `/proc/<pid>/stat` after the name, as numbers (0 for a field that is not a number): 1 is the parent, 11 to 14 are CPU
/// ticks, the process's own and those of children that have ended.
fn stat(pid: u32) -> anyhow::Result<Vec<f64>> {
    let fields: Vec<f64> = after_the_name(pid)?
        .split(' ')
        .map(|field| field.trim().parse().unwrap_or_default())
        .collect();
    ensure!(fields.len() > 15, "too few numbers");
    Ok(fields)
}

/// The peak memory of process `pid`, in bytes.
pub fn peak_rss(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmHWM:")
}

/// The current memory of process `pid`, in bytes.
pub fn rss(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmRSS:")
}

fn memory(pid: u32, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kilobytes: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .context("no such number")?
        .parse()?;
    Ok(kilobytes * 1024)
}

/// The text of `/proc/<pid>/stat` after the name, beginning with the state. Fails if the process no longer exists.
pub(crate) fn after_the_name(pid: u32) -> anyhow::Result<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything.
    let (_, fields) = stat.rsplit_once(") ").context("not a process's numbers")?;
    Ok(fields.to_owned())
}
