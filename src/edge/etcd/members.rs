//! The members of an etcd cluster that were named, and which of them is asked.
//!
//! One that answers is kept to; when it fails, the next one has its place. Each member has a client of its own, since a
//! client of `etcd-client` that is given several spreads its calls over all of them and takes one that refuses connections
//! for ready: with one of two dead half of all calls fail.
//!
//! A call that can do no harm twice is put to the others too while the first keeps silent. One that changes the datastore is
//! put to another member only if the first surely has not seen it: no connection came about.

use std::error::Error as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout, timeout_at};

use super::address::EtcdAddress;
use crate::model::fault::Fault;

/// How long one call may take (decided: calls on a request's path end after 5 s).
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent connection is asked whether its peer is there, and how long that may take. etcd cuts off who asks
/// more often than every 5 s (its `--grpc-keepalive-min-time`).
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// How long a connection may take to come up. A connection that begins just before a hole in the network closes is made by
/// the second SYN, a second later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a member may keep silent before the next one is asked too.
const PATIENCE: Duration = CONNECT_TIMEOUT;

/// See the module; clones share the connections.
#[derive(Clone)]
pub(super) struct Members {
    each: Arc<[(String, Client)]>,
    /// The place of the one that is asked first.
    serving: Arc<AtomicUsize>,
}

impl Members {
    /// Prepares the connections; each is made with the first call and again whenever it broke. Which one is asked first is
    /// left to chance, so that hosts which were all told the same do not all ask the same member.
    ///
    /// # Errors
    /// `Refusal` for an address or certificate that cannot be used.
    pub(super) async fn prepare(address: &EtcdAddress) -> Result<Self, Fault> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member that has lost the others would go on answering, and tell a watch of nothing.
            .with_require_leader(true);
        let text = address.endpoints.join(",");
        if address.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            // Without one the client would trust nobody, and etcd would be away for ever.
            let ca = address.ca.as_ref().ok_or_else(|| {
                Fault::Refusal(format!(
                    "prepare the connection to etcd at {text}: https needs the authority that signed etcd's certificate: give its file with --etcd-cacert or ETCD_CA_CERT_FILE"
                ))
            })?;
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = &address.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let mut each = Vec::new();
        for endpoint in &address.endpoints {
            let client = Client::connect([endpoint], Some(options.clone()))
                .await
                .map_err(|error| Fault::Refusal(format!("prepare the connection to etcd at {endpoint}: {error}")))?;
            each.push((endpoint.clone(), client));
        }
        if each.is_empty() {
            return Err(Fault::Refusal("prepare the connection to etcd: no endpoint is named".to_owned()));
        }
        let drawn = RandomState::new().hash_one(()).to_ne_bytes()[0];
        let serving = Arc::new(AtomicUsize::new(usize::from(drawn) % each.len()));
        Ok(Members { each: each.into(), serving })
    }

    /// Makes a call that may be carried out more than once. `doing` begins the message of a failure.
    pub(super) async fn ask<T, F>(&self, doing: &str, call: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let first = self.serving.load(Ordering::Relaxed);
        let mut turns = (first..first + self.each.len()).map(|turn| turn % self.each.len());
        let (mut asked, mut causes) = (FuturesUnordered::new(), Vec::new());
        let answer = async {
            loop {
                if let Some(member) = turns.next() {
                    let answer = call(self.each[member].1.clone());
                    asked.push(async move { (member, answer.await) });
                }
                match timeout(PATIENCE, asked.next()).await {
                    Ok(Some((member, Ok(answer)))) => {
                        self.keep_to(member);
                        return Some(answer);
                    }
                    Ok(Some((member, Err(error)))) => causes.push((member, error.to_string())),
                    Ok(None) => return None,
                    Err(_) => {}
                }
            }
        };
        let answer = timeout(CALL_TIMEOUT, answer).await;
        if answer.is_err() {
            causes.push((first, no_answer()));
        }
        answer.ok().flatten().ok_or_else(|| self.away(doing, &causes))
    }

    /// Makes a call that must not be carried out twice. `doing` begins the message of a failure.
    ///
    /// # Errors
    /// `Away`. It may have been carried out nevertheless, if a connection broke or the answer did not come.
    pub(super) async fn tell<T, F>(&self, doing: &str, call: impl Fn(Client) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + CALL_TIMEOUT;
        let first = self.serving.load(Ordering::Relaxed);
        let mut causes = Vec::new();
        for turn in first..first + self.each.len() {
            let member = turn % self.each.len();
            let (cause, unseen) = match timeout_at(end, call(self.each[member].1.clone())).await {
                Ok(Ok(answer)) => {
                    self.keep_to(member);
                    return Ok(answer);
                }
                Ok(Err(error)) => (error.to_string(), is_unseen(&error)),
                Err(_) => (no_answer(), false),
            };
            causes.push((member, cause));
            if !unseen {
                self.keep_to((turn + 1) % self.each.len());
                break;
            }
        }
        Err(self.away(doing, &causes))
    }

    /// Asks this member first from now on.
    fn keep_to(&self, member: usize) {
        let before = self.serving.swap(member, Ordering::Relaxed);
        if before != member {
            tracing::warn!(
                from = self.each[before].0,
                to = self.each[member].0,
                "another member of etcd is asked from now on"
            );
        }
    }

    fn away(&self, doing: &str, causes: &[(usize, String)]) -> Fault {
        let causes: Vec<String> =
            causes.iter().map(|(member, cause)| format!("{}: {cause}", self.each[*member].0)).collect();
        Fault::Away(format!("{doing} in etcd at {}", causes.join("; ")))
    }

    /// The endpoints, as text for people.
    pub(super) fn names(&self) -> String {
        let names: Vec<&str> = self.each.iter().map(|(name, _)| name.as_str()).collect();
        names.join(",")
    }
}

fn no_answer() -> String {
    format!("no answer within {} s", CALL_TIMEOUT.as_secs())
}

/// Whether a call has failed because there was no connection to make it on.
fn is_unseen(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    std::iter::successors(status.source(), |&cause| cause.source()).any(|cause| cause.is::<tonic::ConnectError>())
}
