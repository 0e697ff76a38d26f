//! Stored passwords: 16 bytes of salt and the BLAKE3 hash of salt and password.
//!
//! Fast on purpose: on an emulated processor a page must not cost a deliberately slow hash, and this
//! is a demo whose passwords are public. A service with real users would use Argon2.

const SALT_BYTES: usize = 16;

/// What is stored for `password`, with a salt derived from `seed`.
#[must_use]
pub fn store(seed: &[u8; 32], password: &str) -> Vec<u8> {
    let salt = &blake3::derive_key("spare-auction password salt", seed)[..SALT_BYTES];
    let mut stored = salt.to_vec();
    stored.extend_from_slice(hash(salt, password).as_bytes());
    stored
}

/// Whether `password` is the one that was stored.
#[must_use]
pub fn matches(stored: &[u8], password: &str) -> bool {
    let Some((salt, expected)) = stored.split_at_checked(SALT_BYTES) else {
        return false;
    };
    // Comparing `blake3::Hash` values takes the same time wherever they differ.
    blake3::Hash::from_slice(expected).is_ok_and(|expected| hash(salt, password) == expected)
}

fn hash(salt: &[u8], password: &str) -> blake3::Hash {
    blake3::Hasher::new()
        .update(salt)
        .update(password.as_bytes())
        .finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_stored_password_matches() {
        let stored = store(&[7; 32], "password1");
        assert_eq!(stored.len(), SALT_BYTES + 32);
        assert!(matches(&stored, "password1"));
        assert!(!matches(&stored, "password2"));
        assert!(!matches(&stored[..20], "password1"));
        assert!(!matches(&[], ""));
    }

    #[test]
    fn equal_passwords_with_other_seeds_are_stored_differently() {
        assert_ne!(store(&[1; 32], "p"), store(&[2; 32], "p"));
    }
}
