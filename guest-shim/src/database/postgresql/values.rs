//! Values between PostgreSQL's binary format and the canonical form of updates. Pure.

use bytes::{BufMut, BytesMut};
use spare_protocol::update::Value;
use tokio_postgres::types::{to_sql_checked, FromSql, IsNull, ToSql, Type};

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const EPOCH_DAYS: i32 = 10_957;

/// The types of columns that have a canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`
    Numeric,
    /// `text`, `varchar`, `char(n)`
    Text,
    /// `bytea`
    Bytea,
    /// `timestamp`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `uuid`
    Uuid,
}

/// A value that has no canonical form, or bytes that are not of the column's type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    #[error("{bytes} bytes where the type has {wanted}")]
    Length { bytes: usize, wanted: usize },
    #[error("a text that is not UTF-8")]
    NotUtf8,
    #[error("a value of another type than {0:?}")]
    OtherType(Kind),
    #[error("{0} does not fit its column")]
    TooWide(i64),
    #[error("a point in time that PostgreSQL does not have")]
    UnknownTime,
    #[error("a date that has no canonical form")]
    AfterAllDates,
    #[error("a date that PostgreSQL does not have")]
    UnknownDate,
    #[error("a decimal number without its head")]
    DecimalHead,
    #[error("a decimal number with an unknown sign")]
    DecimalSign,
    #[error("a malformed decimal number")]
    Decimal,
}

impl Kind {
    /// The kind of a column of the type with that OID; `None` if it has no canonical form.
    #[must_use]
    pub(super) fn from_oid(oid: u32) -> Option<Kind> {
        Some(match Type::from_oid(oid)? {
            Type::BOOL => Kind::Bool,
            Type::INT2 => Kind::Int2,
            Type::INT4 => Kind::Int4,
            Type::INT8 => Kind::Int8,
            Type::FLOAT4 => Kind::Float4,
            Type::FLOAT8 => Kind::Float8,
            Type::NUMERIC => Kind::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR => Kind::Text,
            Type::BYTEA => Kind::Bytea,
            Type::TIMESTAMP => Kind::Timestamp,
            Type::TIMESTAMPTZ => Kind::TimestampTz,
            Type::DATE => Kind::Date,
            Type::TIME => Kind::Time,
            Type::UUID => Kind::Uuid,
            _ => return None,
        })
    }

    /// The type in which values travel to the database. Decimal numbers travel as text, which the
    /// statement casts.
    fn wire_type(self) -> Type {
        match self {
            Kind::Bool => Type::BOOL,
            Kind::Int2 => Type::INT2,
            Kind::Int4 => Type::INT4,
            Kind::Int8 => Type::INT8,
            Kind::Float4 => Type::FLOAT4,
            Kind::Float8 => Type::FLOAT8,
            Kind::Numeric | Kind::Text => Type::TEXT,
            Kind::Bytea => Type::BYTEA,
            Kind::Timestamp => Type::TIMESTAMP,
            Kind::TimestampTz => Type::TIMESTAMPTZ,
            Kind::Date => Type::DATE,
            Kind::Time => Type::TIME,
            Kind::Uuid => Type::UUID,
        }
    }

    /// The SQL name of the type in which values travel to the database.
    #[must_use]
    pub(super) fn wire_type_name(self) -> String {
        self.wire_type().name().to_owned()
    }

    /// The canonical form of a value in PostgreSQL's binary format.
    ///
    /// # Errors
    /// When the bytes are not of this kind, or the value has no canonical form.
    pub(super) fn decode(self, bytes: &[u8]) -> Result<Value, ValueError> {
        Ok(match self {
            Kind::Bool => Value::Bool(array::<1>(bytes)? != [0]),
            Kind::Int2 => Value::Int(i16::from_be_bytes(array(bytes)?).into()),
            Kind::Int4 => Value::Int(i32::from_be_bytes(array(bytes)?).into()),
            Kind::Int8 => Value::Int(i64::from_be_bytes(array(bytes)?)),
            Kind::Float4 => float(f32::from_be_bytes(array(bytes)?).into()),
            Kind::Float8 => float(f64::from_be_bytes(array(bytes)?)),
            Kind::Numeric => Value::Decimal(decimal(bytes)?),
            Kind::Text => match std::str::from_utf8(bytes) {
                Ok(text) => Value::Text(text.to_owned()),
                Err(_) => return Err(ValueError::NotUtf8),
            },
            Kind::Bytea => Value::Bytes(bytes.to_vec()),
            Kind::Timestamp | Kind::TimestampTz => timestamp(i64::from_be_bytes(array(bytes)?)),
            Kind::Date => Value::Date(date(i32::from_be_bytes(array(bytes)?))?),
            Kind::Time => Value::Time(i64::from_be_bytes(array(bytes)?)),
            Kind::Uuid => Value::Uuid(array(bytes)?),
        })
    }

