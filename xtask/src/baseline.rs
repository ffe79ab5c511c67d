//! Figures of a benchmark beside those of an earlier run: lines as `bench --json` prints them.

use anyhow::{Context, Result};
use serde::Deserialize;

/// What is read of a line; one that says why something is missing has no figure.
#[derive(Deserialize)]
struct Line {
    case: Option<String>,
    metric: Option<String>,
    ours: Option<f64>,
    spread: Option<f64>,
}

/// A table of our figures: earlier, later, later / earlier, and how far the later rounds lay apart.
///
/// # Errors
/// Says which line is not JSON.
pub(crate) fn compare(earlier: &str, later: &str) -> Result<String> {
    let (earlier, later) = (figures(earlier)?, figures(later)?);
    let mut table = String::new();
    for (name, figure, spread) in &later {
        let before = earlier.iter().find(|(known, ..)| known == name);
        let (before, ratio) = match before {
            Some((_, before, _)) => (format!("{before}"), format!("{:.3}", figure / before)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        table += &format!("{name:64} {before:>12} {figure:>12} {ratio:>8}  spread {spread}\n");
    }
    for (name, figure, _) in &earlier {
        if !later.iter().any(|(known, ..)| known == name) {
            table += &format!("{name:64} {figure:>12} {:>12} {:>8}\n", "-", "-");
        }
    }
    Ok(table)
}

fn figures(lines: &str) -> Result<Vec<(String, f64, f64)>> {
    let mut figures = Vec::new();
    for text in lines.lines().filter(|text| !text.is_empty()) {
        let line: Line =
            serde_json::from_str(text).with_context(|| format!("not a figure: {text}"))?;
        if let (Some(case), Some(metric), Some(ours)) = (line.case, line.metric, line.ours) {
            figures.push((format!("{case}: {metric}"), ours, line.spread.unwrap_or(0.0)));
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_stands_beside_the_one_of_its_case_and_metric() -> Result<()> {
        let earlier = r#"{"tree":"abc"}
            {"case":"get","metric":"a second","ours":200,"spread":0.1}
            {"case":"put","metric":"a second","ours":10}"#;
        let later = r#"{"case":"get","metric":"a second","ours":250,"spread":0.2}
            {"case":"get","missing":"etcd"}
            {"case":"range","metric":"a second","ours":3}"#;
        let table = compare(earlier, later)?;
        let words: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words[0], ["get:", "a", "second", "200", "250", "1.250", "spread", "0.2"]);
        assert_eq!(words[1], ["range:", "a", "second", "-", "3", "-", "spread", "0"]);
        assert_eq!(words[2], ["put:", "a", "second", "10", "-", "-"]);
        assert!(compare("no figure", later).is_err());
        Ok(())
    }
}
