//! JSON by spans: where the members of an object lie in some bytes, read by the rules of Go's `encoding/json`.
//!
//! dockerd decides what a body means, and it reads with Go: keys match in any case and with Unicode's simple folding,
//! duplicates are allowed, bytes after the first document and invalid UTF-8 are tolerated. A parse into a tree and back
//! would lose what we do not know (key order, spelling of numbers, duplicates), so nothing is parsed into a tree: bytes
//! are scanned, and edits are spliced into the original.
//!
//! Limits: nesting as deep as Go reads, [`DEEPEST`]; the scan keeps its own stack, so depth costs one byte a level.

use std::collections::BTreeSet;
use std::ops::Range;

/// How deep values may nest. Source: Go `encoding/json` `maxNestingDepth`.
const DEEPEST: usize = 10_000;

/// Where something lies in the bytes.
pub(crate) type Span = Range<usize>;

/// One member of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Decoded: escapes resolved, invalid UTF-8 replaced.
    pub(crate) key: String,
    /// Where its key begins, with the quotation mark.
    pub(crate) start: usize,
    pub(crate) value: Span,
}

impl Member {
    /// Whether Go would store this member in a struct field of that name.
    pub(crate) fn is(&self, field: &str) -> bool {
        is_same_key(&self.key, field)
    }
}

/// A piece of text that takes the place of a span.
pub(crate) type Edit = (Span, Vec<u8>);

/// Whether Go matches a key with a field name: equal, or equal under Unicode simple folding, which for ASCII names adds
/// to the letters' cases only the Kelvin sign (k) and the long s (s).
pub(crate) fn is_same_key(key: &str, field: &str) -> bool {
    let fold = |c: char| match c {
        '\u{212a}' => 'k',
        '\u{17f}' => 's',
        c => c.to_ascii_lowercase(),
    };
    key.chars().map(fold).eq(field.chars().map(fold))
}

/// The span of the first document. `None` if it is not whole or not JSON: Go then refuses it too.
pub(crate) fn document(bytes: &[u8]) -> Option<Span> {
    let start = skip_space(bytes, 0);
    Some(start..skip_value(bytes, start)?)
}

/// The members of the object at a span of [`document`]; `None` if what lies there is no object.
pub(crate) fn members(bytes: &[u8], span: &Span) -> Option<Vec<Member>> {
    let mut found = Vec::new();
    if bytes.get(span.start) != Some(&b'{') {
        return None;
    }
    let mut at = skip_space(bytes, span.start + 1);
    while bytes.get(at)? != &b'}' {
        let key = at..skip_string(bytes, at)?;
        at = skip_space(bytes, key.end);
        // The colon.
        let start = skip_space(bytes, at + 1);
        let value = start..skip_value(bytes, start)?;
        at = skip_separator(bytes, value.end);
        found.push(Member { key: string(bytes, &key)?, start: key.start, value });
    }
    Some(found)
}

/// The keys that stand more than once in one object, anywhere in what lies at a span of [`document`].
pub(crate) fn repeated(bytes: &[u8], span: &Span) -> BTreeSet<String> {
    let (mut once, mut again) = (BTreeSet::new(), BTreeSet::new());
    for member in members(bytes, span).unwrap_or_default() {
        again.extend(repeated(bytes, &member.value));
        if !once.insert(member.key.clone()) {
            again.insert(member.key);
        }
    }
    again.extend(elements(bytes, span).unwrap_or_default().iter().flat_map(|one| repeated(bytes, one)));
    again
}

/// The elements of the array at a span of [`document`]; `None` if what lies there is no array.
pub(crate) fn elements(bytes: &[u8], span: &Span) -> Option<Vec<Span>> {
    let mut found = Vec::new();
    if bytes.get(span.start) != Some(&b'[') {
        return None;
    }
    let mut at = skip_space(bytes, span.start + 1);
    while bytes.get(at)? != &b']' {
        let end = skip_value(bytes, at)?;
        found.push(at..end);
        at = skip_separator(bytes, end);
    }
    Some(found)
}

pub(crate) fn is_null(bytes: &[u8], span: &Span) -> bool {
    bytes.get(span.clone()) == Some(b"null")
}

pub(crate) fn is_true(bytes: &[u8], span: &Span) -> bool {
    bytes.get(span.clone()) == Some(b"true")
}

/// The text of the string at a span; `None` if what lies there is no string.
pub(crate) fn string(bytes: &[u8], span: &Span) -> Option<String> {
    let inner = bytes.get(span.clone())?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !inner.contains(&b'\\') {
        return Some(readable(inner));
    }
    let mut text = Vec::with_capacity(inner.len());
    let mut at = 0;
    while let Some(byte) = inner.get(at) {
        if *byte != b'\\' {
            text.push(*byte);
            at += 1;
            continue;
        }
        let plain = match inner.get(at + 1)? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let (c, end) = unicode_escape(inner, at)?;
                text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                at = end;
                continue;
            }
            other => *other,
        };
        text.push(plain);
        at += 2;
    }
    Some(readable(&text))
}

/// Bytes as a text in which, as in Go, U+FFFD stands for each byte that is no UTF-8.
pub(super) fn readable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// The character of a `\uXXXX` at `at` (or of two that are a surrogate pair) and where it ends. A surrogate alone is
/// U+FFFD, as in Go.
fn unicode_escape(inner: &[u8], at: usize) -> Option<(char, usize)> {
    let unit = |at: usize| -> Option<u32> {
        if inner.get(at..at + 2)? != b"\\u" {
            return None;
        }
        inner.get(at + 2..at + 6)?.iter().try_fold(0, |sum, digit| Some(sum * 16 + char::from(*digit).to_digit(16)?))
    };
    let first = unit(at)?;
    if (0xd800..0xdc00).contains(&first)
        && let Some(second @ 0xdc00..0xe000) = unit(at + 6)
        && let Some(c) = char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))
    {
        return Some((c, at + 12));
    }
    Some((char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER), at + 6))
}

