//! Origins: telling requests that a browser was tricked into sending from those of Docker's clients.
//!
//! A page anywhere can make its visitor's browser speak to a TCP port of the visitor's own machine: with a name of its
//! own that it points at 127.0.0.1 (then the Host is foreign), or with a plain form or websocket (then the browser names
//! its Origin). Docker's clients send neither. Unix sockets are out of a browser's reach and never checked.

use std::net::{IpAddr, Ipv6Addr};

use httparse::Header;

use super::fields::header_values;

/// Why a request is foreign; `None` if it is not.
pub(crate) fn foreign(headers: &[Header<'_>]) -> Option<String> {
    let text = |name| header_values(headers, name).map(|value| String::from_utf8_lossy(value).into_owned());
    if let Some(host) = text("host").find(|host| !is_local(host)) {
        return Some(format!(
            "Host {host:?} is neither an IP address nor localhost: use one of these in DOCKER_HOST, or the unix socket"
        ));
    }
    let is_own = |origin: &str| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority
            .is_some_and(|authority| is_localhost(name_of(authority)) || text("host").any(|host| host == authority))
    };
    if let Some(origin) = text("origin").find(|origin| !is_own(origin)) {
        return Some(format!("Origin {origin:?} is not this socket's own: web pages may not call the Docker API"));
    }
    text("sec-fetch-site")
        .find(|site| matches!(site.as_str(), "cross-site" | "same-site"))
        .map(|site| format!("Sec-Fetch-Site is {site:?}: web pages may not call the Docker API"))
}

/// The name of an authority, without its port.
fn name_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => authority,
    }
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    // RFC 6761: names below localhost never leave the machine. Docker's own client uses one.
    name == "localhost" || name.ends_with(".localhost")
}

/// Whether a Host cannot be a name that a stranger points at us. An empty one is dockerd's to judge.
fn is_local(host: &str) -> bool {
    let bracketed = |text: &str| text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok();
    host.is_empty()
        || [host, name_of(host)]
            .into_iter()
            .any(|name| is_localhost(name) || name.parse::<IpAddr>().is_ok() || bracketed(name).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_foreign(pairs: &[(&str, &str)]) -> bool {
        let headers: Vec<Header<'_>> =
            pairs.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        foreign(&headers).is_some()
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
        ] {
            assert!(is_foreign(&headers), "{headers:?}");
        }
    }
}
