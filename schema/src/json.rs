//! Makes the JSON of customers' identity providers storable, and reads single members of it without interpreting the
//! rest.
//!
//! Postgres cannot store all of JSON. It refuses NUL characters, lone surrogates, numbers beyond the range of `numeric`,
//! and nesting beyond its stack. And it writes out every digit of a number with an exponent, so that a small body may not
//! be readable any more. [`storable`] repairs exactly these and leaves every other byte as it was. The log
//! keeps the original.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The nesting depth that is kept as JSON. A value nested deeper becomes a string that holds its text.
///
/// Postgres's own limit depends on `max_stack_depth`; at the default 2 MB it is several thousand levels.
pub const MAX_DEPTH: usize = 1_000;

/// Slightly fewer digits than `numeric` can hold before the decimal point.
const MAX_INTEGER_DIGITS: i64 = 131_000;
/// Slightly fewer digits than `numeric` can hold after the decimal point.
const MAX_FRACTION_DIGITS: i64 = 16_000;
/// How many more digits a number may have when Postgres writes it out, without an exponent. More than any `double` has.
/// Without this limit, the numbers of a body of 77 kB came to 1 GB, and no query that returned them worked any more.
const MAX_MORE_DIGITS: i64 = 400;

/// Why a body or an object could not be read. Reveals none of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The bytes are not UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// The text is not a JSON object.
    #[error("not a JSON object")]
    NotAnObject,
    /// A required member is missing, or its value is unusable.
    #[error("`{0}` is missing or not readable")]
    Missing(&'static str),
}

/// `body` as text that Postgres can store; borrowed if nothing had to be repaired.
///
/// - `\u0000` and lone surrogates become `\ufffd`.
/// - Numbers that `numeric` cannot hold, or that have far more digits without their exponent, become strings with the same
///   digits.
/// - Values nested deeper than [`MAX_DEPTH`] become strings that hold their text.
///
/// Text that is not JSON comes back as text that is still not JSON, for the parser to refuse.
pub fn storable(body: &[u8]) -> Result<Cow<'_, str>, Malformed> {
    let text = std::str::from_utf8(body).map_err(|_| Malformed::NotUtf8)?;
    Ok(Mender {
        text,
        at: 0,
        kept: 0,
        mended: String::new(),
    }
    .run())
}

/// One pass over `text`. Once anything had to change, `mended` holds everything before `kept` in its repaired form.
struct Mender<'a> {
    text: &'a str,
    at: usize,
    kept: usize,
    mended: String,
}

