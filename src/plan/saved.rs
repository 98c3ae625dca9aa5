//! Saved entries: whether an entry as `iptables-save` shows it is the one that was written.
//!
//! The tools show an entry in their own order and words: `-p 6` as `-p tcp`, an Ethernet address in capitals, `--syn` as
//! what it stands for, and `-m` for modules that nobody named. So both texts are taken apart into clauses, an option with
//! its values and its negation each, which are brought to one form and compared without regard to order.
//!
//! Limit: a tool that shows an entry in yet another way makes it look edited. The chain is written anew then at every look,
//! which costs time and changes nothing.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::rule::Protocol;

/// Whether two texts are the same entry.
pub(crate) fn same_entry(left: &str, right: &str) -> bool {
    left == right || same_in_order(left, right) || clauses(left) == clauses(right)
}

/// The quick answer for most entries, of which a host may have tens of thousands: the same words in the same order, but for
/// the spelling of protocols and of Ethernet addresses. `false` says nothing.
fn same_in_order(left: &str, right: &str) -> bool {
    let (mut left, mut right) = (words(left), words(right));
    let mut before = "";
    loop {
        match (left.next(), right.next()) {
            (None, None) => return true,
            (Some(one), Some(other)) => {
                let same = one == other
                    || match before {
                        "-p" => protocol(one).is_some() && protocol(one) == protocol(other),
                        "--mac-source" => one.eq_ignore_ascii_case(other),
                        _ => false,
                    };
                if !same {
                    return false;
                }
                before = one;
            }
            _ => return false,
        }
    }
}

/// The words of a text; what stands between quotes is one of them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text.trim_start();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        rest = after.trim_start();
        Some(word)
    })
}

fn clauses(text: &str) -> Vec<Vec<Cow<'_, str>>> {
    let mut clauses: Vec<Vec<Cow<'_, str>>> = Vec::new();
    let mut negated = false;
    for word in words(text) {
        let is_option = word.starts_with('-') && word.len() > 1;
        match clauses.last_mut() {
            Some(clause) if !negated && !is_option && word != "!" => clause.push(word.into()),
            _ if negated => {
                if let Some(clause) = clauses.last_mut() {
                    clause.push(word.into());
                }
            }
            _ => clauses.push(vec![word.into()]),
        }
        negated = word == "!";
    }
    clauses.retain_mut(bring_to_one_form);
    clauses.sort();
    clauses
}

/// Answers whether a clause says anything.
fn bring_to_one_form(clause: &mut Vec<Cow<'_, str>>) -> bool {
    let not = usize::from(clause.first().is_some_and(|word| word == "!"));
    let option = clause.get(not).map(|word| word.clone().into_owned()).unwrap_or_default();
    if option == "--tcp-flags" && clause[not + 1..] == ["FIN,SYN,RST,ACK", "SYN"] {
        clause.truncate(not);
        clause.push("--syn".into());
        return true;
    }
    let Some(value) = clause.get_mut(not + 1) else {
        return true;
    };
    match option.as_str() {
        // What a module looks at is said by its options.
        "-m" => return false,
        "-p" => {
            if let Some(protocol) = protocol(value) {
                *value = protocol.to_string().into();
            }
        }
        "-s" | "-d" => {
            let net = value.parse::<IpNet>().ok().or_else(|| value.parse::<IpAddr>().ok().map(IpNet::from));
            if let Some(net) = net {
                *value = net.trunc().to_string().into();
                return net.prefix_len() > 0 || not > 0;
            }
        }
        "--mac-source" => *value = value.to_ascii_lowercase().into(),
        "--ctstate" => {
            let mut states: Vec<&str> = value.split(',').collect();
            states.sort_unstable();
            *value = states.join(",").into();
        }
        // A blank at its end is all that tells apart what was between quotes.
        "--comment" | "--log-prefix" => *value = value.trim_end().to_owned().into(),
        _ => {}
    }
    true
}

/// A protocol's number; `None` if its name is one that only the machine's own list knows.
fn protocol(text: &str) -> Option<u8> {
    match text {
        "ipv6-icmp" => Some(Protocol::ICMPV6.0),
        "gre" => Some(47),
        "esp" => Some(50),
        "ah" => Some(51),
        "ipencap" => Some(4),
        "ipv6" => Some(41),
        "igmp" => Some(2),
        "ospf" => Some(89),
        _ => text.parse::<Protocol>().ok().map(|protocol| protocol.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_known_again_as_the_tools_show_it_and_not_when_it_was_edited() {
        let written = "-p 6 -s 10.0.0.1/32 -m mac ! --mac-source 32:24:81:2a:cb:bd -m multiport --dports 80,443 -m comment --comment \"calico:647c05ed9da98f5c not it\" -j DROP";
        let shown = "-s 10.0.0.1/32 -p tcp -m mac ! --mac-source 32:24:81:2A:CB:BD -m multiport --dports 80,443 -m comment --comment \"calico:647c05ed9da98f5c not it\" -j DROP";
        assert!(same_entry(written, shown));
        for (from, to) in [
            ("-j DROP", "-j ACCEPT"),
            ("-s 10.0.0.1/32 ", ""),
            ("-s 10.0.0.1/32", "-s 10.0.0.0/24"),
            ("! --mac", "--mac"),
            ("80,443", "80,443,22"),
            ("-p tcp", "-p udp"),
            ("-p tcp", "! -p tcp"),
            ("-m mac", "-i eth0 -m mac"),
        ] {
            assert!(!same_entry(written, &shown.replace(from, to)), "{from} for {to}");
        }
        assert!(same_entry(
            "-i cali+ -p 6 -m tcp ! --syn -m conntrack --ctstate RELATED,NEW -j DROP",
            "-i cali+ -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -m conntrack --ctstate NEW,RELATED -j DROP"
        ));
        assert!(same_entry("-s 0.0.0.0/0 -j LOG --log-prefix \"web: \"", "-j LOG --log-prefix \"web: \""));
        assert!(!same_entry("! -s 0.0.0.0/0 -j DROP", "-j DROP"));
    }
}
