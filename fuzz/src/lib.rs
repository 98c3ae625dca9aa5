//! What is fuzzed, and the laws that no input may break.
//!
//! The modules under test are private and pure, so they are compiled in here from their files: a fuzz build then needs a
//! handful of crates instead of all that the product is made of. That what they read is also what Go reads is tried in
//! the main package (`agreement.rs` there); here it is that nothing panics, hangs or depends on how the bytes arrive.
#![allow(dead_code, reason = "of each module only a part is fuzzed")]

mod edge;
mod model;
mod part;
mod plan;

use edge::relay::Bounds;
use part::proxy::framing::Framing;
use part::proxy::head::{Heads, parse_reply, reframed};
use plan::body;
use model::endpoint::OciRuntime;
use plan::call::{Call, classify};
use plan::replies;
use plan::runtime::Runtimes;

/// The first byte of an input says where the rest is cut in two.
fn cut(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (at, rest) = bytes.split_first()?;
    Some((rest, usize::from(*at).min(rest.len())))
}

/// Heads of requests: the same however they arrive, and the same call with another body.
pub fn requests(bytes: &[u8]) {
    let Some((bytes, at)) = cut(bytes) else { return };
    let whole = Heads::default().next(bytes, true);
    let mut heads = Heads::default();
    let early = heads.next(&bytes[..at], true);
    match early {
        None => assert_eq!(heads.next(bytes, true), whole),
        Some(_) => assert_eq!(early, whole),
    }
    let Some(Ok(request)) = whole else { return };
    let head = reframed(&bytes[..request.length], 7);
    let again = Heads::default().next(&head, true).expect("a whole head").expect("a head as good as the one before");
    assert_eq!((again.length, again.body), (head.len(), Framing::Length(7)));
    assert_eq!(again.classified, request.classified);
    assert!(!again.expects_continue);
}

/// Heads of replies.
pub fn replies(bytes: &[u8]) {
    let Some((bytes, at)) = cut(bytes) else { return };
    for to_head in [false, true] {
        let whole = parse_reply(bytes, to_head);
        let early = parse_reply(&bytes[..at], to_head);
        assert!(early.is_none() || early == whole);
        if let Some(Ok(reply)) = whole {
            let head = reframed(&bytes[..reply.length], 7);
            let again = parse_reply(&head, to_head).expect("a whole head").expect("a head as good as the one before");
            assert_eq!((again.length, again.status, again.is_json), (head.len(), reply.status, reply.is_json));
        }
    }
}

/// Framing: a body ends at the same byte and has the same content however it arrives.
pub fn chunks(bytes: &[u8]) {
    let Some((bytes, at)) = cut(bytes) else { return };
    for framing in [Framing::CHUNKED, Framing::Length(5), Framing::UntilClose] {
        let (mut whole, mut content) = (framing.clone(), Vec::new());
        let end = whole.scan(bytes, |part| content.extend_from_slice(part));
        let (mut parted, mut parts) = (framing.clone(), Vec::new());
        let mut found = parted.scan(&bytes[..at], |part| parts.extend_from_slice(part));
        if found == at {
            found += parted.scan(&bytes[at..], |part| parts.extend_from_slice(part));
        }
        assert_eq!((found, &parted, &parts), (end, &whole, &content));
        // As the relay does it: what need not be seen is skipped, and the rest comes byte by byte.
        let (mut skipped, mut at) = (framing, 0);
        while at < bytes.len() && !skipped.is_over() {
            let unseen = usize::try_from(skipped.unseen()).unwrap_or(usize::MAX).min(bytes.len() - at);
            skipped.skip(unseen as u64);
            at += unseen;
            if unseen == 0 {
                at += skipped.pass(&bytes[at..=at]);
            }
        }
        assert_eq!((at, skipped.is_over()), (end, whole.is_over()));
    }
}

/// Create bodies: what is edited is still a create with the same wish, without a network of Docker's; and edits of replies.
pub fn bodies(bytes: &[u8]) {
    let ours = OciRuntime { path: "/calico-runtime".to_owned(), args: Vec::new() };
    let known = Runtimes { default: "runc".to_owned(), known: [("calico".to_owned(), ours)].into() };
    for runtimes in [Runtimes::default(), known] {
        let read = |bytes: &[u8]| body::read_create(bytes, "name", &runtimes);
        let Ok(Some((ask, edited))) = read(bytes) else { continue };
        let (again, twice) = read(&edited).expect("no refusal").expect("a wish");
        assert_eq!(again.wish, ask.wish);
        assert_eq!((again.requested.network_mode.as_str(), again.requested.networks.len()), ("none", 0));
        let (last, _) = read(&twice).expect("no refusal").expect("a wish");
        assert_eq!(last, again);
    }
    let _ = (body::connected_container(bytes), replies::created_id(bytes));
    let _ = replies::with_warnings(bytes, &["a warning".to_owned()]);
    let shown = replies::Appearance {
        addresses: vec!["10.1.0.7".parse().expect("an address")],
        mac: None,
        ipv4_gateway: None,
        ipv6_gateway: None,
        requested: model::endpoint::Requested::default(),
        runtime: Some("gpu".to_owned()),
    };
    let inspected = [false, true].map(|top| replies::shown_in_inspect(bytes, top, |_| Some(shown.clone())));
    for edited in inspected.into_iter().chain([replies::shown_in_list(bytes, |_| Some(shown.clone()))])
    {
        if let Some(edited) = edited {
            assert!(plan::json::document(&edited).is_some());
        }
    }
}

/// Calls: the same in every form of one target. The first byte chooses the method.
pub fn calls(bytes: &[u8]) {
    let Some((first, target)) = bytes.split_first() else { return };
    let method = ["POST", "GET", "DELETE"][usize::from(*first) % 3];
    let found = classify(method, target);
    if found.call == Call::Pass || target.first() != Some(&b'/') {
        return;
    }
    for start in [b"http://localhost:2377".as_slice(), b"http:"] {
        assert_eq!(classify(method, &[start, target].concat()), found);
    }
    if found.version.is_none() {
        let versioned = classify(method, &[b"/v1.41", target].concat());
        assert_eq!((versioned.call, versioned.version.is_some()), (found.call.clone(), true));
    }
    let path = target.iter().position(|byte| *byte == b'?').unwrap_or(target.len());
    let escaped: String = target[..path]
        .iter()
        .map(|byte| {
            if byte.is_ascii_alphabetic() && !target.contains(&b'%') {
                format!("%{byte:02x}")
            } else {
                char::from(*byte).to_string()
            }
        })
        .collect();
    if target.is_ascii() {
        assert_eq!(classify(method, &[escaped.as_bytes(), &target[path..]].concat()).call, found.call);
    }
}
