use super::*;

/// INIT as Linux 6.18 sends it.
fn linux_6_18() -> InitRequest {
    InitRequest {
        unique: 2,
        major: 7,
        minor: 45,
        max_readahead: 128 << 10,
        flags: 0x07ff_73ff_fffb,
    }
}

#[test]
fn request_bytes() {
    let bytes = linux_6_18().encode();
    assert_eq!(bytes.len(), 104);
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    assert_eq!((word(0), word(4)), (104, 26));
    assert_eq!([word(40), word(44), word(48)], [7, 45, 128 << 10]);
    assert_eq!([word(52), word(56)], [0x73ff_fffb, 0x7ff]);
    assert_eq!(InitRequest::parse(&bytes), Ok(linux_6_18()));
}

#[test]
fn old_kernels_send_less() {
    let request = InitRequest { minor: 31, flags: 0x3ff_fffb, ..linux_6_18() };
    assert_eq!(InitRequest::parse(&request.encode()[..56]), Ok(request));
}

#[test]
fn upper_flags_count_only_when_announced() {
    let mut bytes = linux_6_18().encode();
    let low = 0x73ff_fffb_u32 & !(flags::INIT_EXT as u32);
    bytes[52..56].copy_from_slice(&low.to_ne_bytes());
    assert_eq!(InitRequest::parse(&bytes).map(|r| r.flags), Ok(u64::from(low)));
}

#[test]
fn bad_requests_are_refused() {
    let bytes = linux_6_18().encode();
    for len in 0..60 {
        let result = InitRequest::parse(&bytes[..len]);
        assert!(matches!(result, Err(InitError::Short { found, .. }) if found == len), "{len}");
    }
    let mut lookup = bytes;
    lookup[4..8].copy_from_slice(&1u32.to_ne_bytes());
    assert_eq!(InitRequest::parse(&lookup), Err(InitError::NotInit { found: 1 }));
}

#[test]
fn reply_takes_what_is_wanted_and_offered() {
    let reply = InitReply::negotiate(&linux_6_18()).expect("new enough");
    assert_eq!(reply.minor, 40);
    assert_eq!(reply.max_readahead, 128 << 10);
    assert_eq!(reply.flags, WANTED & linux_6_18().flags);
    for flag in [flags::ALLOW_IDMAP, flags::HAS_RESEND, flags::INIT_EXT, flags::CACHE_SYMLINKS] {
        assert_eq!(reply.flags & flag, flag);
    }

    let old = InitRequest { minor: 31, flags: 0x3ff_fffb, ..linux_6_18() };
    let reply = InitReply::negotiate(&old).expect("new enough");
    assert_eq!((reply.minor, reply.flags & !old.flags), (31, 0));
}

#[test]
fn reply_bytes() {
    let reply = InitReply::negotiate(&linux_6_18()).expect("new enough");
    let bytes = reply.encode(0x1122);
    assert_eq!(bytes.len(), 80);
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let half = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("2 bytes"));
    assert_eq!([word(0), word(4), word(8), word(12)], [80, 0, 0x1122, 0]);
    assert_eq!([word(16), word(20), word(24)], [7, 40, 128 << 10]);
    assert_eq!([word(28), word(48)], [reply.flags as u32, (reply.flags >> 32) as u32]);
    assert_eq!([half(32), half(34), half(44)], [64, 48, 256]);
    assert_eq!([word(36), word(40)], [4096, 1]);
    assert!(bytes[52..].iter().all(|&b| b == 0));
}

#[test]
fn versions_that_do_not_fit() {
    let with = |major, minor| InitReply::negotiate(&InitRequest { major, minor, ..linux_6_18() });
    assert_eq!(with(7, 28), Err(InitError::TooOld { major: 7, minor: 28 }));
    assert_eq!(with(6, 99), Err(InitError::TooOld { major: 6, minor: 99 }));
    assert_eq!(with(8, 0), Err(InitError::TooNew { major: 8 }));
    let bytes = InitReply::version_only(5);
    assert_eq!(bytes[16..20], 7u32.to_ne_bytes());
    assert!(bytes[24..].iter().all(|&b| b == 0));
}

fn handshake() -> Handshake {
    let request = InitRequest { unique: 0, ..linux_6_18() };
    Handshake { request, reply: InitReply::negotiate(&request).expect("new enough") }
}

#[test]
fn handshake_as_text() {
    let text = handshake().to_string();
    assert!(text.is_ascii() && text.len() < 120, "{text}");
    assert_eq!(text.parse(), Ok(handshake()));
    assert!(handshake().can_resend());
}

#[test]
fn bad_text_is_refused() {
    let good = handshake().to_string();
    let table = [
        (String::new(), "unknown version"),
        (good.replacen("v1", "v2", 1), "unknown version"),
        (format!("{good}.0"), "wrong number of fields"),
        (good[..good.len() - 4].to_owned(), "wrong number of fields"),
        (good.replacen("2d", "-2d", 1), "field is no hexadecimal number"),
        (good.replacen("2d", "", 1), "field is no hexadecimal number"),
        (good.replacen("2d", "2d2d2d2d2", 1), "field is too large"),
        (good.replacen("2d", "1e", 1), "impossible version"),
        (good.replacen("7ff73fffffb", "0", 1), "features that were not offered"),
    ];
    for (text, expected) in table {
        match text.parse::<Handshake>() {
            Err(InitError::Text { reason, .. }) => assert_eq!(reason, expected, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn synthetic_request_offers_what_was_agreed() {
    let request = handshake().synthetic_request();
    assert_eq!(request.flags, handshake().reply.flags);
    assert_eq!((request.major, request.minor), (7, 40));
    assert_eq!(request.max_readahead, handshake().reply.max_readahead);
}
