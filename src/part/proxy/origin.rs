//! Origins: telling requests that a browser was tricked into sending from those of Docker's clients.
//!
//! A page anywhere can make its visitor's browser speak to a TCP port of the visitor's own machine: with a name of its
//! own that it points at 127.0.0.1 (then the Host is foreign), or with a plain form or websocket (then the browser names
//! its Origin). Docker's clients send neither. Unix sockets are out of a browser's reach and never checked.
//!
//! Which names are our own is not known here: those that an operator has configured, and over TLS those of our
//! certificate, since the client has found that it belongs to the name that it asked for.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use super::fields::Fields;

/// What may make a request foreign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// Every Host that is neither an address nor localhost.
    hosts: Vec<String>,
    /// Why it comes from a page that is not ours, whatever our name is.
    page: Option<String>,
}

impl Foreign {
    /// Why the request is foreign; `None` if clients may call us by the names that it uses.
    pub(crate) fn reason(&self, is_own: impl Fn(&str) -> bool) -> Option<String> {
        let own = |host: &String| is_own(name_of(host).strip_suffix('.').unwrap_or(name_of(host)));
        if let Some(host) = self.hosts.iter().find(|host| !own(host)) {
            return Some(format!(
                "Host {host:?} is neither an IP address nor localhost nor a name of this socket: use one of these in \
                 DOCKER_HOST, or the unix socket, or allow the name with calico-node --allow-host"
            ));
        }
        self.page.clone()
    }
}

/// What may make a request foreign; `None` if nothing does.
pub(crate) fn foreign(fields: Fields<'_>) -> Option<Foreign> {
    let text = |name| fields.values(name).map(|value| String::from_utf8_lossy(value));
    let hosts: Vec<String> = text("host").filter(|host| !is_local(host)).map(Cow::into_owned).collect();
    let is_own = |origin: &str| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority
            .is_some_and(|authority| is_localhost(name_of(authority)) || text("host").any(|host| host == authority))
    };
    let page = if let Some(origin) = text("origin").find(|origin| !is_own(origin)) {
        Some(format!("Origin {origin:?} is not this socket's own: web pages may not call the Docker API"))
    } else {
        text("sec-fetch-site")
            .find(|site| matches!(site.as_ref(), "cross-site" | "same-site"))
            .map(|site| format!("Sec-Fetch-Site is {site:?}: web pages may not call the Docker API"))
    };
    (!hosts.is_empty() || page.is_some()).then_some(Foreign { hosts, page })
}

/// The name of an authority, without its port.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => authority,
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    // RFC 6761: names below localhost never leave the machine. Docker's own client uses one.
    name.as_bytes().rsplit(|byte| *byte == b'.').next().is_some_and(|last| last.eq_ignore_ascii_case(b"localhost"))
}

/// Whether a Host cannot be a name that a stranger points at us. An empty one is dockerd's to judge.
fn is_local(host: &str) -> bool {
    let bracketed = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    let is_local = |name: &str| is_localhost(name) || name.parse::<IpAddr>().is_ok() || bracketed(name).is_some();
    host.is_empty() || is_local(host) || is_local(name_of(host))
}

#[cfg(test)]
mod tests {
    use httparse::Header;

    use super::*;

    fn is_foreign(pairs: &[(&str, &str)]) -> bool {
        let headers: Vec<Header<'_>> =
            pairs.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        foreign(Fields::of(&headers))
            .and_then(|foreign| foreign.reason(|name| name.eq_ignore_ascii_case("docker1")))
            .is_some()
    }

    #[test]
    fn dockers_clients_pass() {
        for host in [
            "localhost:2377",
            "127.0.0.1:2377",
            "[::1]:2377",
            "[::1]",
            "10.0.0.1",
            "LOCALHOST",
            "",
            "api.moby.localhost",
        ] {
            assert!(!is_foreign(&[("Host", host)]), "{host}");
        }
        assert!(!is_foreign(&[]));
        assert!(!is_foreign(&[("Host", "127.0.0.1:2377"), ("Origin", "http://127.0.0.1:2377")]));
        assert!(!is_foreign(&[("Host", "127.0.0.1:2377"), ("origin", "http://localhost")]));
        assert!(!is_foreign(&[("Host", "127.0.0.1"), ("Sec-Fetch-Site", "none")]));
        for host in ["docker1", "docker1:2376", "Docker1.:2376"] {
            assert!(!is_foreign(&[("Host", host)]), "{host}");
        }
        assert!(!is_foreign(&[("Host", "docker1:2376"), ("Origin", "https://docker1:2376")]));
    }

    #[test]
    fn what_a_page_can_make_a_browser_send_is_foreign() {
        for headers in [
            [("Host", "evil.example"), ("X", "y")],
            [("Host", "evil.example:2377"), ("X", "y")],
            [("Host", "localhost.evil.example"), ("X", "y")],
            [("Host", "127.0.0.1.evil.example:2377"), ("X", "y")],
            [("Host", "localhost"), ("hOsT", "evil.example")],
            [("Host", "localhost"), ("Origin", "http://evil.example")],
            [("Host", "localhost"), ("Origin", "null")],
            [("Host", "127.0.0.1"), ("Origin", "http://127.0.0.1:8080")],
            [("Host", "localhost"), ("Sec-Fetch-Site", "cross-site")],
            [("Host", "docker1:2376"), ("Host", "evil.example")],
            [("Host", "docker1:2376"), ("Origin", "https://evil.example")],
            [("Host", "docker1:2376"), ("Sec-Fetch-Site", "same-site")],
            [("Host", "docker1.evil.example:2376"), ("X", "y")],
        ] {
            assert!(is_foreign(&headers), "{headers:?}");
        }
    }
}
