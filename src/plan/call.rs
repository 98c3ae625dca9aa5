//! Calls: what a request to the Docker API is, told from its method and its target alone.
//!
//! The path is matched as dockerd routes it (gorilla mux on the decoded path, each route with and without a version), so
//! that no spelling of a call of ours slips by; what is forwarded stays the original bytes. A shape that dockerd answers
//! with a redirect (`//`, `/./`, `/../`, an encoded slash at the front) is none of ours: the client comes back with the
//! clean one. Container names may be verbs (`create`, `json`, `start`), and `{name:.*}` takes slashes.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::json::readable;

/// A version of the Docker API as a path names it: `1.41`, but also `1.041` and `1.41.0`, which are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiVersion(String);

impl ApiVersion {
    /// Whether this version is older than another. Source: moby `api/types/versions/compare.go`: parts are compared as
    /// numbers, a part that is none counts as 0 and one that is too large as the largest.
    pub(crate) fn is_before(&self, other: &str) -> bool {
        let number = |part: Option<&str>| match part {
            None | Some("") => 0,
            Some(digits) => digits.parse().unwrap_or(i64::MAX),
        };
        let (mut left, mut right) = (self.0.split('.'), other.split('.'));
        loop {
            let (a, b) = (left.next(), right.next());
            if a.is_none() && b.is_none() {
                return false;
            }
            match number(a).cmp(&number(b)) {
                Ordering::Less => return true,
                Ordering::Greater => return false,
                Ordering::Equal => {}
            }
        }
    }
}

/// What a request is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    /// `name` is the query's; empty where Docker chooses one.
    Create {
        name: String,
    },
    Start {
        container: String,
    },
    Restart {
        container: String,
    },
    Stop {
        container: String,
    },
    Kill {
        container: String,
    },
    Delete {
        container: String,
    },
    Prune,
    Inspect {
        container: String,
    },
    List,
    NetworkConnect {
        network: String,
    },
    NetworkDisconnect {
        network: String,
    },
    /// None of ours: its bytes flow.
    Pass,
}

/// A call and the version that its path named; `None` for a bare path, which means the daemon's newest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Classified {
    pub(crate) call: Call,
    pub(crate) version: Option<ApiVersion>,
}

impl Classified {
    /// Whether errors are plain text and a start may carry a HostConfig: both ended with API 1.24.
    pub(crate) fn is_before_1_24(&self) -> bool {
        self.version.as_ref().is_some_and(|version| version.is_before("1.24"))
    }

    /// Whether an inspect has the address of the default network at the top of `NetworkSettings`, which ended with API 1.52.
    pub(crate) fn shows_address_at_the_top(&self) -> bool {
        self.version.as_ref().is_some_and(|version| version.is_before("1.52"))
    }
}

/// Tells what a request is. `target` is the raw second word of the request line.
pub(crate) fn classify(method: &str, target: &[u8]) -> Classified {
    let pass = Classified { call: Call::Pass, version: None };
    let Some(target) = origin_form(target) else { return pass };
    let (path, query) = match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, &target[target.len()..]),
    };
    let Some(path) = decode(path, false) else { return pass };
    // Go's `.` does not match a line feed, so no route of ours does.
    if path.as_bytes().contains(&b'\n') || is_redirected(path.as_bytes()) {
        return pass;
    }
    let (version, rest) = split_version(&path);
    Classified { call: route(method, rest, query), version }
}

/// A target without its scheme and authority. `None` where there is no path to route (`*`) or Go refuses the target with
/// a 400. Source: Go `net/url`, `ParseRequestURI`: what follows a scheme may have an authority, and need not.
fn origin_form(target: &[u8]) -> Option<&[u8]> {
    if target.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
        return None;
    }
    let is_scheme = |(at, byte): (usize, &u8)| match byte {
        b'a'..=b'z' | b'A'..=b'Z' => true,
        b'0'..=b'9' | b'+' | b'-' | b'.' => at > 0,
        _ => false,
    };
    let end = target.iter().enumerate().take_while(|part| is_scheme(*part)).count();
    match target.get(end) {
        Some(b':') if end > 0 => {
            let rest = &target[end + 1..];
            let Some(authority) = rest.strip_prefix(b"//") else {
                return Some(rest).filter(|rest| rest.starts_with(b"/"));
            };
            let slash = authority.iter().position(|byte| matches!(byte, b'/' | b'?'))?;
            Some(&authority[slash..]).filter(|rest| rest.starts_with(b"/"))
        }
        _ => Some(target).filter(|target| target.starts_with(b"/")),
    }
}

