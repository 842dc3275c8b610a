//! The log to which benchmarks write.

use journal::{Connection, Journal};

/// A handle on the log of the broker at `url`, which may not have a stream yet.
pub(crate) async fn connect(url: String) -> anyhow::Result<Journal> {
    let settings = Connection {
        url,
        creds: None,
        ca: None,
        stream: "DSYNC".to_owned(),
        name: "bench".to_owned(),
    };
    Ok(Journal::connect(&settings).await?)
}
