//! The vocabulary of dsync: ids, WorkOS's objects and events as received, log records, and the observation
//! algebra that makes the order of the log irrelevant.
//!
//! Nothing here does I/O, reads a clock or depends on an async runtime. Bytes and times go in, values come out.

pub mod address;
pub mod directory;
pub mod event;
pub mod ids;
pub mod json;
pub mod observation;
pub mod observe;
pub mod picture;
pub mod record;
pub mod reduce;
pub mod timestamp;