/// Percent-decodes a path or a part of a query, where `+` is a space. What is no UTF-8 is read as U+FFFD, which is in no
/// name. `None` where Go refuses the escape (dockerd answers 400).
fn decode(raw: &[u8], is_query: bool) -> Option<Cow<'_, str>> {
    // Most of it is as it should be.
    if !raw.iter().any(|byte| matches!(byte, b'%' | b'+'))
        && let Ok(text) = std::str::from_utf8(raw)
    {
        return Some(text.into());
    }
    let mut text = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        text.push(match byte {
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if is_query => b' ',
            byte => *byte,
        });
    }
    Some(readable(&text).into())
}

/// Whether mux would redirect to the cleaned path (source: gorilla/mux `cleanPath`, Go `path.Clean`).
fn is_redirected(path: &[u8]) -> bool {
    let inner = path.strip_prefix(b"/").unwrap_or(path);
    let trimmed = inner.strip_suffix(b"/").unwrap_or(inner);
    (!trimmed.is_empty() || inner == b"/")
        && trimmed.split(|byte| *byte == b'/').any(|part| matches!(part, b"" | b"." | b".."))
}

/// Splits `/v1.41/x` into the version and `/x`. Source: moby `api/server/server.go`, `/v{version:[0-9.]+}`.
fn split_version(path: &str) -> (Option<ApiVersion>, &str) {
    let versioned = path.strip_prefix("/v").and_then(|rest| {
        let (version, _) = rest.split_once('/')?;
        let is_version = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        is_version.then(|| (Some(ApiVersion(version.to_owned())), &rest[version.len()..]))
    });
    versioned.unwrap_or((None, path))
}

/// The routes of ours, in the order in which dockerd tries them.
fn route(method: &str, path: &str, query: &[u8]) -> Call {
    let container = |verb: &str| {
        let name = path.strip_prefix("/containers/")?.strip_suffix(verb)?.strip_suffix('/')?;
        Some(name.to_owned())
    };
    let network = |verb: &str| {
        let name = path.strip_prefix("/networks/")?.strip_suffix(verb)?.strip_suffix('/')?;
        Some(name.to_owned())
    };
    let call = match method {
        "GET" if path == "/containers/json" => Some(Call::List),
        "GET" => container("json").map(|container| Call::Inspect { container }),
        "POST" if path == "/containers/create" => Some(Call::Create { name: query_name(query) }),
        "POST" if path == "/containers/prune" => Some(Call::Prune),
        "POST" => container("start")
            .map(|container| Call::Start { container })
            .or_else(|| container("restart").map(|container| Call::Restart { container }))
            .or_else(|| container("stop").map(|container| Call::Stop { container }))
            .or_else(|| container("kill").map(|container| Call::Kill { container }))
            .or_else(|| network("connect").map(|network| Call::NetworkConnect { network }))
            .or_else(|| network("disconnect").map(|network| Call::NetworkDisconnect { network })),
        "DELETE" => path
            .strip_prefix("/containers/")
            .filter(|name| !is_checkpoint(name))
            .map(|name| Call::Delete { container: name.to_owned() }),
        _ => None,
    };
    call.unwrap_or(Call::Pass)
}

/// Whether what follows `/containers/` is `{name}/checkpoints/{checkpoint}`, which dockerd routes before the delete of a
/// container. There a name is one part of the path.
fn is_checkpoint(name: &str) -> bool {
    matches!(name.split('/').collect::<Vec<_>>()[..], [name, "checkpoints", checkpoint] if !name.is_empty() && !checkpoint.is_empty())
}

