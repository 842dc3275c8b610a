//! Batches as columns, for the statements to unnest. Absent registers are nulls here and `-infinity` in the tables.
//!
//! The statements unnest them side by side in a select list. With a function in `from`, each array would be written into a
//! table of its own and read again, which takes a tenth of the time of writing a user.

use schema::directory::Text;
use schema::observation::{Mark, Version};
use time::OffsetDateTime;

/// The columns of version registers.
#[derive(Default)]
pub(super) struct Versions<'r> {
    pub(super) updated_at: Vec<Option<OffsetDateTime>>,
    pub(super) observed_at: Vec<Option<OffsetDateTime>>,
    pub(super) event: Vec<Option<&'r str>>,
    pub(super) source: Vec<Option<&'r str>>,
    pub(super) digest: Vec<Option<i64>>,
}

impl<'r> Versions<'r> {
    pub(super) fn push(&mut self, version: Option<&'r Version<'_>>) {
        self.updated_at
            .push(version.map(|version| version.updated_at.into()));
        self.observed_at
            .push(version.map(|version| version.observed_at.into()));
        self.event
            .push(version.map(|version| version.cause.event.as_str()));
        self.source
            .push(version.map(|version| version.cause.source.code()));
        self.digest.push(version.map(|version| version.digest));
    }
}

/// The columns of the seen and gone registers.
#[derive(Default)]
pub(super) struct Marks<'r> {
    pub(super) seen_at: Vec<Option<OffsetDateTime>>,
    pub(super) seen_event: Vec<Option<&'r str>>,
    pub(super) seen_source: Vec<Option<&'r str>>,
    pub(super) gone_at: Vec<Option<OffsetDateTime>>,
    pub(super) gone_event: Vec<Option<&'r str>>,
    pub(super) gone_source: Vec<Option<&'r str>>,
}

impl<'r> Marks<'r> {
    pub(super) fn push(&mut self, seen: Option<&'r Mark<'_>>, gone: Option<&'r Mark<'_>>) {
        self.seen_at.push(seen.map(|mark| mark.at.into()));
        self.seen_event.push(seen.map(|mark| mark.cause.event.as_str()));
        self.seen_source.push(seen.map(|mark| mark.cause.source.code()));
        self.gone_at.push(gone.map(|mark| mark.at.into()));
        self.gone_event.push(gone.map(|mark| mark.cause.event.as_str()));
        self.gone_source.push(gone.map(|mark| mark.cause.source.code()));
    }
}

/// A list of strings as a Postgres array literal, because `unnest` flattens an array of arrays.
pub(super) fn array(elements: &[Text<'_>]) -> String {
    let mut literal = String::from("{");
    for (place, element) in elements.iter().enumerate() {
        if place > 0 {
            literal.push(',');
        }
        literal.push('"');
        for character in element.chars() {
            if matches!(character, '"' | '\\') {
                literal.push('\\');
            }
            literal.push(character);
        }
        literal.push('"');
    }
    literal.push('}');
    literal
}

#[cfg(test)]
mod tests {
    use super::array;

    #[test]
    fn an_array_literal_quotes_everything() {
        let roles = [
            "admin".into(),
            r#"a"b\c"#.into(),
            String::new().into(),
            "a,b {}".into(),
        ];
        assert_eq!(array(&roles), r#"{"admin","a\"b\\c","","a,b {}"}"#);
        assert_eq!(array(&[]), "{}");
    }
}
