//! The calls of ours: what is done around dockerd's own work for a container that has a network from us.
//!
//! A tower service over [`Network`]. Each call forwards its request on the client's own upstream connection; of a
//! container that is not ours every byte passes as it came.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::Service;

use super::answer::Manner;
use super::connection::ours::{Answered, Asked};
use super::head;
use super::upstream::{Behind, Gathered, Upstream};
use crate::edge::fail_point::fail_point;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::part::network::{Network, Waits};
use crate::part::under_way::outcome;
use crate::plan::body::{self, Ask};
use crate::plan::call::Call;
use crate::plan::replies;
use crate::plan::runtime::{RUNTIME, Runtimes};

/// See the module.
#[derive(Clone)]
pub(crate) struct Calls {
    network: Arc<Network>,
    /// The work on networks that is under way.
    under_way: TaskTracker,
    /// Where work on networks is done: the thread of the connection has others to carry meanwhile.
    workers: Handle,
}

/// How long a body may be, in bytes, that is read on the thread of the connection, which carries others too.
const LIGHT: usize = 64 << 10;

impl Calls {
    pub(crate) fn new(network: Arc<Network>, under_way: TaskTracker, workers: Handle) -> Self {
        Calls { network, under_way, workers }
    }
}

impl Service<Asked> for Calls {
    type Response = Answered;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answered, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut asked: Asked) -> Self::Future {
        let network = Arc::clone(&self.network);
        let is_light = match &asked.request.classified.call {
            Call::Inspect { .. } => true,
            Call::Create { name } if asked.body.len() <= LIGHT => {
                matches!(body::read_create(&asked.body, name, &Runtimes::default()), Ok(None))
            }
            _ => false,
        };
        let only_reads = matches!(asked.request.classified.call, Call::List);
        asked.upstream.connect_at_once();
        let answer = async move {
            let manner = Manner::of(&asked.request);
            let said = answer(&network, manner, &mut asked).await.unwrap_or_else(|fault| Said::fault(manner, &fault));
            Answered { reply: said.reply, then: said.then, upstream: asked.upstream }
        };
        if is_light {
            return Box::pin(async move { Ok(answer.await) });
        }
        let working = self.under_way.spawn_on(answer, &self.workers);
        Box::pin(async move {
            // What nobody waits for any more is not read on; other work is finished.
            if only_reads {
                return Ok(outcome(AbortOnDropHandle::new(working)).await);
            }
            Ok(outcome(working).await)
        })
    }
}

/// What the client gets.
struct Said {
    reply: Bytes,
    then: Behind,
}

impl Said {
    /// dockerd's own words.
    fn docker(reply: Gathered) -> Self {
        Said { reply: reply.raw, then: reply.then }
    }

    /// dockerd's words with another body.
    fn edited(reply: &Gathered, body: &[u8]) -> Self {
        Said { reply: reply.with_body(body), then: reply.then }
    }

    fn ours(reply: Vec<u8>) -> Self {
        Said { reply: reply.into(), then: Behind::Next }
    }

    /// Nothing: the request is none of ours.
    fn pass() -> Self {
        Said { reply: Bytes::new(), then: Behind::Pass }
    }

    fn fault(manner: Manner, fault: &Fault) -> Self {
        let mut said = Said::ours(match fault {
            // The connection to dockerd is in an unknown state: nothing may follow on it.
            Fault::DockerAway(_) => manner.closing().fault(fault),
            _ => manner.fault(fault),
        });
        if matches!(fault, Fault::DockerAway(_)) {
            said.then = Behind::Nothing;
        }
        said
    }
}

