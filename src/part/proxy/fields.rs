//! The fields of a head, looked up by name.

use httparse::Header;

/// The values of all headers of a name, trimmed.
pub(crate) fn header_values<'a>(headers: &'a [Header<'_>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value.trim_ascii())
}

pub(crate) fn has_token(headers: &[Header<'_>], name: &str, token: &str) -> bool {
    header_values(headers, name).any(|value| {
        value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    })
}
