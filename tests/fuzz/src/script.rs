//! Makes a sequence out of arbitrary bytes, where a decoder reads one. Lengths, checksums and numbers
//! that arbitrary bytes would never get right are put in, so that what is behind them is reached.

/// The parts of a script: each begins with a byte of flags and two of length (little-endian); the last
/// one may be shorter than it says.
pub fn parts(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[flags, low, high], rest) = bytes.split_first_chunk::<3>()?;
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (part, rest) = rest.split_at(length);
        bytes = rest;
        Some((flags, part))
    })
}

/// The script of these parts. A part of more than 65535 bytes is cut.
#[must_use]
pub fn script(parts: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (flags, part) in parts {
        let length = u16::try_from(part.len()).unwrap_or(u16::MAX);
        bytes.push(*flags);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&part[..usize::from(length)]);
    }
    bytes
}

/// A file of records as the ordered log and the record of pages have it: `head`, then each part with
/// its length and checksum.
#[must_use]
pub fn records<'a>(head: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut file = head.to_vec();
    for part in parts {
        let length = u32::try_from(part.len()).unwrap_or(u32::MAX);
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(&crc32fast::hash(part).to_le_bytes());
        file.extend_from_slice(part);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_has_the_parts_it_was_made_of() {
        let made = [(7, vec![1, 2]), (0, vec![]), (1, vec![3])];
        let bytes = script(&made);
        let read: Vec<(u8, Vec<u8>)> = parts(&bytes).map(|(f, p)| (f, p.to_vec())).collect();
        assert_eq!(read, made);
        assert_eq!(parts(&bytes[..bytes.len() - 1]).last(), Some((1, &[][..])));
    }
}
