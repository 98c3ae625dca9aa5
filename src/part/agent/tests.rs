use super::kernel::{Ear, Kernel, Why};
use super::*;
use crate::edge::bird::BirdState;
use crate::edge::etcd::{Etcd, EtcdAddress};
use crate::edge::exec::{Running, Start};
use crate::edge::kept_file::KeptFile;
use crate::edge::reservations::Reservations;
use crate::edge::testnet::{Elsewhere, in_own_network, own_mounts, sh, sh_succeeds};
use crate::model::host::tests::h1;
use crate::model::key::EndpointKey;
use crate::model::snapshot::tests::from_json;
use crate::model::snapshot::{News, Snapshot};
use crate::part::metrics::Metrics;
use crate::part::store::Holdings;
use crate::plan::chain::{ChainName, ChainText, Line};
use crate::plan::diff;
use crate::plan::{routes, sets};

/// Two endpoints on h1, one of them inactive, one on another host, and a masquerade pool.
const SMALL: &str = r#"{
    "/calico/v1/ipam/v4/pool/192.168.0.0-16": {"cidr": "192.168.0.0/16", "masquerade": true},
    "/calico/v1/ipam/v4/pool/0.0.0.0-0": {"cidr": "0.0.0.0/0"},
    "/calico/v1/policy/profile/web/tags": ["web"],
    "/calico/v1/policy/profile/web/rules": {"inbound_rules": [
        {"action": "deny", "protocol": "tcp", "src_net": "10.0.0.0/8", "dst_ports": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,"20:30"]},
        {"src_tag": "web", "protocol": "icmp", "icmp_type": 8, "icmp_code": 0},
        {"src_tag": "web", "dst_ports": ["80:81"]},
        {"protocol": 47}, {"protocol": "sctp", "src_ports": [1]}, {"protocol": "icmpv6"}
    ], "outbound_rules": [{"action": "allow"}]},
    "/calico/v1/host/h1/workload/docker/c1/endpoint/aaaa1111aaaa1111aaaa1111aaaa1111": {"state": "active", "name": "caliaaaa1111aaa", "mac": "02:00:00:00:00:01", "profile_ids": ["web"], "ipv4_nets": ["192.168.0.1/32"]},
    "/calico/v1/host/h1/workload/docker/c2/endpoint/aaaa2222aaaa1111aaaa1111aaaa1111": {"state": "inactive", "name": "caliaaaa2222aaa", "mac": "02:00:00:00:00:02", "profile_ids": ["web", "gone"], "ipv4_nets": ["192.168.0.2/32", "192.168.0.22/32"]},
    "/calico/v1/host/h2/workload/docker/c3/endpoint/cccc1111aaaa1111aaaa1111aaaa1111": {"state": "active", "name": "calicccc1111aaa", "mac": "02:00:00:00:00:03", "profile_ids": ["web"], "ipv4_nets": ["192.168.1.3/32"]}
}"#;

/// The same endpoints of h1 in both families, and one that has IPv6 only.
const DUAL: &str = r#"{
    "/calico/v1/ipam/v6/pool/fd00:0:0:1::-64": {"cidr": "fd00:0:0:1::/64", "masquerade": true},
    "/calico/v1/ipam/v6/pool/::-0": {"cidr": "::/0"},
    "/calico/v1/policy/profile/web/tags": ["web"],
    "/calico/v1/policy/profile/web/rules": {"inbound_rules": [
        {"action": "deny", "protocol": "tcp", "src_net": "fd01::/16", "dst_ports": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,"20:30"]},
        {"src_tag": "web", "protocol": "icmp", "icmp_type": 8},
        {"src_tag": "web", "protocol": "icmpv6", "icmp_type": 128, "icmp_code": 0},
        {"src_tag": "web", "dst_ports": ["80:81"]}, {"protocol": "sctp", "src_ports": [1]}
    ], "outbound_rules": [{"action": "allow"}]},
    "/calico/v1/host/h1/workload/docker/c1/endpoint/aaaa1111aaaa1111aaaa1111aaaa1111": {"state": "active", "name": "caliaaaa1111aaa", "mac": "02:00:00:00:00:01", "profile_ids": ["web"], "ipv4_nets": ["192.168.0.1/32"], "ipv6_nets": ["fd00:0:0:1::1/128"]},
    "/calico/v1/host/h1/workload/docker/c2/endpoint/aaaa2222aaaa1111aaaa1111aaaa1111": {"state": "active", "name": "caliaaaa2222aaa", "mac": "02:00:00:00:00:02", "profile_ids": ["web"], "ipv6_nets": ["fd00:0:0:1::2/128"]},
    "/calico/v1/host/h1/workload/docker/c4/endpoint/aaaa4444aaaa1111aaaa1111aaaa1111": {"state": "active", "name": "caliaaaa4444aaa", "mac": "02:00:00:00:00:04", "profile_ids": ["web"], "ipv4_nets": ["192.168.0.4/32"]},
    "/calico/v1/host/h2/workload/docker/c3/endpoint/cccc1111aaaa1111aaaa1111aaaa1111": {"state": "active", "name": "calicccc1111aaa", "mac": "02:00:00:00:00:03", "profile_ids": ["web"], "ipv6_nets": ["fd00:0:0:1::3/128"]}
}"#;

