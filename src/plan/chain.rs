//! Chains of iptables as typed values, and their text.
//!
//! A rule of a profile and a rule of the kernel are different things, so the kernel's is called an [`Entry`] here. Chains
//! are built typed and rendered once; the typed form is what the tests interpret on packets, so that what is proved of a
//! chain is proved of the value that its text is made from. The alternative, to assemble text at once, can only be tested
//! by reading text back.
//!
//! Invariants: a chain's name fits the kernel's limit; the text of an entry holds nothing that iptables-restore would take
//! for a new line or a quote; the text of equal entries is equal.

use std::fmt;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};

use sha2::{Digest, Sha256};

use crate::model::name::{IfName, Mac};
use crate::model::pool::Family;
use crate::model::rule::{Ports, Protocol};

use super::sets::SetName;
use super::short::shortened;

/// The bit of a packet's mark that says: policy has accepted this packet. The guard table drops what lacks it.
pub(crate) const ACCEPT_MARK: u32 = 0x0100_0000;

/// What every chain of ours begins with.
pub(crate) const CHAIN_PREFIX: &str = "calico-";

/// Source: `XT_EXTENSION_MAXNAMELEN` (29 with the closing NUL), linux/netfilter/x_tables.h.
const CHAIN_NAME_LONGEST: usize = 28;

/// How much of a comment is kept; the kernel holds 255 (`XT_MAX_COMMENT_LEN`, linux/netfilter/xt_comment.h).
const WORDS_LONGEST: usize = 180;

/// The name of a chain of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ChainName(Arc<str>);

impl ChainName {
    /// The name of a chain for an object: `calico-<kind>-<object>`, the object shortened to fit.
    pub(crate) fn of(kind: &str, object: &str) -> Self {
        let head = format!("{CHAIN_PREFIX}{kind}-");
        let object = shortened(object, CHAIN_NAME_LONGEST - head.len());
        ChainName(format!("{head}{object}").into())
    }

    /// One of the chains that are always there: `calico-<kind>`.
    pub(crate) fn fixed(kind: &str) -> Self {
        ChainName(format!("{CHAIN_PREFIX}{kind}").into())
    }

    /// A chain that the kernel shows; `None` if it is not one of ours.
    pub(crate) fn seen(name: &str) -> Option<Self> {
        name.starts_with(CHAIN_PREFIX).then(|| ChainName(name.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The addresses of IPv6 that count on one link only (RFC 4291, 2.5.6).
pub(crate) const LINK_LOCAL: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10));

/// Which interfaces a match speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Interface {
    Exactly(IfName),
    /// All whose names begin so.
    StartsWith(String),
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interface::Exactly(name) => name.fmt(f),
            Interface::StartsWith(start) => write!(f, "{start}+"),
        }
    }
}

/// The end of a connection that a match speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    fn short(self) -> &'static str {
        match self {
            End::Source => "src",
            End::Destination => "dst",
        }
    }
}

/// What conntrack knows of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracked {
    Invalid,
    /// Part of a connection that was allowed.
    Established,
    /// An error about a connection, or the beginning of one that another has announced.
    Related,
    /// Of a TCP connection that connection tracking has not seen begin.
    Midstream,
}

/// One condition of an entry. All must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Match {
    In(Interface),
    Out(Interface),
    Tracked(Tracked),
    /// The address is no end of the connection that the packet is about, however ends were translated.
    NoEnd(IpAddr),
    /// Whether the packet carries the accept mark.
    Accepted(bool),
    /// What is sent to the packet's source would not leave through the interface that the packet came in by.
    SourceElsewhere,
    /// The packet is for an address of this host's own; in IPv4, or for all on a link.
    ToThisHost(Family),
    /// The packet is for one, not for all of a group.
    ToOne,
    /// The sender's Ethernet address is another one.
    MacIsNot(Mac),
    Net(End, IpNet),
    NotNet(End, IpNet),
    /// As [`Match::NotNet`], for an entry that has a [`Match::Net`] of the same end already, of which iptables takes one.
    OutsideRange(End, IpNet),
    InSet(End, SetName),
    NotInSet(End, SetName),
    Protocol(Protocol),
    NotProtocol(Protocol),
    /// At most [`PORTS_MOST`] in weight.
    Ports(End, Vec<Ports>),
    /// None of these, at most as many. Only packets that have ports match.
    NotPorts(End, Vec<Ports>),
    Icmp(Family, u8, Option<u8>),
    NotIcmp(Family, u8, Option<u8>),
    /// Not more often than the kernel's log bears.
    NotTooOften,
}

