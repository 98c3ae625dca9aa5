//! Containers with a second way out, which policy does not see (from attack 9 of the catalogue).

use crate::lab::Lab;
use crate::lab::host::{Host, IDLE};
use crate::lab::http;
use crate::lab::wait::wait_until;

use std::net::TcpStream;
use std::time::Duration;

/// How long until it is told of: every container is looked at each 10 s.
const TOLD: Duration = Duration::from_secs(15);

/// How long where only a look at that very one tells: each has its turn within a minute.
const LOOKED_AT: Duration = Duration::from_secs(75);

fn escaping(host: &Host) -> bool {
    let stream = host.space.enter(|| TcpStream::connect(("127.0.0.1", 9091))).unwrap();
    let text = http::exchange(stream, "GET", "/metrics", None).unwrap();
    String::from_utf8_lossy(&text.body).contains("calico_escaping_policy 1")
}

#[test]
fn a_container_that_is_on_a_network_of_dockers_too_is_reported_until_it_is_not() {
    let lab = Lab::bridged();
    let h1 = lab.host(1);
    h1.start_node();
    let told = |name: &str, network: &str| {
        let status = h1.calicoctl("status").out();
        status.contains(&format!("container {name} is on Docker's network {network} "))
    };
    // Created around the proxy, on Docker's bridge, and added later.
    h1.raw_docker_run(&["run", "-d", "--name", "ann", "busybox", "sh", "-c", IDLE]).run().ok();
    h1.calicoctl("container add ann 192.168.1.1").ok();
    let ann = h1.container("ann");
    let bob = h1.run("bob", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    wait_until("ann is told of", TOLD, || told("ann", "bridge") && escaping(h1));
    assert!(!told("bob", ""));
    // And where one looks at endpoints, on whatever host.
    let shown = || h1.calicoctl("endpoint show --detailed").out();
    let words = format!("Endpoint {} is not all: its container is on Docker's network bridge too", ann.endpoint_id());
    wait_until("it is shown with its endpoint", TOLD, || shown().contains(&words));
    assert!(!shown().contains(&format!("Endpoint {}", bob.endpoint_id())));
    assert!(h1.node_log_text().contains("container ann is on Docker's network bridge"));
    // Clients see it too, beside her address; and what the words ask for can be done where everything else is done.
    let networks = || h1.api("GET", "/containers/ann/json", None).json()["NetworkSettings"]["Networks"].clone();
    assert_ne!(networks()["bridge"]["IPAddress"], "", "{}", networks());
    assert_eq!(networks()["none"]["IPAddress"], "192.168.1.1", "{}", networks());
    h1.docker("network disconnect bridge ann").ok();
    assert_eq!(networks()["bridge"], serde_json::Value::Null);
    wait_until("ann is told of no more", TOLD, || !told("ann", "bridge") && !escaping(h1));
    wait_until("and shown so no more", TOLD, || !shown().contains("is not all"));
    assert!(h1.space.pings(bob.ip()));
    // To connect a running one around the proxy fails at dockerd itself, since there is a default route already, and leaves
    // it on the bridge all the same: dockerd's list says nothing of that, its word on the one container does.
    h1.raw_docker("network disconnect none bob").ok();
    h1.raw_docker("network connect bridge bob").fails_with(1);
    wait_until("bob is told of", LOOKED_AT, || told("bob", "bridge") && escaping(h1));
    h1.raw_docker("stop -t 0 bob").ok();
    wait_until("bob is told of no more", TOLD, || !told("bob", "bridge") && !escaping(h1));
    h1.raw_docker("rm -f ann bob").ok();
}
