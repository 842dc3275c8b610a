//! Builds the package again when a file is added or changed beside it, which the macro that embeds them does not notice.

fn main() {
    println!("cargo::rerun-if-changed=.");
}
