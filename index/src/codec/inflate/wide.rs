//! Loads, stores and copies of a fixed number of bytes.
//!
//! The inner loop checks once a turn that all it may touch is there; checking each access again would
//! cost 5 % of the speed of decoding (measured on a Debian layer).

/// The eight bytes at `at`, lowest first; `None` where there are fewer.
pub(super) fn load(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

/// As [`load`], of bytes that are there.
///
/// # Safety
/// `at + 8` is at most `bytes.len()`.
#[inline(always)]
pub(super) unsafe fn load_within(bytes: &[u8], at: usize) -> u64 {
    debug_assert!(at + 8 <= bytes.len());
    // SAFETY: the eight bytes are within the slice, says the caller.
    u64::from_le_bytes(unsafe { bytes.as_ptr().add(at).cast::<[u8; 8]>().read_unaligned() })
}

/// Writes a byte.
///
/// # Safety
/// `at` is below `bytes.len()`.
#[inline(always)]
pub(super) unsafe fn store_within(bytes: &mut [u8], at: usize, byte: u8) {
    debug_assert!(at < bytes.len());
    // SAFETY: the byte is within the slice, says the caller.
    unsafe { *bytes.get_unchecked_mut(at) = byte };
}

/// Copies `N` bytes from `from` to `to`, as if through a register.
///
/// # Safety
/// `from + N` and `to + N` are at most `bytes.len()`.
#[inline(always)]
pub(super) unsafe fn copy_within<const N: usize>(bytes: &mut [u8], from: usize, to: usize) {
    debug_assert!(from.max(to) + N <= bytes.len());
    let start = bytes.as_mut_ptr();
    // SAFETY: both ranges are within the slice, says the caller; all of the first is read before the
    // second is written, so they may overlap.
    unsafe {
        let chunk = start.add(from).cast::<[u8; N]>().read_unaligned();
        start.add(to).cast::<[u8; N]>().write_unaligned(chunk);
    }
}
