//! BGP: autonomous systems and peers as the datastore records them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// The AS of every host that has none of its own (the original's default).
pub(crate) const DEFAULT_AS: AsNumber = AsNumber(64511);

/// An autonomous system number, of four bytes and not 0. Read plain or dotted (`a.b` is `a*65536+b`), written plain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AsNumber(pub(crate) u32);

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AsNumber {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = match text.split_once('.') {
            None => text.parse().ok(),
            Some((high, low)) => match (high.parse::<u16>(), low.parse::<u16>()) {
                (Ok(high), Ok(low)) => Some(u32::from(high) << 16 | u32::from(low)),
                _ => None,
            },
        };
        // 0 is nobody's (RFC 7607), and BIRD reads no configuration with it.
        number.filter(|number| *number > 0).map(AsNumber).ok_or_else(|| {
            format!(
                "AS number {text:?} is not valid: it must be from 1 to 4294967295, or two numbers to 65535 with a dot"
            )
        })
    }
}

/// A peer that an operator configured, for all hosts or for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    #[serde(deserialize_with = "number_or_text", serialize_with = "as_text")]
    pub(crate) as_num: AsNumber,
}

/// The original wrote a number in its first releases and a text later.
fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<AsNumber, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().map_err(serde::de::Error::custom)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's serialize_with passes a reference")]
fn as_text<S: serde::Serializer>(number: &AsNumber, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// The switch of the full mesh between all hosts. Absent means on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mesh {
    pub(crate) enabled: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_numbers_are_read_plain_and_dotted() {
        assert_eq!("64511".parse(), Ok(AsNumber(64511)));
        assert_eq!("1.1".parse(), Ok(AsNumber(65537)));
        for bad in ["abcde", "99999999999999999999999", "1.70000", "-1", "0", "0.0", ""] {
            assert!(bad.parse::<AsNumber>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_peer_is_read_with_a_number_and_with_a_text() {
        for text in [r#"{"ip":"10.0.0.1","as_num":64512}"#, r#"{"ip":"10.0.0.1","as_num":"64512"}"#] {
            assert_eq!(serde_json::from_str::<Peer>(text).unwrap().as_num, AsNumber(64512));
        }
    }
}
