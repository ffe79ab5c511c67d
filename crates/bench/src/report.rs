//! What is printed: one line for each figure, with its rivals and its limit.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

/// What is measured, and how it is printed: of every benchmark.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Shown {
    /// One JSON object a line in place of a table.
    #[arg(long)]
    json: bool,
    /// Only the case of this name, or cases whose name holds this.
    #[arg(long)]
    case: Option<String>,
}

impl Shown {
    pub(crate) fn report(&self) -> Report {
        Report { json: self.json }
    }

    /// The cases that are asked for; all when none is.
    pub(crate) fn chosen<'a, T: Copy>(&self, cases: &[(&'a str, T)]) -> Result<Vec<(&'a str, T)>> {
        chosen(cases, self.case.as_deref())
    }
}

/// Prints figures as they are found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    json: bool,
}

/// Which way a figure is good.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Better {
    More,
    Less,
}

/// One figure of all who were measured, one value a round.
#[derive(Debug)]
pub(crate) struct Figure<'a> {
    pub(crate) case: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) better: Better,
    pub(crate) ours: Vec<f64>,
    pub(crate) rivals: Vec<(&'static str, Vec<f64>)>,
    pub(crate) limit: Option<Vec<f64>>,
    /// Further members of the line.
    pub(crate) extra: Map<String, Value>,
}

impl Report {
    #[expect(clippy::print_stdout, reason = "to print is what it is for")]
    pub(crate) fn figure(self, figure: Figure<'_>) {
        let ours = median(&figure.ours);
        let limit = figure.limit.as_deref().map(median);
        let rivals: BTreeMap<_, _> =
            figure.rivals.iter().map(|(name, values)| (*name, median(values))).collect();
        let times = |other: f64| match figure.better {
            Better::More => ours / other,
            Better::Less => other / ours,
        };
        let mut ratio: Map<String, Value> = rivals
            .iter()
            .map(|(name, value)| ((*name).to_owned(), number(times(*value))))
            .collect();
        if let Some(limit) = limit {
            ratio.insert("limit".to_owned(), number(times(limit)));
        }
        let spread = spread(&figure.ours);
        if self.json {
            let rivals: Map<String, Value> =
                rivals.iter().map(|(name, value)| ((*name).to_owned(), number(*value))).collect();
            let mut line = json!({
                "case": figure.case, "metric": figure.metric, "ours": number(ours),
                "rivals": rivals, "limit": limit.map(number), "ratio": ratio,
                "spread": number(spread),
            });
            if let Value::Object(line) = &mut line {
                line.extend(figure.extra);
            }
            println!("{line}");
            return;
        }
        let mut text = format!("{:24} {:38} ours {:>10}", figure.case, figure.metric, short(ours));
        for (name, value) in &rivals {
            text += &format!("  {name} {:>9} ({}x)", short(*value), short(times(*value)));
        }
        if let Some(limit) = limit {
            text += &format!("  limit {:>9} ({})", short(limit), short(times(limit)));
        }
        text += &format!("  spread {}", short(spread));
        if !figure.extra.is_empty() {
            text += &format!("  {}", Value::Object(figure.extra));
        }
        println!("{text}");
    }

    /// Says that something could not be measured, and why.
    #[expect(clippy::print_stdout, reason = "to print is what it is for")]
    pub(crate) fn missing(self, case: &str, what: &str) {
        if self.json {
            println!("{}", json!({ "case": case, "missing": what }));
        } else {
            println!("{case:24} MISSING {what}");
        }
    }
}

/// The cases that `wanted` names: the one of that very name, else those whose names hold it.
fn chosen<'a, T: Copy>(cases: &[(&'a str, T)], wanted: Option<&str>) -> Result<Vec<(&'a str, T)>> {
    let wanted = wanted.unwrap_or("");
    let is_name = cases.iter().any(|(name, _)| *name == wanted);
    let is_wanted = |name: &str| name == wanted || !is_name && name.contains(wanted);
    let chosen: Vec<_> = cases.iter().filter(|(name, _)| is_wanted(name)).copied().collect();
    ensure!(!chosen.is_empty(), "no case is named like `{wanted}`");
    Ok(chosen)
}

/// The middle value; of an even number the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// (max - min) / median.
fn spread(values: &[f64]) -> f64 {
    let max = values.iter().copied().fold(f64::MIN, f64::max);
    let min = values.iter().copied().fold(f64::MAX, f64::min);
    (max - min) / median(values)
}

/// Four significant digits: more are noise.
pub(crate) fn number(value: f64) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    let rounded: f64 = format!("{value:.3e}").parse().unwrap_or(value);
    if rounded.fract() == 0.0 && rounded.abs() < 1e15 {
        return json!(rounded as i64);
    }
    json!(rounded)
}

fn short(value: f64) -> String {
    number(value).to_string()
}
