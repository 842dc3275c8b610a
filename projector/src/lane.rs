//! The two lanes through the log. Both apply the same records in the same way; what both apply is applied once.

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
    /// Every lane there is.
    pub const EVERY: [Self; 2] = [Self::All, Self::Removals];

    /// As it stands in `dsync.progress`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Removals => "removals",
        }
    }

    /// The subjects it reads; none = every subject.
    pub const fn subjects(self) -> &'static [&'static str] {
        match self {
            Self::All => &[],
            Self::Removals => REMOVAL_SUBJECTS,
        }
    }
}
