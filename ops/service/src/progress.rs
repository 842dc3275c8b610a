//! Progress of commands that take a while: a line on a terminal, nothing in a pipe.

use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

/// A bar of things counted, such as `records`, with their rate and the time that is left.
pub fn bar(things: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template =
        format!("{{msg}} {{wide_bar}} {{human_pos}}/{{human_len}} {things}, {{rate}}, {{eta}} left");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style.with_key("rate", rate));
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Whole things a second: nobody reads further digits of a number that moves.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate to look at"
    )]
    let whole = state.per_sec() as u64;
    // Writing to the bar's own text cannot fail.
    let _ = write!(out, "{}/s", HumanCount(whole));
}
