//! The lists of a status screen.

use std::fmt::Write as _;

use indicatif::HumanCount;
use serde_json::Value;

use super::columns::{COLUMNS, cut, padded, wide};
use super::told::Told;

/// A list. Each row has as many cells as there are columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [&'static str],
    pub(super) rows: Vec<Vec<Told>>,
    /// How many rows were left out.
    pub(super) more: u64,
}

impl Table {
    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().zip(row);
            Value::Object(
                cells
                    .map(|(column, told)| ((*column).to_owned(), told.json.clone()))
                    .collect(),
            )
        });
        rows.collect()
    }

    pub(super) fn text(&self, text: &mut String) {
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
                    .map(|cell| wide(cell))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        // If the table is too wide for the screen, the widest column shrinks.
        while widths.iter().sum::<usize>() + 2 * widths.len() > COLUMNS {
            match widths.iter_mut().max() {
                Some(widest) if *widest > 4 => *widest -= 1,
                _ => break,
            }
        }
        for row in &cells {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "  {}", padded(cell, *width));
            }
            let _ = writeln!(text, "{}", cut(line.trim_end(), COLUMNS));
        }
        if self.more > 0 {
            let _ = writeln!(text, "  … and {} more (--all)", HumanCount(self.more));
        }
    }
}
