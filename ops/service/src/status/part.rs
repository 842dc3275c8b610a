//! The parts of a status screen. Each shows one thing, or says why it could not be reached.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::columns::{COLUMNS, cut, wide};
use super::table::Table;
use super::told::Told;

/// How long gathering one part may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// One part of the screen.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    /// Why the part was not reached.
    trouble: Option<String>,
    /// The sections that could not be read, and why.
    lacking: Vec<(&'static str, String)>,
    facts: Vec<(&'static str, Told)>,
    tables: Vec<Table>,
}

impl Part {
    /// A part that was reached.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            trouble: None,
            lacking: Vec::new(),
            facts: Vec::new(),
            tables: Vec::new(),
        }
    }

    /// The part that `gathering` returns, or a part that was not reached if it fails or takes more than 3 s.
    pub async fn gathered<E: std::fmt::Display>(
        name: &'static str,
        gathering: impl Future<Output = Result<Part, E>>,
    ) -> Self {
        match tokio::time::timeout(PATIENCE, gathering).await {
            Ok(Ok(part)) => part,
            Ok(Err(error)) => Self::lost(name, error.to_string()),
            Err(_) => Self::lost(name, format!("no answer within {} s", PATIENCE.as_secs())),
        }
    }

    /// A part that was not reached.
    pub(super) fn lost(name: &'static str, trouble: String) -> Self {
        Self {
            trouble: Some(trouble),
            ..Self::new(name)
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the whole part was reached and read.
    pub(super) fn is_whole(&self) -> bool {
        self.trouble.is_none() && self.lacking.is_empty()
    }

    /// Adds a section: everything in `read` or, if that is an error, the note that `what` could not be read, and why.
    #[must_use]
    pub fn with<E: std::fmt::Display>(mut self, what: &'static str, read: Result<Part, E>) -> Self {
        match read {
            Ok(read) => {
                self.lacking.extend(read.lacking);
                self.facts.extend(read.facts);
                self.tables.extend(read.tables);
            }
            Err(error) => self.lacking.push((what, error.to_string())),
        }
        self
    }

    /// Everything that went wrong, in one line.
    fn troubles(&self) -> Option<String> {
        let lacking = self.lacking.iter().map(|(what, why)| format!("{what}: {why}"));
        let troubles: Vec<_> = self.trouble.iter().cloned().chain(lacking).collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    /// Adds a fact.
    #[must_use]
    pub fn fact(mut self, name: &'static str, told: Told) -> Self {
        self.facts.push((name, told));
        self
    }

    /// Adds a list, of which `more` rows were left out.
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

    pub(super) fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("trouble".to_owned(), json!(self.troubles()));
        for (name, told) in &self.facts {
            object.insert((*name).to_owned(), told.json.clone());
        }
        for table in &self.tables {
            object.insert(table.name.to_owned(), table.json());
        }
        Value::Object(object)
    }

    pub(super) fn text(&self, text: &mut String) {
        let state = self
            .trouble
            .as_ref()
            .map_or_else(String::new, |trouble| format!("  NOT REACHED: {trouble}"));
        let _ = writeln!(
            text,
            "{}",
            cut(&format!("{}{state}", self.name.to_uppercase()), COLUMNS)
        );
        for (what, why) in &self.lacking {
            let _ = writeln!(text, "  {}", cut(&format!("{what} NOT READ: {why}"), COLUMNS - 2));
        }
        let mut line = String::new();
        for (name, told) in &self.facts {
            let fact = cut(&format!("{} {}", name.replace('_', " "), told.shown), COLUMNS - 2);
            if wide(&line) + wide(&fact) + 5 > COLUMNS {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_read_is_told_beside_what_could() {
        let part = Part::new("database")
            .with("lanes", Err::<Part, _>("because ".repeat(20)))
            .with::<&str>("totals", Ok(Part::new("totals").fact("users", Told::count(7))));
        assert!(!part.is_whole());
        assert_eq!(part.json()["users"], json!(7));
        assert!(
            part.json()["trouble"]
                .as_str()
                .unwrap()
                .starts_with("lanes: because")
        );
        let mut text = String::new();
        part.text(&mut text);
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0] == "DATABASE"
                && lines[1].starts_with("  lanes NOT READ: because")
                && lines[2] == "  users 7",
            "{text}"
        );
        assert!(lines[1].chars().count() <= COLUMNS);
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_answer_is_told_as_such() {
        let part = Part::gathered("log", std::future::pending::<Result<Part, std::io::Error>>()).await;
        assert_eq!(part.trouble.as_deref(), Some("no answer within 3 s"));
    }
}
