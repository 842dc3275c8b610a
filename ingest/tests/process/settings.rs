//! Settings: what the help says of them, and what becomes of bad ones.

use super::{SECRET, output, program};

#[test]
fn help_names_every_setting_and_shows_no_secret() {
    let secrets = [
        ("WORKOS_WEBHOOK_SECRET", SECRET),
        ("NATS_URL", "nats://me:hunter2@localhost"),
    ];
    let (code, out, err) = output(program(&["--help"]).envs(secrets));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for name in [
        "NATS_URL",
        "NATS_URL_FILE",
        "NATS_CREDS",
        "DSYNC_STREAM",
        "DSYNC_STREAM_REPLICAS",
        "DSYNC_LOG_MAX_AGE",
        "DSYNC_LOG_MAX_BYTES",
        "DSYNC_DEDUP_WINDOW",
        "LISTEN_ADDR",
        "ADMIN_ADDR",
        "WORKOS_WEBHOOK_SECRET",
        "WORKOS_WEBHOOK_SECRET_FILE",
        "WEBHOOK_PATH",
        "WEBHOOK_TOLERANCE",
        "WEBHOOK_MAX_BODY",
        "WEBHOOK_ALLOWED_IPS",
        "TRUSTED_PROXIES",
        "RUST_LOG",
        "LOG_FORMAT",
    ] {
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        assert!(
            out.contains(&format!("[env: {name}")) && out.contains(&flag),
            "{name} is not in\n{out}"
        );
    }
    for default in [
        "0.0.0.0:8080",
        "0.0.0.0:9464",
        "nats://127.0.0.1:4222",
        "/webhooks/workos",
        "180s",
        "960KiB",
        "4d",
        "info",
    ] {
        assert!(
            out.contains(&format!("[default: {default}]")),
            "{default} is not in\n{out}"
        );
    }
    assert!(!out.contains("hunter2"), "{out}");
    assert_eq!(output(&mut program(&["--version"])).0, Some(0));
    assert_eq!(output(&mut program(&["sign", "--help"])).0, Some(0));
}

/// A setting, an invalid value, and the error message after the setting's name.
const BAD_SETTINGS: &[(&str, &str, &str)] = &[
    ("WORKOS_WEBHOOK_SECRET", "", "(--workos-webhook-secret) is empty"),
    (
        "WORKOS_WEBHOOK_SECRET",
        "hunter2,",
        "(--workos-webhook-secret) contains an empty secret: separate secrets with single commas",
    ),
    (
        "NATS_URL",
        "nats://me:hunter2@[",
        "(--nats-url) cannot be used: the NATS URL cannot be read",
    ),
    (
        "NATS_CREDS",
        "/no/such/file",
        "(--nats-creds) cannot be used: the NATS credentials file cannot be used",
    ),
    (
        "DSYNC_STREAM",
        "a.b",
        r#"(--dsync-stream): "a.b" is not a stream name"#,
    ),
    (
        "DSYNC_STREAM_REPLICAS",
        "two",
        r#"(--dsync-stream-replicas): "two" is not a number of copies"#,
    ),
    (
        "DSYNC_LOG_MAX_AGE",
        "7",
        r#"(--dsync-log-max-age): "7" is not a duration"#,
    ),
    (
        "DSYNC_LOG_MAX_BYTES",
        "many",
        r#"(--dsync-log-max-bytes): "many" is not a size"#,
    ),
    (
        "DSYNC_DEDUP_WINDOW",
        "0",
        r#"(--dsync-dedup-window): "0" must be longer than zero"#,
    ),
    (
        "LISTEN_ADDR",
        "8080",
        r#"(--listen-addr): "8080" invalid socket address syntax"#,
    ),
    (
        "ADMIN_ADDR",
        "localhost",
        r#"(--admin-addr): "localhost" invalid socket address syntax"#,
    ),
    (
        "WEBHOOK_PATH",
        "webhooks",
        r#"(--webhook-path): "webhooks" is not a path"#,
    ),
    (
        "WEBHOOK_TOLERANCE",
        "-1s",
        r#"(--webhook-tolerance): "-1s" is not a duration"#,
    ),
    (
        "WEBHOOK_TOLERANCE",
        "5M",
        r#"(--webhook-tolerance): "5M" is not a duration"#,
    ),
    (
        "WEBHOOK_MAX_BODY",
        "0",
        r#"(--webhook-max-body): "0" is not a size from 1KiB to 64MiB"#,
    ),
    ("WEBHOOK_ALLOWED_IPS", "", "(--webhook-allowed-ips) is empty"),
    (
        "WEBHOOK_ALLOWED_IPS",
        "example.com",
        r#"(--webhook-allowed-ips): "example.com" is not a list of addresses"#,
    ),
    (
        "TRUSTED_PROXIES",
        "workos",
        r#"(--trusted-proxies): "workos" is not a list of addresses"#,
    ),
    ("RUST_LOG", "a=b=c", "(--rust-log) is not a log filter"),
    (
        "RUST_LOG",
        "warning",
        r#"(--rust-log) contains "warning", which is"#,
    ),
    (
        "LOG_FORMAT",
        "xml",
        r#"(--log-format): "xml" is not allowed here: choose text or json"#,
    ),
];

#[test]
fn a_bad_setting_is_one_line_that_names_it_and_exit_code_2() {
    for (name, value, says) in BAD_SETTINGS {
        let (code, out, err) = output(program(&[]).env("WORKOS_WEBHOOK_SECRET", SECRET).env(name, value));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{name}={value}: {err}");
        assert!(
            err.starts_with(&format!("dsync-ingest: {name} {says}")),
            "{name}={value}: {err}"
        );
        assert!(
            err.lines().count() == 1 && !err.contains("hunter2"),
            "{name}={value}: {err}"
        );
    }
}

#[test]
fn the_secret_is_required_once() {
    let secret = "WORKOS_WEBHOOK_SECRET (--workos-webhook-secret)";
    let (code, _, err) = output(&mut program(&[]));
    assert_eq!(
        (code, err),
        (Some(2), format!("dsync-ingest: {secret} is not set\n"))
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    let mut both = program(&[]);
    both.env("WORKOS_WEBHOOK_SECRET", SECRET)
        .env("WORKOS_WEBHOOK_SECRET_FILE", file.path());
    let (code, _, err) = output(&mut both);
    let line = format!("dsync-ingest: {secret} is given twice, directly and by its _FILE\n");
    assert_eq!((code, err), (Some(2), line));
}
