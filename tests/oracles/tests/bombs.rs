//! Bodies made to be expensive: deep, wide and long. Each must satisfy what is checked for any body.

use oracles::event::check;

fn user_with(attributes: &str) -> Vec<u8> {
    format!(
        r#"{{"id":"event_1","event":"dsync.user.created","created_at":"2024-01-01T00:00:00Z",
            "data":{{"id":"u","directory_id":"d","raw_attributes":{attributes}}}}}"#
    )
    .into_bytes()
}

#[test]
fn deep() {
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"[{"\u0000":["#, "]}]")] {
        for depth in [127, 128, 500, 999, 1_000, 1_001, 100_000] {
            check(&user_with(&format!(
                "{}1{}",
                open.repeat(depth),
                close.repeat(depth)
            )));
            // Never closed, and closed too many times.
            check(&user_with(&open.repeat(depth)));
            check(&user_with(&format!("1{}", close.repeat(depth))));
        }
    }
}

// A million are posted for real in tests/tests/e2e/bad_input.rs.
#[test]
fn wide() {
    let keys: Vec<String> = (0..100_000).map(|n| format!("\"k{n}\":{n}")).collect();
    check(&user_with(&format!("{{{}}}", keys.join(","))));
    check(&user_with(&format!(
        "{{{}}}",
        vec!["\"same\":1"; 100_000].join(",")
    )));
    check(&user_with(&format!("[{}]", vec!["[]"; 100_000].join(","))));
}

#[test]
fn long() {
    for piece in ["x", "\\u0000", "\\ud800", "\\ud83d\\ude00", "\\\\", "é", "\\\""] {
        let text = piece.repeat((1 << 20) / piece.len());
        check(&user_with(&format!("\"{text}\"")));
        check(&user_with(&format!("{{\"{text}\":\"{text}\"}}")));
        // Cut in the middle.
        check(&user_with(&format!("\"{text}")));
    }
    for number in [
        "1e400",
        "-1e400",
        "1e-400",
        "1e131000",
        "1e-15000",
        "1E+999999999999999999999",
        "0.0e-0",
        "-0",
    ] {
        check(&user_with(number));
    }
    check(&user_with(&"9".repeat(1 << 20)));
    check(&user_with(&format!("0.{}", "1".repeat(1 << 20))));
}
