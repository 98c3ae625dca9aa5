//! Names with a limit or a shape. A value of one of these types has passed its check.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not the name it should be: what it should name, the text, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {right}")]
pub(crate) struct NameError {
    pub(crate) what: &'static str,
    pub(crate) text: String,
    pub(crate) right: &'static str,
}

/// Declares a string newtype whose only way in is a check.
macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $right:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub(crate) struct $name(String);

        impl $name {
            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(text) {
                    Ok($name(text.to_owned()))
                } else {
                    Err(NameError { what: $what, text: text.to_owned(), right: $right })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// The characters of every name in the data model (Felix 1.4.9 `calico/common.py`: `^[a-zA-Z0-9_\.\-]+$`).
fn is_word(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.len() <= longest
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn is_lower_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

checked_name!(
    /// The name of a host in the datastore: gethostname() up to the first dot, unless overridden.
    HostName,
    "host name",
    "it must be 1 to 253 letters, digits, dots, dashes and underscores",
    |text| is_word(text, 253)
);

checked_name!(
    /// The name of a profile. Source of the limit: calicoctl v0.4.8, 40 characters.
    ProfileName,
    "profile name",
    "it must be 1 to 40 letters, digits, dots, dashes and underscores",
    |text| is_word(text, 40)
);

checked_name!(
    /// A tag: a name for the set of addresses of all endpoints whose profiles carry it.
    TagName,
    "tag",
    "it must be 1 to 253 letters, digits, dots, dashes and underscores",
    |text| is_word(text, 253)
);

checked_name!(
    /// Who made a workload: `docker` for all that this software makes.
    Orchestrator,
    "orchestrator id",
    "it must be 1 to 253 letters, digits, dots, dashes and underscores",
    |text| is_word(text, 253)
);

checked_name!(
    /// The id of a workload; for Docker the full container id.
    WorkloadId,
    "workload id",
    "it must be 1 to 253 letters, digits, dots, dashes and underscores",
    |text| is_word(text, 253)
);

checked_name!(
    /// The full id of a Docker container: 64 lower-case hex digits.
    ContainerId,
    "container id",
    "it must be 64 lower-case hex digits",
    |text| is_lower_hex(text, 64)
);

checked_name!(
    /// The id of an endpoint as the datastore holds it. Ours are 32 lower-case hex digits; other writers may use any word.
    EndpointId,
    "endpoint id",
    "it must be 1 to 253 letters, digits, dots, dashes and underscores",
    |text| is_word(text, 253)
);

checked_name!(
    /// The name of a network interface. Source: `IFNAMSIZ` (16 with the closing NUL), linux/if.h; the characters are
    /// Felix's, narrower than the kernel's.
    IfName,
    "interface name",
    "it must be 1 to 15 letters, digits, dashes and underscores",
    |text| is_word(text, 15) && !text.contains('.')
);

/// What every host-side interface of ours begins with.
pub(crate) const INTERFACE_PREFIX: &str = "cali";

/// What a container's interface is called inside, unless `calicoctl container add --interface` says otherwise.
pub(crate) const CONTAINER_INTERFACE: &str = "eth1";

impl Orchestrator {
    /// The orchestrator of everything that is made here.
    pub(crate) fn docker() -> Self {
        Orchestrator("docker".to_owned())
    }
}

/// How much of an id people are shown, as the docker command line does it.
const SHORT: usize = 12;

impl WorkloadId {
    /// The beginning, for people.
    pub(crate) fn short(&self) -> &str {
        self.0.get(..SHORT).unwrap_or(&self.0)
    }
}

impl ContainerId {
    /// The beginning, for people.
    pub(crate) fn short(&self) -> &str {
        &self.0[..SHORT]
    }

    pub(crate) fn workload(&self) -> WorkloadId {
        WorkloadId(self.0.clone())
    }
}

impl EndpointId {
    /// The one before all others: what is in order is looked up from here on.
    pub(crate) fn first() -> Self {
        EndpointId("-".to_owned())
    }

    /// A new id of 32 hex digits from 16 random bytes.
    pub(crate) fn from_random(bytes: [u8; 16]) -> Self {
        EndpointId(hex(&bytes))
    }

    /// The name of the endpoint's interface on the host: `cali` and the first 11 characters of the id.
    /// `None` where the id holds a dot among them, which an interface name of ours does not.
    pub(crate) fn interface(&self) -> Option<IfName> {
        let digits: String = self.0.chars().take(11).collect();
        format!("{INTERFACE_PREFIX}{digits}").parse().ok()
    }
}

impl HostName {
    /// The part of a machine's name before the first dot.
    pub(crate) fn from_machine(name: &str) -> Result<Self, NameError> {
        name.split('.').next().unwrap_or_default().parse()
    }
}

/// Lower-case hex digits of some bytes.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Mac {
    /// A locally administered unicast address from random bytes (IEEE 802: second-lowest bit of the first byte set,
    /// lowest clear).
    pub(crate) fn from_random(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Mac(bytes)
    }

    /// The link-local address that the kernel makes of it (RFC 4291, appendix A).
    pub(crate) const fn link_local(self) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        Ipv6Addr::from_octets([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError {
            what: "MAC address",
            text: text.to_owned(),
            right: "it must be six pairs of hex digits with colons between",
        };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Mac(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_characters_and_lengths() {
        assert!("web-1.a_b".parse::<ProfileName>().is_ok());
        for bad in ["", "a/b", "a b", "ü", "a\n", &"x".repeat(41)] {
            assert!(bad.parse::<ProfileName>().is_err(), "{bad:?}");
        }
        assert!("cali0123456789a".parse::<IfName>().is_ok());
        assert!("cali0123456789ab".parse::<IfName>().is_err());
        assert!("a".repeat(64).parse::<ContainerId>().is_ok());
        assert!("A".repeat(64).parse::<ContainerId>().is_err());
    }

    #[test]
    fn a_mac_survives_printing_and_reading() {
        let mac = Mac::from_random([0xff, 1, 2, 3, 4, 5]);
        assert_eq!(mac.to_string(), "fe:01:02:03:04:05");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        for bad in ["", "fe:01", "fe:01:02:03:04:05:06", "fe:1:2:3:4:5", "zz:01:02:03:04:05"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_interface_is_named_after_its_endpoint() {
        let id = EndpointId::from_random([0xab; 16]);
        assert_eq!(id.as_str().len(), 32);
        assert_eq!(id.interface().map(String::from), Some("caliabababababa".to_owned()));
    }
}
