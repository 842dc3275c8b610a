//! What a process has used, as the kernel counts it: for benchmarks, where rates suffer from whatever else a machine does.

use anyhow::Context as _;

/// The kernel's clock ticks a second, the same on every Linux that matters here.
const TICKS: f64 = 100.0;

/// CPU seconds that process `pid` has used since it began, its threads together, in user and kernel mode.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("not a process's numbers")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks =
        |place: usize| -> anyhow::Result<f64> { Ok(fields.get(place).context("too few numbers")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// The most memory process `pid` ever held, in bytes.
pub fn peak_rss(pid: u32) -> anyhow::Result<u64> {
    memory(pid, "VmHWM:")
}

/// The memory process `pid` holds now, in bytes.
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
