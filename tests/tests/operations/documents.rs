//! The files that operators read, the runbook and the alerts, and the links between them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A path below `ops`.
pub(crate) fn operations(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops").join(path)
}

/// A file's text.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// The anchors of the runbook's sections.
pub(crate) fn runbook_anchors() -> anyhow::Result<BTreeSet<String>> {
    let runbook = read(&operations("runbook.md"))?;
    let headings = runbook.lines().filter(|line| line.starts_with('#'));
    Ok(headings
        .map(|line| anchor(line.trim_start_matches('#').trim()))
        .collect())
}

/// The anchor that GitHub and others make from a heading.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn alerts() -> anyhow::Result<Vec<String>> {
    let file = read(&operations("prometheus/alerts.yaml"))?;
    let names = file
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "));
    Ok(names.map(str::to_owned).collect())
}

/// Every expectation in the tests of the alerts: the alert's name, and whether it must fire.
fn expectations() -> anyhow::Result<BTreeSet<(String, bool)>> {
    let file = read(&operations("prometheus/tests/alerts.yaml"))?;
    let mut lines = file.lines().map(str::trim);
    let mut found = BTreeSet::new();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("alertname: ") else {
            continue;
        };
        let expected = lines.next().context("an alertname without an expectation")?;
        found.insert((name.to_owned(), expected == "exp_alerts:"));
    }
    Ok(found)
}

#[test]
fn every_alert_is_seen_firing_and_quiet_and_has_its_section_in_the_runbook() {
    let (alerts, expectations) = (alerts().unwrap(), expectations().unwrap());
    assert!(alerts.len() > 20, "{alerts:?}");
    let file = read(&operations("prometheus/alerts.yaml")).unwrap();
    let anchors = runbook_anchors().unwrap();
    for alert in alerts {
        for fires in [true, false] {
            assert!(
                expectations.contains(&(alert.clone(), fires)),
                "no test expects {alert} to {}",
                if fires { "fire" } else { "be quiet" }
            );
        }
        let section = anchor(&alert);
        assert!(
            anchors.contains(&section),
            "{alert} has no section in the runbook"
        );
        assert!(
            file.contains(&format!("runbook: ops/runbook.md#{section}\n")),
            "{alert} does not link to its section"
        );
    }
}

/// If a test that the runbook names is gone, nothing backs up its claim any more.
#[test]
fn every_test_the_runbook_names_exists() {
    let runbook = read(&operations("runbook.md")).unwrap();
    let mut named = 0;
    for word in runbook.split('`').skip(1).step_by(2) {
        let Some((path, test)) = word.split_once("::") else {
            continue;
        };
        let source = read(&operations("..").join(path)).unwrap();
        assert!(
            source.contains(&format!("fn {test}(")),
            "{path} has no test {test}"
        );
        named += 1;
    }
    assert!(named > 5, "only {named} tests are named");
}
