//! The subcommand `status`: one screen that says how a program's surroundings are, once or again and again.
//!
//! A program gathers parts; here they become lines of at most 80 columns, or one JSON object. What cannot be reached is a
//! part that says so, beside those that can.

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::HumanCount;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use crate::settings::duration;

/// The width of a screen.
const COLUMNS: usize = 80;
/// How long one part may take to be gathered.
const PATIENCE: Duration = Duration::from_secs(3);

/// How `status` is asked for.
#[derive(Args, Clone, Copy, Debug)]
pub struct StatusArgs {
    /// Show it again and again, until Ctrl-C
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = duration)]
    watch: Option<Duration>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    /// List everything, not only what is most worrying
    #[arg(long)]
    pub all: bool,
}

/// Something that is told: as JSON, and for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    json: Value,
    shown: String,
}

impl Told {
    /// A text, or nothing.
    pub fn text(text: Option<impl Into<String>>) -> Self {
        let text = text.map(Into::into);
        Self {
            shown: text.clone().unwrap_or_else(|| "–".to_owned()),
            json: json!(text),
        }
    }

    /// A number of things.
    pub fn count(count: u64) -> Self {
        Self {
            json: json!(count),
            shown: HumanCount(count).to_string(),
        }
    }

    /// A size in bytes.
    pub fn bytes(bytes: u64) -> Self {
        Self {
            json: json!(bytes),
            shown: indicatif::HumanBytes(bytes).to_string(),
        }
    }

    /// A length of time.
    pub fn duration(duration: Duration) -> Self {
        Self {
            json: json!(duration.as_secs_f64()),
            shown: spoken(duration.as_secs()),
        }
    }

    /// A moment, by how long ago it was, or how soon it will be.
    pub fn moment(at: Option<OffsetDateTime>, now: OffsetDateTime) -> Self {
        let Some(at) = at else {
            return Self::text(None::<String>);
        };
        let seconds = (now - at).whole_seconds();
        let length = spoken(seconds.unsigned_abs());
        Self {
            json: json!(at.format(&Rfc3339).ok()),
            shown: if seconds < 0 {
                format!("in {length}")
            } else {
                format!("{length} ago")
            },
        }
    }
}

/// Whole seconds as people say them.
fn spoken(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A list, each row of as many cells as there are columns.
#[derive(Clone, Debug, Default)]
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<Told>>,
    more: u64,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    trouble: Option<String>,
    facts: Vec<(&'static str, Told)>,
    tables: Vec<Table>,
}

impl Part {
    /// A part that was reached.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            trouble: None,
            facts: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// What `gathering` gathers, or that it could not be within a few seconds.
    pub async fn gathered<E: std::fmt::Display>(
        name: &'static str,
        gathering: impl Future<Output = Result<Part, E>>,
    ) -> Self {
        let trouble = match tokio::time::timeout(PATIENCE, gathering).await {
            Ok(Ok(part)) => return part,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", PATIENCE.as_secs()),
        };
        Self {
            trouble: Some(trouble),
            ..Self::new(name)
        }
    }

    /// With something told.
    #[must_use]
    pub fn fact(mut self, name: &'static str, told: Told) -> Self {
        self.facts.push((name, told));
        self
    }

    /// With a list; `more` rows were left out.
    #[must_use]
    pub fn table(
        mut self,
        name: &'static str,
        columns: &'static [&'static str],
        rows: Vec<Vec<Told>>,
        more: u64,
    ) -> Self {
        self.tables.push(Table {
            name,
            columns,
            rows,
            more,
        });
        self
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("trouble".to_owned(), json!(self.trouble));
        for (name, told) in &self.facts {
            object.insert((*name).to_owned(), told.json.clone());
        }
        for table in &self.tables {
            let rows = table.rows.iter().map(|row| {
                let cells = table.columns.iter().zip(row);
                Value::Object(
                    cells
                        .map(|(column, told)| ((*column).to_owned(), told.json.clone()))
                        .collect(),
                )
            });
            object.insert(table.name.to_owned(), rows.collect());
        }
        Value::Object(object)
    }

    fn text(&self, text: &mut String) {
        let state = self
            .trouble
            .as_ref()
            .map_or_else(String::new, |trouble| format!("  NOT REACHED: {trouble}"));
        let _ = writeln!(
            text,
            "{}",
            cut(&format!("{}{state}", self.name.to_uppercase()), COLUMNS)
        );
        let mut line = String::new();
        for (name, told) in &self.facts {
            let fact = cut(&format!("{} {}", name.replace('_', " "), told.shown), COLUMNS - 2);
            if line.chars().count() + fact.chars().count() + 5 > COLUMNS {
                let _ = writeln!(text, "  {line}");
                line.clear();
            }
            if !line.is_empty() {
                line.push_str(" · ");
            }
            line.push_str(&fact);
        }
        if !line.is_empty() {
            let _ = writeln!(text, "  {line}");
        }
        for table in &self.tables {
            table.text(text);
        }
    }
}

