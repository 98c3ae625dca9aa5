//! The members of an etcd cluster that were named, and which of them is asked.
//!
//! One that answers is kept to; when it fails, the next one has its place. Each member has a client of its own, since a
//! client of `etcd-client` that is given several spreads its calls over all of them and takes one that refuses connections
//! for ready: with one of two dead half of all calls fail.
//!
//! A call that can do no harm twice is put to the others too while the first keeps silent. One that changes the datastore is
//! put to another member only if the first surely has not seen it: no connection came about.

use std::collections::BTreeMap;
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
/// more often than every 5 s (its `--grpc-keepalive-min-time`), and who asks without a call under way: so the connection to
/// a member that is not used goes after 24 s, and the next call makes a new one.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// How long a connection may take to come up, and as long again its TLS. A connection that begins just before a hole in the
/// network closes is made by the second SYN, a second later.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

/// How long a member may keep silent before the next one is asked too: longer than a connection may take, whose failure
/// would be told to a later call otherwise.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often each member is asked in one call. The failure of a connection that nobody waited for any more is told to the
/// next call, though the member may be well by then.
const ROUNDS: usize = 2;

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
            let mut tls = TlsOptions::new().timeout(CONNECT_TIMEOUT).ca_certificate(Certificate::from_pem(ca));
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
        let (first, count) = (self.serving.load(Ordering::Relaxed), self.each.len());
        let (mut turn, end) = (first, first + ROUNDS * count);
        let (mut asked, mut causes) = (FuturesUnordered::new(), BTreeMap::new());
        let answer = async {
            loop {
                // Once more only where nobody is waited for.
                if turn < first + count || turn < end && asked.is_empty() {
                    let member = turn % count;
                    let answer = call(self.each[member].1.clone());
                    asked.push(async move { (member, answer.await) });
                    turn += 1;
                }
                match timeout(PATIENCE, asked.next()).await {
                    Ok(Some((member, Ok(answer)))) => {
                        self.turn_to(member, first);
                        return Some(answer);
                    }
                    Ok(Some((member, Err(error)))) => {
                        causes.insert(member, error.to_string());
                        if !is_members(&error) {
                            return None;
                        }
                    }
                    Ok(None) => return None,
                    Err(_) => {}
                }
            }
        };
        let answer = timeout(CALL_TIMEOUT, answer).await;
        if answer.is_err() {
            causes.insert(first, no_answer());
            self.turn_to(first + 1, first);
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
        let until = Instant::now() + CALL_TIMEOUT;
        let (first, count) = (self.serving.load(Ordering::Relaxed), self.each.len());
        let mut causes = BTreeMap::new();
        for turn in first..first + ROUNDS * count {
            let member = turn % count;
            let error = match timeout_at(until, call(self.each[member].1.clone())).await {
                Ok(Ok(answer)) => {
                    self.turn_to(member, first);
                    return Ok(answer);
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            causes.insert(member, error.as_ref().map_or_else(no_answer, ToString::to_string));
            if error.as_ref().is_some_and(is_unseen) {
                continue;
            }
            if error.as_ref().is_none_or(is_members) {
                self.turn_to(turn + 1, first);
            }
            break;
        }
        Err(self.away(doing, &causes))
    }

    /// Asks this member first from now on, unless somebody else has found another one meanwhile.
    fn turn_to(&self, member: usize, before: usize) {
        let member = member % self.each.len();
        let turned = self.serving.compare_exchange(before, member, Ordering::Relaxed, Ordering::Relaxed);
        if turned.is_ok() && member != before {
            tracing::warn!(
                from = self.each[before].0,
                to = self.each[member].0,
                "another member of etcd is asked from now on"
            );
        }
    }

    fn away(&self, doing: &str, causes: &BTreeMap<usize, String>) -> Fault {
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

/// Whether a call has failed for a reason that may be this member's own, and not what was asked.
/// Source: `isHaltErr` of etcd's own client, and what tonic makes of a connection that breaks.
fn is_members(error: &Error) -> bool {
    use tonic::Code;
    match error {
        Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable | Code::Internal | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded
        ),
        _ => true,
    }
}

/// Whether a call has failed because there was no connection to make it on.
fn is_unseen(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    std::iter::successors(status.source(), |&cause| cause.source()).any(|cause| cause.is::<tonic::ConnectError>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::exec;

    /// It was waited for for ever, and by every later call too.
    #[tokio::test]
    async fn a_tls_handshake_that_is_never_answered_ends_and_another_connection_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let (key, ca) = (path("ca.key"), path("ca.pem"));
        let request = format!("req -x509 -newkey rsa:2048 -nodes -subj /CN=ca -days 2 -keyout {key} -out {ca}");
        exec::run("openssl", &request.split(' ').collect::<Vec<_>>(), "").await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = EtcdAddress {
            endpoints: vec![format!("https://{}", listener.local_addr().unwrap())],
            ca: Some(std::fs::read_to_string(&ca).unwrap()),
            identity: None,
        };
        let members = Members::prepare(&address).await.unwrap();
        let silent = async {
            let mut kept = Vec::new();
            while kept.len() < ROUNDS {
                kept.push(listener.accept().await.unwrap());
            }
            kept
        };
        // A call that changes something knows, too, that nobody has seen it.
        let write = members.tell("write", |client: Client| async move { client.kv_client().put("a", "b", None).await });
        let (written, accepted) = tokio::join!(write, timeout(CALL_TIMEOUT, silent));
        let fault = written.unwrap_err().to_string();
        assert!(fault.starts_with("write in etcd at https://127.0.0.1:"), "{fault}");
        assert!(!fault.contains("no answer within"), "{fault}");
        assert!(accepted.is_ok(), "no further connection was made");
    }
}
