//! Metrics: what this process counts and measures, in Prometheus' text format.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::model::fault::Fault;

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
    /// Starts of containers that wish for Calico and were created around the proxy.
    pub(crate) created_around: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("calico");
        let buckets = [0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0];
        let (wiring, hook) = (Histogram::new(buckets), Histogram::new(buckets));
        let wiring_failures = Counter::default();
        let creates_refused = Counter::default();
        let created_around = Counter::default();
        registry.register(
            "wiring_seconds",
            "Time from a known process to its interface, policy and route",
            wiring.clone(),
        );
        registry.register("hook_seconds", "Time that the hook of the OCI runtime took for a wiring", hook.clone());
        registry.register("wiring_failures", "Wirings that failed", wiring_failures.clone());
        registry.register(
            "creates_refused",
            "Creates that asked for Calico and did not get it",
            creates_refused.clone(),
        );
        registry.register(
            "created_around",
            "Starts of containers that wish for Calico and were created around the proxy",
            created_around.clone(),
        );
        Metrics { registry, wiring, hook, wiring_failures, creates_refused, created_around }
    }

    /// All of them as text.
    pub(crate) fn render(&self) -> Result<String, Fault> {
        let mut text = String::new();
        encode(&mut text, &self.registry).map_err(|error| Fault::World(format!("write the metrics: {error}")))?;
        Ok(text)
    }
}
