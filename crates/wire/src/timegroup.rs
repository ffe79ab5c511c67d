//! Time groups: `yyyy:M:d:H:m:s` cut at any level, unpadded, UTC, both ends inclusive
//! (`spec/xirsys.md` §1.5, §2 rows 8 and 9).

use std::fmt;

use thiserror::Error;

const MICROS_PER_SECOND: u64 = 1_000_000;
const SECONDS_PER_DAY: u64 = 86_400;
/// Years that fit every clock and table here.
const YEARS: std::ops::RangeInclusive<u32> = 1970..=9999;
const NAMES: [&str; 6] = ["year", "month", "day", "hour", "minute", "second"];

/// A span of time: a year, a month, … or a second.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TimeGroup {
    /// Year, month, day, hour, minute, second; what lies below `depth` is the least value.
    parts: [u32; 6],
    depth: usize,
}

/// Why a text is not a time group.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error(
    "`{text}` is not a time group: {part} is missing, not a number, or out of range; write yyyy:M:d:H:m"
)]
pub struct TimeGroupError {
    text: String,
    part: &'static str,
}

impl TimeGroup {
    /// # Errors
    /// Names the first part that is wrong.
    pub fn parse(text: &str) -> Result<TimeGroup, TimeGroupError> {
        let mut group = TimeGroup { parts: [1970, 1, 1, 0, 0, 0], depth: 0 };
        for (at, part) in text.split(':').enumerate() {
            let wrong = |part| TimeGroupError { text: text.chars().take(40).collect(), part };
            let name = *NAMES.get(at).ok_or_else(|| wrong("a seventh part"))?;
            if part.is_empty() || part.len() > 4 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(wrong(name));
            }
            let value: u32 = part.parse().map_err(|_| wrong(name))?;
            let range = match at {
                0 => YEARS,
                1 => 1..=12,
                2 => 1..=days_in_month(group.parts[0], group.parts[1]),
                3 => 0..=23,
                _ => 0..=59,
            };
            if !range.contains(&value) {
                return Err(wrong(name));
            }
            group.parts[at] = value;
            group.depth = at + 1;
        }
        Ok(group)
    }

    /// The group of `depth` parts (1 is a year, 5 a minute) that holds a moment.
    pub fn at(unix_s: u64, depth: usize) -> TimeGroup {
        let (year, month, day) = civil_of_days(unix_s / SECONDS_PER_DAY);
        let second_of_day = u32::try_from(unix_s % SECONDS_PER_DAY).unwrap_or(0);
        let all =
            [year, month, day, second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60];
        let mut parts = [1970, 1, 1, 0, 0, 0];
        let depth = depth.clamp(1, 6);
        parts[..depth].copy_from_slice(&all[..depth]);
        TimeGroup { parts, depth }
    }

    /// Number of parts: 1 is a year, 5 a minute.
    pub fn depth(self) -> usize {
        self.depth
    }

    /// The first second of the span.
    pub fn first_s(self) -> u64 {
        let [year, month, day, hour, minute, second] = self.parts;
        days_of_civil(year, month, day) * SECONDS_PER_DAY
            + u64::from(hour) * 3600
            + u64::from(minute) * 60
            + u64::from(second)
    }

    /// The last second of the span.
    pub fn last_s(self) -> u64 {
        let [year, month, day, ..] = self.parts;
        match self.depth {
            1 => days_of_civil(year + 1, 1, 1) * SECONDS_PER_DAY - 1,
            2 if month == 12 => days_of_civil(year + 1, 1, 1) * SECONDS_PER_DAY - 1,
            2 => days_of_civil(year, month + 1, 1) * SECONDS_PER_DAY - 1,
            3 => (days_of_civil(year, month, day) + 1) * SECONDS_PER_DAY - 1,
            4 => self.first_s() + 3599,
            5 => self.first_s() + 59,
            _ => self.first_s(),
        }
    }

    /// The first µs of the span.
    pub fn first_micros(self) -> u64 {
        self.first_s() * MICROS_PER_SECOND
    }

    /// The last µs of the span.
    pub fn last_micros(self) -> u64 {
        self.last_s() * MICROS_PER_SECOND + (MICROS_PER_SECOND - 1)
    }
}

impl fmt::Display for TimeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, part) in self.parts[..self.depth].iter().enumerate() {
            if at > 0 {
                f.write_str(":")?;
            }
            write!(f, "{part}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TimeGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar, by counting years from
/// March, so that the leap day is a year's last.
fn days_of_civil(year: u32, month: u32, day: u32) -> u64 {
    let year = u64::from(if month <= 2 { year - 1 } else { year });
    let month_from_march = u64::from((month + 9) % 12);
    let day_of_year = (153 * month_from_march + 2) / 5 + u64::from(day) - 1;
    year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468
}

fn civil_of_days(days: u64) -> (u32, u32, u32) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    (narrow(year), narrow(month), narrow(day))
}
