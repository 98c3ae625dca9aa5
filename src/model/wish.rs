//! Wishes: what a create request asks of Calico in its environment, `CALICO_IP` and `CALICO_PROFILE`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::name::ProfileName;
use super::pool::Family;

/// How many addresses of a family one container may have: iptables takes no more than 21 in the entry that names them all.
const ADDRESSES_MOST: usize = 16;

/// The most profiles: all of them, and the addresses of both families, go into one transaction of etcd's, which takes 128
/// conditions and as many writes, two of each for a profile that is made.
const PROFILES_MOST: usize = 40;

/// One item of `CALICO_IP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) enum AddressWish {
    /// This address and no other.
    Exactly(IpAddr),
    /// Any free address of a family, from any of its pools.
    Any(Family),
    /// Any free address of the pool with this CIDR.
    From(IpNet),
}

/// What a container asks for: at least one address, and the profiles in the order in which they are consulted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) addresses: Vec<AddressWish>,
    pub(crate) profiles: Vec<ProfileName>,
}

impl AddressWish {
    pub(crate) fn family(&self) -> Family {
        match self {
            AddressWish::Exactly(address) => Family::of(*address),
            AddressWish::Any(family) => *family,
            AddressWish::From(net) => Family::of_net(*net),
        }
    }
}

impl std::str::FromStr for AddressWish {
    type Err = String;
    /// One item, trimmed: an address (`/32` and `/128` allowed), `auto`, `ipv4`, `ipv6` or a CIDR.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" | "ipv4" => return Ok(AddressWish::Any(Family::V4)),
            "ipv6" => return Ok(AddressWish::Any(Family::V6)),
            _ => {}
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return exactly(text, address);
        }
        match text.parse::<IpNet>() {
            Ok(net) if net.prefix_len() == net.max_prefix_len() => exactly(text, net.addr()),
            Ok(net) if net.trunc() == net => Ok(AddressWish::From(net)),
            Ok(net) => Err(format!("{text:?} has host bits set: the CIDR of a pool would be {}", net.trunc())),
            Err(_) => Err(format!(
                "{text:?} is not an address: it must be an address of a pool, auto, ipv4, ipv6 or the CIDR of a pool"
            )),
        }
    }
}

