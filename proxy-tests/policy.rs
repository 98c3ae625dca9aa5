//! Each key of a rule allows what it names and denies what it names, seen by packets.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::{Container, SOON};
use crate::lab::host::Host;
use crate::lab::netns::{Netns, Probe};
use crate::lab::wait::wait_until_right;

/// One packet's journey.
#[derive(Clone)]
struct Journey {
    who: String,
    from: Netns,
    to: Ipv4Addr,
    probe: Probe,
}

impl Journey {
    fn new(from: &Container<'_>, to: &Container<'_>, probe: Probe) -> Self {
        Journey { who: format!("{} to {}", from.name, to.name), from: from.space(), to: to.ip(), probe }
    }

    /// Goes through? A given source port stands for the hundred-odd ports from it on: every attempt is a new flow.
    fn arrives(&self) -> bool {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let fresh = |port: Option<u16>| port.map(|port| port + NEXT.fetch_add(1, Ordering::Relaxed) % 900);
        let probe = match self.probe {
            Probe::Tcp { from, to } => Probe::Tcp { from: fresh(from), to },
            Probe::Udp { from, to } => Probe::Udp { from: fresh(from), to },
            other => other,
        };
        self.from.answered(self.to, probe)
    }
}

/// A match, a packet that it names and one that it does not.
struct Case {
    matches: Value,
    named: Journey,
    other: Journey,
}

fn update(host: &Host, profile: &str, inbound: &Value, outbound: &Value) {
    let rules = json!({ "id": profile, "inbound_rules": inbound, "outbound_rules": outbound });
    host.calicoctl_run(&["profile", profile, "rule", "update"]).input(rules.to_string()).run().ok();
}

fn with_action(matches: &Value, action: &str) -> Value {
    let mut rule = matches.clone();
    rule["action"] = json!(action);
    rule
}

/// Puts a case to the test as an allowance and as a denial. In both one packet must arrive and the other must not, and each trades places, so
/// neither a host that lets all through nor one that lets nothing through passes.
fn check(case: &Case, put: impl Fn(&Value)) {
    let Case { matches, named, other } = case;
    let allow = json!([with_action(matches, "allow")]);
    let deny = json!([with_action(matches, "deny"), { "action": "allow" }]);
    for (rules, through, dropped) in [(allow, named, other), (deny, other, named)] {
        put(&rules);
        wait_until_right(&rules.to_string(), SOON, || {
            let mut wrong = Vec::new();
            if !through.arrives() {
                wrong.push(format!("{} {:?} does not arrive", through.who, through.probe));
            }
            if dropped.arrives() {
                wrong.push(format!("{} {:?} arrives", dropped.who, dropped.probe));
            }
            wrong
        });
    }
}

