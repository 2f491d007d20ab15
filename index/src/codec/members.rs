//! Decoding a run of deflate data that may go on through the ends of gzip members.

use super::{
    header::{Header, TRAILER},
    zlib::{Inflate, Status, Stop},
};

/// Fills `tar` from `compressed`, which begins with the `bits` high bits of its first byte (0: with
/// the whole byte) and refers back to `window`. Returns the number of bytes decoded: less than `tar`
/// holds when the data ends before or is corrupt.
pub(super) fn decode(
    inflate: &mut Inflate,
    compressed: &[u8],
    bits: u8,
    window: &[u8],
    tar: &mut [u8],
) -> usize {
    let mut input = inflate.resume(compressed, bits, window);
    let mut filled = 0;
    while filled < tar.len() {
        let step = inflate.run(input, &mut tar[filled..], Stop::Never);
        filled += step.produced;
        input = &input[step.consumed..];
        let moved = step.consumed > 0 || step.produced > 0;
        match step.status {
            Status::More | Status::Boundary { .. } if moved => {}
            Status::End => match next_member(input) {
                Some(rest) => {
                    input = rest;
                    inflate.reset();
                }
                None => break,
            },
            Status::More | Status::Boundary { .. } | Status::Corrupt => break,
        }
    }
    filled
}

/// Skips a member's trailer and the header of the next one.
fn next_member(input: &[u8]) -> Option<&[u8]> {
    let mut rest = input.get(TRAILER..)?;
    match Header::new().push(&mut rest) {
        Ok(true) => Some(rest),
        Ok(false) | Err(_) => None,
    }
}
