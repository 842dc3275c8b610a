//! A client of `WorkOS`'s API: rate limits, retries, lists that are walked to their end, single objects, events.
//!
//! Nothing here knows about the projection or the log. Bodies stay text until someone reads them, and no body, key or
//! query ever reaches a log line or an error.

pub mod answer;
pub mod client;
pub mod events;
pub mod limits;
pub mod objects;
pub mod pages;
