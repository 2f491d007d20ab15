//! What several of these tests need.

pub(crate) mod allocator;
pub(crate) mod headers;
