//! Points in time for people to read, always in UTC.

const US_PER_DAY: i64 = 86_400_000_000;

/// `2026-11-21 06:45:01.250` for microseconds since the Unix epoch.
pub(crate) fn date_and_time(us: i64) -> String {
    let (year, month, day) = date(us.div_euclid(US_PER_DAY));
    format!("{year:04}-{month:02}-{day:02} {}", time_of_day(us))
}

/// `06:45:01.250` for microseconds since the Unix epoch.
fn time_of_day(us: i64) -> String {
    let ms = us.rem_euclid(US_PER_DAY) / 1000;
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{ms:03}")
}

/// The civil date of a number of days since 1970-01-01, in the proleptic Gregorian calendar.
///
/// Counts in years that begin on 1 March, so that the leap day is a year's last, and in eras of 400
/// years, which all have the same number of days.
fn date(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    let since_march_0 = days + 719_468; // 0000-03-01
    let era = since_march_0.div_euclid(DAYS_PER_ERA);
    let day_of_era = since_march_0.rem_euclid(DAYS_PER_ERA);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / (DAYS_PER_ERA - 1);
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_days_have_their_dates() {
        let cases = [
            (0, (1970, 1, 1)),
            (-1, (1969, 12, 31)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_778, (2026, 11, 21)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ];
        for (days, expected) in cases {
            assert_eq!(date(days), expected, "day {days}");
        }
    }

    #[test]
    fn times_are_shown_to_the_millisecond() {
        let us = 20_778 * US_PER_DAY + (6 * 3600 + 45 * 60 + 1) * 1_000_000 + 250_999;
        assert_eq!(date_and_time(us), "2026-11-21 06:45:01.250");
    }
}
