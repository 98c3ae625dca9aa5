use super::*;

fn rule(text: &str) -> Result<Rule, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

#[test]
fn a_rule_survives_writing_and_reading() {
    for text in [
        r#"{"action":"allow"}"#,
        r#"{"action":"deny","protocol":"tcp","src_tag":"a","src_net":"10.0.0.0/8","src_ports":[1,"2:3"],"dst_tag":"b","dst_net":"10.1.0.0/16","dst_ports":[80]}"#,
        r#"{"action":"allow","protocol":"icmp","icmp_type":8,"icmp_code":0}"#,
        r#"{"action":"allow","protocol":47}"#,
        r#"{"action":"log"}"#,
        r#"{"action":"log","log_prefix":"a \"b\" ü","ip_version":6}"#,
        r#"{"action":"deny","ip_version":4,"protocol":"icmp","icmp_type":8,"!icmp_type":8,"!icmp_code":1}"#,
        r#"{"action":"allow","!protocol":"udp","!src_tag":"a","!src_net":"10.0.0.0/8","!src_ports":["1:9"],"!dst_tag":"b","!dst_net":"10.1.0.0/16","!dst_ports":[80]}"#,
    ] {
        assert_eq!(serde_json::to_string(&rule(text).unwrap()).unwrap(), text);
    }
}

