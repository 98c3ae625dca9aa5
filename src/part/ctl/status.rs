//! `calicoctl status`: how the node of this host is, in its own words.

use serde_json::json;

use super::place::Place;
use super::table::{Table, printable};
use super::{Answer, Failure};
use crate::edge::control::Control;
use crate::model::control::{BirdStatus, STATUS, Status};
use crate::model::fault::Fault;
use crate::model::pool::Family;

pub(super) async fn run(place: &Place<'_>) -> Result<Answer, Failure> {
    let status: Status = Control::in_run_dir(&place.run_dir()).get(STATUS).await.map_err(Fault::from)?;
    Ok(Answer { text: render(&status), json: json!(status) })
}

fn render(status: &Status) -> String {
    let state = match (status.ready, status.waiting_for.is_empty()) {
        (true, _) => "ready".to_owned(),
        (false, true) => "not ready".to_owned(),
        (false, false) => format!("not ready, waits for {}", status.waiting_for.join(", ")),
    };
    let connected = |yes: bool| if yes { "connected" } else { "not connected" };
    let mut lines = vec![
        format!("calico-node {} is running on host {}: {state}", status.version, status.host),
        String::new(),
        format!("etcd:      {} ({})", status.etcd, connected(status.etcd_connected)),
        format!("Docker:    {} ({})", status.docker, connected(status.docker_connected)),
        format!("Listeners: {}", status.listeners.join(", ")),
        format!("Endpoints: {} active, {} inactive", status.endpoints.active, status.endpoints.inactive),
    ];
    for (family, title, ip) in [(Family::V4, "IPv4", status.ip), (Family::V6, "IPv6", status.ip6)] {
        lines.extend([String::new(), format!("{title} BGP status")]);
        match ip {
            Some(ip) => {
                lines.push(format!("IP: {ip}    AS Number: {}", status.as_number));
                lines.extend(bgp(status.bird.as_ref(), family).lines().map(str::to_owned));
            }
            None => lines.push(format!("No {title} address configured.")),
        }
    }
    let faults: Vec<String> = status.faults.iter().map(|fault| format!("{}: {}", fault.object, fault.why)).collect();
    for (title, list) in [("Faults:", &faults), ("Warnings:", &status.warnings)] {
        if !list.is_empty() {
            lines.extend([String::new(), title.to_owned()]);
            lines.extend(list.iter().map(|line| format!("  {line}")));
        }
    }
    lines.iter().map(|line| printable(line)).collect::<Vec<_>>().join("\n")
}

fn bgp(bird: Option<&BirdStatus>, family: Family) -> String {
    match bird {
        None => "This node runs no BGP.".to_owned(),
        Some(bird) if !bird.up => "Couldn't connect to bird.".to_owned(),
        Some(bird) => {
            let mut sessions: Vec<_> =
                bird.sessions.iter().filter(|session| Family::of(session.peer) == family).collect();
            sessions.sort_by_key(|session| (session.peer, session.kind));
            let mut table = Table::new(&["Peer address", "Peer type", "State", "Since", "Info"]);
            for session in sessions {
                table.row([
                    session.peer.to_string(),
                    session.kind.to_string(),
                    session.state.clone(),
                    session.since.clone(),
                    session.info.clone(),
                ]);
            }
            table.render()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        serde_json::from_value(json!({
            "host": "h1", "version": "0.1.0", "ip": "172.25.0.1", "as": 64511, "ready": true, "waiting_for": [],
            "etcd": "http://127.0.0.1:2379", "etcd_connected": true,
            "docker": "unix:///var/run/docker.sock", "docker_connected": true,
            "listeners": ["tcp://127.0.0.1:2377", "tcp://[::1]:2377"],
            "endpoints": {"active": 2, "inactive": 1},
            "bird": {"up": true, "sessions": [
                {"name": "Global_1", "peer": "172.25.0.10", "type": "global", "state": "start", "since": "10:00:00", "info": "Connect"},
                {"name": "Mesh_1", "peer": "172.25.0.2", "type": "node-to-node mesh", "state": "up", "since": "09:00:00", "info": "Established"}
            ]},
            "faults": [{"object": "profile web", "why": "its record cannot be read"}],
            "warnings": ["pool 10.0.0.0/8 overlaps eth0"]
        }))
        .unwrap()
    }

    #[test]
    fn a_status_is_printed_as_the_original_did() {
        assert_eq!(
            render(&status()),
            "\
calico-node 0.1.0 is running on host h1: ready

etcd:      http://127.0.0.1:2379 (connected)
Docker:    unix:///var/run/docker.sock (connected)
Listeners: tcp://127.0.0.1:2377, tcp://[::1]:2377
Endpoints: 2 active, 1 inactive

IPv4 BGP status
IP: 172.25.0.1    AS Number: 64511
+--------------+-------------------+-------+----------+-------------+
| Peer address |     Peer type     | State |  Since   |     Info    |
+--------------+-------------------+-------+----------+-------------+
|  172.25.0.2  | node-to-node mesh |   up  | 09:00:00 | Established |
| 172.25.0.10  |       global      | start | 10:00:00 |   Connect   |
+--------------+-------------------+-------+----------+-------------+

IPv6 BGP status
No IPv6 address configured.

Faults:
  profile web: its record cannot be read

Warnings:
  pool 10.0.0.0/8 overlaps eth0"
        );
    }

    #[test]
    fn each_family_has_its_sessions() {
        let mut status = status();
        status.ip6 = Some("fd00::1".parse().unwrap());
        if let Some(session) = status.bird.as_mut().and_then(|bird| bird.sessions.first_mut()) {
            session.peer = "fd00::10".parse().unwrap();
        }
        let text = render(&status);
        let (four, six) = text.split_once("IPv6 BGP status").unwrap();
        assert!(four.contains("172.25.0.2") && !four.contains("fd00::"), "{text}");
        assert!(six.contains("IP: fd00::1    AS") && six.contains("fd00::10") && !six.contains("172"), "{text}");
    }

    #[test]
    fn what_a_node_lacks_is_said() {
        let mut status = status();
        status.ready = false;
        status.waiting_for = vec!["etcd".to_owned(), "dockerd".to_owned()];
        status.etcd_connected = false;
        status.ip = None;
        assert!(render(&status).contains("No IPv4 address configured."));
        status.ip = Some("172.25.0.1".parse().unwrap());
        status.bird = Some(BirdStatus { up: false, sessions: Vec::new() });
        let text = render(&status);
        for part in ["not ready, waits for etcd, dockerd", "(not connected)", "Couldn't connect to bird."] {
            assert!(text.contains(part), "{text}");
        }
        status.bird = None;
        assert!(render(&status).contains("This node runs no BGP."));
    }
}
