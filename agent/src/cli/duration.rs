//! Durations as people write them.

use std::time::Duration;

/// Reads `500ms`, `2s`, `1m`, `1h`, or a plain number of seconds.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    const FORMS: &str = "expected a duration such as 500ms, 2s, 1m or 1h";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| FORMS.to_owned())?;
    let millis_each = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(FORMS.to_owned()),
    };
    number.checked_mul(millis_each).map(Duration::from_millis).ok_or_else(|| FORMS.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_people_write_them() {
        let cases = [
            ("2s", Some(2_000)),
            ("2", Some(2_000)),
            ("0", Some(0)),
            ("500ms", Some(500)),
            ("1m", Some(60_000)),
            ("1h", Some(3_600_000)),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1d", None),
            ("99999999999999999999", None),
            ("18446744073709551615h", None),
        ];
        for (text, millis) in cases {
            assert_eq!(parse(text).ok(), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
