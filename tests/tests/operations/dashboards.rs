//! The dashboards as files: their panels and queries.

use anyhow::Context as _;
use serde_json::Value;

use crate::documents::{operations, read};

/// A panel that shows data.
pub(crate) struct Panel {
    /// `dashboard / panel`.
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) unit: String,
    /// The targets of its links.
    pub(crate) links: Vec<String>,
    /// Its queries, as written in the file.
    pub(crate) queries: Vec<String>,
}

/// A dashboard.
pub(crate) struct Dashboard {
    pub(crate) uid: String,
    pub(crate) panels: Vec<Panel>,
}

/// All dashboards in `ops/grafana/dashboards`, sorted by uid.
pub(crate) fn all() -> anyhow::Result<Vec<Dashboard>> {
    let mut dashboards = Vec::new();
    for file in std::fs::read_dir(operations("grafana/dashboards"))? {
        let path = file?.path();
        let json: Value = serde_json::from_str(&read(&path)?).with_context(|| path.display().to_string())?;
        dashboards.push(dashboard(&json));
    }
    dashboards.sort_by(|one, other| one.uid.cmp(&other.uid));
    Ok(dashboards)
}

fn dashboard(json: &Value) -> Dashboard {
    let uid = text(&json["uid"]);
    let panels = list(&json["panels"])
        .filter(|panel| panel["type"] != "row")
        .map(|panel| Panel {
            name: format!("{uid} / {}", text(&panel["title"])),
            description: text(&panel["description"]),
            unit: text(&panel["fieldConfig"]["defaults"]["unit"]),
            links: list(&panel["links"]).map(|link| text(&link["url"])).collect(),
            queries: list(&panel["targets"])
                .map(|target| text(&target["expr"]))
                .collect(),
        })
        .collect();
    Dashboard { uid, panels }
}

/// A query as Grafana would send it, for all instances, and with a time range that these tests can fill.
pub(crate) fn substituted(query: &str) -> String {
    query
        .replace("$__rate_interval", "5m")
        .replace("$__range", "10m")
        .replace("$instance", ".*")
}

/// The query without the fallback that it shows when it finds nothing.
pub(crate) fn without_fallback(query: &str) -> &str {
    query.rsplit_once(" or vector(").map_or(query, |(query, _)| query)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[test]
fn every_panel_says_its_unit_what_it_shows_and_where_to_read_on() {
    let dashboards = all().unwrap();
    let uids: Vec<&str> = dashboards
        .iter()
        .map(|dashboard| dashboard.uid.as_str())
        .collect();
    assert_eq!(
        uids,
        [
            "dsync-ingest",
            "dsync-overview",
            "dsync-projector",
            "dsync-reconciler"
        ]
    );
    let anchors = crate::documents::runbook_anchors().unwrap();
    for panel in dashboards.iter().flat_map(|dashboard| &dashboard.panels) {
        let name = &panel.name;
        assert!(!panel.unit.is_empty(), "{name} has no unit");
        assert!(panel.description.len() > 20, "{name} has no description");
        assert!(!panel.queries.is_empty(), "{name} has no query");
        let anchor = panel
            .links
            .iter()
            .find_map(|link| link.strip_prefix("${runbook}#"));
        let anchor = anchor.unwrap_or_else(|| panic!("{name} has no link to the runbook"));
        assert!(
            anchors.contains(anchor),
            "{name}: the runbook has no section {anchor}"
        );
        for query in &panel.queries {
            assert!(
                !substituted(query).contains('$'),
                "{name} has a variable that this test does not know: {query}"
            );
        }
    }
}
