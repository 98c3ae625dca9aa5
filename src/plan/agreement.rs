//! Laws of agreement: bodies and targets mean to us what they mean to Go and to dockerd, as `reference/main.go` tells.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::Value;

use super::body::{self, read_create};
use super::call::{Call, classify};
use super::json;
use super::runtime::{RUNTIME, Runtimes, Way};
use crate::model::endpoint::OciRuntime;
use crate::model::fault::Fault;
use crate::model::recreation::RecreationLabels;
use crate::reference::{ask, hex};

/// What a create body means to dockerd.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Meaning {
    error: String,
    env: Option<Vec<String>>,
    mode: String,
    networks: Option<BTreeMap<String, Vec<String>>>,
    labels: Option<BTreeMap<String, String>>,
    runtime: String,
    ports: bool,
}

/// What a dockerd knows to which ours was made known, and another runtime.
fn with_ours() -> Runtimes {
    let runtime = |path: &str| OciRuntime { path: path.to_owned(), args: Vec::new() };
    let known = [("gpu", "/usr/bin/gpu-runtime"), (RUNTIME, "/usr/bin/calico-runtime")];
    let known = known.map(|(name, path)| (name.to_owned(), runtime(path)));
    Runtimes { default: "runc".to_owned(), known: known.into() }
}

