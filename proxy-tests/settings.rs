//! What operators say in the datastore takes effect while the node runs, and what nodes say of themselves there.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::container::SOON;
use crate::lab::host::Host;
use crate::lab::netns::{Probe, Servers};
use crate::lab::spawn_logged;
use crate::lab::wait::{wait_for, wait_until};

const CONFIG: &str = "/calico/v1/config/";
const FELIX: &str = "/calico/felix/v1/host/h1/";

fn set(lab: &Lab, name: &str, value: &str) {
    lab.etcd().put(&format!("{CONFIG}{name}"), value);
}

fn unset(lab: &Lab, name: &str) {
    lab.etcd().ctl(&["del", &format!("{CONFIG}{name}")]).run().ok();
}

/// Waits until a rule of the firewall is there, or gone.
#[track_caller]
fn rule(host: &Host, words: &str, there: bool) {
    wait_until(&format!("{words} in the firewall: {there}"), SOON, || {
        host.sh("iptables-save -t filter").lines().any(|line| line.contains(words)) == there
    });
}

fn metrics(host: &Host) -> String {
    host.command("curl").args(["-s", "http://127.0.0.1:9091/metrics"]).run().ok()
}

fn faults(host: &Host) -> Value {
    let status: Value = serde_json::from_str(&host.calicoctl("status --output json").ok()).unwrap();
    status["faults"].clone()
}

#[test]
fn every_setting_takes_effect_without_a_restart_and_a_bad_one_is_told() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    // No flag says how much the log tells.
    let (ip, listen) = (h1.ip.to_string(), format!("unix://{}", h1.proxy_socket().display()));
    let node = h1.calico_node(&["--ip", &ip, "--metrics-listen", "127.0.0.1:9091", "--listen", &listen]);
    h1.keep_node(spawn_logged(node, &h1.node_log()));
    h1.await_ready();
    let ann = h1.run("ann", "-e CALICO_IP=192.168.1.1 -e CALICO_PROFILE=web");
    let eve = h1.run("eve", "-e CALICO_IP=192.168.1.9 -e CALICO_PROFILE=other");
    let host_ip: Ipv4Addr = h1.ip;
    let _servers = Servers::start(&h1.space, &[5300, 5301, 2380]);
    let (open, shut) = (Probe::Udp { from: None, to: 5300 }, Probe::Udp { from: None, to: 5301 });
    let reaches = |probe| ann.space().answered(host_ip, probe);

    // Of the host containers reach what is named, and that only.
    assert!(!reaches(open) && !reaches(Probe::Ping));
    set(&lab, "EndpointToHostPorts", "udp:5300,icmp");
    wait_until("the port that is named is open", SOON, || reaches(open));
    assert!(reaches(Probe::Ping) && !reaches(shut));
    // Ports of our own are not to be opened, and with them nothing is.
    set(&lab, "EndpointToHostPorts", "udp:5300,tcp:2377");
    wait_until("nothing is open", SOON, || !reaches(open));
    wait_until("the fault is told", SOON, || faults(h1).to_string().contains("setting EndpointToHostPorts"));
    assert!(metrics(h1).contains("calico_faults{kind=\"setting\"} 1"));
    unset(&lab, "EndpointToHostPorts");

    set(&lab, "DefaultEndpointToHostAction", "ACCEPT");
    wait_until("policy decides on the way to the host", SOON, || reaches(shut));
    assert!(!reaches(Probe::Tcp { from: None, to: 2380 }), "what runs the host is open");
    unset(&lab, "DefaultEndpointToHostAction");
    wait_until("the host is closed again", SOON, || !reaches(shut));

    // Policy logs, and is switched off, loudly.
    set(&lab, "DropActionOverride", "LOG-and-DROP");
    rule(h1, "--log-prefix \"calico-drop: \"", true);
    eve.never_reaches(ann.ip());
    set(&lab, "DropActionOverride", "ACCEPT");
    eve.comes_to_reach(ann.ip());
    rule(h1, "!SECURITY DISABLED!", true);
    wait_until("the switched off policy is told", SOON, || faults(h1).to_string().contains("!SECURITY DISABLED!"));
    assert!(h1.node_log_text().contains("!SECURITY DISABLED!"));
    unset(&lab, "DropActionOverride");
    eve.ceases_to_reach(ann.ip());
    rule(h1, "!SECURITY DISABLED!", false);

    set(&lab, "MaxIpsetSize", "2048");
    wait_until("sets are of that size", SOON, || h1.sh("ipset list calico4-t-web -t").contains("maxelem 2048"));
    // A set that cannot hold all is of no use to policy.
    let cat = h1.run("cat", "-e CALICO_IP=192.168.1.3 -e CALICO_PROFILE=web");
    cat.comes_to_reach(ann.ip());
    set(&lab, "MaxIpsetSize", "1");
    cat.ceases_to_reach(ann.ip());
    wait_until("the closed profile is told", SOON, || faults(h1).to_string().contains("profile web"));
    // Nobody tries to fill it in vain.
    assert!(!h1.node_log_text().contains("Hash is full"), "{}", faults(h1));
    unset(&lab, "MaxIpsetSize");
    cat.comes_to_reach(ann.ip());
    wait_until("sets are of the usual size", SOON, || h1.sh("ipset list calico4-t-web -t").contains("maxelem 1048576"));

    let resyncs = || {
        let text = metrics(h1);
        let line = text.lines().find_map(|line| line.strip_prefix("calico_resyncs_total ").map(str::to_owned));
        line.unwrap().parse::<u64>().unwrap()
    };
    let before = resyncs();
    set(&lab, "PeriodicResyncInterval", "1");
    wait_until("all was read again, several times", SOON, || resyncs() > before + 2);
    unset(&lab, "PeriodicResyncInterval");

    assert!(!h1.node_log_text().contains("DEBUG"));
    set(&lab, "LogSeverityScreen", "DEBUG");
    wait_until("the log says more", SOON, || h1.node_log_text().contains("LogSeverityScreen"));
    h1.docker("rm -f eve").ok();
    wait_until("a line of debugging is there", SOON, || h1.node_log_text().contains("DEBUG"));
    // One host's own word wins.
    lab.etcd().put("/calico/v1/host/h1/config/LogSeverityScreen", "ERROR");
    wait_until("the host's own level holds", SOON, || h1.node_log_text().contains("level=\"error\""));
}

