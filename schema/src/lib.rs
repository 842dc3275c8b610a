//! The vocabulary of dsync: ids, WorkOS's objects and events as they come, log records, and the observation
//! algebra that makes the order of the log irrelevant.
//!
//! Nothing here does I/O, reads a clock or knows of a runtime: bytes and times come in, values go out.

pub mod address;
pub mod directory;
pub mod event;
pub mod ids;
pub mod json;
pub mod observation;
pub mod observe;
pub mod picture;
pub mod record;
pub mod timestamp;
