use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::endpoint::OciRuntime;
use crate::model::wish::AddressWish;

fn read(text: &str) -> Result<Option<(Ask, String)>, Fault> {
    read_create(text.as_bytes(), "web", &Runtimes::default())
        .map(|read| read.map(|(ask, body)| (ask, String::from_utf8_lossy(&body).into_owned())))
}

fn edited(text: &str) -> String {
    read(text).unwrap().expect("a wish").1
}

#[test]
fn the_runtime_becomes_ours_where_dockerd_knows_it() {
    let ours = OciRuntime { path: "/usr/bin/calico-runtime".to_owned(), args: Vec::new() };
    let other = OciRuntime { path: "/usr/bin/gpu".to_owned(), args: vec!["-v".to_owned()] };
    let known = BTreeMap::from([("calico".to_owned(), ours), ("gpu".to_owned(), other.clone())]);
    let runtimes = Runtimes { default: "runc".to_owned(), known };
    for (text, wanted, behind) in [
        (r#"{"HostConfig":{ }}"#, r#"{"HostConfig":{"NetworkMode":"none","Runtime":"calico" }}"#, None),
        (r#"{"HostConfig":{"A":1}}"#, r#"{"HostConfig":{"A":1,"NetworkMode":"none","Runtime":"calico"}}"#, None),
        (
            r#"{"HostConfig":{"runtime":"runc","NetworkMode":"bridge"}}"#,
            r#"{"HostConfig":{"runtime":"calico","NetworkMode":"none"}}"#,
            None,
        ),
        (
            r#"{"HostConfig":{"Runtime":"runc","Runtime":"gpu","Runtime":null}}"#,
            r#"{"HostConfig":{"Runtime":"calico","Runtime":"calico","Runtime":"calico","NetworkMode":"none"}}"#,
            Some(&other),
        ),
        (
            r#"{"Memory":7,"Runtime":"gpu"}"#,
            r#"{"Memory":7,"Runtime":"gpu","HostConfig":{"Memory":7,"NetworkMode":"none","Runtime":"calico"}}"#,
            Some(&other),
        ),
    ] {
        let with_wish = |text: &str| text.replacen('{', r#"{"Env":["CALICO_IP=auto"],"#, 1);
        let (ask, body) = read_create(with_wish(text).as_bytes(), "", &runtimes).unwrap().unwrap();
        assert_eq!(String::from_utf8(body).unwrap(), with_wish(wanted));
        assert_eq!((ask.requested.runtime.as_ref(), &ask.warnings), (behind, &Vec::new()), "{text}");
    }
    // One that ours cannot call stays, and the user is told.
    let text = r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"Runtime":"kata"}}"#;
    let (ask, body) = read_create(text.as_bytes(), "", &runtimes).unwrap().unwrap();
    assert!(String::from_utf8(body).unwrap().contains(r#""Runtime":"kata""#));
    assert!(ask.warnings.iter().any(|warning| warning.contains("runtime kata")), "{:?}", ask.warnings);
}

#[test]
fn a_body_without_a_wish_goes_on_untouched() {
    for text in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"Env":["A=b"]}"#,
        r#"{"Env":["CALICO_IP"]}"#,
        r#"{"Env":["calico_ip=auto","XCALICO_IP=auto","CALICO_IPX=auto"]}"#,
        r#"{"Env":["CALICO_PROFILE=web"]}"#,
        r#"{"Env":["CALICO_IP=auto"],"env":[]}"#,
        r#"{"Env":["CALICO_IP=auto"],"ENV":null}"#,
        r#"{"Env":["CALICO_IP=auto",7]}"#,
        r#"{"Env":"CALICO_IP=auto"}"#,
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":7}"#,
        r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":7}}"#,
        r#"{"Env":["CALICO_IP=auto"],"NetworkingConfig":[]}"#,
        r#"{"Env":["CALICO_IP=auto"]"#,
    ] {
        assert_eq!(read(text), Ok(None), "{text}");
    }
}

#[test]
fn a_wish_is_found_as_go_finds_it() {
    for text in [
        r#"{"Env":["CALICO_IP=auto"]}"#,
        r#"{"Env":["A","B=c","CALICO_IP","CALICO_IP=auto","CALICO_IP=auto"]}"#,
        r#"{"eNV":["\u0043ALICO_IP=auto"]}"#,
        r#"{"Env":["A=b"],"Env":["CALICO_IP=auto"]} {"Env":[]}"#,
        r#"{"Env":[null,"CALICO_IP=auto"],"HostConfig":null}"#,
    ] {
        let (ask, _) = read(text).unwrap().expect(text);
        assert_eq!(ask.wish.addresses, ["auto".parse::<AddressWish>().unwrap()], "{text}");
        assert_eq!(ask.name, "web");
    }
}

#[test]
fn labels_of_recreation_are_read_as_go_reads_them() {
    let place = [("project", "p"), ("service", "web"), ("container-number", "1"), ("oneoff", "False")];
    let labels = |pairs: &[(&str, &str)]| -> RecreationLabels {
        pairs.iter().map(|(name, value)| (format!("com.docker.compose.{name}"), (*value).to_owned())).collect()
    };
    let text = |name: &str| format!("\"com.docker.compose.{name}\"");
    let [project, service, number, one_off] = place.map(|(name, value)| format!("{}:\"{value}\"", text(name)));
    let nothing = labels(&[]);
    for (body, want) in [
        (format!("\"Labels\":{{{project},{service},\"a\":\"b\",{number},{one_off}}}"), labels(&place)),
        (format!("\"Labels\":{{{project}}},\"labels\":{{{service}}}"), labels(&place[..2])),
        (format!("\"Labels\":{{{project}}},\"Labels\":null"), nothing.clone()),
        (format!("\"Labels\":{{{}:\"q\",{project}}}", text("project")), labels(&place[..1])),
        (format!("\"Labels\":{{{}:null}}", text("project")), labels(&[("project", "")])),
        ("\"HostConfig\":{}".to_owned(), nothing),
    ] {
        let (ask, _) = read(&format!("{{\"Env\":[\"CALICO_IP=auto\"],{body}}}")).unwrap().expect(&body);
        assert_eq!(ask.labels, want, "{body}");
    }
    // dockerd reads no such body.
    for bad in ["7", "[]", "{\"a\":7}"] {
        assert_eq!(read(&format!("{{\"Env\":[\"CALICO_IP=auto\"],\"Labels\":{bad}}}")), Ok(None), "{bad}");
    }
}

#[test]
fn a_wish_that_cannot_be_is_refused() {
    for (text, part) in [
        (r#"{"Env":["CALICO_IP=auto","CALICO_IP=1.2.3.4"]}"#, "1.2.3.4"),
        (r#"{"Env":["CALICO_IP=auto"],"env":["CALICO_IP=1.2.3.4"]}"#, "1.2.3.4"),
        (r#"{"Env":["CALICO_IP="]}"#, "CALICO_IP"),
        (r#"{"Env":["CALICO_IP=auto","CALICO_PROFILE=a","CALICO_PROFILE=b"]}"#, "CALICO_PROFILE"),
        (r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"host"}}"#, "host"),
        (r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"container:x"}}"#, "container:x"),
        (r#"{"Env":["CALICO_IP=auto"],"NetworkMode":"host"}"#, "host"),
        (r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"a","networkmode":"b"}}"#, "NetworkMode"),
        (r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"a"},"hostconfig":{"NetworkMode":"b"}}"#, "once"),
    ] {
        match read(text) {
            Err(Fault::Refusal(message)) => assert!(message.contains(part), "{message}"),
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn the_network_becomes_none_and_nothing_else_changes() {
    for (text, want) in [
        (
            r#"{"Env":["CALICO_IP=auto"], "HostConfig":{"NetworkMode":"default","X":9007199254740993}}"#,
            r#"{"Env":["CALICO_IP=auto"], "HostConfig":{"NetworkMode":"none","X":9007199254740993}}"#,
        ),
        (
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"X":1}}"#,
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"X":1,"NetworkMode":"none"}}"#,
        ),
        (r#"{"Env":["CALICO_IP=auto"]}"#, r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"none"}}"#),
        (
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":null,"X":1}"#,
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":null,"X":1,"HostConfig":{"NetworkMode":"none"}}"#,
        ),
        (
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"networ\u212aMode":"b","NetworkMode":null}}"#,
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"networ\u212aMode":"none","NetworkMode":"none"}}"#,
        ),
        (
            r#"{"HostConfig":{"A":1},"hoſtConfig":{"NetworkMode":"b"},"Env":["CALICO_IP=auto"]}"#,
            r#"{"HostConfig":{"A":1},"hoſtConfig":{"NetworkMode":"none"},"Env":["CALICO_IP=auto"]}"#,
        ),
        (
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"n"},"NetworkingConfig":{"EndpointsConfig":{"n":{"Aliases":["a"]}},"Y":1}} tail"#,
            r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"none"},"NetworkingConfig":{"EndpointsConfig":{"n":{"Aliases":["a"]}},"Y":1,"EndpointsConfig":null}} tail"#,
        ),
    ] {
        assert_eq!(edited(text), want);
    }
}