#[test]
fn what_of_a_host_is_open_to_containers_stays_open_while_a_new_node_has_not_read_the_datastore() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let _servers = Servers::start(&h1.space, &[5300, 5301]);
    let (open, shut) = (Probe::Udp { from: None, to: 5300 }, Probe::Udp { from: None, to: 5301 });
    let reaches = |probe| ann.space().answered(h1.ip, probe);
    set(&lab, "EndpointToHostPorts", "udp:5300");
    wait_until("the port that is named is open", SOON, || reaches(open));
    h1.stop_node();
    assert!(reaches(open) && !reaches(shut));
    lab.kill_etcd();
    h1.spawn_node(&[]);
    wait_until("the new node has taken its first steps", SOON, || {
        h1.calicoctl("status").out().contains("waits for etcd")
    });
    assert!(reaches(open) && !reaches(shut), "before the datastore is read");
    lab.start_etcd();
    h1.await_ready();
    assert!(reaches(open) && !reaches(shut), "when it has been read");
    unset(&lab, "EndpointToHostPorts");
    wait_until("it is closed when nobody names it any more", SOON, || !reaches(open));
}

#[test]
fn a_node_reports_itself_and_its_endpoints() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let left = format!("{FELIX}workload/docker/gone/endpoint/gone");
    lab.etcd().put(&left, r#"{"status":"up"}"#);
    set(&lab, "ReportingIntervalSecs", "1");
    set(&lab, "ReportingTTLSecs", "3");
    h1.start_node();
    let long = Duration::from_secs(30);

    // The host: one key that runs out, and one that stays.
    let status = || lab.etcd().entries(FELIX).remove(&format!("{FELIX}status"));
    let first = wait_for("the node reports itself", long, status);
    assert!(first.leased && first.json()["uptime"].is_u64(), "{first:?}");
    let later = wait_for("it does so again", long, || status().filter(|entry| entry.json()["first_update"] == false));
    assert!(later.json()["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{later:?}");
    assert!(!lab.etcd().entries(FELIX)[&format!("{FELIX}last_reported_status")].leased);
    wait_until("what an earlier run left is gone", long, || lab.etcd().get(&left).is_none());

    // Endpoints: down, up, error with the reason, and gone with the container.
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let path = |id: &str| {
        let keys = lab.etcd().keys("/calico/v1/host/h1/workload/");
        let key = keys.into_iter().find(|key| key.contains(id)).unwrap();
        key.replace("/calico/v1/", "/calico/felix/v1/")
    };
    let path = path(&ann.id);
    let says = |what: &str, value: &Value| {
        let value = value.to_string();
        wait_until(what, long, || lab.etcd().get(&path).is_some_and(|text| text == value));
    };
    says("a container that runs is up", &json!({"status": "up"}));
    h1.docker("stop -t 0 ann").ok();
    says("one that does not is down", &json!({"status": "down"}));
    h1.docker("start ann").ok();
    says("it is up again", &json!({"status": "up"}));
    lab.etcd().put("/calico/v1/policy/profile/web/rules", r#"{"inbound_rules": [{"action": "permit"}]}"#);
    let report = wait_for("a closed profile is an error", long, || {
        lab.etcd().get(&path).filter(|text| text.contains("\"error\""))
    });
    assert!(report.contains("profile web") && report.contains("permit"), "{report}");
    let shown = h1.calicoctl("endpoint show --detailed").ok();
    assert!(shown.contains("does not work: profile web") && shown.contains("permit"), "{shown}");
    assert!(h1.calicoctl("status").ok().contains("profile web: it is closed"));
    assert!(metrics(h1).contains("calico_faults{kind=\"profile\"} 1"), "{}", metrics(h1));
    let told =
        h1.node_log_text().lines().filter(|line| line.contains("profile web") && line.contains("permit")).count();
    assert_eq!(told, 1);
    lab.etcd().put("/calico/v1/policy/profile/web/rules", r#"{"inbound_rules": [{}]}"#);
    says("it is mended", &json!({"status": "up"}));

    // Switched off, nothing is left that grows old.
    set(&lab, "EndpointReportingEnabled", "false");
    wait_until("the report is gone", long, || lab.etcd().get(&path).is_none());
    set(&lab, "EndpointReportingEnabled", "true");
    says("and back", &json!({"status": "up"}));
    h1.docker("rm -f ann").ok();
    wait_until("it goes with its container", long, || lab.etcd().get(&path).is_none());
    set(&lab, "ReportingIntervalSecs", "0");
    wait_until("the host's report runs out", long, || status().is_none());
}
