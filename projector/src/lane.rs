//! The two lanes through the log. Both apply records in the same way; a record that both apply takes effect once.

use schema::record::REMOVAL_SUBJECTS;

/// Which records a lane reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Every record.
    All,
    /// Only those whose subject's last word takes access away, so that a removal overtakes a backlog.
    Removals,
}

impl Lane {
    /// Every lane.
    pub const EVERY: [Self; 2] = [Self::All, Self::Removals];

    /// Its name in `dsync.progress`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Removals => "removals",
        }
    }

    /// The subjects it reads; empty = every subject.
    pub const fn subjects(self) -> &'static [&'static str] {
        match self {
            Self::All => &[],
            Self::Removals => REMOVAL_SUBJECTS,
        }
    }
}