    /// Appends a value in PostgreSQL's binary format of [`Kind::wire_type_name`].
    ///
    /// # Errors
    /// When the value is not of this kind. NULL is none of any kind.
    pub(super) fn encode(self, value: &Value, out: &mut BytesMut) -> Result<(), ValueError> {
        match (self, value) {
            (Kind::Bool, Value::Bool(v)) => out.put_u8((*v).into()),
            (Kind::Int2, Value::Int(v)) => out.put_i16(narrow(*v)?),
            (Kind::Int4, Value::Int(v)) => out.put_i32(narrow(*v)?),
            (Kind::Int8, Value::Int(v)) => out.put_i64(*v),
            // Exact: the value came from an `f32`; another's agreed value was one, too.
            (Kind::Float4, Value::Float(v)) => out.put_f32(f64::from_bits(*v) as f32),
            (Kind::Float8, Value::Float(v)) => out.put_u64(*v),
            (Kind::Numeric, Value::Decimal(v)) | (Kind::Text, Value::Text(v)) => {
                out.put_slice(v.as_bytes());
            }
            (Kind::Bytea, Value::Bytes(v)) => out.put_slice(v),
            (Kind::Timestamp | Kind::TimestampTz, Value::Timestamp(_) | Value::FarTimestamp(_)) => {
                out.put_i64(pg_timestamp(value)?)
            }
            (Kind::Date, Value::Date(v)) => out.put_i32(pg_date(*v)?),
            (Kind::Time, Value::Time(v)) => out.put_i64(*v),
            (Kind::Uuid, Value::Uuid(v)) => out.put_slice(v),
            _ => return Err(ValueError::OtherType(self)),
        }
        Ok(())
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], ValueError> {
    bytes.try_into().map_err(|_| ValueError::Length {
        bytes: bytes.len(),
        wanted: N,
    })
}

fn narrow<T: TryFrom<i64>>(value: i64) -> Result<T, ValueError> {
    T::try_from(value).map_err(|_| ValueError::TooWide(value))
}

fn float(value: f64) -> Value {
    let canonical = if value.is_nan() { f64::NAN } else { value };
    Value::Float(canonical.to_bits())
}

/// Infinite points in time keep PostgreSQL's extreme values.
fn timestamp(pg: i64) -> Value {
    match pg {
        i64::MIN | i64::MAX => Value::Timestamp(pg),
        finite => Value::timestamp_since_2000(finite),
    }
}

fn pg_timestamp(value: &Value) -> Result<i64, ValueError> {
    if let Value::Timestamp(infinite @ (i64::MIN | i64::MAX)) = value {
        return Ok(*infinite);
    }
    match value.us_since_2000() {
        Some(pg) if pg != i64::MIN && pg != i64::MAX => Ok(pg),
        _ => Err(ValueError::UnknownTime),
    }
}

/// Infinite dates keep PostgreSQL's extreme values.
fn date(pg: i32) -> Result<i32, ValueError> {
    if pg == i32::MAX || pg == i32::MIN {
        return Ok(pg);
    }
    match pg.checked_add(EPOCH_DAYS) {
        Some(days) if days != i32::MAX => Ok(days),
        _ => Err(ValueError::AfterAllDates),
    }
}

fn pg_date(days: i32) -> Result<i32, ValueError> {
    if days == i32::MAX || days == i32::MIN {
        return Ok(days);
    }
    match days.checked_sub(EPOCH_DAYS) {
        Some(pg) if pg != i32::MIN => Ok(pg),
        _ => Err(ValueError::UnknownDate),
    }
}

/// The text of a `numeric`: sign, digits, and as many decimal places as its scale says.
///
/// The binary format: number of digits, weight of the first, sign, scale, then digits to base 10000.
fn decimal(bytes: &[u8]) -> Result<String, ValueError> {
    let Some((head, digits)) = bytes.split_at_checked(8) else {
        return Err(ValueError::DecimalHead);
    };
    let field = |i: usize| i16::from_be_bytes([head[i], head[i + 1]]);
    let (weight, sign, scale) = (i32::from(field(2)), field(4) as u16, field(6));
    match sign {
        0x0000 | 0x4000 => {}
        0xC000 => return Ok("NaN".into()),
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => return Err(ValueError::DecimalSign),
    }
    let digits: Vec<u16> = digits
        .chunks_exact(2)
        .map(|d| u16::from_be_bytes([d[0], d[1]]))
        .collect();
    if usize::from(field(0) as u16) != digits.len() || scale < 0 || digits.iter().any(|d| *d > 9999)
    {
        return Err(ValueError::Decimal);
    }
    // The digit that stands for 10000^power.
    let digit = |power: i32| {
        let index = usize::try_from(weight - power).ok();
        index.and_then(|i| digits.get(i)).copied().unwrap_or(0)
    };
    let mut text: String = (0..=weight.max(0))
        .rev()
        .map(|p| format!("{:04}", digit(p)))
        .collect();
    let zeros = text.len() - text.trim_start_matches('0').len();
    text.drain(..zeros.min(text.len() - 1));
    if scale > 0 {
        let places = usize::from(scale.unsigned_abs());
        let groups = i32::try_from(places.div_ceil(4)).unwrap_or(i32::MAX);
        let fraction: String = (1..=groups).map(|p| format!("{:04}", digit(-p))).collect();
        text.push('.');
        text.push_str(&fraction[..places]);
    }
    if sign == 0x4000 {
        text.insert(0, '-');
    }
    Ok(text)
}

/// One column of many rows, as an SQL array.
#[derive(Debug)]
pub(super) struct ColumnArray<'a> {
    pub(super) kind: Kind,
    /// One of each row, NULL too.
    pub(super) values: Vec<&'a Value>,
}