const LINK: &str =
    "ip link add caliaaaa1111aaa type veth peer name far && ip link set far up && ip link set caliaaaa1111aaa up";

fn desired(snapshot: &str) -> Desired {
    desired_of(Family::V4, snapshot)
}

fn desired_of(family: Family, snapshot: &str) -> Desired {
    let mut desired = Desired::new("h1".parse().unwrap(), family);
    desired.update(&from_json(snapshot), &News::All);
    desired
}

/// The kernel of one family, with an ear of its own.
struct Hands {
    family: Family,
    kernel: Kernel,
    ear: Ear,
}

fn kernel() -> Hands {
    hands(Family::V4)
}

fn hands(family: Family) -> Hands {
    let routes = Arc::new(KernelRoutes::open().unwrap());
    Hands {
        family,
        kernel: Kernel::new(family, routes, Arc::new(Metrics::new())),
        ear: Ear::new(ruleset::listen().unwrap()),
    }
}

impl Hands {
    async fn apply(&mut self, desired: &Desired, changes: &Changes) -> bool {
        self.kernel.apply(desired, changes, true, &mut self.ear).await
    }

    /// What is left to do, of every kind.
    async fn left(&self, desired: &Desired) -> String {
        left_of(self.family, desired).await
    }
}

/// The steps that are left, of every kind.
async fn left(desired: &Desired) -> String {
    left_of(Family::V4, desired).await
}

async fn left_of(family: Family, desired: &Desired) -> String {
    let seen = iptables::observe(family).await.unwrap();
    let there = ipsets::observe(family).await.unwrap();
    let routes = KernelRoutes::open().unwrap().observe(family).await.unwrap();
    let tables = [(FILTER, &desired.filter), (diff::NAT, &desired.nat), (RAW, &desired.raw)];
    let chains: Vec<_> = tables
        .into_iter()
        .flat_map(|(name, table)| diff::steps(table, &seen.get(name).cloned().unwrap_or_default(), None))
        .collect();
    let steps = [sets::steps(&desired.sets, &there), sets::removals(&desired.sets, &there)].concat();
    let moves = routes::steps(&desired.routes, &routes, |route| desired.may_stay(route));
    if chains.is_empty() && steps.is_empty() && moves.is_empty() {
        return String::new();
    }
    format!("{chains:?} {steps:?} {moves:?}")
}

#[test]
fn nothing_is_left_to_do_after_an_apply_and_a_strangers_things_stand() {
    in_own_network(|| async {
        sh(LINK).await;
        sh("iptables -N DOCKER; iptables -A FORWARD -j DOCKER; iptables -A DOCKER -j RETURN").await;
        sh("iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE").await;
        sh("ipset create web hash:ip; ipset add web 1.2.3.4; ip route add 10.9.9.9/32 dev lo proto static").await;
        let wanted = desired(SMALL);
        assert!(kernel().apply(&wanted, &Changes::default()).await);
        assert_eq!(left(&wanted).await, "");
        let empty = desired("{}");
        assert!(kernel().apply(&empty, &Changes::default()).await);
        assert_eq!(left(&empty).await, "");
        assert_eq!(sh("iptables -S DOCKER").await.lines().count(), 2);
        assert!(sh("iptables -S FORWARD").await.contains("-A FORWARD -j DOCKER"));
        assert!(sh("iptables -t nat -S POSTROUTING").await.contains("172.17.0.0/16"));
        assert!(sh_succeeds("ipset test web 1.2.3.4").await);
        assert!(sh("ip route show 10.9.9.9").await.contains("static"));
        assert!(!sh("ipset save").await.contains("calico"));
        assert!(!sh("iptables-save -t nat").await.contains("calico"));
    });
}

#[test]
fn damage_of_every_kind_is_put_right() {
    in_own_network(|| async {
        sh(LINK).await;
        let wanted = desired(SMALL);
        let mut kernel = kernel();
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        for damage in [
            "iptables -F",
            "iptables -I FORWARD -j ACCEPT",
            "iptables -D FORWARD 1; iptables -D FORWARD 1 || true",
            "iptables -I calico-po-web -j ACCEPT",
            "iptables -A calico-from -j ACCEPT",
            "iptables -F calico-from-aa",
            "iptables -N calico-stale; iptables -A calico-FORWARD -j calico-stale",
            "iptables -t nat -F",
            "ipset flush calico4-t-web",
            "ipset add calico4-t-web 9.9.9.9",
            "ipset create calico4-t-old hash:ip",
            "ip route del 192.168.0.1/32",
            "ip route add 192.168.0.77/32 dev caliaaaa1111aaa proto 97",
            "ip route add 192.168.5.0/24 dev caliaaaa1111aaa proto 97",
            "ip route replace 192.168.0.1/32 dev lo proto 97 metric 7",
            "nft flush ruleset",
        ] {
            sh(damage).await;
            assert_ne!(left(&wanted).await, "", "{damage}: not seen");
            kernel.kernel.doubt(Why::Clock);
            assert!(kernel.apply(&wanted, &Changes::default()).await, "{damage}");
            assert_eq!(left(&wanted).await, "", "{damage}");
        }
    });
}

