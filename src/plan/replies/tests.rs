use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ID: &str = "3f2a9100000000000000000000000000000000000000000000000000000000aa";

fn appearance(networks: &[(&str, &[&str])]) -> Appearance {
    let networks = networks
        .iter()
        .map(|(name, aliases)| ((*name).to_owned(), aliases.iter().map(|alias| (*alias).to_owned()).collect()));
    Appearance {
        addresses: vec!["10.1.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        ipv4_gateway: Some("172.25.0.1".parse().unwrap()),
        ipv6_gateway: Some("fe80::1".parse().unwrap()),
        requested: Requested {
            network_ids: BTreeMap::from([("a".to_owned(), "1234".to_owned())]),
            networks: networks.collect(),
            ..Requested::default()
        },
        runtime: None,
    }
}

/// Whoever made a container anew from its inspect lost the runtime that it was made with.
#[test]
fn inspect_shows_the_runtime_that_was_asked_for() {
    let reply = format!(
        r#"{{"Id":"{ID}","HostConfig":{{"NetworkMode":"none","Runtime":"calico","x": 1}},"NetworkSettings":{{"Networks":{{}}}}}}"#
    );
    for (runtime, wanted) in [(Some("gpu".to_owned()), "gpu"), (None, "calico")] {
        let shown = Appearance { runtime, ..appearance(&[]) };
        let edited = shown_in_inspect(reply.as_bytes(), false, |_| Some(shown.clone())).unwrap();
        let edited: Value = serde_json::from_slice(&edited).unwrap();
        assert_eq!(edited["HostConfig"], json!({"NetworkMode": "none", "Runtime": wanted, "x": 1}));
    }
    // One that the node wires has kept the runtime that was asked for.
    let shown = Appearance { runtime: Some("runc".to_owned()), ..appearance(&[]) };
    let kept = reply.replace("calico", "kata");
    let edited = shown_in_inspect(kept.as_bytes(), false, |_| Some(shown.clone())).unwrap();
    assert!(String::from_utf8(edited).unwrap().contains(r#""Runtime":"kata""#));
}

#[test]
fn warnings_join_those_of_dockerd() {
    let warnings = ["one \"1\"".to_owned(), "two".to_owned()];
    for (reply, want) in [
        (r#"{"Id":"x","Warnings":null}"#, json!(["one \"1\"", "two"])),
        (r#"{"Id":"x","Warnings":[]}"#, json!(["one \"1\"", "two"])),
        (r#"{"Id":"x","Warnings":["zero" ]}"#, json!(["zero", "one \"1\"", "two"])),
        (r#"{"Id":"x"}"#, json!(["one \"1\"", "two"])),
    ] {
        let edited: Value = serde_json::from_slice(&with_warnings(reply.as_bytes(), &warnings).unwrap()).unwrap();
        assert_eq!(edited, json!({"Id": "x", "Warnings": want}));
        assert_eq!(with_warnings(reply.as_bytes(), &[]), None);
    }
}

/// Engines from 29 on show it to older clients only where the container is on the bridge, and then it was nowhere.
#[test]
fn inspect_shows_our_address_at_the_top_where_the_version_of_the_api_has_it_and_dockerd_leaves_it_out() {
    for settings in [r#"{"Bridge":"","Networks":{"none":{"IPAddress":""}} }"#, "{}"] {
        let reply = format!(r#"{{"Id":"{ID}","NetworkSettings":{settings}}}"#);
        let show = |at_the_top: bool| -> Value {
            let edited = shown_in_inspect(reply.as_bytes(), at_the_top, |_| Some(appearance(&[]))).unwrap();
            serde_json::from_slice::<Value>(&edited).unwrap()["NetworkSettings"].clone()
        };
        let old = show(true);
        let shown = ["IPAddress", "Gateway", "MacAddress"].map(|key| old[key].clone());
        assert_eq!(shown, [json!("10.1.0.7"), json!("172.25.0.1"), json!("02:00:00:00:00:01")]);
        assert_eq!(show(false).get("IPAddress"), None);
    }
}

#[test]
fn inspect_shows_our_address_where_docker_shows_one() {
    let reply = format!(
        r#"{{"Id":"{ID}","NetworkSettings":{{"Bridge":"","Gateway":"","IPAddress":"","IPPrefixLen":0,"MacAddress":"","GlobalIPv6Address":"","GlobalIPv6PrefixLen":0,"IPv6Gateway":"","Networks":{{"none":{{"IPAMConfig":null,"Aliases":null,"NetworkID":"abc","EndpointID":"def","Gateway":"","IPAddress":"","IPPrefixLen":0,"MacAddress":""}}}}}}}}
"#
    );
    let show = |networks: &[(&str, &[&str])]| -> Value {
        let shown = appearance(networks);
        serde_json::from_slice(&shown_in_inspect(reply.as_bytes(), false, |_| Some(shown.clone())).unwrap()).unwrap()
    };
    let none = show(&[]);
    let settings = &none["NetworkSettings"];
    assert_eq!(settings["IPAddress"], "10.1.0.7");
    assert_eq!(settings["IPPrefixLen"], 32);
    assert_eq!(settings["Gateway"], "172.25.0.1");
    assert_eq!(settings["MacAddress"], "02:00:00:00:00:01");
    assert_eq!(settings["GlobalIPv6Address"], "fd00::7");
    assert_eq!(settings["IPv6Gateway"], "fe80::1");
    assert_eq!(settings["Networks"]["none"]["IPAddress"], "10.1.0.7");
    assert_eq!(settings["Networks"]["none"]["NetworkID"], "abc");
    assert_eq!(settings["Networks"]["none"]["Aliases"], json!(["3f2a91000000"]));
    let two = show(&[("a", &["x"]), ("b", &["3f2a91000000"])]);
    let networks = &two["NetworkSettings"]["Networks"];
    assert_eq!(networks.as_object().unwrap().len(), 2);
    assert_eq!(networks["a"]["Aliases"], json!(["x", "3f2a91000000"]));
    assert_eq!((&networks["a"]["NetworkID"], &networks["b"]["NetworkID"]), (&json!("1234"), &json!("")));
    assert_eq!(networks["a"]["GlobalIPv6PrefixLen"], 128);
    assert_eq!(networks["b"]["Aliases"], json!(["3f2a91000000"]));
    // A network that dockerd really has it in is shown as dockerd shows it, whatever was asked for.
    let joined = reply.replace(r#""Networks":{"#, r#""Networks":{"a":{"IPAddress":"172.18.0.2","NetworkID":"5678"},"#);
    let shown = shown_in_inspect(joined.as_bytes(), false, |_| Some(appearance(&[("a", &[]), ("b", &[])]))).unwrap();
    let shown: Value = serde_json::from_slice(&shown).unwrap();
    let networks = &shown["NetworkSettings"]["Networks"];
    assert_eq!(networks["a"], json!({"IPAddress": "172.18.0.2", "NetworkID": "5678"}));
    assert_eq!(networks["b"]["IPAddress"], "10.1.0.7");
    assert_eq!(networks.as_object().unwrap().len(), 2);
    assert_eq!(shown_in_inspect(reply.as_bytes(), false, |_| None), None);
    assert_eq!(shown_in_inspect(br#"{"message":"x"}"#, true, |_| Some(appearance(&[]))), None);
}

#[test]
fn only_our_containers_change_in_a_list() {
    let other = ID.replace("aa", "bb");
    let reply = format!(
        r#"[{{"Id":"{other}","NetworkSettings":{{"Networks":{{"bridge":{{"IPAddress":"172.17.0.2"}}}}}}}},{{"Id":"{ID}","NetworkSettings":{{"Networks":{{}}}}}}]"#
    );
    let ours = |id: &ContainerId| (id.as_str() == ID).then(|| appearance(&[("n", &[])]));
    let edited: Value = serde_json::from_slice(&shown_in_list(reply.as_bytes(), ours).unwrap()).unwrap();
    assert_eq!(edited[0]["NetworkSettings"]["Networks"]["bridge"], json!({"IPAddress": "172.17.0.2"}));
    assert_eq!(edited[1]["NetworkSettings"]["Networks"]["n"]["IPAddress"], "10.1.0.7");
    assert_eq!(edited[1]["NetworkSettings"]["Networks"]["n"]["DriverOpts"], Value::Null);
    assert_eq!(shown_in_list(reply.as_bytes(), |_| None), None);
    assert_eq!(shown_in_list(b"[]", |_| Some(appearance(&[]))), None);
}

#[test]
fn the_containers_that_a_prune_has_deleted_are_read() {
    let ids = |text: &str| deleted_ids(text.as_bytes()).iter().map(ToString::to_string).collect::<Vec<_>>();
    let other = ID.replace("aa", "bb");
    assert_eq!(ids(&format!(r#"{{"ContainersDeleted":["{ID}","{other}"],"SpaceReclaimed":7}}"#)), [ID, &*other]);
    for none in [
        r#"{"ContainersDeleted":null,"SpaceReclaimed":0}"#,
        r#"{"SpaceReclaimed":0}"#,
        r#"{"ContainersDeleted":["x",1]}"#,
        "",
    ] {
        assert!(ids(none).is_empty(), "{none}");
    }
}

#[test]
fn the_container_that_a_create_has_made_is_read() {
    assert_eq!(created_id(format!(r#"{{"Id":"{ID}","Warnings":[]}}"#).as_bytes()).unwrap().as_str(), ID);
    assert_eq!(created_id(b"{}"), None);
}

proptest! {
    #[test]
    fn no_reply_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in r#"[\[\]{}",:a-z0-9\\]{0,64}"#) {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = (created_id(bytes), deleted_ids(bytes), with_warnings(bytes, &["x".into()]));
            let _ = (shown_in_list(bytes, |_| None), shown_in_inspect(bytes, true, |_| None));
        }
    }
}
