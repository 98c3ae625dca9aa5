//! The control socket: what `calicoctl` and the OCI hook ask of the node on this host, because it needs hands here.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio_util::task::TaskTracker;

use crate::edge::http::{Answer, Asked, Service};
use crate::model::control::{
    ADD, ContainerAdd, ContainerAdded, ContainerCalled, ContainerNamed, ContainerRefused, ContainerStarting,
    ContainerWired, Failed, REFUSED, REMOVE, RESOLVE, STARTING, STATUS, WIRED,
};
use crate::model::fault::Fault;
use crate::model::wish::Wish;
use crate::part::metrics::Metrics;
use crate::part::network::Network;
use crate::part::status::Gauge;
use crate::part::under_way::outcome;

/// Answers on the control socket.
pub(crate) struct Control {
    pub(crate) network: Arc<Network>,
    pub(crate) gauge: Arc<Gauge>,
    /// The work on networks that is under way.
    pub(crate) under_way: TaskTracker,
}

/// How long the agent may be about one run over the kernel: its tools are given up before that.
pub(crate) const SILENT_MOST: Duration = Duration::from_mins(2);

/// Answers on the metrics address.
pub(crate) struct Measures {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gauge: Arc<Gauge>,
}

fn failed(fault: &Fault) -> Answer {
    Answer::json(fault.status(), &Failed { message: fault.to_string() })
}

fn read<T: DeserializeOwned>(asked: &Asked) -> Result<T, Fault> {
    serde_json::from_slice(&asked.body)
        .map_err(|error| Fault::Refusal(format!("read the body of {} {}: {error}", asked.method, asked.path)))
}

impl Control {
    /// Done to its end whether or not its asker waits: a connection that ends takes its answer with it.
    async fn add(&self, asked: &Asked) -> Result<Answer, Fault> {
        let ContainerAdd { container, ip, interface } = read(asked)?;
        let (network, wish) = (Arc::clone(&self.network), Wish::parse(&ip, None)?);
        let adopted = async move { network.adopt(&container, wish, interface).await };
        let (container, addresses) = outcome(self.under_way.spawn(adopted)).await?;
        Ok(Answer::json(200, &ContainerAdded { container, addresses }))
    }

    /// Done to its end too.
    async fn remove(&self, asked: &Asked) -> Result<Answer, Fault> {
        let ContainerCalled { container } = read(asked)?;
        let network = Arc::clone(&self.network);
        let released = async move { network.release(&container).await };
        let container = outcome(self.under_way.spawn(released)).await?;
        Ok(Answer::json(200, &ContainerNamed { container }))
    }

    async fn starting(&self, asked: &Asked) -> Result<Answer, Fault> {
        let ContainerStarting { container, wishes } = read(asked)?;
        Ok(Answer::json(200, &self.network.starting(&container, wishes).await?))
    }

    /// Answers at once: the process waits for the hook, and nothing that it needs is still to be done.
    fn wired(&self, asked: &Asked) -> Result<Answer, Fault> {
        let ContainerWired { container, took_s } = read(asked)?;
        let (network, id) = (Arc::clone(&self.network), container.clone());
        self.under_way.spawn(async move {
            if let Err(fault) = network.wired(&id, took_s).await {
                tracing::warn!(container = id.short(), %fault, "a start is not recorded yet");
            }
        });
        Ok(Answer::json(200, &ContainerNamed { container }))
    }

    /// Whoever started it hears why from dockerd; who watches this node hears it from us.
    fn refused(&self, asked: &Asked) -> Result<Answer, Fault> {
        let ContainerRefused { container, why } = read(asked)?;
        tracing::warn!(container = container.short(), %why, "its start was refused");
        self.network.count_refused_start();
        Ok(Answer::json(200, &ContainerNamed { container }))
    }

    async fn resolve(&self, asked: &Asked) -> Result<Answer, Fault> {
        let ContainerCalled { container } = read(asked)?;
        let container = self.network.resolve(&container).await?;
        Ok(Answer::json(200, &ContainerNamed { container }))
    }
}

impl Service for Control {
    async fn answer(&self, asked: Asked) -> Answer {
        let answer = match (asked.method.as_str(), asked.path.as_str()) {
            ("POST", ADD) => self.add(&asked).await,
            ("POST", REMOVE) => self.remove(&asked).await,
            ("POST", STARTING) => self.starting(&asked).await,
            ("POST", WIRED) => self.wired(&asked),
            ("POST", REFUSED) => self.refused(&asked),
            ("POST", RESOLVE) => self.resolve(&asked).await,
            ("GET", STATUS) => Ok(Answer::json(200, &self.gauge.status().await)),
            (method, path) => {
                let message = format!("{method} {path} is nothing that this node answers");
                return Answer::json(404, &Failed { message });
            }
        };
        answer.unwrap_or_else(|fault| failed(&fault))
    }
}

impl Service for Measures {
    async fn answer(&self, asked: Asked) -> Answer {
        match (asked.method.as_str(), asked.path.as_str()) {
            ("GET" | "HEAD", "/livez") => match self.metrics.silent_for() {
                silent if silent < SILENT_MOST => Answer::text(200, "alive\n"),
                silent => Answer::text(503, format!("the agent hangs since {} s\n", silent.as_secs())),
            },
            ("GET" | "HEAD", "/readyz") => match self.gauge.waiting_for() {
                missing if missing.is_empty() => Answer::text(200, "ready\n"),
                missing => Answer::text(503, format!("waiting for {}\n", missing.join("; "))),
            },
            ("GET" | "HEAD", "/metrics") => match self.metrics.render(&self.gauge.now().await) {
                Ok(text) => Answer {
                    status: 200,
                    content_type: "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    body: text.into_bytes(),
                },
                Err(fault) => Answer::text(500, fault.to_string()),
            },
            _ => Answer::text(404, "there are /metrics, /livez and /readyz\n"),
        }
    }
}
