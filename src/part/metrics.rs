//! Metrics: what this process counts and measures, in Prometheus' text format.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::model::fault::Fault;

type Label = [(&'static str, &'static str); 1];

/// What is true at the moment that somebody asks.
#[derive(Debug, Default)]
pub(crate) struct Now {
    /// Endpoints of this host: active, inactive.
    pub(crate) endpoints: [usize; 2],
    /// The objects that are closed or missing.
    pub(crate) faults: Vec<String>,
    pub(crate) etcd: bool,
    pub(crate) docker: bool,
    /// BGP sessions: established, and not.
    pub(crate) sessions: [usize; 2],
    pub(crate) in_sync: bool,
    pub(crate) ready: bool,
}

/// Every measure, by what it tells; the registry knows their names.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// From the moment a container's process is known until its interface, policy and route stand: seconds.
    pub(crate) wiring: Histogram,
    /// How long the OCI hook took, as it says.
    pub(crate) hook: Histogram,
    /// Wirings that failed.
    pub(crate) wiring_failures: Counter,
    /// Creates that asked for Calico and were refused or failed.
    pub(crate) creates_refused: Counter,
    /// Starts of containers of ours that were not let through.
    pub(crate) starts_refused: Counter,
    /// Starts of containers that wish for Calico and were created around the proxy.
    pub(crate) created_around: Counter,
    /// Times that the kernel was brought to what the datastore says.
    applies: Family<Label, Counter>,
    apply_seconds: Histogram,
    /// Objects in the kernel that somebody else had changed, put right.
    drift: Family<Label, Counter>,
    /// Times that the whole datastore was read.
    pub(crate) resyncs: Counter,
    /// Established flows that policy did not allow any more.
    pub(crate) flows_cut: Counter,
    /// Running containers of ours that are on networks of Docker's too.
    pub(crate) escaping: Gauge<i64, AtomicI64>,
    endpoints: Family<Label, Gauge>,
    faults: Family<Label, Gauge>,
    connected: Family<Label, Gauge>,
    sessions: Family<Label, Gauge>,
    in_sync: Gauge<i64, AtomicI64>,
    ready: Gauge<i64, AtomicI64>,
    born: Instant,
    /// When the agent's loop last came round: milliseconds after `born`.
    beat_ms: AtomicU64,
}