impl ToSql for ColumnArray<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        let nulls = self.values.iter().any(|v| **v == Value::Null);
        out.put_i32(i32::from(!self.values.is_empty())); // dimensions
        out.put_i32(nulls.into());
        out.put_u32(self.kind.wire_type().oid());
        if self.values.is_empty() {
            return Ok(IsNull::No);
        }
        out.put_i32(i32::try_from(self.values.len())?);
        out.put_i32(1); // the lowest index
        for value in &self.values {
            if **value == Value::Null {
                out.put_i32(-1);
                continue;
            }
            let at = out.len();
            out.put_i32(0);
            self.kind.encode(value, out)?;
            let bytes = i32::try_from(out.len() - at - 4)?;
            out[at..at + 4].copy_from_slice(&bytes.to_be_bytes());
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A value of a query's result in its canonical form.
#[derive(Debug)]
pub(super) struct Canonical(pub(super) Value);

impl<'a> FromSql<'a> for Canonical {
    fn from_sql(
        ty: &Type,
        bytes: &'a [u8],
    ) -> Result<Canonical, Box<dyn std::error::Error + Sync + Send>> {
        let kind = Kind::from_oid(ty.oid()).ok_or("a column of a type without a canonical form")?;
        Ok(Canonical(kind.decode(bytes)?))
    }

    fn from_sql_null(_: &Type) -> Result<Canonical, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Canonical(Value::Null))
    }

    fn accepts(ty: &Type) -> bool {
        Kind::from_oid(ty.oid()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numeric(weight: i16, sign: u16, scale: i16, digits: &[u16]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        bytes.put_i16(digits.len() as i16);
        bytes.put_i16(weight);
        bytes.put_u16(sign);
        bytes.put_i16(scale);
        digits.iter().for_each(|d| bytes.put_u16(*d));
        bytes.to_vec()
    }

    #[test]
    fn decimals_keep_their_scale() {
        for (weight, sign, scale, digits, text) in [
            (0, 0, 2, &[12, 5000][..], "12.50"),
            (0, 0, 0, &[][..], "0"),
            (0, 0, 3, &[][..], "0.000"),
            (-1, 0x4000, 2, &[5000][..], "-0.50"),
            (-2, 0, 6, &[100][..], "0.000001"),
            (1, 0, 0, &[1][..], "10000"),
            (1, 0, 5, &[1, 2, 3, 4000][..], "10002.00034"),
            (0, 0xC000, 0, &[][..], "NaN"),
        ] {
            let bytes = numeric(weight, sign, scale, digits);
            assert_eq!(
                Kind::Numeric.decode(&bytes),
                Ok(Value::Decimal(text.into()))
            );
        }
    }

    #[test]
    fn times_count_from_1970_and_infinity_stays() {
        let bytes = 0i64.to_be_bytes();
        let value = Kind::Timestamp.decode(&bytes);
        assert_eq!(value, Ok(Value::Timestamp(946_684_800_000_000)));
        assert_eq!(
            Kind::Date.decode(&0i32.to_be_bytes()),
            Ok(Value::Date(10_957))
        );
        let infinity = Kind::TimestampTz.decode(&i64::MAX.to_be_bytes());
        assert_eq!(infinity, Ok(Value::Timestamp(i64::MAX)));
        // 294276-12-31 23:59:59.999999, the last point in time that PostgreSQL has.
        let last = 9_223_371_331_199_999_999i64;
        let value = Kind::Timestamp.decode(&last.to_be_bytes());
        assert_eq!(value, Ok(Value::FarTimestamp(last)));
    }

    #[test]
    fn every_nan_has_one_form() {
        let odd = f64::from_bits(0xFFF8_0000_0000_0001);
        let value = Kind::Float8.decode(&odd.to_be_bytes());
        assert_eq!(value, Ok(Value::Float(f64::NAN.to_bits())));
    }

    const KINDS: [Kind; 13] = [
        Kind::Bool,
        Kind::Int2,
        Kind::Int4,
        Kind::Int8,
        Kind::Float4,
        Kind::Float8,
        Kind::Text,
        Kind::Bytea,
        Kind::Timestamp,
        Kind::TimestampTz,
        Kind::Date,
        Kind::Time,
        Kind::Uuid,
    ];

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_values_come_back(
            kind in prop::sample::select(&KINDS[..]),
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..24),
                any::<[u8; 4]>().prop_map(Vec::from),
                any::<[u8; 8]>().prop_map(Vec::from),
            ],
        ) {
            let _ = Kind::Numeric.decode(&bytes);
            if let Ok(value) = kind.decode(&bytes) {
                let mut out = BytesMut::new();
                kind.encode(&value, &mut out).expect("a value of its kind");
                prop_assert_eq!(kind.decode(&out), Ok(value));
            }
        }
    }
}
