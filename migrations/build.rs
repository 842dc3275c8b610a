//! Rebuilds the package when a file beside it is added or changed, which the macro that embeds them does not notice.

fn main() {
    println!("cargo::rerun-if-changed=.");
}