#[tokio::test(start_paused = true)]
async fn members_from_elsewhere_rest_after_each_other_and_nothing_else_does() {
    let mut clocks = Clocks::start();
    assert!(!clocks.rests(false), "the first waits for nothing");
    clocks.applied(true);
    assert!(clocks.rests(false) && !clocks.rests(true), "what is pressing never waits");
    tokio::time::advance(REST / 2).await;
    assert!(clocks.rests(false));
    tokio::time::advance(REST / 2).await;
    assert!(!clocks.rests(false));
    clocks.applied(false);
    assert!(!clocks.rests(false), "a clock's look keeps nobody waiting");
    // What is to be reached: none waits longer than this, and ipset does not run all the time.
    assert!((Duration::from_millis(10)..=Duration::from_millis(30)).contains(&REST));
}

#[test]
fn a_change_is_applied_without_looking() {
    in_own_network(|| async {
        sh(LINK).await;
        let mut wanted = desired("{}");
        let mut kernel = kernel();
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        let small = from_json(SMALL);
        for snapshot in [small.clone(), Snapshot::default(), small] {
            let changes = wanted.update(&snapshot, &News::All);
            assert!(kernel.apply(&wanted, &changes).await);
            assert!(!kernel.kernel.looked_at_all());
            assert_eq!(left(&wanted).await, "");
        }
    });
}

#[test]
fn the_two_families_stand_side_by_side_and_neither_touches_the_others() {
    in_own_network(|| async {
        sh(LINK).await;
        sh("ip link add caliaaaa2222aaa type veth peer name far2; ip link add caliaaaa4444aaa type veth peer name far4").await;
        sh("ip link set caliaaaa2222aaa up; ip link set caliaaaa4444aaa up").await;
        sh("ip6tables -N DOCKER; ip6tables -A FORWARD -j DOCKER; ip6tables -t raw -A PREROUTING -j RETURN").await;
        sh("ipset create calico6x hash:ip family inet6; ip -6 route add fd99::9/128 dev lo proto static").await;
        let wanted = Family::BOTH.map(|family| desired_of(family, DUAL));
        let (mut four, mut six) = (hands(Family::V4), hands(Family::V6));
        assert!(four.apply(&wanted[0], &Changes::default()).await);
        assert!(six.apply(&wanted[1], &Changes::default()).await);
        for damage in [
            "true",
            "ip6tables -F",
            "ip6tables -t raw -F calico-PREROUTING",
            "ip6tables -t raw -D PREROUTING 1",
            "ip6tables -t raw -I PREROUTING -j ACCEPT",
            "ip6tables -t nat -F",
            "ipset flush calico6-t-web",
            "ipset create calico6-t-old hash:ip family inet6",
            "ip -6 route del fd00:0:0:1::1/128",
            "ip -6 route replace fd00:0:0:1::1/128 dev lo proto 97 metric 7",
            "ip -6 route add fd00:0:0:9::/64 dev caliaaaa1111aaa proto 97",
        ] {
            sh(damage).await;
            for (hands, wanted) in [(&mut six, &wanted[1]), (&mut four, &wanted[0])] {
                hands.kernel.doubt(Why::Clock);
                assert!(hands.apply(wanted, &Changes::default()).await, "{damage}");
            }
            assert_eq!(four.left(&wanted[0]).await, "", "{damage}");
            assert_eq!(six.left(&wanted[1]).await, "", "{damage}");
        }
        // An endpoint stands only where it has an address.
        for (save, there, missing) in
            [("iptables-save", "aaaa4444aaa", "aaaa2222aaa"), ("ip6tables-save", "aaaa2222aaa", "aaaa4444aaa")]
        {
            let saved = sh(save).await;
            assert!(saved.contains(there) && saved.contains("aaaa1111aaa") && !saved.contains(missing), "{saved}");
        }
        let empty = desired_of(Family::V6, "{}");
        assert!(six.apply(&empty, &Changes::default()).await || six.apply(&empty, &Changes::default()).await);
        six.kernel.doubt(Why::Clock);
        assert!(six.apply(&empty, &Changes::default()).await);
        assert_eq!((six.left(&empty).await, four.left(&wanted[0]).await), (String::new(), String::new()));
        assert!(sh_succeeds("ipset list calico6x -terse").await);
        assert!(sh("ip -6 route show fd99::9").await.contains("static"));
        assert!(sh("ip6tables -t raw -S PREROUTING").await.contains("RETURN"));
    });
}

#[test]
fn one_bad_chain_is_closed_and_the_rest_is_programmed() {
    in_own_network(|| async {
        sh(LINK).await;
        let mut wanted = desired(SMALL);
        let bad = ChainName::of("pi", "web");
        let line = Line { hash: 1, spec: "-j NOSUCHTARGET".into() };
        let text = ChainText { ordered: true, lines: vec![line] };
        wanted.filter.chains.insert(bad.clone(), Arc::new(text));
        let mut kernel = kernel();
        assert!(!kernel.apply(&wanted, &Changes::default()).await);
        let faults: Vec<_> = kernel.kernel.faults().map(|(object, why)| format!("{object}: {why}")).collect();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("profile web: chain calico-pi-web could not be written: "), "{faults:?}");
        assert!(sh("iptables -S calico-pi-web").await.contains("-j DROP"));
        let good = desired(SMALL);
        let (_, endpoint) = good.placed().next().unwrap();
        assert!(kernel.kernel.holds(endpoint) && kernel.kernel.routes_to(endpoint, &good.routes));
        assert!(kernel.apply(&good, &Changes::default()).await);
        assert_eq!(left(&good).await, "");
    });
}