/// How many ports one multiport match holds, a range counting two. Source: `XT_MULTI_PORTS`, linux/netfilter/xt_multiport.h.
pub(crate) const PORTS_MOST: usize = 15;

/// What stands before a line in the kernel's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPrefix(String);

impl LogPrefix {
    /// What the original allowed itself; with `: ` it is all that the kernel holds: 29 bytes and the closing NUL (`prefix`
    /// in linux/netfilter/xt_LOG.h).
    const LONGEST: usize = 27;

    /// The prefix of a rule that names none.
    const DEFAULT: &str = "calico-packet";

    pub(crate) fn new(text: &str) -> Self {
        let safe: String = text.chars().map(safe_sign).take(LogPrefix::LONGEST).collect();
        let safe = safe.trim();
        LogPrefix(format!("{}: ", if safe.is_empty() { LogPrefix::DEFAULT } else { safe }))
    }
}

/// What happens to a packet that matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Accept,
    Drop,
    Return,
    Jump(ChainName),
    /// As a jump, but a chain that ends returns to where this chain was jumped to from.
    Goto(ChainName),
    /// Set the accept mark and go on.
    Mark,
    /// Clear the accept mark and go on.
    Unmark,
    Masquerade,
    /// Write a line to the kernel's log and go on.
    Log(LogPrefix),
}

/// One rule of the kernel's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) matches: Vec<Match>,
    pub(crate) target: Target,
    /// Words for a human who lists the chain.
    pub(crate) words: String,
}

impl Entry {
    pub(crate) fn new(matches: Vec<Match>, target: Target, words: impl Into<String>) -> Self {
        Entry { matches, target, words: words.into() }
    }
}

/// A chain: its entries in order. Where the entries exclude each other the order has no meaning, and one can be added or
/// taken away without writing the chain anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: ChainName,
    pub(crate) ordered: bool,
    pub(crate) entries: Vec<Entry>,
}

/// An entry as iptables-restore reads it, without the `-A <chain>`, and its hash, by which it is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) hash: u64,
    pub(crate) spec: Arc<str>,
}

/// A rendered chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChainText {
    pub(crate) ordered: bool,
    pub(crate) lines: Vec<Line>,
}

impl Chain {
    pub(crate) fn ordered(name: ChainName, entries: Vec<Entry>) -> Self {
        Chain { name, ordered: true, entries }
    }

    /// A chain whose entries exclude each other.
    pub(crate) fn unordered(name: ChainName, entries: Vec<Entry>) -> Self {
        Chain { name, ordered: false, entries }
    }

    pub(crate) fn render(&self) -> ChainText {
        let lines = self.entries.iter().map(|entry| entry.render(&self.name)).collect();
        ChainText { ordered: self.ordered, lines }
    }
}

impl Entry {
    /// The entry's text for a chain, with the comment that holds its hash.
    pub(crate) fn render(&self, chain: &ChainName) -> Line {
        let mut spec = String::with_capacity(160);
        for one in &self.matches {
            let _ = write!(spec, "{one} ");
        }
        let words = safe_words(&self.words);
        let mut hasher = Sha256::new();
        for part in [chain.as_str(), &spec, &self.target.to_string(), &words] {
            hasher.update(part.as_bytes());
            hasher.update([0]);
        }
        let digest = hasher.finalize();
        let hash = digest.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        let comment = format!("{COMMENT_PREFIX}{hash:016x} {words}");
        let _ = write!(spec, "-m comment --comment \"{}\" {}", comment.trim_end(), self.target);
        Line { hash, spec: spec.into() }
    }
}