impl Table {
    fn text(&self, text: &mut String) {
        if self.rows.is_empty() {
            return;
        }
        let headings: Vec<String> = self.columns.iter().map(|name| name.replace('_', " ")).collect();
        let cells: Vec<Vec<&str>> = std::iter::once(headings.iter().map(String::as_str).collect())
            .chain(
                self.rows
                    .iter()
                    .map(|row| row.iter().map(|told| told.shown.as_str()).collect()),
            )
            .collect();
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                cells
                    .iter()
                    .filter_map(|row| row.get(column))
                    .map(|cell| cell.chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        // What is too wide for the screen is the widest column's fault.
        while widths.iter().sum::<usize>() + 2 * widths.len() > COLUMNS {
            match widths.iter_mut().max() {
                Some(widest) if *widest > 4 => *widest -= 1,
                _ => break,
            }
        }
        for row in &cells {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "  {:<width$}", cut(&cell.replace('\n', " "), *width));
            }
            let _ = writeln!(text, "{}", cut(line.trim_end(), COLUMNS));
        }
        if self.more > 0 {
            let _ = writeln!(text, "  … and {} more (--all)", HumanCount(self.more));
        }
    }
}

/// At most so many characters, the last one an ellipsis if any were left out.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}…")
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
        self.parts.iter().all(|part| part.trouble.is_none())
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("program".to_owned(), json!(self.program));
        object.insert("version".to_owned(), json!(self.version));
        object.insert("at".to_owned(), json!(self.at.format(&Rfc3339).ok()));
        for part in &self.parts {
            object.insert(part.name.to_owned(), part.json());
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
            width = COLUMNS - 4 - name.chars().count().min(50)
        );
        for part in &self.parts {
            part.text(&mut text);
        }
        text
    }
}

/// Shows what `gather` gathers, once or until `shutdown`. Exit code 0 when everything was reached the last time, else 1.
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
            // Whoever read it has seen enough.
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
            // Home, and everything below it cleared.
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
        let row = || {
            vec![
                Told::text(Some(long.clone())),
                Told::count(u64::MAX),
                Told::moment(Some(OffsetDateTime::UNIX_EPOCH), now),
            ]
        };
        let part = Part::new("log")
            .fact("stream", Told::text(Some(long.clone())))
            .fact("messages", Told::count(u64::MAX))
            .fact("bytes", Told::bytes(u64::MAX))
            .fact("max_age", Told::duration(Duration::MAX))
            .fact("newest", Told::moment(None, now))
            .table(
                "directories",
                &["directory", "messages", "last event"],
                vec![row(), row()],
                7,
            );
        let lost = Part {
            trouble: Some("because ".repeat(40)),
            ..Part::new("database")
        };
        Screen::new("dsync-test", "1.2.3", now, vec![part, lost])
    }

    #[test]
    fn no_line_is_wider_than_a_terminal_whatever_is_told() {
        let text = extreme().text();
        for line in text.lines() {
            assert!(
                line.chars().count() <= COLUMNS,
                "{} columns: {line}",
                line.chars().count()
            );
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

    #[test]
    fn moments_are_told_by_their_distance() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (seconds, shown) in [
            (0, "0 s ago"),
            (119, "119 s ago"),
            (121, "2 min ago"),
            (8_000, "2 h ago"),
            (900_000, "10 d ago"),
            (-5, "in 5 s"),
        ] {
            let at = now - time::Duration::seconds(seconds);
            assert_eq!(Told::moment(Some(at), now).shown, shown);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_is_told_as_such() {
        let part = Part::gathered("log", std::future::pending::<Result<Part, std::io::Error>>()).await;
        assert_eq!(part.trouble.as_deref(), Some("no answer within 3 s"));
    }
}
