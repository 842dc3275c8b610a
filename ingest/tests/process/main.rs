//! The program itself, as operators and strangers see it.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use ingest::signature::{HEADER, sign};
use service::clock::Clock;
use service::settings::Secret;
use support::{Client, Reply, post, user_created};
use tests::{Nats, NatsOptions};
use workos::helpers::webhook_verification::WebhookVerifier;

mod settings;
#[path = "../support/mod.rs"]
mod support;

const SECRET: &str = "whsec_hunter2";

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsync-ingest"));
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error.
fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn piped(command: &mut Command, body: &[u8]) -> (Option<i32>, String, String) {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(body).unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn sign_prints_a_header_that_the_sdk_believes() {
    let body = user_created("event_1");
    let judged = |secret: &str, value: &str| {
        let now = UNIX_EPOCH
            + Clock::system()
                .now()
                .unix_timestamp_nanos()
                .try_into()
                .map(Duration::from_nanos)
                .unwrap();
        WebhookVerifier::new(secret)
            .with_clock(move || now)
            .verify_payload(value, &body)
            .is_ok()
    };
    let (code, out, err) = piped(&mut program(&["sign", "--secret", SECRET]), body.as_bytes());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        judged(SECRET, out.trim_end().strip_prefix("WorkOS-Signature: ").unwrap()),
        "{out}"
    );
    let mut from_env = program(&["sign", "--json"]);
    let (code, out, _) = piped(
        from_env.env("WORKOS_WEBHOOK_SECRET", "whsec_a, whsec_b"),
        body.as_bytes(),
    );
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, json["header"].as_str()), (Some(0), Some(HEADER)));
    assert!(judged("whsec_a", json["value"].as_str().unwrap()), "{out}");
    let (code, out, err) = piped(&mut program(&["sign"]), body.as_bytes());
    assert_eq!(
        (code, out.as_str(), err.lines().count()),
        (Some(2), "", 1),
        "{err}"
    );
}

/// A process that is killed when its test ends.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, running.
struct Running {
    child: Killed,
    webhooks: SocketAddr,
    admin: SocketAddr,
    log: std::thread::JoinHandle<String>,
}

impl Running {
    fn start(broker: &Nats) -> Self {
        Self::with(broker, &[])
    }

