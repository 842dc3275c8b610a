//! A server that answers what it is told to, for what no simulator should do.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// A server that gives each connection the next of `answers` and keeps the requests' first lines.
pub(crate) async fn scripted<S: Into<String>>(
    answers: Vec<(u16, S)>,
) -> anyhow::Result<(String, tokio::task::JoinHandle<Vec<String>>)> {
    let answers: Vec<(u16, String)> = answers
        .into_iter()
        .map(|(status, body)| (status, body.into()))
        .collect();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for (status, body) in answers {
            let Ok((mut socket, _)) = listener.accept().await else {
                break;
            };
            let mut request = vec![0; 8192];
            let length = socket.read(&mut request).await.unwrap_or_default();
            let text = String::from_utf8_lossy(&request[..length]).into_owned();
            asked.push(text.lines().next().unwrap_or_default().to_owned());
            let answer = format!(
                "HTTP/1.1 {status} X\r\nDate: Fri, 28 Apr 2023 20:05:31 GMT\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
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
    let metrics = reconciler::metrics::Metrics::new(&prometheus::Registry::new());
    let settings = reconciler::workos::client::ClientSettings {
        timeout: Duration::from_secs(2),
        patience: Duration::from_secs(5),
        ..reconciler::workos::client::ClientSettings::new(url.parse()?, "sk_test".into())
    };
    Ok(reconciler::workos::client::Api::new(
        settings,
        service::clock::Clock::system(),
        metrics,
    )?)
}