/// The first `name` of a query, decoded as Go's `url.ParseQuery` does; empty if there is none. Where Go finds anything
/// wrong in a query dockerd answers 400.
fn query_name(query: &[u8]) -> String {
    for pair in query.split(|byte| *byte == b'&') {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let (key, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        if decode(key, true).as_deref() == Some("name") {
            return decode(value, true).unwrap_or_default().into_owned();
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &str, target: &str) -> Call {
        classify(method, target.as_bytes()).call
    }

    fn name(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn a_call_is_known_with_and_without_version_and_in_every_spelling() {
        let create = Call::Create { name: name("web") };
        for target in [
            "/containers/create?name=web",
            "/v1.41/containers/create?name=web",
            "/v1.041/containers/create?name=web",
            "/v1.41.0/containers/create?name=web",
            "/%761.41/containers/create?name=web",
            "/v1.41/c%6fntainers/%63reate?n%61me=w%65b",
            "/v1.41/containers/create?x=1&name=web&name=db",
            "http://localhost:2377/v1.41/containers/create?name=web",
        ] {
            assert_eq!(call("POST", target), create, "{target}");
        }
        assert_eq!(call("POST", "/containers/create"), Call::Create { name: String::new() });
        assert_eq!(call("POST", "/containers/create?name=a+b%2Bc"), Call::Create { name: name("a b+c") });
    }

    #[test]
    fn each_call_of_ours_has_its_route() {
        let c = || name("x");
        for (method, target, want) in [
            ("POST", "/v1.41/containers/x/start", Call::Start { container: c() }),
            ("POST", "/v1.41/containers/x/restart?t=5", Call::Restart { container: c() }),
            ("POST", "/v1.41/containers/x/stop", Call::Stop { container: c() }),
            ("POST", "/v1.41/containers/x/kill?signal=HUP", Call::Kill { container: c() }),
            ("DELETE", "/v1.41/containers/x?force=1", Call::Delete { container: c() }),
            ("POST", "/v1.41/containers/prune", Call::Prune),
            ("GET", "/v1.41/containers/x/json?size=1", Call::Inspect { container: c() }),
            ("GET", "/containers/json?all=1", Call::List),
            ("POST", "/v1.41/networks/x/connect", Call::NetworkConnect { network: c() }),
            ("POST", "/networks/x/disconnect", Call::NetworkDisconnect { network: c() }),
        ] {
            assert_eq!(call(method, target), want, "{method} {target}");
        }
    }

    #[test]
    fn a_container_may_be_called_like_a_verb_and_names_take_slashes() {
        for verb in ["create", "json", "start", "prune", "a/b", "x/attach"] {
            assert_eq!(call("POST", &format!("/containers/{verb}/start")), Call::Start { container: name(verb) });
            assert_eq!(call("GET", &format!("/v1.41/containers/{verb}/json")), Call::Inspect { container: name(verb) });
            assert_eq!(call("DELETE", &format!("/containers/{verb}")), Call::Delete { container: name(verb) });
        }
        assert_eq!(call("POST", "/containers/a%2Fb/start"), Call::Start { container: name("a/b") });
        assert_eq!(call("POST", "/networks/create/connect"), Call::NetworkConnect { network: name("create") });
        assert_eq!(
            call("DELETE", "/containers/checkpoints/x"),
            Call::Delete { container: name("checkpoints/x") },
            "there is no container name before it"
        );
    }

    #[test]
    fn what_dockerd_redirects_or_does_not_route_passes() {
        for (method, target) in [
            ("POST", "//containers/create"),
            ("POST", "/v1.41//containers/create"),
            ("POST", "/./containers/create"),
            ("POST", "/x/../containers/create"),
            ("POST", "/%2Fcontainers/create"),
            ("POST", "/containers/%2Fx/start"),
            ("POST", "/containers/create/"),
            ("POST", "/V1.41/containers/create"),
            ("POST", "/v/containers/create"),
            ("POST", "/v1.x/containers/create"),
            ("POST", "/containers/create%0a"),
            ("POST", "/containers/%zz/start"),
            ("POST", "/containers/%"),
            ("post", "/containers/create"),
            ("GET", "/containers/create"),
            ("HEAD", "/containers/json"),
            ("POST", "/containers/x/attach"),
            ("POST", "/exec/x/start"),
            ("POST", "/containers/x/wait"),
            ("DELETE", "/containers/x/checkpoints/c1"),
            ("OPTIONS", "*"),
            ("GET", ""),
            ("GET", "/"),
            ("CONNECT", "host:80"),
        ] {
            assert_eq!(call(method, target), Call::Pass, "{method} {target}");
        }
    }

    #[test]
    fn versions_compare_as_numbers() {
        for (target, old) in [
            ("/v1.18/containers/x/start", true),
            ("/v1.023/containers/x/start", true),
            ("/v1.24/containers/x/start", false),
            ("/v1.24.0/containers/x/start", false),
            ("/v1.41/containers/x/start", false),
            ("/v2/containers/x/start", false),
            ("/containers/x/start", false),
        ] {
            assert_eq!(classify("POST", target.as_bytes()).is_before_1_24(), old, "{target}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_target_panics(method in "[A-Z]{0,7}", target in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = classify(&method, &target);
        }
    }
}