fn values_of<'a>(environment: &'a [String], name: &str) -> BTreeSet<&'a str> {
    environment.iter().filter_map(|entry| entry.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// Compares our reading and our edit of a create body with Go's, where dockerd knows our runtime and where not; the text
/// tells how they differ.
fn create_agrees(bytes: &[u8]) -> Result<(), String> {
    create_agrees_beside(bytes, &Runtimes::default())?;
    create_agrees_beside(bytes, &with_ours())
}

fn create_agrees_beside(bytes: &[u8], runtimes: &Runtimes) -> Result<(), String> {
    let go: Meaning = ask("create", &[bytes]);
    let ours = read_create(bytes, "", runtimes);
    if !go.error.is_empty() {
        // dockerd refuses the body, so it must refuse what we make of it.
        let Ok(Some((_, edited))) = ours else { return Ok(()) };
        let again: Meaning = ask("create", &[&edited]);
        return if again.error.is_empty() { Err(format!("Go refused: {}", go.error)) } else { Ok(()) };
    }
    let (environment, networks) = (go.env.unwrap_or_default(), go.networks.unwrap_or_default());
    let addresses = values_of(&environment, "CALICO_IP");
    match ours {
        Ok(None) if addresses.is_empty() => Ok(()),
        Ok(None) => Err(format!("a wish slipped by: {addresses:?}")),
        Ok(Some(_)) | Err(_) if addresses.is_empty() => Err("there is no wish".to_owned()),
        Err(Fault::Refusal(why)) if why.contains("set it once") => {
            // The second value may be one that Go has forgotten.
            Ok(())
        }
        Err(fault) => {
            let mode = &go.mode;
            let excluded = mode == "host" || mode == "container" || mode.starts_with("container:");
            if excluded || addresses != BTreeSet::from(["auto"]) { Ok(()) } else { Err(fault.to_string()) }
        }
        Ok(Some((ask_of_us, edited))) => {
            if addresses.len() > 1 {
                return Err(format!("two wishes at once: {addresses:?}"));
            }
            if ask_of_us.requested.network_mode != go.mode {
                return Err(format!("the mode is {:?} to Go", go.mode));
            }
            let own = |name: &str| matches!(name, "" | "default" | "bridge" | "none" | "host");
            let mut wanted: BTreeMap<String, Vec<String>> =
                networks.into_iter().filter(|(name, _)| !own(name)).collect();
            if wanted.is_empty() && !own(&go.mode) {
                wanted.insert(go.mode, Vec::new());
            }
            if ask_of_us.requested.networks != wanted {
                return Err(format!("networks {:?}, {wanted:?} to Go", ask_of_us.requested.networks));
            }
            let labels: RecreationLabels = go.labels.unwrap_or_default().into_iter().collect();
            if ask_of_us.labels != labels {
                return Err(format!("labels {:?}, {labels:?} to Go", ask_of_us.labels));
            }
            if ask_of_us.warnings.iter().any(|warning| warning.contains("published ports")) != go.ports {
                return Err(format!("ports {} to Go, we say {:?}", go.ports, ask_of_us.warnings));
            }
            let (runtime, behind) = match runtimes.choose(&go.runtime) {
                Way::Runtime(behind) => (RUNTIME.to_owned(), behind),
                Way::Node(_) => (go.runtime, None),
            };
            if ask_of_us.requested.runtime != behind {
                return Err(format!("behind ours {:?}, {behind:?} to Go", ask_of_us.requested.runtime));
            }
            let compared: String = ask("edit", &[bytes, &edited, runtime.as_bytes()]);
            if compared == "same" {
                return Ok(());
            }
            Err(format!("{compared}\nedited {}", String::from_utf8_lossy(&edited)))
        }
    }
}

#[test]
fn bodies_that_were_once_read_otherwise_than_by_go_are_read_alike() {
    for body in [
        // null takes a HostConfig back, and what is left is read from the body itself.
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"a","Memory":1},"HostConfig":null,"NetworkMode":"b"}"#,
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"Memory":1},"HostConfig":null,"HostConfig":{"Privileged":true}}"#,
        // A HostConfig would make dockerd forget these.
        r#"{"Env":["CALICO_IP=auto"],"Memory":6291456,"Binds":["/a:/b"],"PrivilegeD":true,"Image":"x"}"#,
        r#"{"Env":["CALICO_IP=auto"],"Memory":6291456,"networkMode":"bridge","HostConfig":null,"Cpuset":"0"}"#,
        // A HostConfig would make dockerd read this.
        r#"{"Env":["CALICO_IP=auto"],"Cpuset":"0"}"#,
        // Go writes lists over lists.
        r#"{"Env":["CALICO_IP=auto"],"Env":[null]}"#,
        r#"{"Env":["A=b","CALICO_IP=auto"],"Env":["C=d"],"Env":["E=f",null]}"#,
        r#"{"Env":["A=b","CALICO_IP=auto"],"Env":[],"Env":["E=f",null]}"#,
        r#"{"Env":["1","2","3","4","CALICO_IP=auto"],"Env":["C=d"],"Env":[null,null,null,null,null,null,null]}"#,
        r#"{"Env":["CALICO_IP=auto"],"NetworkingConfig":{"EndpointsConfig":{"n":{"Aliases":["a"],"aliases":[null,"b"]}}}}"#,
        // null takes networks back.
        r#"{"Env":["CALICO_IP=auto"],"NetworkingConfig":{"EndpointsConfig":{"n":{}}},"NetworkingConfig":null}"#,
        r#"{"Env":["CALICO_IP=auto"],"NetworkingConfig":{"EndpointsConfig":{"n":{}},"EndpointsConfig":null}}"#,
        r#"{"Env":["CALICO_IP=auto"],"NetworkingConfig":{"EndpointsConfig":{"n":{}}},"networkingConfig":{}}"#,
        // Cut out, this would no longer be refused.
        r#"{"Env":["CALICO_IP=auto"],"NetworkingConfig":{"EndpointsConfig":{"n":{"IPPrefixLen":"x"}}}}"#,
        // null leaves a text as it was.
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"n","NetworkMode":null}}"#,
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"container"}}"#,
        // Whose runtime is asked for where, and how often.
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"Runtime":"gpu","runtime":"runc","Runtime":null}}"#,
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"Runtime":"gpu"},"HostConfig":{"RUNTIME":"kata"},"Runtime":"runc"}"#,
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"Runtime":"kata"},"HostConfig":null,"Runtime":"gpu"}"#,
        r#"{"Env":["CALICO_IP=auto"],"Runtime":"gpu","Memory":6291456,"Cpuset":"0"}"#,
    ] {
        create_agrees(body.as_bytes()).unwrap_or_else(|why| panic!("{body}: {why}"));
    }
}

