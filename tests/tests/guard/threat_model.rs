//! `ops/threat-model.md` and `ops/dependencies.md` are up to date: the tests they name exist, and the dependencies they
//! list are those in `Cargo.toml`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path)
        .with_context(|| path.display().to_string())
        .unwrap()
}

/// Reads all Rust files below a folder.
fn sources(folder: &Path, into: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() && !path.ends_with("target") && !hidden {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(std::fs::read_to_string(path).unwrap());
        }
    }
}

/// The rows of a page's tables, split into cells.
fn rows(page: &str) -> Vec<Vec<&str>> {
    page.lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// The texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let mut all = Vec::new();
    sources(&root(), &mut all);
    let page = read("ops/threat-model.md");
    let mut named = 0;
    for row in rows(&page) {
        for name in row.last().into_iter().flat_map(|shown| quoted(shown)) {
            if let Some(example) = name.split(" --example ").nth(1) {
                assert!(
                    root().join(format!("ingest/examples/{example}.rs")).is_file(),
                    "there is no example {example}"
                );
            } else if name.starts_with("ops/") {
                assert!(root().join(name).is_file(), "there is no file {name}");
            } else {
                let function = format!("fn {name}(");
                assert!(
                    all.iter().any(|source| source.contains(&function)),
                    "there is no test {name}"
                );
                named += 1;
            }
        }
    }
    assert!(named > 40, "only {named} tests are named");
}

/// The keys in a table of a manifest.
fn names_in(manifest: &str, table: &str) -> BTreeSet<String> {
    manifest
        .lines()
        .skip_while(|line| *line != table)
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| Some(line.split_once('=')?.0))
        .map(|name| name.trim().trim_end_matches(".workspace").to_owned())
        .collect()
}

#[test]
fn every_direct_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let ours: BTreeSet<String> = manifest
        .lines()
        .filter(|line| line.contains("{ path = "))
        .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned()))
        .collect();
    let foreign: BTreeSet<String> = names_in(&manifest, "[workspace.dependencies]")
        .difference(&ours)
        .cloned()
        .collect();
    let page = read("ops/dependencies.md");
    let mut listed = BTreeSet::new();
    for row in rows(&page).into_iter().filter(|row| row[0].starts_with('`')) {
        let reason = row.last().unwrap();
        assert!(row.len() == 3 && reason.len() > 10, "{row:?} has no reason");
        listed.insert(row[0].trim_matches('`').to_owned());
    }
    assert_eq!(listed, foreign, "ops/dependencies.md and Cargo.toml differ");
}

/// Checks that the workspace forbids it, and that every member uses the workspace's lints.
#[test]
fn every_package_forbids_unsafe_code() {
    let manifest = read("Cargo.toml");
    assert!(manifest.contains("unsafe_code = \"forbid\""));
    let members = manifest
        .split("members = [")
        .nth(1)
        .unwrap()
        .split(']')
        .next()
        .unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() > 8, "{members:?}");
    for member in members {
        let own = read(format!("{member}/Cargo.toml"));
        assert!(
            own.contains("[lints]\nworkspace = true"),
            "{member} has lints of its own"
        );
    }
}