/// Matches that are negated, on the way in to the first profile of bob and dan.
fn negated([ann, bob, cat, dan]: [&Container<'_>; 4]) -> Vec<Case> {
    let tcp = Probe::Tcp { from: None, to: 7000 };
    let udp = Probe::Udp { from: None, to: 7000 };
    let timestamp = Probe::Icmp { kind: 13, code: 0 };
    let to_bob = |probe| Journey::new(ann, bob, probe);
    let to_dan = |probe| Journey::new(ann, dan, probe);
    let cat_to_bob = |probe| Journey::new(cat, bob, probe);
    let from_port = |port| to_bob(Probe::Tcp { from: Some(port), to: 7000 });
    let to_port = |to| to_bob(Probe::Udp { from: None, to });
    let many: Vec<u16> = (1..40).map(|number| number * 2).chain([7001]).collect();
    vec![
        Case { matches: json!({"!protocol": "tcp"}), named: to_bob(udp), other: to_bob(tcp) },
        Case { matches: json!({"!src_tag": "A"}), named: cat_to_bob(Probe::Ping), other: to_bob(Probe::Ping) },
        Case { matches: json!({"!src_net": "192.168.1.0/31"}), named: cat_to_bob(tcp), other: to_bob(tcp) },
        Case {
            matches: json!({"src_net": "192.168.1.0/29", "!src_net": "192.168.1.1"}),
            named: cat_to_bob(tcp),
            other: to_bob(tcp),
        },
        Case {
            matches: json!({"protocol": "tcp", "!src_ports": ["2000-2999"]}),
            named: from_port(3000),
            other: from_port(2000),
        },
        Case { matches: json!({"!dst_tag": "X"}), named: to_dan(Probe::Ping), other: to_bob(Probe::Ping) },
        Case { matches: json!({"!dst_net": "192.168.1.2/32"}), named: to_dan(udp), other: to_bob(udp) },
        Case { matches: json!({"!dst_ports": [7000]}), named: to_port(7001), other: to_port(7000) },
        // More than one match of the kernel's holds.
        Case { matches: json!({"protocol": "udp", "!dst_ports": many}), named: to_port(7000), other: to_port(7001) },
        Case { matches: json!({"!dst_ports": [7000]}), named: to_port(7001), other: to_bob(Probe::Ping) },
        Case {
            matches: json!({"protocol": "icmp", "!icmp_type": 8}),
            named: to_bob(timestamp),
            other: to_bob(Probe::Ping),
        },
        Case {
            matches: json!({"protocol": "icmp", "icmp_type": 8, "!icmp_type": 8, "!icmp_code": 1}),
            named: to_bob(Probe::Ping),
            other: to_bob(Probe::Icmp { kind: 8, code: 1 }),
        },
    ]
}

#[test]
fn each_key_of_a_rule_allows_and_denies_what_it_says() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=A");
    let cat = h1.run("cat", "-e CALICO_IP=192.168.1.3 -e CALICO_PROFILE=C");
    let bob = h1.run("bob", "-e CALICO_IP=192.168.1.2 -e CALICO_PROFILE=T,X");
    let dan = h1.run("dan", "-e CALICO_IP=192.168.1.4 -e CALICO_PROFILE=T");
    let (_bobs, _dans) = (bob.serve(&[7000, 7001]), dan.serve(&[7000, 7001]));
    let tcp = Probe::Tcp { from: None, to: 7000 };
    let udp = Probe::Udp { from: None, to: 7000 };
    let timestamp = Probe::Icmp { kind: 13, code: 0 };
    let to_bob = |probe| Journey::new(&ann, &bob, probe);
    let to_dan = |probe| Journey::new(&ann, &dan, probe);
    let cat_to_bob = |probe| Journey::new(&cat, &bob, probe);
    let from_port = |port| to_bob(Probe::Tcp { from: Some(port), to: 7000 });
    let to_port = |to| to_bob(Probe::Udp { from: None, to });

    let inbound = [
        Case { matches: json!({"protocol": "tcp"}), named: to_bob(tcp), other: to_bob(udp) },
        Case { matches: json!({"protocol": "udp"}), named: to_bob(udp), other: to_bob(Probe::Ping) },
        Case { matches: json!({"src_tag": "A"}), named: to_bob(Probe::Ping), other: cat_to_bob(Probe::Ping) },
        Case { matches: json!({"src_net": "192.168.1.0/31"}), named: to_bob(tcp), other: cat_to_bob(tcp) },
        Case {
            matches: json!({"protocol": "tcp", "src_ports": ["2000:2999", 1]}),
            named: from_port(2000),
            other: from_port(3000),
        },
        Case { matches: json!({"dst_tag": "X"}), named: to_bob(Probe::Ping), other: to_dan(Probe::Ping) },
        Case { matches: json!({"dst_net": "192.168.1.2/32"}), named: to_bob(udp), other: to_dan(udp) },
        Case { matches: json!({"protocol": "udp", "dst_ports": [7000]}), named: to_port(7000), other: to_port(7001) },
        Case {
            matches: json!({"protocol": "icmp", "icmp_type": 8}),
            named: to_bob(Probe::Ping),
            other: to_bob(timestamp),
        },
        Case {
            matches: json!({"protocol": "icmp", "icmp_type": 8, "icmp_code": 1}),
            named: to_bob(Probe::Icmp { kind: 8, code: 1 }),
            other: to_bob(Probe::Ping),
        },
    ];
    for case in &inbound {
        check(case, |rules| update(h1, "T", rules, &json!([])));
    }

    for case in &negated([&ann, &bob, &cat, &dan]) {
        check(case, |rules| update(h1, "T", rules, &json!([])));
    }

    // The action alone, without any match; none is an allowance. The first rule that matches decides.
    let all = [tcp, udp, Probe::Ping, timestamp].map(to_bob);
    for (rules, arrives) in [
        (json!([{ "action": "allow" }]), true),
        (json!([{ "action": "deny" }]), false),
        (json!([{}]), true),
        (json!([{ "action": "deny" }, { "action": "allow" }]), false),
        (json!([{ "action": "allow" }, { "action": "deny" }]), true),
        (json!([]), false),
        (json!([{ "ip_version": 4 }]), true),
        (json!([{ "ip_version": 6 }]), false),
        (json!([{ "!src_tag": "nobody" }]), true),
        // A line in the log, and on to the next rule.
        (json!([{ "action": "log", "log_prefix": "a \"b\" \n" }, { "action": "allow" }]), true),
        (json!([{ "action": "log" }]), false),
    ] {
        update(h1, "T", &rules, &json!([]));
        wait_until_right(&rules.to_string(), SOON, || {
            let wrong = all.iter().filter(|journey| journey.arrives() != arrives);
            wrong.map(|journey| format!("{:?} arrives: {}", journey.probe, !arrives)).collect()
        });
    }

    let logged = h1.sh("iptables -w -vnxL calico-pi-T");
    let lines = logged.lines().find(|line| line.contains(" LOG ")).and_then(|line| line.split_whitespace().next());
    assert!(lines.is_some_and(|number| number != "0"), "no packet came to the log:\n{logged}");

    // On the way out as on the way in.
    update(h1, "T", &json!([{ "action": "allow" }]), &json!([]));
    let outbound = [
        Case { matches: json!({"protocol": "icmp"}), named: to_bob(Probe::Ping), other: to_bob(tcp) },
        Case { matches: json!({"dst_tag": "X"}), named: to_bob(tcp), other: to_dan(tcp) },
        Case { matches: json!({"dst_net": "192.168.1.2/32"}), named: to_bob(Probe::Ping), other: to_dan(Probe::Ping) },
        Case { matches: json!({"protocol": "udp", "dst_ports": ["7000"]}), named: to_port(7000), other: to_port(7001) },
        Case {
            matches: json!({"protocol": "tcp", "src_ports": ["2000:2999"]}),
            named: from_port(2000),
            other: from_port(3000),
        },
        Case {
            matches: json!({"protocol": "icmp", "icmp_type": 8, "icmp_code": 0}),
            named: to_bob(Probe::Ping),
            other: to_bob(timestamp),
        },
    ];
    for case in &outbound {
        check(case, |rules| update(h1, "A", &json!([]), rules));
        // Another profile's container goes its own way all the while.
        assert!(cat_to_bob(Probe::Ping).arrives());
    }
    lab.assert_consistent();
}
