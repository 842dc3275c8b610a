//! Runs every input in `fuzz/corpus` against its oracle, so that what once failed stays fixed.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::path::Path;

fn all(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut count = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        eprintln!("{}", path.display());
        check(&fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count >= 10, "{} has only {count} inputs", folder.display());
}

#[test]
fn signatures() {
    all("signature", oracles::signature::check);
}

#[test]
fn events() {
    all("event", oracles::event::check);
}

#[test]
fn histories() {
    all("fold", oracles::fold::check);
}

#[test]
fn letters() {
    all("letters", oracles::letters::check);
}
