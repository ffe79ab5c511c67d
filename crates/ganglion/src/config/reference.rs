//! What is told of keys: the reference, the explanation of one, and the nearest to one that is none.

use anyhow::{Result, bail};
use toml::{Table, Value};

use super::keys::{Config, KEYS, SECTIONS};
use super::variable_of;

/// The reference: every key with its default and what it means, itself a legal configuration.
pub(crate) fn reference() -> Result<String> {
    let defaults = Table::try_from(Config::default())?;
    let mut out = String::from(
        "# Every key of Ganglion's configuration with its default, made by `ganglion config\n\
         # reference`. A variable such as GANGLION_STATS__FLUSH=1s overrides a key.\n",
    );
    for (section, section_doc) in SECTIONS {
        out.push('\n');
        push_comment(&mut out, section_doc);
        out.push_str(&format!("[{section}]\n"));
        for key in KEYS.iter().filter(|key| key.section == *section) {
            push_comment(&mut out, key.doc);
            let value = &defaults[*section][key.name];
            out.push_str(&format!("{} = {value}\n", key.name));
        }
    }
    Ok(out)
}

/// What one key means, its default, and its value in a configuration; or the keys of a section.
pub(crate) fn explain(config: &Config, name: &str) -> Result<String> {
    if let Some((section, doc)) = SECTIONS.iter().find(|(section, _)| *section == name) {
        let values = Table::try_from(config)?;
        let mut out = format!("{section}\n  {}\n", doc.trim());
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let value = shown(key.name, &values[*section][key.name]);
            out.push_str(&format!("{section}.{} = {value}\n", key.name));
        }
        return Ok(out);
    }
    let key = KEYS.iter().find(|key| format!("{}.{}", key.section, key.name) == name);
    let Some(key) = key else { bail!("{}", unknown(name)) };
    let of = |config: &Config| -> Result<String> {
        Ok(shown(key.name, &Table::try_from(config)?[key.section][key.name]))
    };
    let variable = variable_of(key.section, key.name);
    Ok(format!(
        "{name}\n{}default: {}\nhere:    {}\nvariable: {variable}\n",
        key.doc.lines().map(|line| format!("  {}\n", line.trim())).collect::<String>(),
        of(&Config::default())?,
        of(config)?,
    ))
}

/// A value as it is told; a secret stays one.
pub(super) fn shown(name: &str, value: &Value) -> String {
    if name == "sys_secret" && value.as_str() != Some("") {
        return "(not shown)".to_owned();
    }
    value.to_string()
}

fn push_comment(out: &mut String, doc: &str) {
    for line in doc.lines() {
        out.push_str(&format!("# {}\n", line.trim()));
    }
}

pub(super) fn unknown(name: &str) -> String {
    let keys = KEYS.iter().map(|key| format!("{}.{}", key.section, key.name));
    let known = keys.chain(SECTIONS.iter().map(|(section, _)| (*section).to_owned()));
    match known.min_by_key(|known| distance(known, name)) {
        Some(nearest) => {
            format!("there is no configuration key `{name}`; the nearest is `{nearest}`")
        }
        None => format!("there is no configuration key `{name}`"),
    }
}

/// Edits between two names (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::super::refuse_unknown;
    use super::*;

    #[test]
    fn the_reference_is_a_configuration_and_says_the_defaults() -> Result<()> {
        let table = reference()?.parse::<Table>()?;
        refuse_unknown(&table)?;
        let parsed = Config::deserialize(Value::Table(table))?;
        assert_eq!(Table::try_from(parsed)?, Table::try_from(Config::default())?);
        Ok(())
    }

    #[test]
    fn a_section_is_explained_by_its_keys() -> Result<()> {
        for (section, _) in SECTIONS {
            let explained = explain(&Config::default(), section)?;
            for key in KEYS.iter().filter(|key| key.section == *section) {
                assert!(explained.contains(&format!("{section}.{} = ", key.name)), "{explained}");
            }
        }
        let mut config = Config::default();
        config.neuron.sys_secret = "hidden".to_owned();
        for name in ["neuron", "neuron.sys_secret"] {
            assert!(!explain(&config, name)?.contains("hidden"), "{name}");
        }
        Ok(())
    }
}