#[test]
fn a_rule_reads_what_the_original_wrote() {
    assert_eq!(rule("{}").unwrap().action, Action::Allow);
    assert_eq!(rule(r#"{"src_ports":["80","1-3"],"protocol":null}"#).unwrap().is.src.ports.len(), 2);
    assert_eq!(rule(r#"{"src_net":"10.1.2.3/8"}"#).unwrap().to_string(), "allow from cidr 10.0.0.0/8");
    for protocol in [r#""6""#, "6", r#""tcp""#] {
        assert_eq!(rule(&format!(r#"{{"protocol":{protocol}}}"#)).unwrap().is.protocol, Some(Protocol::TCP));
    }
    assert_eq!(rule(r#"{"ip_version":"6"}"#).unwrap().family(), Some(Family::V6));
    assert_eq!(rule(r#"{"protocol":"icmp","icmp_type":"8","!src_net":null}"#).unwrap().not, Matches::default());
}

#[test]
fn a_rule_with_an_unknown_or_impossible_part_is_refused() {
    for bad in [
        r#"{"action":"permit"}"#,
        r#"{"action":"next-tier"}"#,
        r#"{"action":"allow","log_prefix":"x"}"#,
        r#"{"action":"log","log_prefix":7}"#,
        r#"{"!action":"deny"}"#,
        r#"{"!ip_version":4}"#,
        r#"{"!!src_net":"10.0.0.0/8"}"#,
        r#"{"! src_net":"10.0.0.0/8"}"#,
        r#"{"ip_version":5}"#,
        r#"{"ip_version":true}"#,
        r#"{"protocol":"carrier-pigeon"}"#,
        r#"{"protocol":0}"#,
        r#"{"protocol":256}"#,
        r#"{"!protocol":"carrier-pigeon"}"#,
        r#"{"protocol":"icmp","dst_ports":[80]}"#,
        r#"{"protocol":"icmp","!dst_ports":[80]}"#,
        r#"{"dst_ports":[65536]}"#,
        r#"{"dst_ports":[1.5]}"#,
        r#"{"dst_ports":["9:8"]}"#,
        r#"{"dst_ports":["1:2:3"]}"#,
        r#"{"dst_ports":"80"}"#,
        r#"{"!dst_ports":["80,81"]}"#,
        r#"{"icmp_type":8}"#,
        r#"{"!icmp_type":8}"#,
        r#"{"!protocol":"icmp","icmp_type":8}"#,
        r#"{"protocol":"icmp","icmp_type":255}"#,
        r#"{"protocol":"icmp","icmp_code":0}"#,
        r#"{"protocol":"icmp","icmp_type":8,"!icmp_code":0}"#,
        r#"{"src_net":"10.0.0.0/8","dst_net":"fd00::/8"}"#,
        r#"{"!src_net":"10.0.0.0/8","dst_net":"fd00::/8"}"#,
        r#"{"protocol":"icmpv6","src_net":"10.0.0.0/8"}"#,
        r#"{"ip_version":6,"!src_net":"10.0.0.0/8"}"#,
        r#"{"ip_version":4,"protocol":"icmpv6"}"#,
        r#"{"src_tag":"a b"}"#,
        r#"{"!src_net":"10.0.0.0/33"}"#,
        r#"{"action":"deny","src_net":"::ffff:10.0.0.0/104"}"#,
        r#"{"!dst_net":"::ffff:10.0.0.1"}"#,
    ] {
        assert!(rule(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_rule_that_no_packet_can_match_is_refused() {
    for (bad, named) in [
        (r#"{"protocol":"tcp","!protocol":6}"#, "!protocol"),
        (r#"{"src_tag":"a","!src_tag":"a"}"#, "!src_tag"),
        (r#"{"src_net":"10.1.0.0/16","!src_net":"10.0.0.0/8"}"#, "!src_net"),
        (r#"{"dst_net":"10.0.0.0/8","!dst_net":"10.0.0.0/8"}"#, "!dst_net"),
        (r#"{"!dst_net":"::/0"}"#, "!dst_net"),
        (r#"{"dst_ports":[80,"90:95"],"!dst_ports":["93:99","80-92"]}"#, "!dst_ports"),
        (r#"{"protocol":"tcp","!src_ports":["0:30000","30001:65535"]}"#, "!src_ports"),
        (r#"{"protocol":"icmp","icmp_type":8,"icmp_code":1,"!icmp_type":8}"#, "!icmp_type"),
        (r#"{"protocol":"icmp","icmp_type":8,"icmp_code":1,"!icmp_type":8,"!icmp_code":1}"#, "!icmp_type"),
    ] {
        let error = rule(bad).expect_err(bad);
        assert!(error.contains(named), "{bad}: {error}");
    }
    for good in [
        r#"{"protocol":"tcp","!protocol":"udp"}"#,
        r#"{"src_tag":"a","!src_tag":"b"}"#,
        r#"{"src_tag":"a","!dst_tag":"a"}"#,
        r#"{"src_net":"10.0.0.0/8","!src_net":"10.1.0.0/16"}"#,
        r#"{"dst_ports":["80:90"],"!dst_ports":[85]}"#,
        r#"{"!src_ports":["0:79","81:65535"]}"#,
        r#"{"protocol":"icmp","icmp_type":8,"!icmp_type":8,"!icmp_code":1}"#,
    ] {
        rule(good).unwrap();
    }
}

#[test]
fn a_rule_that_names_one_family_is_of_that_family() {
    for (text, family) in [
        ("{}", None),
        (r#"{"!src_net":"10.0.0.0/8"}"#, Some(Family::V4)),
        (r#"{"!dst_net":"fd00::/8"}"#, Some(Family::V6)),
        (r#"{"protocol":"icmp"}"#, Some(Family::V4)),
        (r#"{"!protocol":"icmp"}"#, None),
        (r#"{"ip_version":6,"protocol":"tcp"}"#, Some(Family::V6)),
    ] {
        assert_eq!(rule(text).unwrap().family(), family, "{text}");
    }
}

#[test]
fn a_rule_prints_as_the_original_did() {
    let printed = |text: &str| rule(text).unwrap().to_string();
    assert_eq!(
        printed(r#"{"protocol":"tcp","src_tag":"WEB","dst_ports":[80,443]}"#),
        "allow tcp from tag WEB to ports 80,443"
    );
    assert_eq!(
        printed(r#"{"action":"deny","ip_version":4,"protocol":"icmp","!icmp_type":8,"!icmp_code":0,"!src_tag":"a"}"#),
        "deny ipv4 icmp !type 8 code 0 from !tag a"
    );
    assert_eq!(
        printed(
            r#"{"action":"log","log_prefix":"who","src_net":"10.0.0.0/8","!src_net":"10.1.0.0/16","!dst_ports":[80]}"#
        ),
        "log from cidr 10.0.0.0/8 !cidr 10.1.0.0/16 to !ports 80 prefix who"
    );
}
