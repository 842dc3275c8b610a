//! Ids of WorkOS's objects. Each kind is a type of its own, so that none is mistaken for another.
//!
//! Ids become words in the log's subjects and keys in tables, so only `[A-Za-z0-9_-]{1,128}` counts as an id. Other
//! identifiers that WorkOS sends (an organization's, an identity provider's) stay plain text.

use std::borrow::Cow;
use std::fmt;

/// The longest id, in bytes.
pub const MAX_ID: usize = 128;

/// Whether `text` may be an id: `[A-Za-z0-9_-]{1,128}`.
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name<'a>(Cow<'a, str>);

        impl<'a> $name<'a> {
            /// `text` as an id; `None` if it cannot be one.
            pub fn new(text: impl Into<Cow<'a, str>>) -> Option<Self> {
                let text = text.into();
                is_id(&text).then_some(Self(text))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same id, owned.
            pub fn into_owned(self) -> $name<'static> {
                $name(Cow::Owned(self.0.into_owned()))
            }
        }

        impl fmt::Display for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// An event's id (`event_…`): the same on every retry and in the Events API. The events of a sweep have ids that
    /// the reconciler derives from what it read.
    EventId
);
id!(
    /// A directory's id (`directory_…`).
    DirectoryId
);
id!(
    /// A directory user's id (`directory_user_…`). A person who returns gets a new one.
    UserId
);
id!(
    /// A directory group's id (`directory_group_…`).
    GroupId
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_plain() {
        assert!(UserId::new("directory_user_01E1JG7J09H96KYP8HM9B0G5SJ").is_some());
        for odd in ["", "a.b", "a b", "a*", "é", ">", &"x".repeat(129)] {
            assert!(UserId::new(odd.to_owned()).is_none(), "{odd}");
        }
    }
}
