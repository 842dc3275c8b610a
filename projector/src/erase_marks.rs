//! Whether a record speaks of a certain person. Pure.
//!
//! The subject says it of users and memberships. What has no such subject (the quarantine, events of unknown kinds, dead
//! letters) is searched for the person's id, addresses and provider's ids.

use serde_json::Value;

/// The user whose record a subject says it is.
pub fn user_of(subject: &str) -> Option<&str> {
    let mut words = subject.split('.').skip(2);
    match words.next()? {
        "user" => words.next(),
        "membership" => words.nth(1),
        _ => None,
    }
}

/// Words of a body that may be ids: what stands between characters that no id has.
pub fn possible_ids(body: &[u8]) -> Vec<&str> {
    body.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_' || *b == b'-'))
        .filter(|word| (1..=schema::ids::MAX_ID).contains(&word.len()))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .collect()
}

/// From this length on, in bytes, a provider's id or a user name stands for one person.
const SURE: usize = 12;

/// Texts that stand for one person.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// As they were said.
    said: Vec<String>,
    /// The same in lower case, and the id.
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

    /// Adds marks. What may stand for others too (a short number, a first name) is left out: a record that only has
    /// that in common with this person is not theirs.
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

    /// Takes over what `body`, which is known to be this person's, says they are known by.
    pub fn learn(&mut self, body: &[u8]) {
        let Ok(event) = serde_json::from_slice::<Value>(body) else {
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

    /// Whether `body` holds one of the marks, as a word of its own, plain or written with JSON's escapes. The body need
    /// not be JSON: what is searched is mostly what could not be read.
    pub fn are_in(&self, body: &[u8]) -> bool {
        let text = unescaped(&String::from_utf8_lossy(body)).to_lowercase();
        // An id ends where no id goes on, an address where no name does: `dsync.d.user.<id>.updated` holds the id.
        let id = self.folded.first().map_or("", String::as_str);
        possible_ids(text.as_bytes()).contains(&id) || self.folded.iter().any(|mark| holds(&text, mark))
    }
}

/// `text` with `\uXXXX` read as the characters they stand for.
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
    plain + rest
}

/// Whether `mark` stands in `text` with nothing around it that would make it a part of a longer name.
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
    fn a_subject_names_its_user() {
        for (subject, user) in [
            ("dsync.d.user.u.created", Some("u")),
            ("dsync.d.membership.g.u.added", Some("u")),
            ("dsync.d.group.g.created", None),
            ("dsync.d.directory.deleted", None),
            ("dsync.d.other.merged", None),
            ("dsync.quarantine", None),
        ] {
            assert_eq!(user_of(subject), user, "{subject}");
        }
    }

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
            // Too short to stand for anybody.
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

    #[test]
    fn ids_are_cut_out_of_anything() {
        assert_eq!(
            possible_ids(br#"{"id":"user_1","x":[2]}"#),
            ["id", "user_1", "x", "2"]
        );
        assert!(possible_ids(b"\xff\xfe").is_empty());
    }
}