/// A set of another type stayed for ever once a chain of ours spoke of it, and what was in it counted.
#[test]
fn a_set_that_cannot_be_made_closes_who_speaks_of_it_and_nothing_else_until_it_can() {
    in_own_network(|| async {
        sh(LINK).await;
        // Of another type, and in use, so it can be neither changed nor removed; and one that is only of another size.
        sh("ipset create calico4-t-web hash:net; iptables -A INPUT -m set --match-set calico4-t-web src -j DROP; \
            ipset add calico4-t-web 10.9.9.0/24; ipset create calico4-pools hash:net maxelem 64")
        .await;
        let wanted = desired(SMALL);
        let mut kernel = kernel();
        for _ in 0..2 {
            assert!(!kernel.apply(&wanted, &Changes::default()).await);
            let faults: Vec<_> = kernel.kernel.faults().map(|(object, _)| object.clone()).collect();
            assert_eq!(faults, ["profile web", "set calico4-t-web"]);
            let there = ipsets::observe(Family::V4).await.unwrap();
            let others = wanted.sets.iter().filter(|(name, _)| name.as_str() != "calico4-t-web");
            others.for_each(|(name, set)| assert_eq!(there.get(name), Some(set)));
            let (_, endpoint) = wanted.placed().next().unwrap();
            assert!(kernel.kernel.holds(endpoint) && kernel.kernel.routes_to(endpoint, &wanted.routes));
            assert!(kernel.kernel.is_known());
            let rules = sh("iptables -S calico-pi-web; iptables -S calico-po-web").await;
            assert!(!rules.contains("calico4-t-web") && rules.contains("closed: a set"), "{rules}");
            assert!(rules.contains("-A calico-po-web -m comment"), "{rules}");
        }
        sh("iptables -F INPUT").await;
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        assert_eq!(left(&wanted).await, "");

        // Its type is another one while our own chains speak of it, as after an upgrade.
        sh("iptables -F calico-pi-web; ipset destroy calico4-t-web; ipset create calico4-t-web hash:net; \
            iptables -A calico-pi-web -m set --match-set calico4-t-web src -j ACCEPT")
        .await;
        kernel.kernel.doubt(Why::Clock);
        assert!(!kernel.apply(&wanted, &Changes::default()).await);
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        assert_eq!(left(&wanted).await, "");
    });
}

/// Nobody knows how much of a set a tool has filled that had to be killed, and a rule that denies by it lets the rest pass.
#[test]
fn no_chain_is_written_while_ipset_is_away_and_starts_wait() {
    const MORE: &str = r#"{
        "/calico/v1/policy/profile/shy/tags": ["shy"],
        "/calico/v1/policy/profile/shy/rules": {"inbound_rules": [{"action": "deny", "src_tag": "bad"}, {}], "outbound_rules": []},
        "/calico/v1/policy/profile/bad/tags": ["bad"], "/calico/v1/policy/profile/bad/rules": {},
        "/calico/v1/host/h1/workload/docker/c5/endpoint/five": {"state": "inactive", "name": "califive", "profile_ids": ["shy"], "ipv4_nets": ["192.168.0.5/32"]},
        "/calico/v1/host/h1/workload/docker/c6/endpoint/free": {"state": "inactive", "name": "califree", "profile_ids": ["bad"], "ipv4_nets": ["192.168.0.6/32"]},
        "/calico/v1/host/h2/workload/docker/c7/endpoint/web2": {"state": "active", "name": "caliweb2", "profile_ids": ["web"], "ipv4_nets": ["192.168.1.4/32"]},
    "#;
    in_own_network(|| async {
        own_mounts().await;
        sh(LINK).await;
        let mut wanted = desired(SMALL);
        let mut kernel = kernel();
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        let before = sh("iptables-save | grep -v '^#'").await;
        // What a tool that was killed may leave: a set that is made and not filled.
        sh("ipset create calico4-t-bad hash:ip").await;
        let tool = sh("command -v ipset").await.trim().to_owned();
        sh(&format!("mount --bind /dev/null {tool}")).await;
        let snapshot = from_json(&SMALL.replacen('{', MORE, 1));
        let changes = wanted.update(&snapshot, &News::All);
        let stands = |kernel: &Hands, id: &str| {
            let (_, endpoint) = wanted.placed().find(|(key, _)| key.endpoint.as_str() == id).unwrap();
            kernel.kernel.holds(endpoint)
        };
        for _ in 0..2 {
            assert!(!kernel.apply(&wanted, &changes).await);
            assert_eq!(sh("iptables-save | grep -v '^#'").await, before);
            assert_eq!(["five", "free"].map(|id| stands(&kernel, id)), [false, false]);
            assert!(!kernel.kernel.is_known());
        }

        sh(&format!("umount {tool}")).await;
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        assert_eq!(left(&wanted).await, "");
        assert_eq!((stands(&kernel, "five"), stands(&kernel, "free")), (true, true));
    });
}

