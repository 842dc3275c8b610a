//! A short soak, and its negative control: the same check must find what is lost when something is.

use anyhow::{Context as _, ensure};
use tests::{Output, Program};

/// The number after `label` in the report.
fn figure(output: &Output, label: &str) -> anyhow::Result<u64> {
    let line = output.stdout.lines().find_map(|line| line.strip_prefix(label));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok())
        .with_context(|| format!("no {label:?} in:\n{}\n{}", output.stdout, output.stderr))
}

#[tokio::test]
async fn a_short_soak_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    let soak = Program::new("soak")
        .arg("--seed=11")
        .arg("--strikes=18")
        .arg("--minutes=0.8");
    let output = soak.arg("--longest=4").arg("--tell").run().await?;
    ensure!(output.status.success(), "{}\n{}", output.stdout, output.stderr);
    ensure!(
        figure(&output, "webhooks acknowledged")? > 100,
        "{}",
        output.stdout
    );
    for nothing in [
        "lost",
        "duplicated effects",
        "dead letters",
        "ended by themselves",
    ] {
        ensure!(figure(&output, nothing)? == 0, "{}", output.stdout);
    }
    Ok(())
}

/// A power loss with the broker's default sync setting, and neither catch-up nor sweeps to recover anything.
#[tokio::test]
async fn what_a_broker_loses_is_found_by_the_soaks_check() -> anyhow::Result<()> {
    let output = Program::new("soak")
        .arg("--seed=12")
        .arg("--power-loss")
        .run()
        .await?;
    ensure!(
        output.status.code() == Some(1),
        "{}\n{}",
        output.stdout,
        output.stderr
    );
    ensure!(figure(&output, "lost")? > 20, "{}", output.stdout);
    ensure!(
        output.stdout.contains("WRONG not within"),
        "the tables must differ, too: {}",
        output.stdout
    );
    Ok(())
}
