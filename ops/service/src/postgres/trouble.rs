//! What a database error means for the program that got it. No other place decides this.

use std::borrow::Borrow;
use std::fmt;

use sqlx::Error;

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The database or the network is at fault, not the data: wait, then retry the same.
    Transient,
    /// A value that was sent is at fault: retrying cannot help. Find the record, set it aside, and go on.
    Data,
    /// The program or the schema is at fault: wait, retry, and report it as an error until a person has looked. Never a
    /// reason to set data aside, because all of it would follow.
    Defect,
}

impl Trouble {
    /// What `error` means.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Database(database) => database
                .code()
                .map_or(Self::Defect, |code| Self::of_sqlstate(&code)),
            Error::Io(_)
            | Error::Tls(_)
            | Error::PoolTimedOut
            | Error::PoolClosed
            | Error::WorkerCrashed
            | Error::BeginFailed => Self::Transient,
            // A value that cannot even be encoded for the server.
            Error::Encode(_) => Self::Data,
            _ => Self::Defect,
        }
    }

    /// What a SQLSTATE means (Postgres manual, appendix A).
    pub fn of_sqlstate(code: &str) -> Self {
        match code {
            // Lock not available, object in use; read-only, ended while idle in a transaction; cancelled or timed out.
            "55P03" | "55006" | "25006" | "25P03" | "57014" => Self::Transient,
            _ => match code.get(..2).unwrap_or_default() {
                // Connection; rolled back (serialization, deadlock); out of resources; operator intervention; system.
                "08" | "40" | "53" | "57" | "58" => Self::Transient,
                // Cardinality; data exception; constraint; a limit exceeded (row or index entry too large, …).
                "21" | "22" | "23" | "54" => Self::Data,
                _ => Self::Defect,
            },
        }
    }
}

/// Names the settings that decide whether the server's identity is accepted.
pub(crate) const UNPROVEN: &str =
    "DATABASE_URL (--database-url): its host, sslmode and sslrootcert decide which server is trusted";

/// Added to errors about prepared statements that already exist or no longer exist: our programs never name one
/// themselves.
const MIXED_UP: &str = "a pooler in front of Postgres mixes up prepared statements, so a wrong one may run: check DATABASE_URL \
     (--database-url); see ops/runbook.md, Behind a transaction pooler";

/// Added where the pool could not get a connection in time. The pool does not tell why: it keeps trying a server that
/// refuses, and its own text reads as if too few connections were the only possible reason.
const UNREACHED: &str = "no connection to Postgres in time: it is down or unreachable, or allows no more connections; check DATABASE_URL \
     (--database-url)";

/// Added to errors about tables, views or schemas that do not exist.
pub(crate) const UNMIGRATED: &str = "the schema is missing or too old: run `dsync-projector migrate`";

/// Whether a table, a view or a whole schema does not exist. To try again does not help.
pub fn is_missing_schema(error: &Error) -> bool {
    matches!(error, Error::Database(error) if matches!(error.code().as_deref(), Some("42P01" | "3F000")))
}

/// Whether TLS failed, or the server did not prove its identity.
pub(crate) fn is_unproven(error: &Error) -> bool {
    match error {
        Error::Tls(_) => true,
        // The handshake reports a bad certificate as an error of the socket.
        Error::Io(error) => error.to_string().contains("certificate"),
        _ => false,
    }
}

/// Displays `error` without any value that was sent. Postgres repeats values in its messages about them.
pub fn described<E: Borrow<Error>>(error: E) -> Described<E> {
    Described(error)
}

/// See [`described`].
#[derive(Debug)]
pub struct Described<E>(E);

impl<E: Borrow<Error>> fmt::Display for Described<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.borrow();
        let Error::Database(error) = all else {
            return match all {
                Error::PoolTimedOut => f.write_str(UNREACHED),
                Error::Encode(_) => f.write_str("a value cannot be encoded"),
                Error::Decode(_) | Error::ColumnDecode { .. } => f.write_str("a value cannot be decoded"),
                other if is_unproven(other) => write!(f, "{other} ({UNPROVEN})"),
                other => write!(f, "{other}"),
            };
        };
        write!(f, "SQLSTATE {}", error.code().as_deref().unwrap_or("unknown"))?;
        for (what, name) in [("table", error.table()), ("constraint", error.constraint())] {
            if let Some(name) = name {
                write!(f, ", {what} {name}")?;
            }
        }
        if Trouble::of(all) == Trouble::Data {
            Ok(())
        } else {
            write!(f, ": {}", error.message())?;
            if matches!(error.code().as_deref(), Some("42P05" | "26000")) {
                write!(f, " ({MIXED_UP})")?;
            }
            if is_missing_schema(all) {
                write!(f, " ({UNMIGRATED})")?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_that_was_thought_of_has_its_meaning() {
        use Trouble::{Data, Defect, Transient};
        for (trouble, codes) in [
            (
                Transient,
                &[
                    "08006", "08001", "57P01", "57P03", "57014", "40001", "40P01", "53300", "53100",
                ][..],
            ),
            (Transient, &["55P03", "55006", "25006", "25P03", "58030"]),
            (
                Data,
                &[
                    "21000", "22001", "22003", "22021", "22P02", "22P05", "23502", "23505", "23514", "54000",
                ],
            ),
            (
                Defect,
                &[
                    "42P01", "42703", "42501", "28P01", "3D000", "25P02", "0A000", "XX000", "55000",
                ],
            ),
            (Defect, &["", "4", "é"]),
        ] {
            for code in codes {
                assert_eq!(Trouble::of_sqlstate(code), trouble, "{code}");
            }
        }
    }

    #[test]
    fn errors_without_a_server_have_theirs() {
        let io = || std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert_eq!(Trouble::of(&Error::Io(io())), Trouble::Transient);
        assert_eq!(Trouble::of(&Error::PoolTimedOut), Trouble::Transient);
        assert_eq!(described(&Error::PoolTimedOut).to_string(), UNREACHED);
        assert_eq!(Trouble::of(&Error::Encode("too long".into())), Trouble::Data);
        assert_eq!(Trouble::of(&Error::RowNotFound), Trouble::Defect);
        assert_eq!(Trouble::of(&Error::Decode("hunter2".into())), Trouble::Defect);
        assert!(
            !described(&Error::Decode("hunter2".into()))
                .to_string()
                .contains("hunter2")
        );
        assert!(
            !described(&Error::Encode("hunter2".into()))
                .to_string()
                .contains("hunter2")
        );
    }
}
