//! Decides whether a record is about a certain person. Pure.
//!
//! Subjects of users and memberships name the person (`Subject::user`). Records without such a subject (the quarantine, events of unknown
//! kinds, dead letters) are searched for the person's id, email addresses, user names and identity provider's ids.

use schema::json;
use serde_json::Value;

/// The words of a body that may be ids, split at characters that no id contains.
pub fn possible_ids(body: &[u8]) -> Vec<&str> {
    body.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_' || *b == b'-'))
        .filter(|word| (1..=schema::ids::MAX_ID).contains(&word.len()))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .collect()
}

/// From this length on, in bytes, an identity provider's id or a user name is taken to identify one person.
const SURE: usize = 12;

/// Texts that identify one person.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// As they occurred.
    said: Vec<String>,
    /// The id, followed by the same texts; all in lower case.
    folded: Vec<String>,
}

impl Marks {
    /// The marks of the user `id`, who is also known by `others`.
    pub fn new(id: &str, others: impl IntoIterator<Item = String>) -> Self {
        let mut marks = Self {
            said: Vec::new(),
            folded: vec![id.to_lowercase()],
        };
        marks.add(others);
        marks
    }

    /// Adds marks, except those that may also fit others (a short number, a first name): a record that has only such a text
    /// in common with this person is not theirs.
    pub fn add(&mut self, others: impl IntoIterator<Item = String>) {
        for mark in others {
            let folded = mark.to_lowercase();
            if (mark.contains('@') || mark.len() >= SURE) && !self.folded.contains(&folded) {
                self.said.push(mark);
                self.folded.push(folded);
            }
        }
    }

    /// What the person is known by besides the id.
    pub fn said(&self) -> &[String] {
        &self.said
    }

    /// Adds the marks found in `body`, which is known to be about this person.
    pub fn learn(&mut self, body: &[u8]) {
        let Some(event) = json::storable(body)
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
        else {
            return;
        };
        let data = &event["data"];
        let user = if data["user"].is_object() {
            &data["user"]
        } else {
            data
        };
        let places = [user, &user["custom_attributes"]];
        let fields = places
            .iter()
            .flat_map(|place| ["email", "idp_id", "username"].map(|name| &place[name]));
        let listed = places
            .iter()
            .filter_map(|place| place["emails"].as_array())
            .flatten()
            .map(|entry| &entry["value"]);
        let found: Vec<String> = fields
            .chain(listed)
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect();
        self.add(found);
    }

    /// Whether `body` contains one of the marks as a word of its own, plain or with JSON escapes. The body need not be JSON:
    /// most bodies that are searched could not be parsed.
    pub fn are_in(&self, body: &[u8]) -> bool {
        let text = unescaped(&String::from_utf8_lossy(body)).to_lowercase();
        // A dot ends an id, but not an address or a name: `dsync.d.user.<id>.updated` contains the id.
        let id = self.folded.first().map_or("", String::as_str);
        possible_ids(text.as_bytes()).contains(&id) || self.folded.iter().any(|mark| holds(&text, mark))
    }
}

/// `text` with its `\uXXXX` escapes decoded.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\u") {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let mut units = Vec::new();
        while let Some(unit) = rest
            .strip_prefix("\\u")
            .and_then(|digits| u16::from_str_radix(digits.get(..4)?, 16).ok())
        {
            units.push(unit);
            rest = &rest[6..];
        }
        plain.push_str(&String::from_utf16_lossy(&units));
        if units.is_empty() {
            plain.push_str("\\u");
            rest = &rest[2..];
        }
    }
    plain += rest;
    // As `storable` has it, and with it the marks: Postgres cannot hold them otherwise.
    plain.replace('\0', "\u{fffd}")
}

/// Whether `mark` occurs in `text` other than as part of a longer name.
fn holds(text: &str, mark: &str) -> bool {
    let of_a_name = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '@');
    text.match_indices(mark).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + mark.len()..].chars().next();
        !before.is_some_and(of_a_name) && !after.is_some_and(of_a_name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_whole_and_in_any_dress() {
        let marks = Marks::new("user_1", ["Ann@Example.com".to_owned(), "12345".to_owned()]);
        for (body, found) in [
            (&br#"{"id":"user_1"}"#[..], true),
            (br#"{"id":"user_10"}"#, false),
            (br#"{"id":"an_user_1"}"#, false),
            (b"dsync.d.user.user_1.updated", true),
            (b"\xff.user_1@", true),
            (b"not json: ann@example.COM!", true),
            (br#"{"email":"joann@example.com"}"#, false),
            (br#"{"email":"ann\u0040example.com"}"#, true),
            (br#"{"email":"\u0061nn\u0040example.com", cut off \u"#, true),
            (br"\u00e9ann@example.com", false),
            (b"\xffann@example.com\xff", true),
            // Too short to identify anybody.
            (br#"{"number":"12345"}"#, false),
            (b"", false),
        ] {
            assert_eq!(marks.are_in(body), found, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn marks_are_learned_from_every_place() {
        let mut marks = Marks::new("u", []);
        marks.learn(
            br#"{"data":{"user":{"idp_id":"00uA23456789","custom_attributes":{"emails":[{"value":"a@example.com"}]}}}}"#,
        );
        marks.learn(br#"{"data":{"email":"b@example.com"}}"#);
        marks.learn(b"no json");
        assert_eq!(marks.said(), ["00uA23456789", "a@example.com", "b@example.com"]);
    }

    /// Postgres holds neither NUL nor half a surrogate pair.
    #[test]
    fn marks_can_be_stored_whatever_is_in_them() {
        let mut marks = Marks::new("u", []);
        let body = br#"{"data":{"email":"nul\u0000@example.com","username":"half-of-a-pair\ud83d"}}"#;
        marks.learn(body);
        assert_eq!(
            marks.said(),
            ["nul\u{fffd}@example.com", "half-of-a-pair\u{fffd}"]
        );
        assert!(marks.are_in(br#"cut off: "nul\u0000@example.com"#));
        assert!(marks.are_in(br#"{"name":"half-of-a-pair\ud83d"}"#));
        assert!(marks.are_in(b"\"nul\0@example.com\""));
        assert!(!marks.are_in(br#"{"email":"nul@example.com"}"#));
    }

    #[test]
    fn ids_are_cut_out_of_anything() {
        assert_eq!(
            possible_ids(br#"{"id":"user_1","x":[2]}"#),
            ["id", "user_1", "x", "2"]
        );
        assert!(possible_ids(b"\xff\xfe").is_empty());
    }
}
