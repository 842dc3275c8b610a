//! The output: a line for each finished phase, headings, tables, and progress bars.
//!
//! Lines go to standard output and read the same in a terminal and in a file. Bars go to standard error and appear only
//! in a terminal. Nothing here knows what it shows. A closed output is not an error.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// The greatest width of anything printed, except what a person is to copy whole.
pub(crate) const WIDTH: usize = 100;
/// Where the text of a finished phase begins.
const INDENT: usize = 17;

/// The terminal, or the file that stands in for it.
pub(crate) struct Screen {
    bars: MultiProgress,
    bold: bool,
}

impl Screen {
    /// Standard output and standard error of this process.
    pub(crate) fn new() -> Screen {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Screen {
            bars: MultiProgress::new(),
            bold: colours && std::io::stdout().is_terminal(),
        }
    }

    /// Whether the bars are visible.
    pub(crate) fn is_watched(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// Prints one line.
    pub(crate) fn line(&self, text: &str) {
        self.bars.suspend(|| writeln!(std::io::stdout(), "{text}").ok());
    }

    /// Prints a heading, after an empty line.
    pub(crate) fn heading(&self, text: &str) {
        let (on, off) = if self.bold {
            ("\u{1b}[1m", "\u{1b}[0m")
        } else {
            ("", "")
        };
        self.line(&format!("\n{on}{text}{off}"));
    }

    /// Reports that a phase is over: its name, how long it took, and its results, one string a line.
    pub(crate) fn done(&self, phase: &str, began: Instant, what: &[String]) {
        for line in done(phase, began.elapsed(), what) {
            self.line(&line);
        }
    }

    /// Prints rows below a header.
    pub(crate) fn table(&self, header: &[&str], rows: &[Vec<String>]) {
        for line in table(header, rows) {
            self.line(&line);
        }
    }

    /// Shows what is in progress, until the bar is dropped.
    pub(crate) fn spinner(&self, text: impl Into<Cow<'static, str>>) -> Bar {
        let style = ProgressStyle::with_template("  {spinner} {wide_msg}").expect("a template");
        let bar = ProgressBar::new_spinner().with_style(style).with_message(text);
        let bar = self.bars.add(bar);
        bar.enable_steady_tick(Duration::from_millis(120));
        Bar(bar)
    }

    /// Shows how much of something is done, until the bar is dropped.
    pub(crate) fn bar(&self, label: &'static str) -> Bar {
        let style = ProgressStyle::with_template(
            "    {prefix:<10} {bar:44} {human_pos:>8} of {human_len:<8} {elapsed}",
        );
        let style = style.expect("a template").progress_chars("━╸─");
        let bar = ProgressBar::new(0).with_style(style).with_prefix(label);
        Bar(self.bars.add(bar))
    }
}

/// A bar on the screen, removed when dropped.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Shows `position` of `length`.
    pub(crate) fn show(&self, position: u64, length: u64) {
        self.0.set_length(length.max(position));
        self.0.set_position(position);
    }

    /// Replaces the text.
    pub(crate) fn say(&self, text: impl Into<Cow<'static, str>>) {
        self.0.set_message(text);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// `text` cut to at most `width` characters, with everything that could move the cursor replaced.
pub(crate) fn clipped(text: &str, width: usize) -> String {
    let plain = |c: char| {
        if c.is_control() || ('\u{200b}'..='\u{202e}').contains(&c) {
            '\u{fffd}'
        } else {
            c
        }
    };
    if text.chars().count() <= width {
        return text.chars().map(plain).collect();
    }
    text.chars()
        .take(width.saturating_sub(1))
        .map(plain)
        .chain(['…'])
        .collect()
}

fn done(phase: &str, took: Duration, what: &[String]) -> Vec<String> {
    let seconds = format!("{:.1} s", took.as_secs_f64());
    let mut lines = Vec::new();
    for (index, text) in what.iter().enumerate() {
        if index == 0 {
            let room = WIDTH - INDENT - 9;
            lines.push(format!("  ✓ {phase:<12} {text:<room$} {seconds:>8}"));
        } else {
            lines.push(format!("{:INDENT$}{text}", ""));
        }
    }
    lines
}

/// Lays out columns as wide as they need to be. If a row is wider than the screen, the widest column shrinks. Numbers
/// are right-aligned.
fn table(header: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let mut widths: Vec<usize> = header.iter().map(|title| title.chars().count()).collect();
    for (column, width) in widths.iter_mut().enumerate() {
        let widest = rows.iter().map(|row| cell(row, column).chars().count()).max();
        *width = widest.unwrap_or(0).max(*width);
    }
    while 2 + widths.iter().map(|width| width + 2).sum::<usize>() > WIDTH + 2 {
        let Some(widest) = widths.iter_mut().max() else {
            break;
        };
        *widest -= 1;
    }
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit() || c == ',');
    let right: Vec<bool> = (0..header.len())
        .map(|column| !rows.is_empty() && rows.iter().all(|row| number(&cell(row, column))))
        .collect();
    let line = |cells: Vec<String>| {
        let cells = cells.iter().enumerate().map(|(column, text)| {
            let (text, width) = (clipped(text, widths[column]), widths[column]);
            if right[column] {
                format!("{text:>width$}")
            } else {
                format!("{text:<width$}")
            }
        });
        format!("  {}", cells.collect::<Vec<_>>().join("  "))
            .trim_end()
            .to_owned()
    };
    let mut lines = vec![line(header.iter().map(ToString::to_string).collect())];
    lines.push(line(widths.iter().map(|width| "─".repeat(*width)).collect()));
    lines.extend(rows.iter().map(|row| line(row.clone())));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        let row = |row: &&[&str]| row.iter().map(ToString::to_string).collect();
        rows.iter().map(row).collect()
    }

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let lines = table(&["name", "users"], &rows(&[&["Older", "1,000"], &["All", "7"]]));
        assert_eq!(
            lines,
            [
                "  name   users",
                "  ─────  ─────",
                "  Older  1,000",
                "  All        7"
            ]
        );
    }

    #[test]
    fn the_widest_column_gives_way_to_the_width_of_the_screen() {
        let long = "x".repeat(300);
        let lines = table(&["id", "text", "n"], &rows(&[&["short", &long, "5"]]));
        for line in &lines {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(lines[2].contains("short") && lines[2].contains("x…") && lines[2].ends_with('5'));
    }

    #[test]
    fn a_value_cannot_move_the_cursor() {
        assert_eq!(
            clipped("a\u{1b}[2Jb\u{202e}\n", 40),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}"
        );
        assert_eq!(clipped("abcdef", 4), "abc…");
    }

    #[test]
    fn a_finished_phase_is_one_aligned_line_and_more_below_it() {
        let lines = done("check", Duration::from_millis(1_234), &["a".into(), "b".into()]);
        assert_eq!(lines[0].chars().count(), WIDTH);
        assert!(
            lines[0].starts_with("  ✓ check        a ") && lines[0].ends_with(" 1.2 s"),
            "{}",
            lines[0]
        );
        assert_eq!(lines[1], "                 b");
    }
}
