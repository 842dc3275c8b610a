//! Ids of WorkOS's objects, each its own type so that none is taken for another.
//!
//! Ids become subjects of the log and keys of tables, so only `[A-Za-z0-9_-]{1,128}` is one; everything else
//! that WorkOS names (an organization, an IdP's id) stays plain text.

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
            /// The id in `text`, unless it is none.
            pub fn new(text: impl Into<Cow<'a, str>>) -> Option<Self> {
                let text = text.into();
                is_id(&text).then_some(Self(text))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The same id, borrowing nothing.
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
    /// An event's id (`event_…`): the same on every retry and in the Events API. For a sweep's reading, the id the
    /// reconciler derived from what it read.
    EventId
);
id!(
    /// A directory's id (`directory_…`).
    DirectoryId
);
id!(
    /// A directory user's id (`directory_user_…`); a returning person has a new one.
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
