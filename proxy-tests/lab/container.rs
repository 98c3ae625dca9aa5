//! A container of a test, and what it can reach.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::Value;

use super::command::Ran;
use super::host::Host;
use super::netns::{Netns, Probe, Servers};
use super::wait::wait_until;

/// How long a change of policy or of a route may take to be seen on every host.
pub(crate) const SOON: Duration = Duration::from_secs(8);

#[derive(Clone)]
pub(crate) struct Container<'h> {
    pub(crate) host: &'h Host,
    pub(crate) name: String,
    /// All 64 digits.
    pub(crate) id: String,
}

impl Container<'_> {
    /// What dockerd says of it.
    #[track_caller]
    pub(crate) fn raw_inspect(&self) -> Value {
        let reply = self.host.raw_api("GET", &format!("/containers/{}/json", self.id));
        assert_eq!(reply.status, 200, "inspect {}: {}", self.name, reply.message());
        reply.json()
    }

    /// What it looks like through the node.
    #[track_caller]
    pub(crate) fn inspect(&self) -> Value {
        let reply = self.host.api("GET", &format!("/containers/{}/json", self.id), None);
        assert_eq!(reply.status, 200, "inspect {}: {}", self.name, reply.message());
        reply.json()
    }

    /// The process id on the machine; 0: it does not run.
    #[track_caller]
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.raw_inspect()["State"]["Pid"].as_i64().unwrap()).unwrap()
    }

    #[track_caller]
    pub(crate) fn space(&self) -> Netns {
        let pid = self.pid();
        assert!(pid != 0, "{} on {} does not run", self.name, self.host.name);
        Netns::of_process(pid)
    }

    /// Where it is recorded, and the record.
    pub(crate) fn try_record(&self) -> Option<(String, Value)> {
        let prefix = format!("/calico/v1/host/{}/workload/docker/{}/endpoint/", self.host.name, self.id);
        let entries = self.host.etcd().entries(&prefix);
        entries.into_iter().next().map(|(key, entry)| (key, entry.json()))
    }

    #[track_caller]
    pub(crate) fn record(&self) -> Value {
        self.try_record().unwrap_or_else(|| panic!("{} on {} has no endpoint record", self.name, self.host.name)).1
    }

    #[track_caller]
    pub(crate) fn endpoint_id(&self) -> String {
        let (key, _) = self.try_record().unwrap_or_else(|| panic!("{} has no endpoint record", self.name));
        key.rsplit('/').next().unwrap().to_owned()
    }

    /// The name of its interface on the host.
    #[track_caller]
    pub(crate) fn link(&self) -> String {
        self.record()["name"].as_str().unwrap().to_owned()
    }

    /// Its first IPv4 address, as recorded.
    #[track_caller]
    pub(crate) fn ip(&self) -> Ipv4Addr {
        let record = self.record();
        let net = record["ipv4_nets"][0].as_str().unwrap_or_else(|| panic!("no address in {record}"));
        net.trim_end_matches("/32").parse().unwrap()
    }

    /// Its first IPv6 address, as recorded.
    #[track_caller]
    pub(crate) fn ip6(&self) -> Ipv6Addr {
        let record = self.record();
        let net = record["ipv6_nets"][0].as_str().unwrap_or_else(|| panic!("no IPv6 address in {record}"));
        net.trim_end_matches("/128").parse().unwrap()
    }

    /// `docker exec` through the node.
    pub(crate) fn exec(&self, command: &[&str]) -> Ran {
        let mut args = vec!["exec", &self.name];
        args.extend(command);
        self.host.docker_run(&args).run()
    }

    pub(crate) fn serve(&self, ports: &[u16]) -> Servers {
        Servers::start(&self.space(), ports)
    }

    pub(crate) fn reaches(&self, to: Ipv4Addr) -> bool {
        self.space().pings(to)
    }

    pub(crate) fn gets_through(&self, to: Ipv4Addr, probe: Probe) -> bool {
        self.space().answered(to, probe)
    }

    /// Waits until it reaches an address.
    #[track_caller]
    pub(crate) fn comes_to_reach(&self, to: Ipv4Addr) {
        let space = self.space();
        wait_until(&format!("{} on {} reaches {to}", self.name, self.host.name), SOON, || space.pings(to));
    }

    /// Waits until it no longer reaches an address, and makes sure that it stays so.
    #[track_caller]
    pub(crate) fn ceases_to_reach(&self, to: Ipv4Addr) {
        let space = self.space();
        wait_until(&format!("{} on {} no longer reaches {to}", self.name, self.host.name), SOON, || !space.pings(to));
        self.never_reaches(to);
    }

    /// Several packets, none of which is answered. Says something only beside a check that packets do arrive in other circumstances.
    #[track_caller]
    pub(crate) fn never_reaches(&self, to: Ipv4Addr) {
        let space = self.space();
        for _ in 0..3 {
            assert!(!space.pings(to), "{} on {} reaches {to}", self.name, self.host.name);
        }
    }

    pub(crate) fn set_profiles(&self, profiles: &str) {
        self.host.calicoctl(&format!("container {} profile set {profiles}", self.name)).ok();
    }

    /// `docker rm -f` through the node.
    #[track_caller]
    pub(crate) fn remove(&self) {
        self.host.docker(&format!("rm -f {}", self.name)).ok();
    }
}

/// Waits until each of them reaches all others and itself.
#[track_caller]
pub(crate) fn reach_each_other(members: &[&Container<'_>]) {
    for from in members {
        for to in members {
            from.comes_to_reach(to.ip());
        }
    }
}
