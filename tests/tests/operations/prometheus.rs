//! A private Prometheus, from the path, on 127.0.0.1, with dsync's rules and alerts, scraping every second.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tests::{Port, Process, Running, Watched, eventually};

use crate::documents::operations;

const STARTS_WITHIN: Duration = Duration::from_mins(1);

/// A running Prometheus. Ends when dropped.
pub(crate) struct Prometheus {
    _process: Process,
    port: Port,
    http: reqwest::Client,
    _dir: TempDir,
}

/// A rule, as Prometheus reports it.
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) query: String,
    /// `alerting` or `recording`.
    pub(crate) kind: String,
    /// For alerts: `inactive`, `pending` or `firing`.
    pub(crate) state: String,
    pub(crate) error: String,
    pub(crate) runbook: String,
}

impl Prometheus {
    /// Starts it to scrape these programs, under their job names.
    pub(crate) async fn over(jobs: &[(&str, &[&Running])]) -> anyhow::Result<Self> {
        ensure!(
            on_path("prometheus"),
            "these tests need `prometheus` on the path; ops/test installs it (Debian's package `prometheus`)"
        );
        let dir = tempfile::Builder::new().prefix("dsync-prometheus-").tempdir()?;
        let port = Port::reserve()?;
        let config = dir.path().join("prometheus.yaml");
        std::fs::write(&config, configuration(jobs)?)?;
        let mut server = Watched::new("prometheus", "/dev/null");
        server
            .command()
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={}", port.address()))
            .current_dir(dir.path());
        let log = dir.path().join("prometheus.log");
        let mut process = Process::start("prometheus", server, &log, dir.path())?;
        let http = reqwest::Client::new();
        let ready = format!("http://{}/-/ready", port.address());
        eventually(STARTS_WITHIN, async || {
            process.must_run()?;
            http.get(&ready).send().await?.error_for_status()?;
            Ok(())
        })
        .await?;
        Ok(Self {
            _process: process,
            port,
            http,
            _dir: dir,
        })
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
        let url = format!("http://{}/api/v1/{path}", self.port.address());
        let url = reqwest::Url::parse_with_params(&url, query)?;
        let answer: Value = self.http.get(url).send().await?.json().await?;
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].clone()),
            _ => bail!("{path}: {}", answer["error"]),
        }
    }

    /// The current result of a query, one value for each series. Fails if the query does not parse.
    pub(crate) async fn values(&self, query: &str) -> anyhow::Result<Vec<f64>> {
        let data = self.get("query", &[("query", query)]).await?;
        let one = |sample: &Value| sample[1].as_str().and_then(|value| value.parse().ok());
        let values = match data["resultType"].as_str() {
            Some("scalar") => vec![one(&data["result"])],
            Some("vector") => {
                let series = data["result"].as_array().context("no result")?;
                series.iter().map(|series| one(&series["value"])).collect()
            }
            other => bail!("a result of type {other:?}"),
        };
        values
            .into_iter()
            .map(|value| value.context("no value"))
            .collect()
    }

    /// The names of all series.
    pub(crate) async fn names(&self) -> anyhow::Result<BTreeSet<String>> {
        let names = self.get("label/__name__/values", &[]).await?;
        Ok(serde_json::from_value(names)?)
    }

    /// All rules, recording and alerting.
    pub(crate) async fn rules(&self) -> anyhow::Result<Vec<Rule>> {
        let data = self.get("rules", &[]).await?;
        let groups = data["groups"].as_array().context("no groups")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().into_iter().flatten());
        Ok(rules
            .map(|rule| Rule {
                name: text(&rule["name"]),
                query: text(&rule["query"]),
                kind: text(&rule["type"]),
                state: text(&rule["state"]),
                error: text(&rule["lastError"]),
                runbook: text(&rule["annotations"]["runbook"]),
            })
            .collect())
    }

    /// Waits until this many programs have been scraped.
    pub(crate) async fn scraped(&self, bound: Duration, programs: usize) -> anyhow::Result<()> {
        eventually(bound, async || {
            let up = self.values("up").await?;
            let well = up.iter().filter(|value| **value > 0.5).count();
            ensure!(well == programs, "only {well} of {programs} programs are scraped");
            Ok(())
        })
        .await
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn configuration(jobs: &[(&str, &[&Running])]) -> anyhow::Result<String> {
    let mut lines = vec!["global: { scrape_interval: 1s, evaluation_interval: 1s }".to_owned()];
    lines.push("rule_files:".to_owned());
    for file in ["prometheus/rules.yaml", "prometheus/alerts.yaml"] {
        let file = operations(file);
        ensure!(file.is_file(), "{} is missing", file.display());
        lines.push(format!("  - \"{}\"", file.display()));
    }
    lines.push("scrape_configs:".to_owned());
    for (job, programs) in jobs {
        let targets: Vec<String> = programs
            .iter()
            .map(|program| format!("\"{}\"", program.admin_url().replace("http://", "")))
            .collect();
        lines.push(format!("  - job_name: {job}"));
        lines.push(format!(
            "    static_configs: [{{ targets: [{}] }}]",
            targets.join(", ")
        ));
    }
    Ok(lines.join("\n"))
}
