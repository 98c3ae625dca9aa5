//! The fields of a head, looked up by name.

use httparse::Header;

/// See the module.
///
/// A head is asked for several names and mostly has none of them. How long its own names are is seen once, so that such a
/// question costs next to nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'h> {
    headers: &'h [Header<'h>],
    /// A bit for each length that a name of theirs has.
    lengths: u64,
}

/// The bit of a name's length; the long ones share the last.
fn bit(name: &str) -> u64 {
    1 << name.len().min(63)
}

impl<'h> Fields<'h> {
    pub(crate) fn of(headers: &'h [Header<'h>]) -> Self {
        Fields { headers, lengths: headers.iter().fold(0, |lengths, header| lengths | bit(header.name)) }
    }

    /// Whether there may be a field of a name. If not, there is none.
    fn may_have(&self, name: &str) -> bool {
        self.lengths & bit(name) != 0
    }

    /// The values of all fields of a name, trimmed.
    pub(crate) fn values(&self, name: &'static str) -> impl Iterator<Item = &'h [u8]> {
        let headers = if self.may_have(name) { self.headers } else { &[] };
        headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
            .map(|header| header.value.trim_ascii())
    }

    /// Whether a word is in the list that the fields of a name make together.
    pub(crate) fn has_token(&self, name: &'static str, token: &str) -> bool {
        let is_token = |word: &[u8]| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes());
        self.may_have(name) && self.values(name).any(|value| value.split(|byte| *byte == b',').any(is_token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_whatever_the_length_of_its_name() {
        let long = "x".repeat(70);
        for name in ["a", "content-length", &long] {
            let headers = [Header { name, value: b" a, B " }, Header { name: "other", value: b"" }];
            let fields = Fields::of(&headers);
            let name: &'static str = Box::leak(name.to_ascii_uppercase().into_boxed_str());
            assert_eq!(fields.values(name).collect::<Vec<_>>(), [b"a, B"]);
            assert!(fields.has_token(name, "b") && !fields.has_token(name, "c"));
            assert!(!fields.has_token("absent", "b") && fields.values("absent").next().is_none());
        }
    }
}