    fn with(broker: &Nats, more: &[(&str, &str)]) -> Self {
        let args = [
            "--listen-addr",
            "127.0.0.1:0",
            "--admin-addr",
            "127.0.0.1:0",
            "--log-format",
            "json",
        ];
        let settings = [
            ("WORKOS_WEBHOOK_SECRET", SECRET),
            ("NATS_URL", &broker.url()),
            ("RUST_LOG", "debug"),
        ];
        let mut child = Killed(
            program(&args)
                .envs(settings)
                .envs(more.iter().copied())
                .spawn()
                .unwrap(),
        );
        let mut stderr = BufReader::new(child.0.stderr.take().unwrap());
        let (mut log, mut admin, mut webhooks) = (String::new(), None, None);
        while admin.is_none() || webhooks.is_none() {
            let from = log.len();
            assert!(
                stderr.read_line(&mut log).unwrap() > 0,
                "the program ended: {log}"
            );
            let line: serde_json::Value = serde_json::from_str(&log[from..]).unwrap();
            let addr = || Some(line["addr"].as_str()?.parse().unwrap());
            match line["message"].as_str() {
                Some("admin endpoint is up") => admin = addr(),
                Some("receiving webhooks") => webhooks = addr(),
                _ => {}
            }
        }
        let log = std::thread::spawn(move || {
            stderr.read_to_string(&mut log).unwrap();
            log
        });
        Self {
            child,
            webhooks: webhooks.unwrap(),
            admin: admin.unwrap(),
            log,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        let mut client = Client::connect(self.admin).await;
        client
            .say(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        client.hear().await.unwrap()
    }

    async fn post(&self, secret: &str, body: &[u8]) -> Reply {
        let header = sign(&Secret::from(secret), Clock::system().now(), body).unwrap();
        let mut client = Client::connect(self.webhooks).await;
        client
            .say(post("/webhooks/workos", &[(HEADER, &header)], body))
            .await;
        client.hear().await.unwrap()
    }

    /// Asks the program to stop. Returns its exit code and everything it logged.
    fn stop(mut self) -> (Option<i32>, String) {
        assert!(
            Command::new("kill")
                .arg(self.child.0.id().to_string())
                .status()
                .unwrap()
                .success()
        );
        let code = self.child.0.wait().unwrap().code();
        (code, self.log.join().unwrap())
    }
}

#[tokio::test]
async fn it_receives_tells_of_itself_and_stops_when_told() {
    let broker = Nats::start().await.unwrap();
    let running = Running::start(&broker);
    support::until("ready", async || {
        (running.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let body = user_created("event_1");
    assert_eq!(
        running.post(SECRET, body.as_bytes()).await.body,
        "{\"status\":\"accepted\"}\n"
    );
    assert_eq!(
        running.post(SECRET, body.as_bytes()).await.body,
        "{\"status\":\"duplicate\"}\n"
    );
    assert_eq!(running.post("whsec_wrong", body.as_bytes()).await.status, 401);
    assert_eq!(
        running
            .post(SECRET, br#"{"email":"ada@example.com"}"#)
            .await
            .status,
        200
    );
    let metrics = running.get("/metrics").await.body;
    for line in [
        r#"dsync_ingest_webhooks_total{outcome="accepted"} 1"#,
        r#"dsync_ingest_webhooks_total{outcome="duplicate"} 1"#,
        r#"dsync_ingest_webhooks_total{outcome="ignored"} 0"#,
        r#"dsync_ingest_webhooks_total{outcome="quarantined"} 1"#,
        r#"dsync_ingest_webhooks_total{outcome="unauthorized"} 1"#,
        r#"dsync_ingest_webhooks_total{outcome="forbidden"} 0"#,
        r#"dsync_ingest_webhooks_total{outcome="too_large"} 0"#,
        r#"dsync_ingest_webhooks_total{outcome="unavailable"} 0"#,
        "dsync_ingest_publish_seconds_count 3",
        "dsync_ingest_inflight 0",
        concat!("dsync_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in\n{metrics}"
        );
    }
    let (code, log) = running.stop();
    assert_eq!(code, Some(0), "{log}");
    // Even at debug level, nothing is logged but ids and types.
    for private in ["hunter2", "ada@example.com", "v1=", "directory_user_1\""] {
        assert!(!log.contains(private), "{private} is in\n{log}");
    }
    assert!(
        log.contains("quarantined") && log.contains("the signature matches none of the secrets"),
        "{log}"
    );
}

#[tokio::test]
async fn without_a_broker_it_starts_is_alive_and_says_what_is_missing() {
    let broker = Nats::absent(NatsOptions::default()).unwrap();
    let running = Running::start(&broker);
    assert_eq!(running.get("/livez").await.status, 200);
    let ready = running.get("/readyz").await;
    let missing: serde_json::Value = serde_json::from_str(&ready.body).unwrap();
    assert_eq!(
        (ready.status, &missing["missing"][0]["name"]),
        (503, &"log".into())
    );
    assert_eq!(
        running
            .post(SECRET, user_created("event_1").as_bytes())
            .await
            .status,
        503
    );
    assert_eq!(running.stop().0, Some(0));
}

/// Each of these settings differs from its default, and shows.
#[tokio::test]
async fn what_is_set_is_what_is_done() {
    let broker = Nats::start().await.unwrap();
    let settings = [
        ("WEBHOOK_ALLOWED_IPS", "203.0.113.7,198.51.100.0/24"),
        ("TRUSTED_PROXIES", "127.0.0.1"),
        ("WEBHOOK_TOLERANCE", "1s"),
        ("WEBHOOK_PATH", "/hooks/ours"),
        ("DSYNC_DEDUP_WINDOW", "7m"),
        ("DSYNC_LOG_MAX_AGE", "3d"),
    ];
    let running = Running::with(&broker, &settings);
    support::until("ready", async || {
        (running.get("/readyz").await.status == 200).then_some(())
    })
    .await;
    let asked = async |path: &str, sender: Option<&str>, age: Duration| {
        let body = user_created("event_1");
        let signature = sign(
            &Secret::from(SECRET),
            Clock::system().now() - age,
            body.as_bytes(),
        )
        .unwrap();
        let mut headers = vec![(HEADER, signature.as_str())];
        headers.extend(sender.map(|sender| ("X-Forwarded-For", sender)));
        let mut client = Client::connect(running.webhooks).await;
        client.say(post(path, &headers, body.as_bytes())).await;
        client.hear().await.unwrap().status
    };
    let (ours, now) = ("/hooks/ours", Duration::ZERO);
    // Signed just now, but perhaps on a busy machine.
    support::until("accepted", async || {
        (asked(ours, Some("203.0.113.7"), now).await == 200).then_some(())
    })
    .await;
    for (path, sender, age, status) in [
        (ours, Some("203.0.113.8"), now, 403),
        (ours, Some("198.51.100.9, 203.0.113.8"), now, 403),
        (ours, None, now, 403),
        (ours, Some("198.51.100.9"), Duration::from_secs(3), 401),
        ("/webhooks/workos", Some("203.0.113.7"), now, 404),
    ] {
        assert_eq!(
            asked(path, sender, age).await,
            status,
            "{path} {sender:?} {age:?}"
        );
    }
    let stream = support::jetstream(&broker, "STREAM.INFO.DSYNC", "").await;
    for kept in [
        r#""duplicate_window":420000000000,"#,
        r#""max_age":259200000000000,"#,
    ] {
        assert!(stream.contains(kept), "{kept} is not in {stream}");
    }
    assert_eq!(running.stop().0, Some(0));
}

/// Other tests shorten these timeouts; this one checks those that the program sets.
#[tokio::test]
async fn slow_clients_are_closed_after_five_and_ten_seconds() {
    let broker = Nats::start().await.unwrap();
    let running = Running::start(&broker);
    let closed_after = |begin: &'static str| {
        let mut stream = TcpStream::connect(running.webhooks).unwrap();
        std::thread::spawn(move || {
            let began = Instant::now();
            stream.write_all(begin.as_bytes()).unwrap();
            stream.set_read_timeout(Some(support::BOUND)).unwrap();
            let mut said = String::new();
            let _ = stream.read_to_string(&mut said);
            (began.elapsed().as_secs_f64(), said)
        })
    };
    let silent = closed_after("");
    let head = closed_after("POST /webhooks/workos HTTP/1.1\r\nHost: x\r\nX: ");
    let body = closed_after("POST /webhooks/workos HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx");
    for half in [silent, head] {
        let (seconds, _) = half.join().unwrap();
        assert!((4.0..8.0).contains(&seconds), "{seconds}");
    }
    let (seconds, said) = body.join().unwrap();
    assert!(
        (9.0..15.0).contains(&seconds) && said.starts_with("HTTP/1.1 408 "),
        "{seconds}: {said}"
    );
    assert_eq!(running.stop().0, Some(0));
}
