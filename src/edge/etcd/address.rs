//! Where etcd is, as flags and variables tell it.

use crate::model::fault::Fault;

/// Where etcd is and how to speak to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EtcdAddress {
    /// `http://host:port` or `https://host:port`, all of one scheme.
    pub(crate) endpoints: Vec<String>,
    /// PEM texts: the authority that signed the server, and our own certificate with its key.
    pub(crate) ca: Option<String>,
    pub(crate) identity: Option<(String, String)>,
}

/// Reads the addresses of etcd's members, separated by commas, all http or all https. `source` names them.
///
/// # Errors
/// `Refusal`.
pub(crate) fn parse_endpoints(source: &str, list: &str) -> Result<Vec<String>, Fault> {
    let endpoints: Vec<String> =
        list.split(',').map(|item| parse_endpoint(source, item.trim())).collect::<Result<_, _>>()?;
    let secure = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
    if secure != 0 && secure != endpoints.len() {
        return Err(Fault::Refusal(format!(
            "read {source}: {list:?} mixes http and https: all endpoints must have one scheme"
        )));
    }
    Ok(endpoints)
}

/// Reads the address of one member as the original's tools are told it: `ETCD_AUTHORITY` is `host:port`, `ETCD_SCHEME` what
/// stands before it.
///
/// # Errors
/// `Refusal`.
pub(crate) fn parse_authority(authority: &str, scheme: Option<&str>) -> Result<String, Fault> {
    let scheme = scheme.unwrap_or("http");
    if !matches!(scheme, "http" | "https") {
        return Err(Fault::Refusal(format!("read ETCD_SCHEME: {scheme:?} must be http or https")));
    }
    parse_endpoint("ETCD_AUTHORITY", &format!("{scheme}://{authority}"))
}

/// Checks `http://host:port` and takes a closing slash off. `source` named it.
fn parse_endpoint(source: &str, text: &str) -> Result<String, Fault> {
    let wrong = || {
        let right = "it must be http://HOST:PORT or https://HOST:PORT";
        let right = if source == "ETCD_AUTHORITY" { "it must be HOST:PORT" } else { right };
        Fault::Refusal(format!("read {source}: {text:?} is not the address of an etcd: {right}"))
    };
    let text = text.strip_suffix('/').unwrap_or(text);
    let (scheme, authority) = text.split_once("://").ok_or_else(wrong)?;
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    // An IPv6 address stands in brackets; without them its last group would be taken for a port.
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match bracketed {
        Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    };
    let good = matches!(scheme, "http" | "https") && good_host && port.parse::<u16>().is_ok_and(|port| port > 0);
    if good { Ok(text.to_owned()) } else { Err(wrong()) }
}
