//! Files mapped into memory.

use std::{fs::File, ops::Deref, ptr};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// The first bytes of a file, mapped.
pub(crate) struct Mapped {
    start: *mut libc::c_void,
    len: usize,
}

impl Mapped {
    /// Read-only, the pages being those of the page cache.
    pub(crate) fn shared(file: &File, len: usize) -> Self {
        Self::new(file, len, ProtFlags::READ, MapFlags::SHARED).expect("it can be mapped")
    }

    /// Writable, written pages being the process's own.
    pub(crate) fn private(file: &File, len: usize) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        Self::new(file, len, protection, MapFlags::PRIVATE).expect("it can be mapped")
    }

    pub(crate) fn new(
        file: &File,
        len: usize,
        protection: ProtFlags,
        flags: MapFlags,
    ) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping where the kernel likes it replaces no other.
        let start = unsafe { mmap(ptr::null_mut(), len, protection, flags, file, 0) }?;
        Ok(Self { start, len })
    }

    /// Which pages are in memory, whether this process has touched them or not.
    pub(crate) fn resident(&self) -> Vec<bool> {
        let mut pages = vec![0u8; self.len.div_ceil(4096)];
        // SAFETY: the mapping is ours, and there is room for one byte a page.
        let result = unsafe { libc::mincore(self.start, self.len, pages.as_mut_ptr()) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        pages.iter().map(|page| page & 1 == 1).collect()
    }

    /// Changes a byte of a private mapping.
    pub(crate) fn put(&mut self, at: usize, byte: u8) {
        assert!(at < self.len);
        // SAFETY: it is inside the mapping, which `private` made writable and nobody else sees.
        unsafe { self.start.cast::<u8>().add(at).write(byte) };
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is ours and readable, and a file of an image never changes.
        unsafe { std::slice::from_raw_parts(self.start.cast(), self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nothing borrows from it any more. It can only fail for a wrong address.
        let _ = unsafe { munmap(self.start, self.len) };
    }
}