/// One rule of somebody else's, which the tool does not show, kept every container of the host from starting.
#[test]
fn where_the_kernel_cannot_be_looked_at_any_more_what_was_left_there_is_believed_and_news_go_on() {
    in_own_network(|| async {
        sh(LINK).await;
        let mut wanted = desired(SMALL);
        let mut kernel = kernel();
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        sh("nft add chain ip filter theirs; nft add rule ip filter theirs meta mark set ct mark").await;
        let more = r#"{"/calico/v1/host/h1/workload/docker/c5/endpoint/five": {"state": "inactive", "name": "califive", "profile_ids": ["web"], "ipv4_nets": ["192.168.0.5/32"]},"#;
        let changes = wanted.update(&from_json(&SMALL.replacen('{', more, 1)), &News::All);
        kernel.kernel.doubt(Why::Clock);
        assert!(!kernel.apply(&wanted, &changes).await);
        let faults: Vec<_> = kernel.kernel.faults().map(|(object, why)| format!("{object}: {why}")).collect();
        assert!(matches!(faults.as_slice(), [one] if one.contains("does not show its table filter")), "{faults:?}");
        assert!(sh("nft list table ip filter").await.contains("\"califive\""));
        assert!(sh_succeeds("ipset test calico4-t-web 192.168.0.5").await);
        assert!(kernel.kernel.is_known() && !kernel.kernel.is_lost() && kernel.kernel.doubts());
        // But not once it is not known what was done.
        kernel.kernel.doubt(Why::Failed);
        assert!(kernel.kernel.is_lost() && !kernel.apply(&wanted, &Changes::default()).await);
        assert!(kernel.kernel.is_lost() && !kernel.kernel.is_known());
        sh("nft delete chain ip filter theirs").await;
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        assert_eq!((left(&wanted).await.as_str(), kernel.kernel.faults().count()), ("", 0));
    });
}

/// Every change of the cluster, of whatever host, led to a look at the whole kernel as long as anything was refused.
#[test]
fn what_the_kernel_refuses_is_tried_again_in_its_own_time_and_the_rest_goes_on() {
    in_own_network(|| async {
        sh(LINK).await;
        let mut wanted = desired(SMALL);
        let mut kernel = kernel();
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        // Somebody uses a set of ours, which is not wanted any more.
        sh("iptables -N theirs; iptables -A theirs -m set --match-set calico4-t-web src").await;
        let without =
            SMALL.replace(r#""/calico/v1/policy/profile/web/tags": ["web"],"#, "").replace(r#""src_tag": "web", "#, "");
        assert_ne!(without, SMALL);
        let changes = wanted.update(&from_json(&without), &News::All);
        assert!(!kernel.apply(&wanted, &changes).await);
        let faults: Vec<_> = kernel.kernel.faults().map(|(object, _)| object.clone()).collect();
        assert_eq!((faults, kernel.kernel.is_known()), (vec!["set calico4-t-web".to_owned()], true));
        // What comes meanwhile is programmed without a look at the rest.
        let more = r#"{"/calico/v1/host/h1/workload/docker/c5/endpoint/five": {"state": "inactive", "name": "califive", "profile_ids": ["web"], "ipv4_nets": ["192.168.0.5/32"]},"#;
        let changes = wanted.update(&from_json(&without.replacen('{', more, 1)), &News::All);
        assert!(!kernel.kernel.has_refused(&changes) && !kernel.kernel.doubts());
        assert!(kernel.kernel.apply(&wanted, &changes, false, &mut kernel.ear).await);
        assert!(!kernel.kernel.looked_at_all() && kernel.kernel.faults().count() == 1);
        assert!(sh("iptables -S").await.contains("califive"));
        // It is tried again, and once it can be done nothing is left.
        for tries in [false, true] {
            assert_eq!(kernel.apply(&wanted, &Changes::default()).await, tries);
            assert!(kernel.kernel.looked_at_all());
            sh("iptables -F theirs").await;
        }
        assert_eq!((left(&wanted).await.as_str(), kernel.kernel.faults().count()), ("", 0));
    });
}

#[test]
fn a_missing_interface_is_the_fault_of_its_endpoint_only() {
    in_own_network(|| async {
        let wanted = desired(SMALL);
        let mut kernel = kernel();
        assert!(!kernel.apply(&wanted, &Changes::default()).await);
        let faults: Vec<_> = kernel.kernel.faults().map(|(object, why)| format!("{object}: {why}")).collect();
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("aaaa1111aaaa1111aaaa1111aaaa1111: route 192.168.0.1"), "{faults:?}");
        sh(LINK).await;
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        assert!(!kernel.kernel.looked_at_all());
        assert_eq!(left(&wanted).await, "");
    });
}

#[test]
fn the_first_steps_keep_what_an_earlier_run_left() {
    in_own_network(|| async {
        sh(LINK).await;
        let wanted = desired(SMALL);
        assert!(kernel().apply(&wanted, &Changes::default()).await);
        sh("iptables -D FORWARD 1; iptables -F calico-FORWARD; iptables -X calico-from-xx || true").await;
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::programmed(folder.path());
        let standing = wanted.placed().map(|(key, _)| key.endpoint.as_str()).find(|id| id.len() == 32).unwrap();
        for id in [standing, "ffff1111ffff1111ffff1111ffff1111", "nobody"] {
            marks.set(id, "").unwrap();
        }
        let prepared = prepare(Spawner::new().unwrap(), folder.path(), BTreeSet::new()).await.unwrap();
        assert_eq!(marks.all(), [standing.to_owned()].into());
        assert_eq!(left(&wanted).await, "");
        sh("nft flush ruleset").await;
        let rules = sh("nft list ruleset").await;
        assert!(rules.contains("calico-guard") && rules.contains("oifname \"cali*\""), "{rules}");
        drop(prepared);
    });
}

