//! Staying up: changes at every tick, and one status line.

use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use crate::programs::Programs;
use crate::screen::Screen;
use crate::servers::Servers;
use crate::summary::{Totals, count};

const TICK: Duration = Duration::from_secs(2);
/// How many ticks pass between printed lines when no terminal shows the bar.
const TICKS_A_LINE: u32 = 15;

/// Runs until it is dropped. Calls `go_on` at every tick, which may make changes and returns the webhooks' part of the
/// line.
pub(crate) async fn stay(
    screen: &Screen,
    servers: &Servers,
    programs: &mut Programs,
    mut go_on: impl FnMut() -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let up = Instant::now();
    let bar = screen.spinner("");
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut webhooks = String::new();
    for tick in 0_u32.. {
        ticks.tick().await;
        // Read the status before making more changes: those of the previous tick have arrived by now.
        let line = status(up, servers, programs, &webhooks).await;
        webhooks = go_on()?;
        if screen.is_watched() {
            bar.say(line);
        } else if tick.is_multiple_of(TICKS_A_LINE) {
            screen.line(&format!("  {line}"));
        }
    }
    Ok(())
}

/// Failures are part of the status, because people who experiment with the servers want to see the effect.
async fn status(up: Instant, servers: &Servers, programs: &mut Programs, webhooks: &str) -> String {
    let seconds = up.elapsed().as_secs();
    let ended = programs.ended();
    let (position, totals) = (servers.position().await, Totals::read(&servers.pool).await);
    let (Ok(position), Ok(totals)) = (position, totals) else {
        return "the servers do not answer  Ctrl-C to stop".to_owned();
    };
    let rest = if ended.is_empty() {
        format!("users {}  groups {}", count(totals.users), count(totals.groups))
    } else {
        format!("{} ended", ended.join(", "))
    };
    format!(
        "up {}:{:02}  {webhooks}log {}  applied {}  {rest}  Ctrl-C to stop",
        seconds / 60,
        seconds % 60,
        count(position.stored),
        count(position.applied),
    )
}