/// What the comment of every entry of ours begins with, before its hash.
const COMMENT_PREFIX: &str = "calico:";

/// The hash in the text of a rule that the kernel shows; `None` if the rule is not one of ours.
pub(crate) fn hash_of(spec: &str) -> Option<u64> {
    let (_, rest) = spec.split_once("--comment ")?;
    let digits = rest.trim_start_matches('"').strip_prefix(COMMENT_PREFIX)?.get(..16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// The words in the text of a rule of ours that the kernel shows, as far as they say nothing but what may stand there.
pub(crate) fn words_of(spec: &str) -> Option<&str> {
    let (_, rest) = spec.split_once("--comment \"")?;
    let (comment, _) = rest.split_once('"')?;
    comment.strip_prefix(COMMENT_PREFIX)?.get(16..).map(str::trim)
}

/// Free text as it may stand between quotes in iptables-restore's input: letters, digits and harmless signs, on one line.
fn safe_words(words: &str) -> String {
    let text: String = words.chars().map(safe_sign).take(WORDS_LONGEST).collect();
    text.trim_end().to_owned()
}

fn safe_sign(sign: char) -> char {
    match sign {
        c if c.is_ascii_alphanumeric() => c,
        ' ' | '-' | '_' | '.' | ':' | '/' | ',' | '(' | ')' | '!' => sign,
        _ => '?',
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::In(interface) => write!(f, "-i {interface}"),
            Match::Out(interface) => write!(f, "-o {interface}"),
            Match::Tracked(Tracked::Invalid) => f.write_str("-m conntrack --ctstate INVALID"),
            Match::Tracked(Tracked::Established) => f.write_str("-m conntrack --ctstate ESTABLISHED"),
            Match::Tracked(Tracked::Related) => f.write_str("-m conntrack --ctstate RELATED"),
            Match::Tracked(Tracked::Midstream) => f.write_str("-p 6 -m tcp ! --syn -m conntrack --ctstate NEW"),
            Match::NoEnd(address) => write!(f, "-m conntrack ! --ctorigsrc {address} ! --ctreplsrc {address}"),
            Match::Accepted(yes) => {
                let not = if *yes { "" } else { "! " };
                write!(f, "-m mark {not}--mark {ACCEPT_MARK:#x}/{ACCEPT_MARK:#x}")
            }
            Match::SourceElsewhere => f.write_str("-m rpfilter --invert"),
            Match::ToThisHost(Family::V4) => f.write_str("-m addrtype ! --dst-type UNICAST"),
            // In IPv6 that would say what an address looks like, not whose it is (linux net/netfilter/xt_addrtype.c).
            Match::ToThisHost(Family::V6) => f.write_str("-m addrtype --dst-type LOCAL"),
            Match::ToOne => f.write_str("-m addrtype ! --dst-type MULTICAST"),
            Match::MacIsNot(mac) => write!(f, "-m mac ! --mac-source {mac}"),
            Match::Net(End::Source, net) => write!(f, "-s {net}"),
            Match::Net(End::Destination, net) => write!(f, "-d {net}"),
            Match::NotNet(End::Source, net) => write!(f, "! -s {net}"),
            Match::NotNet(End::Destination, net) => write!(f, "! -d {net}"),
            Match::OutsideRange(end, net) => {
                write!(f, "-m iprange ! --{}-range {}-{}", end.short(), net.network(), net.broadcast())
            }
            Match::InSet(end, set) => write!(f, "-m set --match-set {set} {}", end.short()),
            Match::NotInSet(end, set) => write!(f, "-m set ! --match-set {set} {}", end.short()),
            Match::Protocol(protocol) => write!(f, "-p {}", protocol.0),
            Match::NotProtocol(protocol) => write!(f, "! -p {}", protocol.0),
            Match::Ports(end, ports) => write_ports(f, "", *end, ports),
            Match::NotPorts(end, ports) => write_ports(f, "! ", *end, ports),
            Match::Icmp(family, kind, code) => write_icmp(f, "", *family, *kind, *code),
            Match::NotIcmp(family, kind, code) => write_icmp(f, "! ", *family, *kind, *code),
            Match::NotTooOften => f.write_str("-m limit --limit 10/sec --limit-burst 20"),
        }
    }
}

fn write_ports(f: &mut fmt::Formatter<'_>, not: &str, end: End, ports: &[Ports]) -> fmt::Result {
    let list: Vec<String> = ports.iter().map(Ports::to_string).collect();
    let option = if end == End::Source { "sports" } else { "dports" };
    write!(f, "-m multiport {not}--{option} {}", list.join(","))
}

fn write_icmp(f: &mut fmt::Formatter<'_>, not: &str, family: Family, kind: u8, code: Option<u8>) -> fmt::Result {
    match family {
        Family::V4 => write!(f, "-m icmp {not}--icmp-type {kind}")?,
        Family::V6 => write!(f, "-m icmp6 {not}--icmpv6-type {kind}")?,
    }
    code.map_or(Ok(()), |code| write!(f, "/{code}"))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Accept => f.write_str("-j ACCEPT"),
            Target::Drop => f.write_str("-j DROP"),
            Target::Return => f.write_str("-j RETURN"),
            Target::Jump(chain) => write!(f, "-j {chain}"),
            Target::Goto(chain) => write!(f, "-g {chain}"),
            Target::Mark => write!(f, "-j MARK --set-xmark {ACCEPT_MARK:#x}/{ACCEPT_MARK:#x}"),
            Target::Unmark => write!(f, "-j MARK --set-xmark 0x0/{ACCEPT_MARK:#x}"),
            Target::Masquerade => f.write_str("-j MASQUERADE"),
            // Level 5 is notice, as the original's.
            Target::Log(prefix) => write!(f, "-j LOG --log-prefix \"{}\" --log-level 5", prefix.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_shortened_to_its_hash_and_no_name_can_pose_as_one() {
        let long = "x".repeat(40);
        let name = ChainName::of("po", &long);
        assert_eq!(name.as_str().len(), CHAIN_NAME_LONGEST);
        assert!(name.as_str().starts_with("calico-po-_"));
        let digits = name.as_str().trim_start_matches("calico-po-");
        assert_ne!(ChainName::of("po", digits), name);
        assert_eq!(ChainName::of("po", "web").as_str(), "calico-po-web");
    }

    #[test]
    fn no_words_leave_their_comment() {
        let entry = Entry::new(Vec::new(), Target::Drop, "a\"\n-A FORWARD -j ACCEPT\n\\\u{7f}ü");
        let line = entry.render(&ChainName::fixed("x"));
        assert!(!line.spec.contains('\n') && !line.spec.contains('\\'), "{}", line.spec);
        assert_eq!(line.spec.matches('"').count(), 2);
        assert_eq!(words_of(&line.spec), Some("a??-A FORWARD -j ACCEPT????"));
        assert_eq!(hash_of(&line.spec), Some(line.hash));
    }

    #[test]
    fn a_log_prefix_is_harmless_and_fits() {
        let text = |prefix: &str| Target::Log(LogPrefix::new(prefix)).to_string();
        assert_eq!(text("web"), "-j LOG --log-prefix \"web: \" --log-level 5");
        assert_eq!(text(" \n"), "-j LOG --log-prefix \"?: \" --log-level 5");
        assert_eq!(text("  "), "-j LOG --log-prefix \"calico-packet: \" --log-level 5");
        let long = text("a\" -j ACCEPT; $(x) `y` üüüüüüüüüüüüüüüüüüüü");
        assert_eq!(long, "-j LOG --log-prefix \"a? -j ACCEPT? ?(x) ?y? ????: \" --log-level 5");
    }

    #[test]
    fn only_our_own_comments_have_a_hash() {
        assert_eq!(hash_of("-j DROP"), None);
        assert_eq!(hash_of("-m comment --comment calico -j DROP"), None);
        assert_eq!(hash_of("-m comment --comment calico:00000000000000ff -j DROP"), Some(255));
        assert_eq!(hash_of("-m comment --comment \"calico:00000000000000ff a b\" -j DROP"), Some(255));
    }
}
