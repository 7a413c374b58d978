//! CRC-64/XZ, the checksum of the object store, and the combination of the checksums of parts.
//!
//! `crc_fast` computes the checksums. Its own combination squares 64 by 64 matrices, which takes too long for
//! a file of many parts. Here a combination is one multiplication of polynomials.

use crc_fast::CrcAlgorithm;

/// The polynomial of CRC-64/XZ (ECMA-182), with the lowest power in the highest bit.
const POLYNOMIAL: u64 = 0xC96C_5795_D787_0F42;
/// x^0.
const ONE: u64 = 1 << 63;
/// x^8: the factor of one more byte.
const BYTE: u64 = ONE >> 8;

/// A running CRC-64/XZ.
pub fn digest() -> crc_fast::Digest {
    crc_fast::Digest::new(CrcAlgorithm::Crc64Xz)
}

/// The checksum of two adjacent ranges, from their checksums and the length of the second.
pub fn combine(first: u64, second: u64, second_bytes: u64) -> u64 {
    times(first, power(BYTE, second_bytes)) ^ second
}

/// The product of two polynomials modulo [`POLYNOMIAL`].
fn times(a: u64, mut b: u64) -> u64 {
    let mut product = 0;
    for power in 0..64 {
        // Without branches: the bits of a checksum are unpredictable.
        product ^= b & ((a << power) >> 63).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
    }
    product
}

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut product = ONE;
    while exponent > 0 {
        if exponent & 1 == 1 {
            product = times(product, base);
        }
        base = times(base, base);
        exponent >>= 1;
    }
    product
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(bytes: &[u8]) -> u64 {
        let mut digest = digest();
        digest.update(bytes);
        digest.finalize()
    }

    #[test]
    fn checksum_equals_that_of_the_store() {
        assert_eq!(sum(b"123456789"), 11_051_210_869_376_104_954);
    }

    #[test]
    fn combination_with_nothing_changes_nothing() {
        assert_eq!(combine(sum(b""), sum(b"abc"), 3), sum(b"abc"));
        assert_eq!(combine(sum(b"abc"), sum(b""), 0), sum(b"abc"));
    }

    proptest! {
        #[test]
        fn combined_parts_have_the_checksum_of_the_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..4096), at in any::<prop::sample::Index>()
        ) {
            let (first, second) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(combine(sum(first), sum(second), second.len() as u64), sum(&bytes));
        }

        #[test]
        fn long_ranges_agree_with_the_library(first: u64, second: u64, bytes in 0_u64..1 << 45) {
            let theirs = crc_fast::checksum_combine(CrcAlgorithm::Crc64Xz, first, second, bytes);
            prop_assert_eq!(combine(first, second, bytes), theirs);
        }
    }
}