/// What kind of thing an object in a fault or a line of drift is: its first word, a record where it is a path, an
/// endpoint where it is a bare id.
fn kind(object: &str) -> &'static str {
    const KINDS: [&str; 19] = [
        "BIRD",
        "addresses",
        "chain",
        "container",
        "dockerd",
        "entry",
        "etcd",
        "flows",
        "guard",
        "interface",
        "jump",
        "kernel",
        "link",
        "profile",
        "record",
        "route",
        "set",
        "setting",
        "sysctl",
    ];
    let first = object.split(' ').next().unwrap_or_default();
    let known = KINDS.iter().find(|kind| **kind == first);
    known.copied().unwrap_or(if object.starts_with('/') { "record" } else { "endpoint" })
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let buckets = [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0];
        let mut metrics = Metrics {
            registry: Registry::with_prefix("calico"),
            wiring: Histogram::new(buckets),
            hook: Histogram::new(buckets),
            wiring_failures: Counter::default(),
            creates_refused: Counter::default(),
            starts_refused: Counter::default(),
            created_around: Counter::default(),
            applies: Family::default(),
            apply_seconds: Histogram::new(buckets),
            drift: Family::default(),
            resyncs: Counter::default(),
            flows_cut: Counter::default(),
            escaping: Gauge::default(),
            endpoints: Family::default(),
            faults: Family::default(),
            connected: Family::default(),
            sessions: Family::default(),
            in_sync: Gauge::default(),
            ready: Gauge::default(),
            born: Instant::now(),
            beat_ms: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let Metrics { registry, wiring, hook, wiring_failures, creates_refused, .. } = self;
        registry.register(
            "wiring_seconds",
            "Time from a known process to its interface, policy and route",
            wiring.clone(),
        );
        registry.register("hook_seconds", "Time that the hook of the OCI runtime took for a wiring", hook.clone());
        registry.register("wiring_failures", "Wirings that failed", wiring_failures.clone());
        let refused = creates_refused.clone();
        registry.register("creates_refused", "Creates that asked for Calico and did not get it", refused);
        let Metrics { registry, starts_refused, created_around, .. } = self;
        let help = "Starts of containers of Calico's that were refused, since they would have had no network";
        registry.register("starts_refused", help, starts_refused.clone());
        registry.register(
            "created_around",
            "Starts of containers that wish for Calico and were created around the proxy",
            created_around.clone(),
        );
        let Metrics { registry, applies, apply_seconds, drift, resyncs, flows_cut, escaping, .. } = self;
        registry.register("applies", "Times that the kernel was brought to what the datastore says", applies.clone());
        registry.register("apply_seconds", "Time that one of these took", apply_seconds.clone());
        let help = "Objects in the kernel that somebody else had changed and that were put right";
        registry.register("drift_repaired", help, drift.clone());
        registry.register("resyncs", "Times that the whole datastore was read", resyncs.clone());
        registry.register("flows_cut", "Established flows that policy did not allow any more", flows_cut.clone());
        let help = "Running containers on a network of Docker's beside Calico's, where policy does not see them";
        registry.register("escaping_policy", help, escaping.clone());
        let Metrics { registry, endpoints, faults, connected, sessions, in_sync, ready, .. } = self;
        registry.register("endpoints", "Endpoints of this host", endpoints.clone());
        registry.register("faults", "Objects that are closed, missing or not as they should be", faults.clone());
        registry.register("connected", "Whether the node is connected to it", connected.clone());
        let help = "BGP sessions that this host is to have, by whether they are established";
        registry.register("bgp_sessions", help, sessions.clone());
        let help = "Whether the kernel holds what the datastore says, but for the faults";
        registry.register("in_sync", help, in_sync.clone());
        registry.register("ready", "Whether /readyz says so", ready.clone());
    }

    /// Counts, and logs, an object that somebody else had changed and that is put right, such as `chain calico-FORWARD`.
    pub(crate) fn count_drift(&self, object: &str) {
        tracing::warn!(object, "drift: it was changed by somebody else and is put right");
        self.drift.get_or_create(&[("kind", kind(object))]).inc();
    }

    /// Counts a run of the agent over the kernel that had something to do.
    pub(crate) fn count_apply(&self, took: Duration, well: bool) {
        self.applies.get_or_create(&[("result", if well { "well" } else { "failed" })]).inc();
        self.apply_seconds.observe(took.as_secs_f64());
    }

    /// Says that the agent's loop came round.
    pub(crate) fn beat(&self) {
        let since = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.beat_ms.store(since, Ordering::Relaxed);
    }

    /// How long ago that was.
    pub(crate) fn silent_for(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.beat_ms.load(Ordering::Relaxed)))
    }

    /// All of them as text.
    pub(crate) fn render(&self, now: &Now) -> Result<String, Fault> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (state, count) in ["active", "inactive"].into_iter().zip(now.endpoints) {
            self.endpoints.get_or_create(&[("state", state)]).set(number(count));
        }
        for (to, connected) in [("etcd", now.etcd), ("docker", now.docker)] {
            self.connected.get_or_create(&[("to", to)]).set(i64::from(connected));
        }
        for (state, count) in ["up", "down"].into_iter().zip(now.sessions) {
            self.sessions.get_or_create(&[("state", state)]).set(number(count));
        }
        self.in_sync.set(i64::from(now.in_sync));
        self.ready.set(i64::from(now.ready));
        self.faults.clear();
        for object in &now.faults {
            self.faults.get_or_create(&[("kind", kind(object))]).inc();
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(|error| Fault::World(format!("write the metrics: {error}")))?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn faults_and_drift_are_counted_by_kind_and_what_is_mended_goes() {
        let metrics = Metrics::new();
        metrics.count_drift("chain calico-FORWARD");
        metrics.count_drift("route to 10.0.0.1");
        metrics.count_apply(Duration::from_millis(3), true);
        let faults = [
            "profile web",
            "profile x",
            "1d9e9624cdb",
            "/calico/v1/policy/profile/x/rules",
            "addresses",
            "dockerd at unix:///var/run/docker.sock",
        ];
        let faults = faults.map(str::to_owned).to_vec();
        let now = Now { endpoints: [2, 1], faults, etcd: true, sessions: [3, 1], ..Now::default() };
        let text = metrics.render(&now).unwrap();
        for line in [
            "calico_drift_repaired_total{kind=\"chain\"} 1",
            "calico_drift_repaired_total{kind=\"route\"} 1",
            "calico_faults{kind=\"profile\"} 2",
            "calico_faults{kind=\"endpoint\"} 1",
            "calico_faults{kind=\"record\"} 1",
            "calico_faults{kind=\"addresses\"} 1",
            "calico_faults{kind=\"dockerd\"} 1",
            "calico_bgp_sessions{state=\"up\"} 3",
            "calico_bgp_sessions{state=\"down\"} 1",
            "calico_endpoints{state=\"active\"} 2",
            "calico_connected{to=\"etcd\"} 1",
            "calico_connected{to=\"docker\"} 0",
            "calico_applies_total{result=\"well\"} 1",
            "calico_in_sync 0",
        ] {
            assert!(text.lines().any(|each| each == line), "{line} is missing in\n{text}");
        }
        assert!(!metrics.render(&Now::default()).unwrap().contains("calico_faults{"));
    }

    #[test]
    fn every_metric_is_documented_and_no_other_is() {
        // What has kinds shows once there is one.
        let metrics = Metrics::new();
        metrics.count_drift("chain calico-FORWARD");
        metrics.count_apply(Duration::ZERO, true);
        let text = metrics.render(&Now { faults: vec!["guard".to_owned()], ..Now::default() }).unwrap();
        let names: BTreeSet<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        // The first column of the table, where one row may tell of two.
        let rows = include_str!("../../docs/operations.md").lines().filter(|line| line.starts_with("| `calico_"));
        let words = rows.flat_map(|row| row.split(" | ").next().unwrap_or_default().split('`'));
        let documented: BTreeSet<&str> = words
            .filter(|word| word.starts_with("calico_"))
            .map(|word| word.split(['{', ' ']).next().unwrap_or(word))
            .map(|word| word.strip_suffix("_total").unwrap_or(word))
            .collect();
        assert_eq!(names, documented);
    }
}