/// dockerd 25 and later refuse one beside `none` to who speaks an older version of the API.
#[test]
fn a_fixed_mac_address_is_taken_back() {
    for (text, wanted) in [
        (
            r#"{"MacAddress":"02:00:00:00:00:07","Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"bridge"}}"#,
            r#"{"MacAddress":"","Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"none"}}"#,
        ),
        (
            r#"{"macaddress":null,"Env":["CALICO_IP=auto"],"macAddress":"a","HostConfig":{"NetworkMode":"x"}}"#,
            r#"{"macaddress":null,"Env":["CALICO_IP=auto"],"macAddress":"","HostConfig":{"NetworkMode":"none"}}"#,
        ),
    ] {
        assert_eq!(edited(text), wanted);
    }
}

#[test]
fn what_was_asked_of_dockers_networks_is_kept_and_warned_of() {
    let (ask, _) = read(
        r#"{"Env":["CALICO_IP=auto","CALICO_PROFILE=web"],"HostConfig":{"NetworkMode":"p_default","PortBindings":{"80/tcp":[{}]}},
            "NetworkingConfig":{"EndpointsConfig":{"p_default":{"Aliases":["web","w"]},"bridge":null}}}"#,
    )
    .unwrap()
    .unwrap();
    assert_eq!(ask.requested.network_mode, "p_default");
    assert_eq!(ask.requested.networks, BTreeMap::from([("p_default".to_owned(), vec!["web".into(), "w".into()])]));
    assert_eq!(ask.warnings.len(), 4, "{:?}", ask.warnings);
    let (ask, _) = read(r#"{"Env":["CALICO_IP=auto"],"HostConfig":{"NetworkMode":"n"}}"#).unwrap().unwrap();
    assert_eq!(ask.requested.networks, BTreeMap::from([("n".to_owned(), Vec::new())]));
    for mode in ["", "default", "bridge", "none"] {
        let text = format!(
            r#"{{"Env":["CALICO_IP=auto"],"HostConfig":{{"NetworkMode":"{mode}","PortBindings":{{}}}},"NetworkingConfig":{{"EndpointsConfig":{{"default":{{}}}}}}}}"#
        );
        let (ask, _) = read(&text).unwrap().unwrap();
        assert_eq!((ask.requested.networks.len(), ask.warnings.len()), (0, 1), "{mode}");
    }
}