#[test]
fn what_of_the_host_is_open_stays_so_at_a_start_just_as_it_was_and_is_closed_if_anybody_has_touched_it() {
    in_own_network(|| async {
        let setting = r#""/calico/v1/config/EndpointToHostPorts": "udp:53,tcp:8000-8010,icmp,icmpv6", "/calico/v1/pol"#;
        let snapshot = DUAL.replacen(r#""/calico/v1/pol"#, setting, 1);
        let families = [(Family::V4, "iptables"), (Family::V6, "ip6tables")];
        let wanted = families.map(|(family, _)| desired_of(family, &snapshot));
        for ((family, _), wanted) in families.iter().zip(&wanted) {
            // The interfaces are not there, which is of no matter here.
            hands(*family).apply(wanted, &Changes::default()).await;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut before = Vec::new();
        for (_, tool) in families {
            before.push(sh(&format!("{tool} -S calico-INPUT")).await);
        }
        assert!(before.iter().all(|listed| listed.contains("EndpointToHostPorts tcp:8000:8010")), "{before:#?}");
        drop(prepare(Spawner::new().unwrap(), folder.path(), BTreeSet::new()).await.unwrap());
        for ((_, tool), before) in families.iter().zip(&before) {
            assert_eq!(sh(&format!("{tool} -S calico-INPUT")).await, *before);
        }
        for damage in [
            "-I calico-INPUT -p tcp --dport 22 -j ACCEPT",
            "-D calico-INPUT 2",
            // Under the words of another entry.
            "-I calico-INPUT 6 -p tcp --dport 22 -m comment --comment 'calico:00000000000000ff EndpointToHostPorts udp:54' -j ACCEPT",
        ] {
            for (family, tool) in families {
                hands(family).apply(&wanted[usize::from(family == Family::V6)], &Changes::default()).await;
                sh(&format!("{tool} {damage}")).await;
            }
            drop(prepare(Spawner::new().unwrap(), folder.path(), BTreeSet::new()).await.unwrap());
            for (_, tool) in families {
                let listed = sh(&format!("{tool} -S calico-INPUT")).await;
                assert!(!listed.contains("EndpointToHostPorts") && !listed.contains("dport"), "{damage}: {listed}");
            }
        }
    });
}

#[test]
fn a_second_guard_waits_until_the_first_is_gone() {
    in_own_network(|| async {
        let spawner = Spawner::new().unwrap();
        let first = Guard::raise(&spawner).await.unwrap();
        let second = async { Guard::raise(&spawner).await.unwrap() };
        let end = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            drop(first);
        };
        let (_second, ()) = tokio::join!(second, end);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(sh("nft list ruleset").await.matches("comment \"owner").count(), 2);
    });
}

/// A container: a namespace behind an interface of ours, with an address.
struct Container {
    netns: Elsewhere,
}

impl Container {
    async fn new(interface: &str, mac: &str, address: &str) -> Self {
        let netns = Elsewhere::new().await;
        let pid = netns.pid();
        sh(&format!("ip link add {interface} type veth peer name eth1 address {mac} netns {pid}")).await;
        sysctl::apply_to_interface(&interface.parse().unwrap(), false).unwrap();
        sh(&format!("ip link set {interface} up")).await;
        let container = Container { netns };
        container
            .sh(&format!(
                "ip link set lo up; ip link set eth1 up; ip addr add {address}/32 dev eth1; \
                 ip route add 10.0.0.1 dev eth1; ip route add default via 10.0.0.1"
            ))
            .await;
        container
    }

    async fn sh(&self, line: &str) -> String {
        self.netns.sh(line).await
    }

    /// With a second try: the first packet through a new link may have to wait for the neighbour's address.
    async fn reaches(&self, address: &str) -> bool {
        self.netns.sh_succeeds(&format!("ping -c 2 -i 0.5 -W 1 {address}")).await
    }
}

#[test]
fn packets_go_where_policy_lets_them_and_nowhere_else() {
    in_own_network(|| async {
        sh("sysctl -qw net.ipv4.ip_forward=1; ip addr add 10.0.0.1/32 dev lo").await;
        let text = SMALL.replace("\"inactive\"", "\"active\"").replace(
            r#"{"src_tag": "web", "protocol": "icmp", "icmp_type": 8, "icmp_code": 0}"#,
            r#"{"src_tag": "web", "protocol": "icmp"}"#,
        );
        let wanted = desired(&text);
        let one = Container::new("caliaaaa1111aaa", "02:00:00:00:00:01", "192.168.0.1").await;
        let two = Container::new("caliaaaa2222aaa", "02:00:00:00:00:02", "192.168.0.2").await;
        let stranger = Container::new("calistray", "02:00:00:00:00:09", "192.168.0.9").await;
        sh("ip route add 192.168.0.9/32 dev calistray").await;
        let spawner = Spawner::new().unwrap();
        let guard = Guard::raise(&spawner).await.unwrap();
        assert!(!one.reaches("192.168.0.2").await, "the guard stands before any chain");
        let mut kernel = kernel();
        assert!(kernel.apply(&wanted, &Changes::default()).await);
        assert!(one.reaches("192.168.0.2").await);
        assert!(two.reaches("192.168.0.1").await);
        assert!(!one.reaches("192.168.0.9").await, "to an interface that nobody knows");
        assert!(!stranger.reaches("192.168.0.1").await, "from an interface that nobody knows");
        assert!(!one.reaches("10.0.0.1").await, "the host is closed");
        assert!(sh_succeeds("ping -c 1 -W 1 192.168.0.1").await, "the host reaches its containers");
        one.sh("ip addr add 192.168.0.2/32 dev eth1").await;
        let spoofed = "ping -c 1 -W 1 -I 192.168.0.2 192.168.0.22";
        assert!(!one.netns.sh_succeeds(spoofed).await, "under another's address");
        one.sh("ip addr del 192.168.0.2/32 dev eth1; ip link set eth1 address 02:00:00:00:00:07").await;
        assert!(!one.reaches("192.168.0.2").await, "from another MAC");
        one.sh("ip link set eth1 address 02:00:00:00:00:01").await;
        assert!(one.reaches("192.168.0.2").await);
        sh("iptables -F; nft flush ruleset").await;
        assert!(!one.reaches("192.168.0.2").await, "a flush opens nothing");
        drop(guard);
    });
}

/// An etcd at its usual port of this namespace's loopback, and a connection to it.
async fn etcd_in(spawner: &Spawner, folder: &Path) -> (Running, Etcd) {
    let args = format!(
        "--data-dir {} --listen-peer-urls http://127.0.0.1:2380 --listen-client-urls http://127.0.0.1:2379 \
         --advertise-client-urls http://127.0.0.1:2379 --log-level error --unsafe-no-fsync",
        folder.join("etcd").display()
    );
    let args = args.split_whitespace().map(str::to_owned).collect();
    let start = Start { program: "etcd".to_owned(), args, input: false };
    let child = spawner.start(start).await.unwrap();
    let endpoints = vec!["http://127.0.0.1:2379".to_owned()];
    (child, Etcd::connect(&EtcdAddress { endpoints, ca: None, identity: None }).await.unwrap())
}

fn settings(folder: &Path, bgp: bool) -> AgentSettings {
    AgentSettings { run_dir: folder.to_owned(), host: h1(), bgp }
}

#[test]
fn the_loop_follows_etcd_and_mends_what_is_damaged() {
    in_own_network(|| async {
        let spawner = Spawner::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (etcd_child, etcd) = etcd_in(&spawner, folder.path()).await;
        let settings = settings(folder.path(), true);
        let prepared = prepare(Spawner::new().unwrap(), folder.path(), BTreeSet::new()).await.unwrap();
        let (store, stop) = (Arc::new(Store::new("h1".parse().unwrap())), CancellationToken::new());
        let (sender, mut programmed) = watch::channel(Programmed::default());
        let watching = {
            let (store, etcd, stop) = (Arc::clone(&store), etcd.clone(), stop.clone());
            let host = settings.host.clone();
            let (reservations, metrics) = (Reservations::in_state_dir(folder.path()), Arc::new(Metrics::new()));
            let last_seen = KeptFile::datastore(folder.path());
            let holdings = Holdings { host, reservations, last_seen, metrics };
            async move { store.run(&etcd, &holdings, &stop).await }
        };
        let agent = run(prepared, store, sender, settings, Arc::new(Metrics::new()), stop.clone());
        let story = async {
            let id = "aaaa1111aaaa1111aaaa1111aaaa1111";
            let of = |orchestrator: &str, workload: &str| -> EndpointKey {
                let path = format!("/calico/v1/host/h1/workload/{orchestrator}/{workload}/endpoint/{id}");
                let Some(Key::Endpoint(key)) = Key::parse(&path) else { panic!("{path}") };
                key
            };
            let one = of("docker", "c1");
            let put =
                async |path: String, value: String| sh(&format!("ETCDCTL_API=3 etcdctl put '{path}' '{value}'")).await;
            let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(SMALL).unwrap();
            for (path, value) in map {
                put(path, value.to_string()).await;
            }
            wait(&mut programmed, |now| {
                now.endpoints.get(&one).is_some_and(|one| !one.active) && now.endpoints.len() == 2
            })
            .await;
            assert!(programmed.borrow().faults[id].contains("no such interface"));
            sh(LINK).await;
            wait(&mut programmed, |now| now.endpoints[&one].active && now.in_sync && now.bird == BirdState::Up).await;
            assert_eq!(programmed.borrow().faults.keys().collect::<Vec<_>>(), ["profile gone"]);
            sh("ip link set caliaaaa1111aaa down; ip link set caliaaaa1111aaa up").await;
            until("the route is back", "ip route show proto 97 | grep -q 192.168.0.1").await;
            sh("ipset flush calico4-t-web").await;
            until("the set is whole again", "ipset test calico4-t-web 192.168.1.3").await;
            put("/calico/v1/config/IptablesRefreshInterval".to_owned(), "1".to_owned()).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            sh("iptables -D FORWARD 1; iptables -F calico-po-web").await;
            let mended = "iptables -S FORWARD 1 | grep -q calico-FORWARD && iptables -S calico-po-web | grep -q allow";
            until("the chains are mended", mended).await;
            sh("sysctl -qw net.ipv6.conf.caliaaaa1111aaa.disable_ipv6=0").await;
            let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(DUAL).unwrap();
            for (path, value) in map {
                put(path, value.to_string()).await;
            }
            wait(&mut programmed, |now| now.endpoints[&one].active && now.endpoints.len() == 3).await;
            let faults = programmed.borrow().faults.clone();
            assert!(faults["aaaa2222aaaa1111aaaa1111aaaa1111"].contains("no such interface"), "{faults:?}");
            until("both routes stand", "ip route show proto 97; ip -6 route show proto 97 | grep -q fd00:0:0:1::1")
                .await;
            sh("ip6tables -D FORWARD 1; ip6tables -t raw -F; ipset flush calico6-t-web").await;
            let mended = "ip6tables -S FORWARD 1 | grep -q calico-FORWARD && ip6tables -t raw -S | grep -q rpfilter \
                          && ipset test calico6-t-web fd00:0:0:1::3";
            until("IPv6 is mended", mended).await;
            // One of the same id, under another orchestrator: what stands of the one is not said of the other.
            let twin = of("other", "c9");
            let record =
                r#"{"state": "active", "name": "calitwin", "profile_ids": [], "ipv4_nets": ["192.168.0.9/32"]}"#;
            put(Key::Endpoint(twin.clone()).path(), record.to_owned()).await;
            wait(&mut programmed, |now| now.endpoints.get(&twin).is_some_and(|one| !one.active)).await;
            assert!(programmed.borrow().endpoints[&one].active);
            sh(&format!("ETCDCTL_API=3 etcdctl del {}", Key::Endpoint(twin.clone()).path())).await;
            wait(&mut programmed, |now| !now.endpoints.contains_key(&twin)).await;
            assert!(programmed.borrow().endpoints[&one].active && Marks::programmed(folder.path()).is_set(id));
            sh("ETCDCTL_API=3 etcdctl del --prefix /calico/v1/host/h1/workload").await;
            wait(&mut programmed, |now| now.endpoints.is_empty()).await;
            assert!(!sh("iptables-save; ip6tables-save; ip route show proto 97").await.contains("aaaa1111"));
            stop.cancel();
        };
        let (ended, (), ()) = tokio::join!(agent, watching, story);
        ended.unwrap();
        drop(etcd_child);
    });
}

/// All marks were gone then, and with the node away nothing started any more.
#[test]
fn a_guard_that_falls_before_the_first_load_leaves_the_marks_of_what_stands() {
    in_own_network(|| async {
        sh(LINK).await;
        let wanted = desired(SMALL);
        assert!(kernel().apply(&wanted, &Changes::default()).await);
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::programmed(folder.path());
        let all: BTreeSet<String> = wanted.placed().map(|(key, _)| key.endpoint.to_string()).collect();
        for id in &all {
            marks.set(id, "").unwrap();
        }
        let prepared = prepare(Spawner::new().unwrap(), folder.path(), BTreeSet::new()).await.unwrap();
        let settings = settings(folder.path(), false);
        let (store, stop) = (Arc::new(Store::new("h1".parse().unwrap())), CancellationToken::new());
        let (sender, programmed) = watch::channel(Programmed::default());
        let agent = run(prepared, store, sender, settings, Arc::new(Metrics::new()), stop.clone());
        let owner = "nft list table inet calico-guard | grep -o 'owner [0-9]*' | tail -1";
        let story = async {
            // When it has fallen for the second time, all is told that came of the first.
            for _ in 0..2 {
                let before = sh(owner).await;
                let before = before.trim();
                sh(&format!("kill {}", before.strip_prefix("owner ").unwrap())).await;
                let another = format!("now=$({owner}); test -n \"$now\" && test \"$now\" != '{before}'");
                until("the guard stands again", &another).await;
            }
            stop.cancel();
        };
        let (ended, ()) = tokio::join!(agent, story);
        ended.unwrap();
        assert_eq!(marks.all(), all);
        assert!(!programmed.borrow().in_sync);
    });
}

async fn wait(programmed: &mut watch::Receiver<Programmed>, done: impl Fn(&Programmed) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), programmed.wait_for(|now| done(now))).await.is_ok();
    assert!(waited, "not there: {:?}", programmed.borrow());
}

async fn until(what: &str, line: &str) {
    for _ in 0..100 {
        if sh_succeeds(line).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 5 s: {what}");
}

/// dockerd closes FORWARD only if it is the one that switches forwarding on, and a node that was first left it open.
#[test]
fn who_switches_forwarding_on_lets_nothing_through_that_nobody_asked_for() {
    in_own_network(|| async {
        let policy = || async { sh("iptables -S FORWARD").await.lines().next().unwrap_or_default().to_owned() };
        sh("iptables -N some; echo 1 >/proc/sys/net/ipv4/ip_forward").await;
        forward_ipv4().await.unwrap();
        assert_eq!(policy().await, "-P FORWARD ACCEPT", "it was somebody's decision");
        sh("echo 0 >/proc/sys/net/ipv4/ip_forward").await;
        forward_ipv4().await.unwrap();
        assert_eq!(policy().await, "-P FORWARD DROP");
        assert_eq!(sysctl::read(FORWARD_IPV4).unwrap(), "1");
    });
}
