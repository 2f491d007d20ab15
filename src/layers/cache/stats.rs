//! What the cache counts.

/// Counters of the cache since the start, and what it holds now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// Bound of `bytes`.
    pub capacity: u64,
    /// Bytes held now: decoded, compressed of spans that are suspended, decoders, spare buffers.
    pub bytes: u64,
    /// Spans held now.
    pub spans: u64,
    /// Requests for a span answered from what was decoded.
    pub hits: u64,
    /// Requests that began a span.
    pub misses: u64,
    /// Requests that went on with a span that was decoded in part.
    pub continued: u64,
    /// Requests that waited for another's decode.
    pub waits: u64,
    /// Decodes that failed.
    pub failures: u64,
    /// Spans decoded ahead of any request, wholly or in part.
    pub ahead_started: u64,
    /// Of these, spans that were then asked for.
    pub ahead_used: u64,
    /// Of these, spans dropped before anybody asked.
    pub ahead_wasted: u64,
    /// Times that a layer came into use.
    pub starts: u64,
    /// Of the spans decoded ahead, those that were read when a layer last came into use.
    pub start_spans: u64,
    /// Compressed bytes read and verified.
    pub compressed_bytes: u64,
    /// Bytes decoded.
    pub inflated_bytes: u64,
    /// Bytes of spans given to readers.
    pub served_bytes: u64,
    /// Spans dropped to make room.
    pub evictions: u64,
}
