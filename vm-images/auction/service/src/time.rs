//! Points in time: agreed times as they come in, `timestamptz` values as they are stored, and the
//! text that pages show. There is no "now" in here.

use std::error::Error;
use std::fmt;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{accepts, to_sql_checked, FromSql, IsNull, ToSql, Type};

const US_PER_SECOND: i64 = 1_000_000;
const US_PER_DAY: i64 = 86_400 * US_PER_SECOND;
/// 2000-01-01, where PostgreSQL counts from, in µs since 1970-01-01.
const POSTGRESQL_EPOCH_US: i64 = 10_957 * US_PER_DAY;

/// A point in time: microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// 9999-01-01T00:00:00Z: years have four digits here.
    pub const MAX: Self = Self(253_370_764_800 * US_PER_SECOND);

    /// The moment so many microseconds after 1970-01-01T00:00:00Z; `None` before that or after
    /// [`Moment::MAX`].
    #[must_use]
    pub fn from_us(us: i64) -> Option<Self> {
        (0..=Self::MAX.0).contains(&us).then_some(Self(us))
    }

    /// So many days later, at most [`Moment::MAX`].
    #[must_use]
    pub fn plus_days(self, days: i64) -> Self {
        self.plus_us(days.saturating_mul(US_PER_DAY))
    }

    /// So many microseconds later (or earlier, if negative), within [`Moment::EPOCH`] and
    /// [`Moment::MAX`].
    #[must_use]
    pub fn plus_us(self, us: i64) -> Self {
        Self(self.0.saturating_add(us).clamp(0, Self::MAX.0))
    }
}

/// `2024-05-06 07:08:09`, in UTC. With `{:#}` also the microseconds and the zone, as PostgreSQL reads
/// and writes it.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_date(self.0.div_euclid(US_PER_DAY));
        let second = self.0.rem_euclid(US_PER_DAY) / US_PER_SECOND;
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"
        )?;
        if f.alternate() {
            write!(f, ".{:06}+00", self.0.rem_euclid(US_PER_SECOND))?;
        }
        Ok(())
    }
}

/// Year, month and day of a number of days since 1970-01-01 in the Gregorian calendar.
///
/// Counts years from March, so that the leap day is the last of its year.
fn civil_date(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_400_YEARS: i64 = 146_097;
    // 0000-03-01 lies 719,468 days before 1970-01-01.
    let days = days + 719_468;
    let era = days.div_euclid(DAYS_PER_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_PER_400_YEARS);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

impl ToSql for Moment {
    fn to_sql(
        &self,
        _type: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(self.0 - POSTGRESQL_EPOCH_US);
        Ok(IsNull::No)
    }

    accepts!(TIMESTAMPTZ);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for Moment {
    fn from_sql(_type: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let us = i64::from_be_bytes(raw.try_into()?).saturating_add(POSTGRESQL_EPOCH_US);
        Self::from_us(us).ok_or_else(|| "a time outside the years 1970 to 9998".into())
    }

    accepts!(TIMESTAMPTZ);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_in_the_gregorian_calendar() {
        let text = |seconds: i64| Moment(seconds * US_PER_SECOND).to_string();
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(text(951_868_799), "2000-02-29 23:59:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00");
        assert_eq!(text(1_735_689_600), "2025-01-01 00:00:00");
        assert_eq!(Moment::MAX.to_string(), "9999-01-01 00:00:00");
    }

    #[test]
    fn the_alternate_form_has_microseconds_and_the_zone() {
        assert_eq!(format!("{:#}", Moment(7)), "1970-01-01 00:00:00.000007+00");
    }

    #[test]
    fn moments_out_of_range_are_refused() {
        assert_eq!(Moment::from_us(-1), None);
        assert_eq!(Moment::from_us(i64::MAX), None);
        assert_eq!(Moment::MAX.plus_days(1), Moment::MAX);
    }
}