/// A fixed MAC or address was overwritten without a word.
#[test]
fn what_else_is_asked_of_dockers_networks_is_warned_of_where_it_says_something() {
    let warnings = |more: &str| {
        let text = format!(r#"{{"Env":["CALICO_IP=auto"],"HostConfig":{{"NetworkMode":"none"}},{more}}}"#);
        read(&text).unwrap().unwrap().0.warnings
    };
    let endpoint = |inside: &str| format!(r#""NetworkingConfig":{{"EndpointsConfig":{{"bridge":{inside}}}}}"#);
    for (more, named) in [
        (r#""macaddress":"02:42:ac:11:00:55""#.to_owned(), "MacAddress without effect"),
        (r#""NetworkDisabled":true"#.to_owned(), "NetworkDisabled without effect"),
        (r#""HostConfig":{"Links":["db:db"]}"#.to_owned(), "Links without effect"),
        (endpoint(r#"{"MacAddress":"02:42:ac:11:00:55"}"#), "MacAddress without effect"),
        (
            endpoint(r#"{"IPAMConfig":{"IPv4Address":"1.2.3.4","IPv6Address":"fd00::1"},"MacAddress":"x"}"#),
            "IPv4Address, IPv6Address, MacAddress without effect",
        ),
    ] {
        let told = warnings(&more);
        assert!(told.iter().any(|warning| warning.contains(named)), "{more}: {told:?}");
    }
    let plain = warnings(r#""Tty":false"#);
    for more in [
        r#""MacAddress":"","NetworkDisabled":false"#.to_owned(),
        r#""MacAddress":null,"NetworkDisabled":null"#.to_owned(),
        r#""HostConfig":{"Links":[]}"#.to_owned(),
        endpoint(r#"{"IPAMConfig":{"IPv4Address":"","LinkLocalIPs":null},"MacAddress":""}"#),
        endpoint(r#"{"IPAMConfig":null}"#),
    ] {
        assert_eq!(warnings(&more), plain, "{more}");
    }
}

#[test]
fn the_container_of_a_connect_is_read_as_go_reads_it() {
    assert_eq!(connected_container(br#"{"container":"a","Container":"b"}"#), Some("b".to_owned()));
    assert_eq!(connected_container(br#"{"Container":"/b"}"#), Some("b".to_owned()));
    assert_eq!(connected_container(br#"{"Container":"//b"}"#), Some("/b".to_owned()));
    assert_eq!(connected_container(b"{}"), None);
    assert_eq!(connected_container(b""), None);
}

proptest! {
    #[test]
    fn an_edit_of_a_create_changes_only_the_network(
        mode in proptest::option::of("[a-z]{0,6}"),
        key in prop_oneof![Just("HostConfig"), Just("hostConfig"), Just("HOSTCONFIG")],
        extra in "[ -~]{0,12}",
        endpoints in proptest::collection::btree_map("[a-z]{1,4}", Just(json!({})), 0..3),
        pretty: bool,
    ) {
        prop_assume!(mode.as_deref() != Some("host"));
        let mut host = json!({"Memory": 9_007_199_254_740_993_u64, "X": extra});
        if let Some(mode) = &mode {
            host["NetworkMode"] = json!(mode);
        }
        let mut body = json!({"Image": extra, key: host, "Env": ["CALICO_IP=auto", extra],
            "NetworkingConfig": {"EndpointsConfig": endpoints.clone()}});
        let text = if pretty { serde_json::to_string_pretty(&body).unwrap() } else { body.to_string() };
        if let Some((_, edited)) = read(&text).unwrap() {
            body[key]["NetworkMode"] = json!("none");
            if !endpoints.is_empty() {
                body["NetworkingConfig"]["EndpointsConfig"] = Value::Null;
            }
            prop_assert_eq!(serde_json::from_str::<Value>(&edited).unwrap(), body);
        }
    }

    #[test]
    fn no_body_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in r#"[\[\]{}",:a-z0-9\\]{0,64}"#) {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = read_create(bytes, "", &Runtimes::default());
            let _ = connected_container(bytes);
        }
    }
}