/// The edit that gives an object of dockerd's own writing, where names are exact and come once, a member: its value is
/// replaced, or the member is put at the end.
pub(crate) fn set_member(bytes: &[u8], object: &Span, members: &[Member], field: &str, value: Vec<u8>) -> Edit {
    match members.iter().rev().find(|member| member.key == field) {
        Some(member) => (member.value.clone(), value),
        None => append_member(bytes, object, members.is_empty(), field, &value),
    }
}

/// The edit that puts a member at the end of an object, where Go reads it last.
pub(crate) fn append_member(bytes: &[u8], object: &Span, is_empty: bool, field: &str, value: &[u8]) -> Edit {
    let end = object.end - 1;
    // After the last value rather than before the brace: the space between them stays where it was.
    let at = bytes[..end].iter().rposition(|byte| !is_space(*byte)).map_or(end, |last| last + 1);
    let mut text = if is_empty { Vec::new() } else { vec![b','] };
    text.extend_from_slice(&quote(field));
    text.push(b':');
    text.extend_from_slice(value);
    (at..at, text)
}

/// Carries out edits that do not overlap, in any order.
pub(crate) fn splice(bytes: &[u8], mut edits: Vec<Edit>) -> Vec<u8> {
    edits.sort_by_key(|(span, _)| (span.start, span.end));
    let mut text = Vec::with_capacity(bytes.len() + edits.iter().map(|(_, new)| new.len()).sum::<usize>());
    let mut from = 0;
    for (span, new) in &edits {
        text.extend_from_slice(&bytes[from..span.start]);
        text.extend_from_slice(new);
        from = span.end;
    }
    text.extend_from_slice(&bytes[from..]);
    text
}

/// A text as a JSON string.
pub(crate) fn quote(text: &str) -> Vec<u8> {
    serde_json::Value::from(text).to_string().into_bytes()
}

/// A list of texts as a JSON array.
pub(crate) fn quote_all(texts: &[String]) -> Vec<u8> {
    serde_json::Value::from(texts.to_vec()).to_string().into_bytes()
}

pub(super) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn skip_space(bytes: &[u8], mut at: usize) -> usize {
    while bytes.get(at).copied().is_some_and(is_space) {
        at += 1;
    }
    at
}

/// Past a comma with the space on both sides of it, or to the closing bracket.
fn skip_separator(bytes: &[u8], at: usize) -> usize {
    let at = skip_space(bytes, at);
    if bytes.get(at) == Some(&b',') { skip_space(bytes, at + 1) } else { at }
}

/// Past the string that begins at `at`.
fn skip_string(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at)? != &b'"' {
        return None;
    }
    let mut at = at + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => match bytes.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
                _ => return None,
            },
            0..0x20 => return None,
            _ => at += 1,
        }
    }
}

/// Past the number that begins at `at`.
fn skip_number(bytes: &[u8], mut at: usize) -> Option<usize> {
    let digits = |mut at: usize| {
        let start = at;
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        (at > start).then_some(at)
    };
    if bytes.get(at) == Some(&b'-') {
        at += 1;
    }
    at = if bytes.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    if bytes.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if matches!(bytes.get(at), Some(b'e' | b'E')) {
        at += 1;
        if matches!(bytes.get(at), Some(b'+' | b'-')) {
            at += 1;
        }
        at = digits(at)?;
    }
    Some(at)
}

/// Past the value that begins at `at`, every bracket in it checked.
fn skip_value(bytes: &[u8], mut at: usize) -> Option<usize> {
    // The closing brackets that are due, innermost last.
    let mut open: Vec<u8> = Vec::new();
    loop {
        // A value begins here.
        let rest = bytes.get(at..)?;
        match rest.first()? {
            b'{' | b'[' => {
                let close = if rest.first() == Some(&b'{') { b'}' } else { b']' };
                if open.len() >= DEEPEST {
                    return None;
                }
                at = skip_space(bytes, at + 1);
                if bytes.get(at)? == &close {
                    at += 1;
                } else {
                    open.push(close);
                    if close == b'}' {
                        at = skip_key(bytes, at)?;
                    }
                    continue;
                }
            }
            b'"' => at = skip_string(bytes, at)?,
            b'-' | b'0'..=b'9' => at = skip_number(bytes, at)?,
            _ if rest.starts_with(b"true") || rest.starts_with(b"null") => at += 4,
            _ if rest.starts_with(b"false") => at += 5,
            _ => return None,
        }
        // A value has ended: close what ends with it, then go on to the next value.
        loop {
            let Some(close) = open.last() else { return Some(at) };
            at = skip_space(bytes, at);
            match bytes.get(at)? {
                b',' if close == &b'}' => {
                    at = skip_key(bytes, skip_space(bytes, at + 1))?;
                    break;
                }
                b',' => {
                    at = skip_space(bytes, at + 1);
                    break;
                }
                byte if byte == close => {
                    open.pop();
                    at += 1;
                }
                _ => return None,
            }
        }
    }
}

/// Past a key and its colon, to where the value begins.
fn skip_key(bytes: &[u8], at: usize) -> Option<usize> {
    let at = skip_space(bytes, skip_string(bytes, at)?);
    if bytes.get(at)? != &b':' {
        return None;
    }
    Some(skip_space(bytes, at + 1))
}

#[cfg(test)]
mod tests;