#[test]
fn the_members_of_a_body_that_dockerd_takes_for_a_host_configuration_are_all_known() {
    assert_eq!(ask::<Vec<String>>("legacy", &[]), body::LEGACY);
}

/// A key as Go takes it for a field's.
fn spelling(name: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![
        6 => Just(name.to_owned()),
        1 => Just(name.to_lowercase()),
        1 => Just(name.to_uppercase()),
        1 => Just(name.replace('k', "\u{212a}").replace('s', "\u{17f}")),
        1 => Just(format!("\\u{:04x}{}", u32::from(name.as_bytes()[0]), &name[1..])),
        1 => Just(format!("{name}\\u0000")),
    ]
}

fn list(of: impl Strategy<Value = String>, most: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        12 => proptest::collection::vec(of, 0..most).prop_map(|items| format!("[{}]", items.join(" ,"))),
        1 => Just("null".to_owned()),
        1 => Just("{}".to_owned()),
    ]
}

fn object(members: impl Strategy<Value = String>, most: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        12 => proptest::collection::vec(members, 0..most).prop_map(|members| format!("{{{}}}", members.join(","))),
        2 => Just("null".to_owned()),
        1 => Just("[]".to_owned()),
    ]
}

fn member(name: &'static str, value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    (spelling(name), value).prop_map(|(key, value)| format!("\"{key}\": {value}"))
}

fn text(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        12 => proptest::sample::select(values).prop_map(|value| format!("\"{value}\"")),
        2 => Just("null".to_owned()),
        1 => Just("7".to_owned()),
    ]
}

fn number() -> impl Strategy<Value = String> {
    proptest::sample::select(&[
        "0",
        "6291456",
        "9007199254740993",
        "1e3",
        "-0",
        "null",
        "\"1\"",
        "99999999999999999999",
    ])
    .prop_map(str::to_owned)
}