impl<'a> Mender<'a> {
    fn run(mut self) -> Cow<'a, str> {
        let bytes = self.text.as_bytes();
        let mut depth = 0_usize;
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' if depth == MAX_DEPTH => self.subtree(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    self.at += 1;
                }
                b'-' | b'0'..=b'9' => self.number(),
                _ => self.at += 1,
            }
        }
        if self.kept == 0 {
            return Cow::Borrowed(self.text);
        }
        self.mended.push_str(&self.text[self.kept..]);
        Cow::Owned(self.mended)
    }

    /// Replaces the text between `from` and the current position with `instead`.
    fn replace(&mut self, from: usize, instead: &str) {
        self.mended.push_str(&self.text[self.kept..from]);
        self.mended.push_str(instead);
        self.kept = self.at;
    }

    fn string(&mut self) {
        let bytes = self.text.as_bytes();
        self.at += 1;
        while let Some(offset) = memchr::memchr2(b'"', b'\\', &bytes[self.at..]) {
            self.at += offset;
            if bytes[self.at] == b'"' {
                self.at += 1;
                return;
            }
            self.escape();
        }
        self.at = bytes.len();
    }

    fn escape(&mut self) {
        let start = self.at;
        let Some(unit) = unicode_escape(self.text.as_bytes(), start) else {
            // Any other escape is two bytes long. The second may begin a longer character only if this is not JSON.
            self.at = self.text.ceil_char_boundary((start + 2).min(self.text.len()));
            return;
        };
        self.at = start + 6;
        match unit {
            0 | 0xDC00..=0xDFFF => self.replace(start, "\\ufffd"),
            0xD800..=0xDBFF => match unicode_escape(self.text.as_bytes(), self.at) {
                Some(0xDC00..=0xDFFF) => self.at += 6,
                _ => self.replace(start, "\\ufffd"),
            },
            _ => {}
        }
    }

    fn number(&mut self) {
        let start = self.at;
        let length = self.text.as_bytes()[start..]
            .iter()
            .position(|b| !matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'))
            .unwrap_or(self.text.len() - start);
        self.at += length;
        let number = &self.text[start..self.at];
        if !fits_numeric(number) && serde_json::from_str::<&RawValue>(number).is_ok() {
            self.replace(start, &format!("\"{number}\""));
        }
    }

    fn subtree(&mut self) {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut depth = 0_usize;
        while let Some(&byte) = bytes.get(self.at) {
            match byte {
                b'"' => {
                    self.at += 1;
                    while let Some(&inner) = bytes.get(self.at) {
                        self.at += if inner == b'\\' { 2 } else { 1 };
                        if inner == b'"' {
                            break;
                        }
                    }
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                break;
            }
        }
        self.at = self.text.ceil_char_boundary(self.at.min(bytes.len()));
        let subtree = &self.text[start..self.at];
        // Only quote what is valid: quoting must not turn text that is not JSON into JSON.
        if serde_json::from_str::<&RawValue>(subtree).is_ok() {
            let quoted = serde_json::Value::from(subtree).to_string();
            self.replace(start, &quoted);
        }
    }
}

/// The UTF-16 code unit of the `\uXXXX` escape that starts at `at`, if there is one.
fn unicode_escape(bytes: &[u8], at: usize) -> Option<u16> {
    let escape = bytes.get(at..at + 6)?;
    if !escape.starts_with(b"\\u") {
        return None;
    }
    let digits = std::str::from_utf8(&escape[2..]).ok()?;
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(digits, 16).ok()
}

fn fits_numeric(number: &str) -> bool {
    if number.len() < 64 && !number.contains(['e', 'E']) {
        return true;
    }
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i64 = match exponent.strip_prefix('+').unwrap_or(exponent).parse() {
        Ok(exponent) => exponent,
        Err(_) => return false,
    };
    let (integer, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| i64::try_from(part.len()).unwrap_or(i64::MAX);
    let whole = digits(integer).saturating_add(exponent).max(1);
    let rest = digits(fraction).saturating_sub(exponent).max(0);
    let more = whole.saturating_add(rest) - digits(integer) - digits(fraction);
    whole <= MAX_INTEGER_DIGITS && rest <= MAX_FRACTION_DIGITS && more <= MAX_MORE_DIGITS
}

/// The members called `names` of the JSON object in `text`, each as its original text.
///
/// If a name occurs more than once, the last occurrence counts, as in Postgres. A member that is `null` counts as
/// absent. All other members are skipped.
pub fn members<'a, const N: usize>(
    text: &'a str,
    names: &[&str; N],
) -> Result<[Option<&'a RawValue>; N], Malformed> {
    let mut json = serde_json::Deserializer::from_str(text);
    let found = json
        .deserialize_map(Members { names })
        .map_err(|_| Malformed::NotAnObject)?;
    json.end().map_err(|_| Malformed::NotAnObject)?;
    Ok(found)
}

struct Members<'n, const N: usize> {
    names: &'n [&'n str; N],
}

impl<'de, const N: usize> Visitor<'de> for Members<'_, N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(place) = map.next_key_seed(Place { names: self.names })? {
            match place {
                Some(place) => {
                    let value: &RawValue = map.next_value()?;
                    found[place] = (value.get() != "null").then_some(value);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

struct Place<'n, const N: usize> {
    names: &'n [&'n str; N],
}

impl<'de, const N: usize> DeserializeSeed<'de> for Place<'_, N> {
    type Value = Option<usize>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<const N: usize> Visitor<'_> for Place<'_, N> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.names.iter().position(|known| *known == name))
    }
}

/// A JSON string's content, borrowed where possible.
pub type Name<'a> = Cow<'a, str>;

/// The content of a JSON string; `None` for any other value.
pub fn string(value: &RawValue) -> Option<Name<'_>> {
    if value.get().starts_with('"') {
        text(value)
    } else {
        None
    }
}

/// A JSON value as text: a string's content, or a number or boolean as written; `None` for any other value.
pub fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let json = value.get();
    match json.as_bytes().first()? {
        b'"' if !json.contains('\\') => Some(Cow::Borrowed(&json[1..json.len() - 1])),
        b'"' => serde_json::from_str::<String>(json).ok().map(Cow::Owned),
        b'{' | b'[' | b'n' => None,
        _ => Some(Cow::Borrowed(json)),
    }
}