async fn answer(network: &Network, manner: Manner, asked: &mut Asked) -> Result<Said, Fault> {
    let Asked { request, raw, is_whole, body, upstream } = asked;
    let manner = if *is_whole { manner } else { manner.closing() };
    match &request.classified.call {
        Call::Create { name } => create(network, name, &raw[..request.length], raw, body, upstream).await,
        Call::Start { container } | Call::Restart { container } if !*is_whole => {
            let Some(id) = network.ours(container).await? else { return Ok(Said::pass()) };
            let text = format!("start container {}: the body of the request breaks off", id.short());
            Ok(Said::ours(manner.error(400, &text)))
        }
        Call::Start { container } => {
            if request.classified.is_before_1_24() && !body.is_empty() && network.ours(container).await?.is_some() {
                // Before API 1.24 a start may carry a HostConfig, which would put Docker's network and runtime in the
                // place of ours. Without a body dockerd takes the one of the create.
                let bare = head::reframed(&raw[..request.length], 0);
                return start(network, manner, container, &bare, upstream).await;
            }
            start(network, manner, container, raw, upstream).await
        }
        Call::Restart { container } => start(network, manner, container, raw, upstream).await,
        Call::Stop { container } | Call::Kill { container } => stop(network, container, raw, upstream).await,
        Call::Delete { container } => delete(network, container, raw, upstream).await,
        Call::Prune => {
            let reply = upstream.exchange(raw).await?;
            if reply.status == 200
                && let Err(fault) = network.ended(replies::deleted_ids(&reply.body)).await
            {
                tracing::error!(%fault, "networks of pruned containers are not freed yet");
            }
            Ok(Said::docker(reply))
        }
        Call::Inspect { .. } => {
            let reply = upstream.exchange(raw).await?;
            let at_the_top = request.classified.shows_address_at_the_top();
            Ok(shown(reply, |body| replies::shown_in_inspect(body, at_the_top, |id| network.appearance(id))))
        }
        Call::List => {
            let reply = upstream.exchange(raw).await?;
            Ok(shown(reply, |body| replies::shown_in_list(body, |id| network.appearance(id))))
        }
        Call::NetworkConnect { network: other } | Call::NetworkDisconnect { network: other } => {
            let joins = matches!(request.classified.call, Call::NetworkConnect { .. });
            match connect(network, manner, joins, other, body).await? {
                Some(said) => Ok(said),
                None if *is_whole => Ok(Said::docker(upstream.exchange(raw).await?)),
                None => Ok(Said::pass()),
            }
        }
        Call::Pass => Ok(Said::docker(upstream.exchange(raw).await?)),
    }
}

async fn create(
    network: &Network,
    name: &str,
    head: &[u8],
    raw: &[u8],
    body: &[u8],
    upstream: &mut Upstream,
) -> Result<Said, Fault> {
    let read = body::read_create(body, name, &network.runtimes());
    let Some((ask, edited)) = read.inspect_err(|_| network.count_refused_create())? else {
        return Ok(Said::docker(upstream.exchange(raw).await?));
    };
    let made = create_with(network, ask, head, &edited, upstream).await;
    made.inspect_err(|_| network.count_refused_create())
}

/// A create with a wish, and its body as dockerd is to have it.
async fn create_with(
    network: &Network,
    ask: Ask,
    head: &[u8],
    edited: &[u8],
    upstream: &mut Upstream,
) -> Result<Said, Fault> {
    let prepared = network.prepare(ask).await?;
    let mut request = head::reframed(head, edited.len());
    request.extend_from_slice(edited);
    if let Err(fault) = upstream.connect().await {
        network.abandon(prepared).await;
        return Err(fault);
    }
    let reply = match upstream.exchange(&request).await {
        Ok(reply) => reply,
        Err(fault) => {
            // dockerd may have made the container before the connection broke.
            network.lose(&prepared);
            return Err(fault);
        }
    };
    let id = match created(&reply) {
        Ok(Some(id)) => id,
        Ok(None) => {
            network.abandon(prepared).await;
            if reply.status == 400 && String::from_utf8_lossy(&reply.body).contains(RUNTIME) {
                // It may have forgotten our runtime a moment ago: the next create is not to fail for that.
                network.look_at_runtimes().await;
            }
            return Ok(Said::docker(reply));
        }
        Err(fault) => {
            network.lose(&prepared);
            return Err(fault);
        }
    };
    fail_point("create: dockerd has made the container");
    let warnings = network.bind(prepared, &id).await?;
    Ok(match replies::with_warnings(&reply.body, &warnings) {
        Some(edited) => Said::edited(&reply, &edited),
        None => Said::docker(reply),
    })
}

