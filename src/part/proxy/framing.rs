//! Framing: where the body of a message ends, found without changing a byte of it.
//!
//! Read as Go's `net/http` reads it, 1.19 as well as later ones. Where these refuse what an older one takes (a chunk without
//! a size, bare line feeds) or what we do not count (the length of a chunk's line), dockerd answers 400 and closes, so that
//! nothing can follow; that a body ends for us where it goes on for dockerd, and lets a call slip by unseen, cannot be.

use crate::edge::relay::Bounds;

/// How the end of a body is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Framing {
    /// That many bytes are still to come; 0 is the end of the body.
    Length(u64),
    Chunked(Chunk),
    /// The body ends with the connection.
    UntilClose,
    /// The bytes broke the rules: where the body ends is not known.
    Malformed,
}

/// Where in a chunked body we are (RFC 9112, 7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// In the size, after so many digits.
    Size {
        value: u64,
        digits: u8,
    },
    /// After the size; only white space may follow, up to the line's end.
    Padding {
        value: u64,
    },
    Extension {
        value: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// At the start of a trailer's line.
    Trailer,
    TrailerLine,
    /// After a CR at the start of a trailer's line.
    LastLf,
    Done,
}

impl Framing {
    pub(crate) const NONE: Framing = Framing::Length(0);
    pub(crate) const CHUNKED: Framing = Framing::Chunked(Chunk::Size { value: 0, digits: 0 });

    pub(crate) fn is_done(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunk::Done))
    }

    /// Follows the body through some bytes and hands out its content. Answers how many of them belong to the body.
    pub(crate) fn scan(&mut self, bytes: &[u8], mut content: impl FnMut(&[u8])) -> usize {
        match self {
            Framing::UntilClose => {
                content(bytes);
                bytes.len()
            }
            Framing::Malformed => 0,
            Framing::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                content(&bytes[..count]);
                *left -= count as u64;
                count
            }
            Framing::Chunked(chunk) => {
                let mut at = 0;
                while at < bytes.len() && *chunk != Chunk::Done {
                    if let Chunk::Data { left } = chunk {
                        let count = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                        content(&bytes[at..at + count]);
                        at += count;
                        *left -= count as u64;
                        if *left == 0 {
                            *chunk = Chunk::DataCr;
                        }
                        continue;
                    }
                    if let Some(next) = chunk.after(bytes[at]) {
                        *chunk = next;
                    } else {
                        *self = Framing::Malformed;
                        return at;
                    }
                    at += 1;
                }
                at
            }
        }
    }
}

impl Bounds for Framing {
    fn pass(&mut self, bytes: &[u8]) -> usize {
        self.scan(bytes, |_| {})
    }

    fn unseen(&self) -> u64 {
        match self {
            Framing::Length(left) | Framing::Chunked(Chunk::Data { left }) => *left,
            Framing::Chunked(_) | Framing::Malformed => 0,
            Framing::UntilClose => u64::MAX,
        }
    }

    fn skip(&mut self, count: u64) {
        match self {
            Framing::Length(left) => *left -= count,
            Framing::Chunked(chunk @ Chunk::Data { .. }) => {
                if let Chunk::Data { left } = chunk {
                    *left -= count;
                    if *left == 0 {
                        *chunk = Chunk::DataCr;
                    }
                }
            }
            Framing::Chunked(_) | Framing::Malformed | Framing::UntilClose => {}
        }
    }

    fn is_over(&self) -> bool {
        self.is_done() || *self == Framing::Malformed
    }
}