/// The elements of a JSON array; empty for any other value.
pub fn elements(value: &RawValue) -> Vec<&RawValue> {
    serde_json::from_str(value.get()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(text: &str) -> String {
        storable(text.as_bytes()).unwrap().into_owned()
    }

    #[test]
    fn what_postgres_holds_is_left_alone() {
        for fine in [
            r#"{"a":"\\u0000","b":"\ud83d\ude00","c":1.50,"d":-0,"e":true,"f":"x\"y","g":1e400}"#,
            r#"{"big":123456789012345678901234567890.10}"#,
            "not json at all \\u0000 {{{",
        ] {
            assert!(
                matches!(storable(fine.as_bytes()), Ok(Cow::Borrowed(_))),
                "{fine}"
            );
        }
    }

    #[test]
    fn characters_postgres_refuses_are_replaced_and_nothing_else() {
        assert_eq!(mended(r#"{"a":"x\u0000y"}"#), r#"{"a":"x\ufffdy"}"#);
        assert_eq!(mended(r#"{"a":"\\\u0000"}"#), r#"{"a":"\\\ufffd"}"#);
        assert_eq!(
            mended(r#"{"\ud800":"\udc00","b":"\ud800\u0041"}"#),
            r#"{"\ufffd":"\ufffd","b":"\ufffd\u0041"}"#
        );
        assert_eq!(mended(r#"["\ud800\ud800\udc00"]"#), r#"["\ufffd\ud800\udc00"]"#);
    }

    #[test]
    fn numbers_beyond_numeric_keep_their_digits_as_text() {
        assert_eq!(mended("[1e200000,2,1E-99999]"), r#"["1e200000",2,"1E-99999"]"#);
        assert_eq!(
            mended("[1e99999999999999999999]"),
            r#"["1e99999999999999999999"]"#
        );
    }

    #[test]
    fn numbers_that_grow_too_much_when_written_out_are_text() {
        let nines = "9".repeat(1_000);
        for fine in [
            "1e400",
            "-1e400",
            "1e-399",
            "4.9406564584124654e-324",
            "1.7976931348623157E+308",
            // As many digits after as before.
            &format!("0.{nines}e1000"),
            &format!("{nines}e-999"),
            &nines,
        ] {
            assert_eq!(mended(fine), fine);
        }
        for long in ["1e131000", "1e402", "-12e402", "1E-500", "0.5e-15000", "0e5000"] {
            assert_eq!(mended(long), format!("\"{long}\""));
        }
    }

    #[test]
    fn what_is_nested_too_deep_becomes_text() {
        let deep = format!("{}\"\\u0000\"{}", "[".repeat(5_000), "]".repeat(5_000));
        let mended = mended(&deep);
        assert!(serde_json::from_str::<&RawValue>(&mended).is_ok());
        assert!(mended.len() > deep.len() && mended.matches("[\"").count() == 1);
        for broken in ["[", "[\"\\", "{\"a"] {
            let _ = storable(broken.repeat(4_000).as_bytes());
        }
    }

    #[test]
    fn what_is_no_json_is_not_made_json_by_its_depth() {
        let deep = |core: &str| format!("{{\"a\":{}{core}{}}}", "[".repeat(1_500), "]".repeat(1_500));
        assert!(members(&mended(&deep("1")), &["a"]).is_ok());
        for core in ["\0", "[", "]", "x", "\"\0\""] {
            assert!(members(&mended(&deep(core)), &["a"]).is_err(), "{core}");
        }
    }

    #[test]
    fn members_are_picked_and_the_rest_passed_over() {
        let text = r#"{"x":{"y":[1,{"z":2}]},"\u0061":"first","a":"last","n":null}"#;
        let [a, n, absent] = members(text, &["a", "n", "absent"]).unwrap();
        assert_eq!(a.and_then(super::text).as_deref(), Some("last"));
        assert!(n.is_none() && absent.is_none());
        for no_object in ["[]", "1", "", "{", r#"{"a":1}x"#, r#"{"a":1,}"#] {
            assert_eq!(
                members(no_object, &["a"]).unwrap_err(),
                Malformed::NotAnObject,
                "{no_object}"
            );
        }
    }
}
