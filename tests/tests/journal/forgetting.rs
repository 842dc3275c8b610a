//! What is erased can no longer be read, and is no longer on disk, either.

use std::path::Path;

use tests::Nats;

use super::{log_on, nth, record};

#[tokio::test]
async fn erase_takes_one_entry_from_log_and_disk() -> anyhow::Result<()> {
    let nats = Nats::start().await?;
    let journal = log_on(&nats).await?;
    let person = b"a-person-to-be-forgotten@example.com";
    journal.append(&nth(1)).await?;
    journal
        .append(&record(
            "event_2",
            "dsync.directory_1.user.user_2.created",
            person,
        ))
        .await?;
    journal.append(&nth(3)).await?;
    assert!(is_in_files_of(&nats.store(), person)?);
    assert!(journal.erase(2).await?);
    assert!(!journal.erase(2).await?);
    assert!(!journal.erase(99).await?);
    assert!(journal.entry(2).await?.is_none());
    assert!(!is_in_files_of(&nats.store(), person)?);
    Ok(())
}

fn is_in_files_of(dir: &Path, words: &[u8]) -> anyhow::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let found = if path.is_dir() {
            is_in_files_of(&path, words)?
        } else {
            std::fs::read(&path)?
                .windows(words.len())
                .any(|window| window == words)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}
