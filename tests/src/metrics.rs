//! A program's metrics, parsed from its Prometheus text.

use anyhow::Context as _;

/// One reading of a program's metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    /// Takes the text of `/metrics`.
    pub fn new(text: String) -> Metrics {
        Metrics { text }
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The sum of the samples with this name and all of `labels`. Fails if there is none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
        self.find(name, labels)
            .with_context(|| format!("no sample of {name} with {labels:?}"))
    }

    /// As [`Metrics::get`], but 0 if there is none, as for a counter that was never incremented.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_default()
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{value}\""))
            .collect();
        let samples = self
            .text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (series, given) = series.split_once('{').unwrap_or((series, "}"));
                let given: Vec<&str> = given.strip_suffix('}')?.split(',').collect();
                let matches = series == name && wanted.iter().all(|label| given.contains(&label.as_str()));
                matches.then(|| value.parse::<f64>().ok())?
            });
        samples.fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_labels_and_summed() {
        let text = "# HELP a_total x\n# TYPE a_total counter\na_total{k=\"x\",o=\"1\"} 2\na_total{k=\"y\",o=\"1\"} 3\nb 7.5\n";
        let metrics = Metrics::new(text.to_owned());
        assert_eq!(metrics.get("a_total", &[("k", "y")]).unwrap().to_string(), "3");
        assert_eq!(metrics.get("a_total", &[("o", "1")]).unwrap().to_string(), "5");
        assert_eq!(metrics.get("b", &[]).unwrap().to_string(), "7.5");
        assert_eq!(metrics.count("a_total", &[("k", "z")]).to_string(), "0");
        assert!(metrics.get("a", &[]).is_err());
    }
}
