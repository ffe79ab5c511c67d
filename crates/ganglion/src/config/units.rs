//! Times and sizes as people write them: `250ms`, `16MiB`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::Expected;

/// A length of time, written `250ms`, `15s`, `2m`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span(pub(crate) Duration);

/// A number of bytes, written `4096`, `64KiB`, `16MiB`, `2GiB`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size(pub(crate) usize);

pub(super) const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)];

const SIZE_UNITS: [(&str, u64); 4] =
    [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];

pub(super) fn parse_units(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))?;
    number.trim().parse::<u64>().ok()?.checked_mul(unit)
}

fn show_units(value: u64, units: &[(&str, u64)]) -> String {
    let mut units = units.to_vec();
    units.sort_by_key(|(_, unit)| std::cmp::Reverse(*unit));
    let fits = |unit: u64| unit == 1 || (value != 0 && value.is_multiple_of(unit));
    units
        .into_iter()
        .find(|(_, unit)| fits(*unit))
        .map_or_else(|| value.to_string(), |(name, unit)| format!("{}{name}", value / unit))
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        let ms = parse_units(&text, &SPAN_UNITS).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not {}", Span::EXPECTED))
        })?;
        Ok(Span(Duration::from_millis(ms)))
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        serializer.serialize_str(&show_units(ms, &SPAN_UNITS))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text.parse().ok().or_else(|| parse_units(&text, &SIZE_UNITS));
        let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
            serde::de::Error::custom(format!("`{text}` is not {}", Size::EXPECTED))
        })?;
        Ok(Size(bytes))
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&show_units(self.0 as u64, &SIZE_UNITS))
    }
}
