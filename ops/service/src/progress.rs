//! Progress bars for commands that take a while: shown on a terminal, silent in a pipe.

use std::fmt;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressState, ProgressStyle};

/// A bar that counts `things`, such as `records`, with their rate and the time left.
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

/// The rate per second as a whole number: nobody can read decimals of a number that keeps changing.
fn rate(state: &ProgressState, out: &mut dyn fmt::Write) {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "shown to people only"
    )]
    let whole = state.per_sec() as u64;
    // Writing to the bar's text cannot fail.
    let _ = write!(out, "{}/s", HumanCount(whole));
}
