//! What root in a container makes its own kernel do: other addresses, other destinations (attacks 1 and 14).

use serde_json::json;

use super::{DUAL, allow_all, dual};
use crate::lab::command::Run;
use crate::lab::container::{Container, SOON};
use crate::lab::netns::Probe;
use crate::lab::wait::wait_until;

/// As root inside, with the machine's own tools.
fn root(container: &Container<'_>, line: &str) {
    let space = format!("--net={}", container.space().path());
    Run::new("nsenter").arg(space).args(["sh", "-c", line]).run().ok();
}

fn pings6(from: &Container<'_>, to: &Container<'_>) -> bool {
    let (space, to) = (format!("--net={}", from.space().path()), to.ip6().to_string());
    Run::new("nsenter").arg(space).args(["ping", "-6", "-n", "-c1", "-W1", &to]).run().code == Some(0)
}

#[test]
fn a_container_that_translates_addresses_inside_itself_gets_nowhere_by_it() {
    let lab = dual(1);
    let h1 = lab.host(1);
    allow_all(&lab, "friend");
    let rules = json!({ "id": "server", "outbound_rules": [{ "action": "allow" }], "inbound_rules": [
        { "action": "allow", "src_tag": "friend" },
        { "action": "allow", "protocol": "tcp", "src_tag": "open", "dst_ports": [7000] },
    ]});
    lab.etcd().put("/calico/v1/policy/profile/server/rules", &rules.to_string());
    lab.etcd().put("/calico/v1/policy/profile/server/tags", "[]");
    let run = |name: &str, profile: &str| h1.run(name, &format!("{DUAL} -e CALICO_PROFILE={profile}"));
    let (ann, bob, eve) = (run("ann", "friend"), run("bob", "server"), run("eve", "open"));
    let servers = bob.serve(&[7000, 7001]);
    let tcp = |to| Probe::Tcp { from: None, to };
    assert!(ann.gets_through(bob.ip(), tcp(7001)) && ann.reaches(bob.ip()) && pings6(&ann, &bob));
    let honest = || eve.gets_through(bob.ip(), tcp(7000)) && !eve.gets_through(bob.ip(), tcp(7001));
    assert!(honest());

    // Another's source address, in either family, by translation and outright.
    root(&eve, &format!("iptables -t nat -A POSTROUTING -j SNAT --to-source {}", ann.ip()));
    root(&eve, &format!("ip6tables -t nat -A POSTROUTING -j SNAT --to-source {}", ann.ip6()));
    assert!(!eve.gets_through(bob.ip(), tcp(7000)) && !eve.gets_through(bob.ip(), tcp(7001)));
    assert!(!eve.reaches(bob.ip()) && !pings6(&eve, &bob));
    root(&eve, "iptables -t nat -F; ip6tables -t nat -F");
    root(&eve, &format!("ip addr add {}/32 dev eth1; ip addr add {}/128 dev eth1 nodad", ann.ip(), ann.ip6()));
    assert!(!eve.space().answered_from(Some(ann.ip()), bob.ip(), tcp(7001)));
    root(&eve, &format!("ip addr del {}/32 dev eth1; ip addr del {}/128 dev eth1", ann.ip(), ann.ip6()));
    wait_until("eve is herself again", SOON, honest);
    assert!(ann.gets_through(bob.ip(), tcp(7001)) && pings6(&ann, &bob), "ann has lost something");

    // Another destination: policy sees the one that is meant.
    for (asked, meant, through) in [(7000, 7001, false), (9999, 7001, false), (9999, 7000, true)] {
        root(
            &eve,
            &format!("iptables -t nat -A OUTPUT -p tcp --dport {asked} -j DNAT --to-destination {}:{meant}", bob.ip()),
        );
        assert_eq!(eve.gets_through(bob.ip(), tcp(asked)), through, "{asked} for {meant}");
        root(&eve, "iptables -t nat -F");
    }
    // Its host is no way round either.
    root(&eve, &format!("iptables -t nat -A OUTPUT -p tcp --dport 9999 -j DNAT --to-destination {}:2377", h1.ip));
    assert!(!eve.gets_through(bob.ip(), tcp(9999)));
    root(&eve, "iptables -t nat -F");

    // Another Ethernet address: nothing of it is heard, until it is right again.
    root(&eve, "ip link set eth1 address 02:00:00:00:00:77");
    assert!(!eve.reaches(ann.ip()) && !pings6(&eve, &ann));
    let mac = eve.record()["mac"].as_str().unwrap().to_owned();
    root(&eve, &format!("ip link set eth1 address {mac}"));
    wait_until("eve is herself again", SOON, honest);
    drop(servers);
    lab.assert_consistent();
}