/// The id of the container that dockerd says it made; `None` if it made none.
fn created(reply: &Gathered) -> Result<Option<ContainerId>, Fault> {
    if reply.status != 201 {
        return Ok(None);
    }
    let id = replies::created_id(&reply.body);
    // Passed on, this would be a success without a network.
    id.map(Some).ok_or_else(|| Fault::World("read dockerd's reply to the create: it names no container id".to_owned()))
}

/// A start or restart: dockerd's success is told only when the network stands too.
async fn start(
    network: &Network,
    manner: Manner,
    container: &str,
    request: &[u8],
    upstream: &mut Upstream,
) -> Result<Said, Fault> {
    // Before the start, while to say that it cannot be told is no lie.
    let Some(id) = network.to_start(container).await? else {
        return Ok(Said::docker(upstream.exchange(request).await?));
    };
    let begun = Instant::now();
    let reply = upstream.exchange(request).await?;
    if !matches!(reply.status, 204 | 304) {
        // The hook may have wired it before the start failed, and of such a start there may be no event.
        if let Err(fault) = network.settle(&id, Waits::All).await {
            tracing::error!(%fault, container, "the network of a container that did not start is not settled yet");
        }
        return Ok(Said::docker(reply));
    }
    fail_point("start: dockerd has started the container");
    let settled = match reply.status {
        204 => network.started(&id, begun).await,
        // What ran before this call is not stopped by it.
        _ => network.settle(&id, Waits::All).await,
    };
    Ok(match settled {
        Ok(()) => Said::docker(reply),
        // dockerd's answer was whole, so the connection may go on whatever went wrong elsewhere.
        Err(fault) => Said { reply: manner.fault(&fault).into(), then: reply.then },
    })
}

/// The container of ours that a call which may end it is about. Asked before: of one that is gone the name means nothing.
async fn ours_to_end(network: &Network, container: &str) -> Option<ContainerId> {
    network.ours(container).await.unwrap_or_else(|fault| {
        tracing::error!(%fault, container, "whose container is to end cannot be told");
        None
    })
}

async fn stop(network: &Network, container: &str, request: &[u8], upstream: &mut Upstream) -> Result<Said, Fault> {
    let ours = ours_to_end(network, container).await;
    let reply = upstream.exchange(request).await?;
    if let Some(id) = ours
        && matches!(reply.status, 204 | 304)
        && let Err(fault) = network.stopped(&id).await
    {
        tracing::error!(%fault, container, "the network of a stopped container is not settled yet");
    }
    Ok(Said::docker(reply))
}

async fn delete(network: &Network, container: &str, request: &[u8], upstream: &mut Upstream) -> Result<Said, Fault> {
    let ours = ours_to_end(network, container).await;
    let reply = upstream.exchange(request).await?;
    if let Some(id) = ours
        && reply.status == 204
        && let Err(fault) = network.settle(&id, Waits::Destroy).await
    {
        tracing::error!(%fault, container, "the address of a deleted container is not freed yet");
    }
    Ok(Said::docker(reply))
}

/// A reply in which containers of ours show their addresses.
fn shown(reply: Gathered, edit: impl FnOnce(&[u8]) -> Option<Vec<u8>>) -> Said {
    if reply.status == 200
        && reply.is_json
        && let Some(edited) = edit(&reply.body)
    {
        return Said::edited(&reply, &edited);
    }
    Said::docker(reply)
}

/// A connect or disconnect: of a network that a container of ours only shows, nothing is to be done. `None`: it is dockerd's
/// to do, since the container is not ours, or leaves a network in which dockerd has it.
async fn connect(
    network: &Network,
    manner: Manner,
    joins: bool,
    other: &str,
    body: &[u8],
) -> Result<Option<Said>, Fault> {
    let Some(container) = body::connected_container(body) else { return Ok(None) };
    let Some(id) = network.ours(&container).await? else { return Ok(None) };
    if !joins && network.is_in_network(&id, other).await? {
        return Ok(None);
    }
    if network.shows_network(&id, other).await? {
        return Ok(Some(Said::ours(manner.done())));
    }
    let verb = if joins { "join" } else { "leave" };
    let text = format!(
        "{verb} network {other:?} with container {}: its network is Calico's alone: create it without CALICO_IP to use Docker's",
        id.short()
    );
    Ok(Some(Said::ours(manner.error(403, &text))))
}