fn host_members() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => member("NetworkMode", text(&["none", "default", "n", "host", "container:x", ""])),
        2 => member("Runtime", text(&["runc", "gpu", "calico", "kata", ""])),
        1 => member("Memory", number()),
        1 => member("CpuShares", number()),
        1 => member("CpusetCpus", text(&["0", "0-1", ""])),
        1 => member("VolumeDriver", text(&["local", ""])),
        1 => member("Binds", list(text(&["/a:/b"]), 3)),
        1 => member("CapAdd", list(text(&["ALL"]), 3)),
        1 => member("LogConfig", Just(r#"{"Type":"none","Config":{"a":"b"}}"#.to_owned())),
        1 => member("PublishAllPorts", proptest::sample::select(&["true", "false", "null"]).prop_map(str::to_owned)),
        1 => member(
            "PortBindings",
            proptest::sample::select(&[r#"{"80/tcp":[{"HostPort":"80"}]}"#, "{}", "null"]).prop_map(str::to_owned),
        ),
        1 => member("Unknown", Just("[{\"NetworkMode\":\"x\"}]".to_owned())),
    ]
}

fn networking_members() -> impl Strategy<Value = String> {
    let endpoint = object(
        prop_oneof![
            2 => member("Aliases", list(text(&["a", "b"]), 4)),
            1 => member("IPAddress", text(&["10.0.0.1"])),
        ],
        3,
    );
    let named = (proptest::sample::select(&["n", "m", "bridge"]), endpoint)
        .prop_map(|(name, value)| format!("\"{name}\":{value}"));
    prop_oneof![
        6 => member("EndpointsConfig", object(named, 3)),
        1 => member("Other", number()),
    ]
}

fn create_body() -> impl Strategy<Value = Vec<u8>> {
    let variables = text(&[
        "CALICO_IP=auto",
        "CALICO_IP=auto",
        "\\u0043ALICO_IP=auto",
        "CALICO_IP=10.0.0.1",
        "CALICO_IP",
        "A=b",
        "",
    ]);
    let label =
        proptest::sample::select(&["\"calico.replace\"", "\"calico.replac\\u0065\"", "\"Calico.replace\"", "\"a\""]);
    let labels = (label, text(&["x", "y", ""])).prop_map(|(key, value)| format!("{key}:{value}"));
    let members = prop_oneof![
        6 => member("Env", list(variables, 5)),
        6 => member("HostConfig", object(host_members(), 4)),
        4 => host_members(),
        4 => member("NetworkingConfig", object(networking_members(), 3)),
        1 => member("Cpuset", text(&["0", ""])),
        2 => member("Labels", object(labels, 4)),
        1 => member("Cmd", list(text(&["x"]), 3)),
        1 => member("Image", text(&["x"])),
        1 => member("Volumes", Just("{\"/v\":{}}".to_owned())),
    ];
    let body = proptest::collection::vec(members, 1..7).prop_map(|members| format!("{{{}}}", members.join(", ")));
    let (before, after) = (
        proptest::sample::select(&["", "", "", " \n\t", "\u{feff}", "\0"]),
        proptest::sample::select(&["", "", "", "\n", " tail", "{\"Env\":[]}", "\0"]),
    );
    let odd = proptest::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    (before, body, after, odd).prop_map(|(before, body, after, odd)| {
        let mut bytes = [before.as_bytes(), body.as_bytes(), after.as_bytes()].concat();
        if let Some((at, byte)) = odd {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes
    })
}

fn deep() -> impl Strategy<Value = Vec<u8>> {
    (9_990_usize..10_010, proptest::sample::select(&["[", "{\"a\":"]), proptest::sample::select(&["", "1", "[]", "{}"]))
        .prop_map(|(depth, open, inner)| {
            let close = if open == "[" { "]" } else { "}" };
            let inner = if inner.is_empty() && open != "[" { "1" } else { inner };
            format!("{}{inner}{}", open.repeat(depth), close.repeat(depth)).into_bytes()
        })
}

/// What dockerd routes a target to.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Routed {
    route: String,
    version: Option<String>,
    name: String,
    query: Option<String>,
    old: bool,
}

/// Compares what a request is to us with where dockerd routes it.
fn target_agrees(method: &str, target: &[u8]) -> Result<(), String> {
    let go: Routed = ask("target", &[method.as_bytes(), target]);
    let ours = classify(method, target);
    let (route, name) = match &ours.call {
        // Go reads no query that has an error in it, and dockerd then refuses the call.
        Call::Create { name } if go.query.as_ref().is_none_or(|query| query == name) => ("POST /containers/create", ""),
        Call::Create { name } => return Err(format!("the name is {name:?}, {:?} to Go", go.query)),
        Call::Start { container } => ("POST /containers/{name:.*}/start", container.as_str()),
        Call::Restart { container } => ("POST /containers/{name:.*}/restart", container.as_str()),
        Call::Stop { container } => ("POST /containers/{name:.*}/stop", container.as_str()),
        Call::Kill { container } => ("POST /containers/{name:.*}/kill", container.as_str()),
        Call::Delete { container } => ("DELETE /containers/{name:.*}", container.as_str()),
        Call::Prune => ("POST /containers/prune", ""),
        Call::Inspect { container } => ("GET /containers/{name:.*}/json", container.as_str()),
        Call::List => ("GET /containers/json", ""),
        Call::NetworkConnect { network } => ("POST /networks/{id:.*}/connect", network.as_str()),
        Call::NetworkDisconnect { network } => ("POST /networks/{id:.*}/disconnect", network.as_str()),
        Call::Pass => {
            let known = [
                "POST /containers/create",
                "POST /containers/{name:.*}/start",
                "POST /containers/{name:.*}/restart",
                "POST /containers/{name:.*}/stop",
                "POST /containers/{name:.*}/kill",
                "DELETE /containers/{name:.*}",
                "POST /containers/prune",
                "GET /containers/{name:.*}/json",
                "GET /containers/json",
                "POST /networks/{id:.*}/connect",
                "POST /networks/{id:.*}/disconnect",
            ];
            return if known.contains(&go.route.as_str()) { Err(format!("it slipped by: {go:?}")) } else { Ok(()) };
        }
    };
    // We do not judge authorities: where Go refuses one, dockerd answers 400 whatever we take the path for.
    if go.route.is_empty() && target.windows(3).any(|bytes| bytes == b"://") {
        return Ok(());
    }
    if go.route.is_empty() {
        return Err(format!("dockerd routes it nowhere, we take it for {ours:?}"));
    }
    if go.route != route {
        return Err(format!("{go:?}, to us {ours:?}"));
    }
    let name_is_text = go.name == hex(name.as_bytes());
    if !name_is_text && !name.contains('\u{fffd}') {
        return Err(format!("{go:?}, to us {ours:?}"));
    }
    if ours.is_before_1_24() != go.old || ours.version.is_some() != go.version.is_some() {
        return Err(format!("{go:?}, to us {ours:?}"));
    }
    Ok(())
}

#[test]
fn targets_that_were_once_routed_otherwise_than_by_dockerd_are_routed_alike() {
    for (method, target) in [
        // A scheme without an authority.
        ("POST", b"http:/containers/create".as_slice()),
        ("POST", b"x:/v1.41/containers/a/start"),
        ("POST", b"a+b.c-1:/v1.18/containers/a/start?x"),
        ("POST", b"http:///containers/create"),
        ("POST", b"http://user:pass@h/containers/create?name=a"),
        // No schemes.
        ("POST", b"1x://h/containers/create"),
        ("POST", b"/x://h/containers/create"),
        ("POST", b"a/b://h/containers/create"),
        ("POST", b"http:containers/create"),
        ("POST", b"http://h?x/containers/create"),
        // Names that are no text.
        ("POST", b"/containers/\xff/start"),
        ("DELETE", b"/containers/%ff"),
        ("POST", b"/containers/create?x=\xff&name=%ff"),
        // The container before /checkpoints/ is one without slashes.
        ("DELETE", b"/containers/a/b/checkpoints/c"),
        ("DELETE", b"/containers/a/checkpoints/c"),
        ("DELETE", b"/containers/a/checkpoints/c/d"),
        ("DELETE", b"/containers/checkpoints/c"),
        ("DELETE", b"/containers/a%0a/checkpoints/c"),
        // Numbers that fit no integer are the largest one.
        ("POST", b"/v1.99999999999999999999/containers/a/start"),
        ("POST", b"/v99999999999999999999/containers/a/start"),
        ("POST", b"/v1./containers/a/start"),
        ("POST", b"/v../containers/a/start"),
        // Pairs that Go drops.
        ("POST", b"/containers/create?name=a;b&name=c"),
        ("POST", b"/containers/create?name=%zz&name=c"),
        ("POST", b"/containers/create?name=a%0ab"),
        ("POST", b"/networks/a%2Fb/connect"),
    ] {
        target_agrees(method, target).unwrap_or_else(|why| panic!("{method} {}: {why}", target.escape_ascii()));
    }
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    let start = proptest::sample::select(&[
        "",
        "",
        "",
        "",
        "http://h:1",
        "http:",
        "x:",
        "1:",
        ":",
        "http://",
        "//",
        "http://h%41/..",
        "*",
    ]);
    let version = proptest::sample::select(&[
        "",
        "",
        "/v1.41",
        "/v1.18",
        "/v1.023",
        "/v1",
        "/v",
        "/V1.41",
        "/v1.2.3.",
        "/%761.41",
        "/v1.99999999999999999999",
    ]);
    let part = || {
        proptest::sample::select(&[
            "/containers",
            "/containers",
            "/containers",
            "/networks",
            "/create",
            "/json",
            "/start",
            "/restart",
            "/stop",
            "/kill",
            "/prune",
            "/connect",
            "/disconnect",
            "/checkpoints",
            "/x",
            "/a%2Fb",
            "/%2e%2e",
            "/.",
            "/..",
            "/",
            "//",
            "%2F",
            "/%73tart",
            "/c%6fntainers",
            "/%0a",
            "/a\u{e9}",
            "%",
            "/%zz",
            "/%ff",
            "/a;b",
            "/a+b",
            "/{name}",
            "/#",
            "/:",
            "/@",
        ])
    };
    let query = proptest::sample::select(&[
        "",
        "",
        "",
        "?",
        "??",
        "?name=a",
        "?x=1&name=a%20b+c&name=d",
        "?name",
        "?=a&name=",
        "?n%61me=a",
        "?name=a;b",
        "?;&name=a",
        "?name=%zz",
        "?name=%ff",
        "?&&name=a",
        "?name=a#b",
    ]);
    let odd = proptest::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    (start, version, proptest::collection::vec(part(), 0..5), query, odd).prop_map(
        |(start, version, parts, query, odd)| {
            let mut bytes = format!("{start}{version}{}{query}", parts.concat()).into_bytes();
            if let Some((at, byte)) = odd
                && !bytes.is_empty()
            {
                // A space would end the target.
                let at = at.index(bytes.len());
                bytes[at] = if byte == b' ' { b'!' } else { byte };
            }
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn a_create_means_to_us_what_it_means_to_dockerd_and_an_edit_changes_only_its_network(body in create_body()) {
        create_agrees(&body).map_err(|why| TestCaseError::fail(format!("{}: {why}", String::from_utf8_lossy(&body))))?;
    }

    #[test]
    fn a_document_ends_for_us_where_it_ends_for_go(
        text in proptest::collection::vec(proptest::sample::select(&[
            "{", "}", "[", "]", ":", ",", "\"a\"", "\"\\u00e9\\", "\\\"", "\"", "1", "-0.5e+3", "-", "01", "true", "null", "fals", " ", "\n", "\0", "\u{feff}", "/",
        ]), 0..12),
        raw in proptest::collection::vec(any::<u8>(), 0..6),
    ) {
        for bytes in [text.concat().into_bytes(), [text.concat().as_bytes(), &raw].concat(), [b"[1,\"", raw.as_slice(), b"\"]"].concat()] {
            let end: i64 = ask("document", &[&bytes]);
            let ours = json::document(&bytes).map_or(-1, |span| i64::try_from(span.end).unwrap());
            prop_assert_eq!(ours, end, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_text_reads_as_go_reads_it(inner in proptest::collection::vec(prop_oneof![
        proptest::sample::select(&["\\ud83d", "\\ude00", "\\u0041", "\\n", "\\/", "\\u0000", "a", "é", "\u{2028}", "\u{fffd}"]).prop_map(|part| part.as_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
    ], 0..10)) {
        let bytes = [b"\"", inner.concat().as_slice(), b"\""].concat();
        let go: Option<String> = ask("text", &[&bytes]);
        let ours = json::document(&bytes).filter(|span| span.end == bytes.len()).and_then(|span| json::string(&bytes, &span));
        prop_assert_eq!(ours, go);
    }

    #[test]
    fn a_connect_is_about_the_container_that_go_reads(members in proptest::collection::vec(prop_oneof![
        4 => member("Container", text(&["a", "b", ""])),
        1 => member("Force", Just("true".to_owned())),
    ], 0..4)) {
        let body = format!("{{{}}} tail", members.join(","));
        let go: BTreeMap<String, String> = ask("connect", &[body.as_bytes()]);
        if let Some(container) = go.get("Container") {
            prop_assert_eq!(&body::connected_container(body.as_bytes()).unwrap_or_default(), container, "{}", body);
        }
    }

    #[test]
    fn a_target_is_to_us_what_dockerd_routes_it_to(
        method in proptest::sample::select(&["POST", "POST", "POST", "GET", "DELETE", "HEAD", "post", "CONNECT", "OPTIONS"]),
        target in target(),
    ) {
        target_agrees(method, &target).map_err(|why| TestCaseError::fail(format!("{method} {}: {why}", target.escape_ascii())))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn depth_ends_for_us_where_it_ends_for_go(bytes in deep()) {
        let end: i64 = ask("document", &[&bytes]);
        prop_assert_eq!(json::document(&bytes).map_or(-1, |span| i64::try_from(span.end).unwrap()), end);
        // Nothing recurses where Go does not.
        let _: Option<Value> = ask("create", &[&bytes]);
    }
}
