//! The subcommand `status`: one screen about a program and the servers it depends on, shown once or repeatedly.
//!
//! A program gathers parts. Here they become lines of at most 80 columns, or one JSON object. A part that cannot be
//! reached says so, beside those that can.

mod columns;
mod part;
mod table;
mod told;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::settings::duration;

use columns::{COLUMNS, wide};
pub use part::Part;
pub use told::Told;

/// Options of `status`.
#[derive(Args, Clone, Copy, Debug)]
pub struct StatusArgs {
    /// Show the status again at this interval (2s if omitted), until Ctrl-C
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = duration)]
    watch: Option<Duration>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// List all rows, not only the most urgent ones
    #[arg(long)]
    pub all: bool,
}

/// Everything on one screen.
#[derive(Clone, Debug)]
pub struct Screen {
    program: &'static str,
    version: &'static str,
    at: OffsetDateTime,
    parts: Vec<Part>,
}

impl Screen {
    /// A screen of these parts, as of `at`.
    pub fn new(program: &'static str, version: &'static str, at: OffsetDateTime, parts: Vec<Part>) -> Self {
        Self {
            program,
            version,
            at,
            parts,
        }
    }

    /// Whether everything was reached.
    pub fn is_whole(&self) -> bool {
        self.parts.iter().all(Part::is_whole)
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("program".to_owned(), json!(self.program));
        object.insert("version".to_owned(), json!(self.version));
        object.insert("at".to_owned(), json!(self.at.format(&Rfc3339).ok()));
        for part in &self.parts {
            object.insert(part.name().to_owned(), part.json());
        }
        Value::Object(object)
    }

    /// For people: lines of at most 80 columns.
    pub fn text(&self) -> String {
        let (name, at) = (
            format!("{} {}", self.program, self.version),
            self.at.format(&Rfc3339).unwrap_or_default(),
        );
        let at = at.get(..19).unwrap_or_default().replace('T', " ");
        let mut text = format!(
            "{name}{at:>width$} UTC\n",
            width = COLUMNS - 4 - wide(&name).min(50)
        );
        for part in &self.parts {
            part.text(&mut text);
        }
        text
    }
}

/// Shows what `gather` returns, once, or again and again until `shutdown`. When shown once, the exit code is 0 if
/// everything was reached, otherwise 1.
pub async fn show(
    args: StatusArgs,
    shutdown: &CancellationToken,
    gather: impl AsyncFn() -> Screen,
) -> anyhow::Result<ExitCode> {
    loop {
        let Some(screen) = shutdown.run_until_cancelled(gather()).await else {
            return Ok(ExitCode::SUCCESS);
        };
        match draw(args, &screen) {
            // The reader closed the pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitCode::SUCCESS),
            drawn => drawn?,
        }
        let Some(pause) = args.watch else {
            return Ok(ExitCode::from(u8::from(!screen.is_whole())));
        };
        if shutdown
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_none()
        {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn draw(args: StatusArgs, screen: &Screen) -> io::Result<()> {
    let mut out = io::stdout();
    if args.json {
        writeln!(out, "{}", screen.json())?;
    } else {
        if args.watch.is_some() && out.is_terminal() {
            // Moves the cursor home and clears the screen.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        write!(out, "{}", screen.text())?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extreme() -> Screen {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let long = "directory_01HZZZZZZZZZZZZZZZZZZZZZZZ".repeat(4);
        let row = |text: &str| {
            vec![
                Told::text(Some(text)),
                Told::count(u64::MAX),
                Told::moment(Some(OffsetDateTime::UNIX_EPOCH), now),
            ]
        };
        let part = Part::new("log")
            .fact("stream", Told::text(Some(long.clone())))
            .fact("called", Told::text(Some("東京本社".repeat(40))))
            .fact("messages", Told::count(u64::MAX))
            .fact("bytes", Told::bytes(u64::MAX))
            .fact("max_age", Told::duration(Duration::MAX))
            .fact("newest", Told::moment(None, now))
            .table(
                "directories",
                &["directory", "messages", "last event"],
                vec![row(&long), row(&"東京本社".repeat(12))],
                7,
            );
        let lost = Part::lost("database", "because ".repeat(40));
        Screen::new("dsync-test", "1.2.3", now, vec![part, lost])
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_whatever_is_told() {
        let text = extreme().text();
        for line in text.lines() {
            let columns = unicode_width::UnicodeWidthStr::width(line);
            assert!(columns <= COLUMNS, "{columns} columns: {line}");
        }
        assert!(
            text.contains("NOT REACHED: because") && text.contains("… and 7 more (--all)"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn json_has_values_and_not_how_they_are_shown() {
        let screen = extreme();
        assert!(!screen.is_whole());
        let json = screen.json();
        assert_eq!(json["log"]["messages"], json!(u64::MAX));
        assert_eq!(json["log"]["newest"], Value::Null);
        assert_eq!(
            json["log"]["directories"][1]["last event"],
            json!("1970-01-01T00:00:00Z")
        );
        assert!(
            json["database"]["trouble"]
                .as_str()
                .unwrap()
                .starts_with("because")
        );
    }
}
