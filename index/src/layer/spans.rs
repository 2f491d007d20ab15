//! Spans between their struct and their record.

use crate::{
    codec::{Span, SpanCoding, SpanSource},
    format::SpanRecord,
};

/// The record of a span.
pub(crate) fn span_record(span: &Span) -> SpanRecord {
    SpanRecord {
        tar_offset: span.tar_offset.into(),
        offset: span.offset.into(),
        window_offset: span.window_offset.into(),
        tar_len: span.tar_len.into(),
        len: span.len.into(),
        window_len: span.window_len.into(),
        source: span.source.code(),
        coding: span.coding.code(),
        reserved: 0.into(),
        digest: span.digest,
    }
}

/// The span of a record; `None` where a code is unknown.
pub(super) fn span(record: &SpanRecord) -> Option<Span> {
    Some(Span {
        tar_offset: record.tar_offset.get(),
        tar_len: record.tar_len.get(),
        source: SpanSource::from_code(record.source)?,
        offset: record.offset.get(),
        len: record.len.get(),
        coding: SpanCoding::from_code(record.coding)?,
        window_offset: record.window_offset.get(),
        window_len: record.window_len.get(),
        digest: record.digest,
    })
}
