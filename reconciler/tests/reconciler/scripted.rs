//! A server that answers from a script, for behaviour that no simulator should have.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use workos_sim::Sim;

/// An answer of a proxy's own: status and body.
pub(crate) type Own = (u16, &'static str);

const FAILURE: Own = (500, "{}");

/// A server that gives each connection the next of `answers` and records the first line of each request.
pub(crate) async fn scripted<S: Into<String>>(
    answers: Vec<(u16, S)>,
) -> anyhow::Result<(String, tokio::task::JoinHandle<Vec<String>>)> {
    let answers = answers.into_iter();
    scripted_with(answers.map(|(status, body)| (status, "", body.into())).collect()).await
}

/// The same, with one more header in each answer, or none.
pub(crate) async fn scripted_with(
    answers: Vec<(u16, &'static str, String)>,
) -> anyhow::Result<(String, tokio::task::JoinHandle<Vec<String>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for (status, header, body) in answers {
            let header = if header.is_empty() {
                String::new()
            } else {
                format!("{header}\r\n")
            };
            let Ok((mut socket, _)) = listener.accept().await else {
                break;
            };
            let mut request = vec![0; 8192];
            let length = socket.read(&mut request).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            asked.push(text.lines().next().unwrap_or_default().to_owned());
            let answer = format!(
                "HTTP/1.1 {status} X\r\nDate: Fri, 28 Apr 2023 20:05:31 GMT\r\n{header}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = socket.write_all(answer.as_bytes()).await;
        }
        asked
    });
    Ok((url, task))
}

/// A client of such a server.
pub(crate) fn client(url: &str) -> anyhow::Result<reconciler::workos::client::Api> {
    client_bearing(url, Duration::from_secs(5))
}

/// A client with this much patience.
pub(crate) fn client_bearing(
    url: &str,
    patience: Duration,
) -> anyhow::Result<reconciler::workos::client::Api> {
    let metrics = reconciler::metrics::Metrics::new(&prometheus::Registry::new());
    let settings = reconciler::workos::client::ClientSettings {
        timeout: Duration::from_secs(2),
        patience,
        ..reconciler::workos::client::ClientSettings::new(url.parse()?, "sk_test".into())
    };
    Ok(reconciler::workos::client::Api::new(
        settings,
        service::clock::Clock::system(),
        metrics,
    )?)
}

/// A proxy in front of the simulator. `edit` changes the objects of lists, given the path and query requested.
pub(crate) async fn edited(
    sim: &Sim,
    edit: impl Fn(&str, &mut Value) + Clone + Send + Sync + 'static,
) -> anyhow::Result<String> {
    before(sim, edit, |_| None).await
}

/// A proxy in front of the simulator that answers some paths with 500, and records those requested.
pub(crate) async fn failing(
    sim: &Sim,
    fails: impl Fn(&str) -> bool + Clone + Send + Sync + 'static,
) -> anyhow::Result<(String, Arc<Mutex<Vec<String>>>)> {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&asked);
    let url = before(
        sim,
        |_, _| {},
        move |path| {
            noted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(path.to_owned());
            fails(path).then_some(FAILURE)
        },
    );
    Ok((url.await?, asked))
}

/// A proxy in front of the simulator that gives some paths answers of its own: status and body.
pub(crate) async fn answering(
    sim: &Sim,
    answers: impl Fn(&str) -> Option<Own> + Clone + Send + Sync + 'static,
) -> anyhow::Result<String> {
    before(sim, |_, _| {}, answers).await
}

/// A proxy in front of the simulator that answers requests for `path` only once it is opened, and tells that one came.
pub(crate) async fn gated(
    sim: &Sim,
    path: &str,
    opened: watch::Receiver<bool>,
) -> anyhow::Result<(String, watch::Receiver<bool>)> {
    let (came, asked) = watch::channel(false);
    let came = Arc::new(came);
    let gate = path.to_owned();
    let url = waiting(
        sim,
        |_, _| {},
        |_| None,
        move |path| {
            let (came, mut opened) = (Arc::clone(&came), opened.clone());
            let shut = path.starts_with(&gate);
            async move {
                if shut {
                    came.send_replace(true);
                    // If nobody can open it any more, the test is over.
                    let _ = opened.wait_for(|open| *open).await;
                }
            }
        },
    );
    Ok((url.await?, asked))
}

async fn before(
    sim: &Sim,
    edit: impl Fn(&str, &mut Value) + Clone + Send + Sync + 'static,
    answers: impl Fn(&str) -> Option<Own> + Clone + Send + Sync + 'static,
) -> anyhow::Result<String> {
    waiting(sim, edit, answers, |_| std::future::ready(())).await
}

async fn waiting<W: Future<Output = ()> + Send>(
    sim: &Sim,
    edit: impl Fn(&str, &mut Value) + Clone + Send + Sync + 'static,
    answers: impl Fn(&str) -> Option<Own> + Clone + Send + Sync + 'static,
    waits: impl Fn(&str) -> W + Clone + Send + Sync + 'static,
) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let (target, key) = (sim.url(), sim.api_key().to_owned());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let (target, key, edit) = (target.clone(), key.clone(), edit.clone());
            let (answers, waits) = (answers.clone(), waits.clone());
            tokio::spawn(async move {
                let mut request = vec![0; 8192];
                let length = socket.read(&mut request).await.unwrap_or_default();
                let text = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or("/").to_owned();
                waits(&path).await;
                if let Some((status, body)) = answers(&path) {
                    let answer = format!(
                        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = socket.write_all(answer.as_bytes()).await;
                    return;
                }
                let asked = reqwest::Client::new()
                    .get(format!("{target}{path}"))
                    .bearer_auth(key);
                let Ok(answer) = asked.send().await else { return };
                let (status, headers) = (answer.status(), answer.headers().clone());
                let mut body: Value = answer.json().await.unwrap_or_default();
                for object in body["data"].as_array_mut().into_iter().flatten() {
                    edit(&path, object);
                }
                let date = headers["date"].to_str().unwrap_or_default().to_owned();
                let body = body.to_string();
                let answer = format!(
                    "HTTP/1.1 {} X\r\nDate: {date}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    status.as_u16(),
                    body.len()
                );
                let _ = socket.write_all(answer.as_bytes()).await;
            });
        }
    });
    Ok(url)
}