/// An IPv4 address in the spelling of IPv6 would be another one to everything that compares addresses.
fn exactly(text: &str, address: IpAddr) -> Result<AddressWish, String> {
    match address {
        IpAddr::V6(v6) if let Some(v4) = v6.to_ipv4_mapped() => {
            Err(format!("{text:?} is an IPv4 address in the spelling of IPv6: it must be {v4}"))
        }
        address => Ok(AddressWish::Exactly(address)),
    }
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

impl Wish {
    /// Reads the values of the two variables; `profiles` is `None` where `CALICO_PROFILE` is not set.
    /// Every mistake is reported, not only the first.
    pub(crate) fn parse(addresses: &str, profiles: Option<&str>) -> Result<Self, Fault> {
        let mut wish = Wish { addresses: Vec::new(), profiles: Vec::new() };
        let mut errors = Vec::new();
        for item in items(addresses) {
            if item.is_empty() {
                errors.push(format!("CALICO_IP {addresses:?} holds an empty item: name an address, auto, ipv4, ipv6 or the CIDR of a pool"));
                continue;
            }
            match item.parse() {
                Ok(exactly @ AddressWish::Exactly(_)) if wish.addresses.contains(&exactly) => {
                    errors.push(format!("CALICO_IP names {item} twice: name every address once"));
                }
                Ok(address) => wish.addresses.push(address),
                Err(error) => errors.push(format!("CALICO_IP {error}")),
            }
        }
        for family in Family::BOTH {
            let count = wish.addresses.iter().filter(|one| one.family() == family).count();
            if count > ADDRESSES_MOST {
                errors.push(format!(
                    "CALICO_IP asks for {count} addresses of IP{}: it must be at most {ADDRESSES_MOST}",
                    family.key()
                ));
            }
        }
        for item in profiles.into_iter().flat_map(items) {
            match item.parse::<ProfileName>() {
                Ok(profile) if wish.profiles.contains(&profile) => {
                    errors.push(format!("CALICO_PROFILE names {item} twice: name every profile once"));
                }
                Ok(profile) => wish.profiles.push(profile),
                Err(error) => errors.push(format!("CALICO_PROFILE: {error}")),
            }
        }
        if wish.profiles.len() > PROFILES_MOST {
            errors.push(format!(
                "CALICO_PROFILE names {} profiles: it must be at most {PROFILES_MOST}",
                wish.profiles.len()
            ));
        }
        if errors.is_empty() { Ok(wish) } else { Err(Fault::Refusal(errors.join("; "))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_for_no_more_addresses_than_an_entry_of_the_firewall_can_name() {
        let many = |count: usize| Wish::parse(&["auto,ipv6"].repeat(count).join(","), None);
        assert!(many(ADDRESSES_MOST).is_ok());
        let refused = many(ADDRESSES_MOST + 1).unwrap_err().to_string();
        assert!(refused.contains("17 addresses of IPv4") && refused.contains("17 addresses of IPv6"), "{refused}");
    }

    #[test]
    fn a_wish_names_no_more_profiles_than_a_transaction_can_hold() {
        let many = |count: usize| {
            let names: Vec<String> = (0..count).map(|number| format!("p{number}")).collect();
            Wish::parse("auto", Some(&names.join(",")))
        };
        assert!(many(PROFILES_MOST).is_ok());
        let refused = many(PROFILES_MOST + 1).unwrap_err().to_string();
        assert!(refused.contains("names 41 profiles: it must be at most 40"), "{refused}");
    }

    #[test]
    fn a_wish_is_a_list_of_addresses_families_and_pools() {
        let wish = Wish::parse(
            "192.168.1.1, auto,ipv4 ,10.0.0.0/8,192.168.0.255/32,fd00::1,IPv6,fd01::/64,fd00::2/128",
            Some("a, b"),
        );
        let wish = wish.unwrap();
        assert_eq!(
            wish.addresses,
            [
                AddressWish::Exactly("192.168.1.1".parse().unwrap()),
                AddressWish::Any(Family::V4),
                AddressWish::Any(Family::V4),
                AddressWish::From("10.0.0.0/8".parse().unwrap()),
                AddressWish::Exactly("192.168.0.255".parse().unwrap()),
                AddressWish::Exactly("fd00::1".parse().unwrap()),
                AddressWish::Any(Family::V6),
                AddressWish::From("fd01::/64".parse().unwrap()),
                AddressWish::Exactly("fd00::2".parse().unwrap()),
            ]
        );
        assert_eq!(wish.profiles.iter().map(ProfileName::as_str).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_wish_that_cannot_be_read_is_refused_with_every_reason() {
        for bad in [
            "",
            " ",
            "auto,",
            "1.2.3",
            "10.0.0.1/8",
            "1.2.3.4,1.2.3.4",
            "fd00::1,FD00:0::1",
            "fd00::1/64",
            "fe80::1%eth0",
            "::ffff:1.2.3.4",
            "::ffff:1.2.3.4/128",
            "1.2.3.4\n5",
        ] {
            assert!(matches!(Wish::parse(bad, None), Err(Fault::Refusal(_))), "{bad:?}");
        }
        for bad in ["", "a,", "a,a", "a/b", "ü"] {
            assert!(matches!(Wish::parse("auto", Some(bad)), Err(Fault::Refusal(_))), "{bad:?}");
        }
        let Err(Fault::Refusal(text)) = Wish::parse("x,y", Some("a/b")) else { panic!("accepted") };
        for part in ["\"x\"", "\"y\"", "a/b"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
