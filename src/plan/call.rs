//! Calls: what a request to the Docker API is, told from its method and its target alone.
//!
//! The path is matched as dockerd routes it (gorilla mux on the decoded path, each route with and without a version), so
//! that no spelling of a call of ours slips by; what is forwarded stays the original bytes. A shape that dockerd answers
//! with a redirect (`//`, `/./`, `/../`, an encoded slash at the front) is none of ours: the client comes back with the
//! clean one. Container names may be verbs (`create`, `json`, `start`), and `{name:.*}` takes slashes.

use std::cmp::Ordering;

/// A version of the Docker API as a path names it: `1.41`, but also `1.041` and `1.41.0`, which are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiVersion(String);

impl ApiVersion {
    /// Whether this version is older than another. Source: moby `api/types/versions/compare.go`: parts are compared as
    /// numbers, a part that is none counts as 0.
    pub(crate) fn is_before(&self, other: &str) -> bool {
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok()).unwrap_or(0);
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
}

/// Tells what a request is. `target` is the raw second word of the request line.
pub(crate) fn classify(method: &str, target: &[u8]) -> Classified {
    let pass = Classified { call: Call::Pass, version: None };
    let (path, query) = match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, &target[target.len()..]),
    };
    let Some(path) = origin_form(path).and_then(decode_path) else { return pass };
    if is_redirected(&path) {
        return pass;
    }
    let (version, rest) = split_version(&path);
    Classified { call: route(method, rest, query), version }
}

/// The path of a target: as it is, or what follows the authority of an absolute one (`http://host/path`).
fn origin_form(path: &[u8]) -> Option<&[u8]> {
    if path.first() == Some(&b'/') {
        return Some(path);
    }
    let colon = path.windows(3).position(|bytes| bytes == b"://")?;
    let authority = &path[colon + 3..];
    let slash = authority.iter().position(|byte| *byte == b'/')?;
    Some(&authority[slash..])
}

/// Percent-decodes a path. `None` where Go refuses the escape (dockerd answers 400) or the name could be no text.
fn decode_path(raw: &[u8]) -> Option<String> {
    let mut path = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'%' => {
                let mut digit = || char::from(*bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => *byte,
        });
    }
    // Go's `.` does not match a line feed, so no route with a name does.
    String::from_utf8(path).ok().filter(|path| !path.contains('\n'))
}

/// Whether mux would redirect to the cleaned path (source: gorilla/mux `cleanPath`, Go `path.Clean`).
fn is_redirected(path: &str) -> bool {
    let inner = path.strip_prefix('/').unwrap_or(path);
    let trimmed = inner.strip_suffix('/').unwrap_or(inner);
    (!trimmed.is_empty() || inner == "/") && trimmed.split('/').any(|part| matches!(part, "" | "." | ".."))
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

/// Whether what follows `/containers/` is `{name:.*}/checkpoints/{checkpoint}`, which dockerd routes before the delete
/// of a container.
fn is_checkpoint(name: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(before, checkpoint)| {
        !checkpoint.is_empty() && before.strip_suffix("checkpoints").is_some_and(|before| before.ends_with('/'))
    })
}

/// The first `name` of a query, decoded as Go's `url.ParseQuery` does; empty if there is none.
fn query_name(query: &[u8]) -> String {
    for pair in query.split(|byte| *byte == b'&') {
        let mut halves = pair.splitn(2, |byte| *byte == b'=');
        let (key, value) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        if decode_query(key).as_deref() == Some("name") {
            return decode_query(value).unwrap_or_default();
        }
    }
    String::new()
}

fn decode_query(raw: &[u8]) -> Option<String> {
    let spaced: Vec<u8> = raw.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    decode_path(&spaced)
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
