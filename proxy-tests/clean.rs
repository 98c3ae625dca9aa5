//! `calico-node clean` takes away what is ours.

use crate::lab::Lab;

/// Things of others, with names as near to ours as they may come, and how each is seen.
const STRANGERS: [(&str, &str); 9] = [
    ("ip link add lan0 type bridge && ip link set lan0 up", "ip link show lan0"),
    ("ip link add calculus type bridge && ip link set calculus up", "ip link show calculus"),
    ("ip route add 10.99.0.0/24 dev lan0", "ip route show 10.99.0.0/24 | grep lan0"),
    ("ip route add 10.98.0.0/24 dev lan0 proto 98", "ip route show 10.98.0.0/24 | grep lan0"),
    ("iptables -N calicoish && iptables -A calicoish -j ACCEPT", "iptables -S calicoish | grep ACCEPT"),
    ("iptables -A FORWARD -s 10.99.0.1 -j DROP", "iptables -C FORWARD -s 10.99.0.1 -j DROP"),
    (
        "iptables -t nat -A POSTROUTING -s 10.99.0.1 -j MASQUERADE",
        "iptables -t nat -C POSTROUTING -s 10.99.0.1 -j MASQUERADE",
    ),
    ("ipset create calico-like hash:ip && ipset add calico-like 10.99.0.1", "ipset test calico-like 10.99.0.1"),
    ("nft add table inet stranger && nft add chain inet stranger calico-x", "nft list chain inet stranger calico-x"),
];

#[test]
fn clean_removes_what_is_ours_and_leaves_what_is_not() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    for (make, _) in STRANGERS {
        h1.sh(make);
    }
    h1.start_node();
    h1.calicoctl("pool add 10.77.0.0/24 --nat-outgoing").ok();
    let ann = h1.run("ann", "-e CALICO_IP=10.77.0.0/24 -e CALICO_PROFILE=web");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    assert!(ann.reaches(bob.ip()));
    assert!(!h1.chains().is_empty() && !h1.cali_links().is_empty());
    h1.stop_node();
    assert!(!h1.chains().is_empty(), "the end of a node is not the end of its rules");

    h1.calico_node(&["clean"]).run().ok();
    assert!(h1.chains().is_empty(), "{:?}", h1.chains());
    let rules = h1.rules();
    assert!(!rules.iter().any(|rule| rule.contains("calico-") && !rule.contains("calicoish")), "{rules:?}");
    assert!(h1.sets().is_empty(), "{:?}", h1.sets());
    assert_eq!(h1.ip_json(&["-4", "route", "show", "proto", "97"]).len(), 0);
    assert!(h1.cali_links().is_empty(), "{:?}", h1.cali_links());
    let tables = h1.sh("nft list tables");
    assert!(!tables.lines().any(|table| table.contains("calico")), "{tables}");
    for (make, see) in STRANGERS {
        assert!(h1.command("sh").args(["-c", see]).run().succeeded(), "gone: {make}");
    }
    // Cleaning what is clean is no error.
    h1.calico_node(&["clean"]).run().ok();

    // The next node makes it all anew.
    h1.start_node();
    lab.assert_consistent();
    assert!(ann.reaches(bob.ip()));
    for (make, see) in STRANGERS {
        assert!(h1.command("sh").args(["-c", see]).run().succeeded(), "gone: {make}");
    }
}

#[test]
fn neither_a_second_node_nor_clean_works_beside_a_node_whatever_their_folders() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let elsewhere = h1.scratch();
    let (run, state) = (elsewhere.join("run").display().to_string(), elsewhere.join("state").display().to_string());
    let folders = ["--run-dir", run.as_str(), "--state-dir", state.as_str()];
    let listen = ["--listen", "tcp://127.0.0.1:2399", "--metrics-listen", "127.0.0.1:9191", "--ip", "172.25.0.1"];
    for more in [&listen[..], &["clean"]] {
        let said = h1.calico_node(&[&folders, more].concat()).run().fails_with(1);
        assert!(said.contains("another calico-node runs"), "{said}");
        assert!(!h1.cali_links().is_empty());
    }
    lab.assert_consistent();
    lab.remove_everything();
}

/// A line such as `IP=` in the unit's environment kept the node down, in the name of a flag that nobody had given.
#[test]
fn a_variable_that_is_set_to_nothing_counts_as_not_set() {
    let lab = Lab::hosts(1);
    let help = lab.host(1).calico_node(&["--help"]).run().ok();
    let variables: Vec<&str> = help.split("[env: ").skip(1).filter_map(|rest| rest.split(['=', ']']).next()).collect();
    assert!(variables.contains(&"IP") && variables.contains(&"CALICO_APPLY_TIMEOUT"), "{variables:?}");
    let host = lab.host(1);
    let mut clean = host.calico_node(&["--run-dir", "/run/none", "--state-dir", "/run/none", "clean"]);
    for variable in variables {
        clean = clean.env(variable, "");
    }
    clean.run().ok();
}
