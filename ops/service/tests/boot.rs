//! A whole process from command line to exit code, as an operator sees it: runs `examples/idle.rs`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SECRET: &str = "whsec_hunter2";

/// Arguments, environment, and the error line they produce.
type Slip<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a str);

fn idle(args: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap();
    let dir: PathBuf = test
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .join("examples");
    let mut command = Command::new(dir.join("idle"));
    command.args(args).env_clear().env("IDLE_SECRET", SECRET);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("`cargo test` builds the example");
    (
        status.code(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

/// A running program and the address of its admin endpoint. Killed when the test ends.
struct Running {
    child: Child,
    admin: String,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = idle(args).spawn().expect("`cargo test` builds the example");
        let mut admin = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut admin)
            .unwrap();
        Self {
            child,
            admin: admin.trim().to_owned(),
        }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.admin).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Waits for the program to end. Returns its exit code and its log.
    fn end(mut self) -> (Option<i32>, String) {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut log = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut log)
            .unwrap();
        (status.code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_names_every_setting_and_no_secret() {
    let (code, out, err) = output(&mut idle(&["--help"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for name in [
        "ADMIN_ADDR",
        "--admin-addr",
        "RUST_LOG",
        "--rust-log",
        "LOG_FORMAT",
        "IDLE_SECRET",
        "--idle-secret",
    ] {
        assert!(out.contains(name), "{name} is not in\n{out}");
    }
    assert!(!out.contains(SECRET), "{out}");
    assert!(!out.contains('\x1b'), "colours in a pipe");
    let (code, out, _) = output(&mut idle(&["--version"]));
    assert_eq!(
        (code, out.trim()),
        (Some(0), concat!("idle ", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn a_bad_setting_is_one_line_and_exit_code_2() {
    let cases: [Slip; 7] = [
        (
            &["--admin-addr", "x"],
            &[],
            r#"ADMIN_ADDR (--admin-addr): "x" invalid socket address syntax"#,
        ),
        (&[], &[("ADMIN_ADDR", "")], "ADMIN_ADDR (--admin-addr) is empty"),
        (&[], &[("RUST_LOG", "")], "RUST_LOG (--rust-log) is empty"),
        (
            &[],
            &[("IDLE_SECRET", "")],
            "IDLE_SECRET (--idle-secret) is empty",
        ),
        (
            &["--idle-drain", "2h"],
            &[],
            "IDLE_DRAIN (--idle-drain) is longer than an hour",
        ),
        (&["--idle-secrets=x"], &[], "unknown argument --idle-secrets"),
        (
            &[],
            &[("LOG_FORMAT", "xml")],
            r#"LOG_FORMAT (--log-format): "xml" is not allowed here: choose text or json"#,
        ),
    ];
    for (args, env, line) in cases {
        let (code, out, err) = output(idle(args).envs(env.iter().copied()));
        assert_eq!(
            (code, out.as_str(), err),
            (Some(2), "", format!("idle: {line}\n"))
        );
    }
    let (code, _, err) = output(idle(&[]).env_remove("IDLE_SECRET"));
    assert_eq!(
        (code, err.as_str()),
        (Some(2), "idle: IDLE_SECRET (--idle-secret) is not set\n")
    );
    let (code, _, err) = output(&mut idle(&["--rust-log", "a=b=c"]));
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    assert!(
        err.starts_with("idle: RUST_LOG (--rust-log) is not a log filter"),
        "{err}"
    );
}

#[test]
fn an_error_is_printed_once_with_its_causes_even_when_logging_is_off() {
    let (code, _, err) = output(&mut idle(&["--fail", "--rust-log", "off"]));
    assert_eq!(
        (code, err.as_str()),
        (Some(1), "idle: cannot idle: the disk is full\n")
    );
    let (code, _, err) = output(&mut idle(&["--fail", "--log-format", "json"]));
    let line: serde_json::Value = serde_json::from_str(&err).unwrap();
    assert_eq!(
        (code, line["message"].as_str()),
        (Some(1), Some("cannot idle: the disk is full"))
    );
}

#[test]
fn it_answers_for_itself_while_it_runs() {
    let running = Running::start(&["--log-format", "json"]);
    let alive = running.get("/livez");
    assert!(alive.starts_with("HTTP/1.1 200 OK\r\n"), "{alive}");
    let ready = running.get("/readyz");
    assert!(
        ready.starts_with("HTTP/1.1 200 OK\r\n") && ready.ends_with(r#"{"missing":[],"ready":true}"#),
        "{ready}"
    );
    let metrics = running.get("/metrics");
    let line = format!("dsync_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    assert!(
        metrics.contains(&line) && metrics.contains("text/plain; version=0.0.4"),
        "{metrics}"
    );
    assert!(running.get("/secrets").starts_with("HTTP/1.1 404"));
    running.signal("TERM");
    let (code, log) = running.end();
    assert_eq!(code, Some(0), "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        assert_eq!(line["level"], "INFO");
    }
}

#[test]
fn both_signals_drain_and_end_with_0() {
    for signal in ["TERM", "INT"] {
        let running = Running::start(&["--idle-drain", "300ms"]);
        running.signal(signal);
        let began = Instant::now();
        let (code, log) = running.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(began.elapsed() >= Duration::from_millis(250), "it did not drain");
    }
}

#[test]
fn while_it_drains_it_is_alive_but_not_ready_and_a_second_signal_ends_it_at_once() {
    let running = Running::start(&["--idle-drain", "20s"]);
    running.signal("TERM");
    let began = Instant::now();
    while !running.get("/readyz").starts_with("HTTP/1.1 503") {
        assert!(began.elapsed() < Duration::from_secs(10), "it stays ready");
    }
    assert!(running.get("/readyz").contains(r#""name":"shutdown""#));
    assert!(running.get("/livez").starts_with("HTTP/1.1 200"));
    running.signal("INT");
    let (code, _) = running.end();
    assert_eq!(code, Some(130));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn an_address_in_use_is_named() {
    let running = Running::start(&[]);
    let (code, _, err) = output(&mut idle(&["--admin-addr", &running.admin]));
    assert_eq!(code, Some(1));
    assert!(
        err.starts_with("idle: ADMIN_ADDR (--admin-addr): cannot listen on 127.0.0.1:"),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1);
}