impl Chunk {
    /// The state after one byte outside the data; `None` if the byte must not be there.
    fn after(self, byte: u8) -> Option<Chunk> {
        let sized = |value| if value == 0 { Chunk::Trailer } else { Chunk::Data { left: value } };
        Some(match (self, byte) {
            // Go: at most 16 digits, and none are a 0 (net/http/internal/chunked.go, parseHexUint).
            (Chunk::Size { value, digits: digits @ 0..16 }, byte) if byte.is_ascii_hexdigit() => {
                Chunk::Size { value: value << 4 | u64::from(char::from(byte).to_digit(16)?), digits: digits + 1 }
            }
            (Chunk::Size { value, .. } | Chunk::Padding { value } | Chunk::Extension { value }, b'\n') => sized(value),
            (Chunk::Size { value, .. } | Chunk::Padding { value }, b' ' | b'\t' | b'\r') => Chunk::Padding { value },
            (Chunk::Size { value, .. }, b';') => Chunk::Extension { value },
            (Chunk::Extension { .. }, _) => self,
            (Chunk::DataCr, b'\r') => Chunk::DataLf,
            (Chunk::DataLf, b'\n') => Chunk::Size { value: 0, digits: 0 },
            // A trailer ends at its first blank line (net/textproto, ReadMIMEHeader).
            (Chunk::Trailer | Chunk::LastLf, b'\n') => Chunk::Done,
            (Chunk::Trailer, b'\r') => Chunk::LastLf,
            (Chunk::TrailerLine, b'\n') => Chunk::Trailer,
            (Chunk::Trailer | Chunk::LastLf | Chunk::TrailerLine, _) => Chunk::TrailerLine,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content and the rest after the body, with the bytes given in two parts.
    fn read(framing: &Framing, bytes: &[u8], split: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let (mut framing, mut body, mut content) = (framing.clone(), 0, Vec::new());
        for part in [&bytes[..split], &bytes[split..]] {
            if body == split || part.len() == split {
                body += framing.scan(part, |bytes| content.extend_from_slice(bytes));
            }
        }
        framing.is_done().then(|| (content, bytes[body..].to_vec()))
    }

    #[test]
    fn a_chunked_body_ends_at_the_same_byte_however_it_arrives() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5;a=b;c\r\nhel\n\r\r\n0\r\n\r\n",
            "05 \t\r\nhello\r\n000\r\nA: b\r\nC: d\r\n\r\n",
            "5\nhello\r\n0\n\r\n",
            "A\r\n0123456789\r\na\r\n0123456789\r\n0;x\r\n\r\n",
            "\r\n\r\n",
            "5\r\nhello\r\n;x\r\n\r\n",
            "0\r\n\n",
            "0\r\nA: b\n\r: c\r\n \r\n\n",
        ] {
            let bytes = format!("{body}GET /next");
            let whole = read(&Framing::CHUNKED, bytes.as_bytes(), bytes.len());
            assert_eq!(whole.as_ref().unwrap().1, b"GET /next", "{body:?}");
            for split in 0..bytes.len() {
                assert_eq!(read(&Framing::CHUNKED, bytes.as_bytes(), split), whole, "{body:?} split at {split}");
            }
        }
    }

    #[test]
    fn a_chunk_that_go_refuses_is_malformed() {
        for body in [
            " 5\r\n",
            "5 5\r\n",
            "5 ;x\r\n",
            " ;x\r\n",
            "0x5\r\n",
            "-1\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n0\r\n\r\n",
            "11112222333344445\r\n",
        ] {
            let mut framing = Framing::CHUNKED;
            framing.scan(body.as_bytes(), |_| {});
            assert_eq!(framing, Framing::Malformed, "{body:?}");
        }
    }

    #[test]
    fn a_length_counts_bytes() {
        let (content, rest) = read(&Framing::Length(3), b"abcdef", 2).unwrap();
        assert_eq!((content.as_slice(), rest.as_slice()), (b"abc".as_slice(), b"def".as_slice()));
        assert!(Framing::NONE.is_done());
        assert!(!Framing::UntilClose.is_done());
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            for mut framing in [Framing::CHUNKED, Framing::Length(7), Framing::UntilClose] {
                let count = framing.scan(&bytes, |_| {});
                proptest::prop_assert!(count <= bytes.len());
            }
        }
    }
}
