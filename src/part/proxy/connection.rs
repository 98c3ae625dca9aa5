//! A connection: one client, its requests in order, and the upstream connection that belongs to it.
//!
//! Each head is read and told from its path. What is not ours flows: bytes go up and down at the same time, at once and
//! unaltered, and framing is only followed to find the next head. The few calls that are ours are gathered and handed to
//! a tower service together with the upstream connection; the connection waits for it whatever the client does, so work
//! that was begun is finished.
//!
//! Invariant: a byte of a client reaches dockerd only as part of a request that was classified, after dockerd has left
//! HTTP behind, or as a head that is unreadable, and then nothing follows it.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::FutureExt as _;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tower::Service;

use self::ours::{Answered, Asked};
use super::answer::Manner;
use super::framing::Framing;
use super::head::{self, Heads, Request, Unreadable};
use super::upstream::Upstream;
use crate::edge::clock::{sleep_until, timeout};
use crate::edge::relay::{self, End, Failed, Flow, Toward};
use crate::edge::wire::{READ_BYTES, Wire};
use crate::model::fault::Fault;
use crate::part::under_way::or_never;
use crate::plan::call::Call;

/// How long a client may take for a head that it has begun: as long as newer engines give it (moby cmd/dockerd,
/// `ReadHeaderTimeout`). A connection without a request has no limit, as at dockerd.
const HEAD_TIME: Duration = Duration::from_mins(5);

/// How long a client that has just come may take to say what it wants when the process is to end. Nobody else has its
/// connection: with it closed the client would be refused, while the next node listens already.
const FIRST_TIME: Duration = Duration::from_millis(500);

/// How long a client may take to read the last answer. Closing at once would make its kernel throw away what it has not
/// read yet, if there are bytes of its own that we have not read.
const LINGER: Duration = Duration::from_secs(5);

/// What becomes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The next request.
    Next,
    /// Our FIN, and time for the client to read what it was sent.
    Close,
    /// Nobody is there to be told anything.
    Drop,
    /// What the client has is not the whole, and nothing else would tell it so.
    Reset,
}

impl From<End> for Then {
    fn from(end: End) -> Self {
        match end {
            End::ClientGone => Then::Drop,
            End::Finished => Then::Close,
            End::Broken => Then::Reset,
        }
    }
}

/// How the reply to a request that flows came to its end.
enum Flowed {
    Whole,
    /// The same, and dockerd closes the connection behind it.
    Last,
    /// What follows is no HTTP, or has no end but the connection's.
    Stream,
    /// It cannot be read. Whether dockerd takes what follows for a request is not known, so nothing may follow.
    Strange,
    /// dockerd broke off.
    Cut,
    ClientGone,
}

/// See the module.
pub(crate) struct Connection<S> {
    client: Wire,
    /// What the client has sent and nobody has taken yet.
    inbound: BytesMut,
    heads: Heads,
    /// Whether the client has sent its FIN.
    client_ended: bool,
    upstream: Upstream,
    service: S,
    /// Whether a request is under way: what the client has of its answer is not the whole.
    is_under_way: bool,
    /// Those who may still ask for what other parts do: clients that have not asked for anything yet, and calls of ours.
    arrivals: TaskTracker,
    /// This one, until it has asked for something.
    arriving: Option<TaskTrackerToken>,
    /// Boxed, as few connections live to see it.
    ending: Box<Ending>,
    /// By which names clients may call us, besides those that are known anyhow.
    names: Arc<[String]>,
}

impl<S> Connection<S>
where
    S: Service<Asked, Response = Answered, Error = Infallible>,
{
    pub(crate) fn new(
        client: Wire,
        upstream: Upstream,
        service: S,
        stop: CancellationToken,
        arrivals: TaskTracker,
    ) -> Self {
        Connection {
            client,
            inbound: BytesMut::new(),
            heads: Heads::default(),
            client_ended: false,
            upstream,
            service,
            is_under_way: false,
            arriving: Some(arrivals.token()),
            arrivals,
            ending: Box::new(Ending { stop: Box::pin(stop.cancelled_owned()), seen: None }),
            names: Arc::default(),
        }
    }

    /// The same, for clients that may call us by some further names.
    #[must_use]
    pub(crate) fn known_as(mut self, names: Arc<[String]>) -> Self {
        self.names = names;
        self
    }

    /// Serves the client until it, dockerd or the process ends. `_place` is kept until then: as an argument, because a
    /// future around this one would have room for it twice.
    pub(crate) async fn run<P>(mut self, _place: P) {
        if !self.greet().await {
            return;
        }
        self.client.read_ahead(&mut self.inbound);
        let then = loop {
            let request = match self.next_request().await {
                Ok(request) => request,
                Err(then) => break then,
            };
            self.is_under_way = true;
            let foreign = request.foreign.as_ref().and_then(|foreign| foreign.reason(|name| self.is_called(name)));
            let is_first = self.arriving.is_some();
            let then = match (foreign, &request.classified.call) {
                (Some(reason), _) => {
                    let answer = Manner::of(&request).closing().error(403, &reason);
                    self.say(&answer, Then::Close).await
                }
                (None, Call::Pass) => {
                    // Other parts have nothing to do with it, and it may be a stream.
                    self.arriving = None;
                    self.pass(&request).await
                }
                // Boxed, so that a stream that is nothing but a tunnel does not pay for its room.
                (None, _) => Box::pin(self.ours(request)).await,
            };
            self.is_under_way = false;
            if then != Then::Next {
                break then;
            }
            if self.ending.is_here() {
                // What has come behind it is not answered any more: it must not look as if its answer had been cut.
                break if self.inbound.is_empty() { Then::Drop } else { Then::Close };
            }
            if is_first {
                // The client has its answer, so this costs it nothing.
                self.upstream.prepare_next();
            }
        };
        match then {
            Then::Close => {
                let parting = async {
                    self.client.finish().await;
                    if !self.client_ended {
                        relay::read_out(&self.client).await;
                    }
                };
                // A client that takes longer has had its time.
                let _ = timeout(LINGER, parting).await;
            }
            Then::Reset => self.client.reset_on_close(),
            Then::Next | Then::Drop => {}
        }
    }

    /// Gets to know a client that is to speak TLS. Answers whether it may go on.
    async fn greet(&mut self) -> bool {
        if !matches!(self.client, Wire::Tls(_)) {
            return true;
        }
        let to_plain = Manner::unknown().error(400, "TLS is spoken at this address: use docker --tlsverify or https");
        // Boxed, so that a stream does not keep room for it.
        let handshake = Box::pin(self.client.handshake(&to_plain));
        tokio::select! {
            shaken = handshake => match shaken {
                Ok(()) => true,
                Err(error) => {
                    tracing::info!(%error, "a client did not get in by TLS");
                    false
                }
            },
            () = self.ending.come(true) => false,
        }
    }

    /// Whether a client may call us by a name that is no address and not localhost.
    fn is_called(&self, name: &str) -> bool {
        self.names.iter().any(|own| own.eq_ignore_ascii_case(name)) || self.client.is_certified_for(name)
    }

    async fn say(&self, answer: &[u8], then: Then) -> Then {
        if self.client.write_all(answer).await.is_ok() { then } else { Then::Drop }
    }

    /// The next request, once its head is whole.
    async fn next_request(&mut self) -> Result<Request, Then> {
        let mut limit = None;
        loop {
            match self.heads.next(&self.inbound, self.client.is_tcp()) {
                Some(Ok(mut request)) => {
                    // dockerd would overlook them only if the request before was its to answer.
                    let overlooked = usize::from(std::mem::take(&mut request.overlooked));
                    self.inbound.advance(overlooked);
                    request.length -= overlooked;
                    return Ok(request);
                }
                Some(Err(Unreadable::Http2)) => {
                    let answer = Manner::unknown().error(400, "HTTP/2 is not spoken here: use HTTP/1.1");
                    return Err(self.say(&answer, Then::Close).await);
                }
                Some(Err(Unreadable::Shown(length))) => return Err(self.show(length).await),
                None if !self.client_ended && self.inbound.is_empty() => self.more(None).await?,
                None if !self.client_ended => {
                    let limit = *limit.get_or_insert_with(|| Instant::now() + HEAD_TIME);
                    // Boxed, so that a connection that waits for a request does not keep room for it.
                    self.more(Some(Box::pin(sleep_until(limit)))).await?;
                }
                None if self.inbound.is_empty() => return Err(Then::Drop),
                None => return Err(self.show(self.inbound.len()).await),
            }
        }
    }

    /// Waits for more of a head until its time is over, or the process is to end; without a limit there is nothing of one yet.
    async fn more(&mut self, limit: Option<Pin<Box<Sleep>>>) -> Result<(), Then> {
        let is_idle = limit.is_none();
        let over = or_never(limit);
        let (upstream, outbound) = self.upstream.parts();
        let from_upstream = or_never(upstream.map(|wire| wire.read(outbound)));
        tokio::select! {
            // Mostly it is the client that does something.
            biased;
            read = self.client.read(&mut self.inbound) => match read {
                Ok(0) => self.client_ended = true,
                Ok(_) => {}
                Err(_) => return Err(Then::Drop),
            },
            // dockerd closes the connection, or says something without being asked (as Go does before it closes).
            read = from_upstream => match read {
                Ok(1..) => {
                    let mut count = outbound.len();
                    self.client.write_from(outbound, &mut count).await.map_err(|_| Then::Drop)?;
                }
                Ok(0) | Err(_) => return Err(Then::Close),
            },
            // Go says nothing to it either.
            () = over => return Err(Then::Drop),
            () = self.ending.come(self.arriving.is_some() || !is_idle) => return Err(Then::Drop),
        }
        Ok(())
    }

    /// Shows dockerd bytes that cannot be read as a request, with nothing behind them, and hands back what it says.
    async fn show(&mut self, length: usize) -> Then {
        if let Err(fault) = self.upstream.connect().await {
            return self.say(&Manner::unknown().fault(&fault), Then::Close).await;
        }
        let (Some(wire), outbound) = self.upstream.parts() else { return Then::Drop };
        let shown = self.inbound.split_to(length.min(self.inbound.len()));
        let harmless = head::about_nothing(&shown);
        // dockerd may close before it has read all of it; what it said counts.
        let _ = wire.write_all(harmless.as_deref().unwrap_or(&shown)).await;
        match hear_out(&self.client, wire, outbound).await {
            // It had not read all, which is no word about what it said.
            Then::Reset => Then::Close,
            then => then,
        }
    }

    /// Connects to dockerd.
    ///
    /// # Errors
    /// `DockerAway`; `None` if its queue was full and the client does not wait in it any more.
    async fn connect(&mut self) -> Result<(), Option<Fault>> {
        tokio::select! {
            biased;
            connected = self.upstream.connect() => connected.map_err(Some),
            () = left(&self.client, &mut self.inbound, &mut self.client_ended, || ()) => Err(None),
        }
    }

    /// Lets a request flow up and its reply down.
    async fn pass(&mut self, request: &Request) -> Then {
        // Boxed, so that a stream does not keep room for it.
        let connected = if self.upstream.parts().0.is_some() { Ok(()) } else { Box::pin(self.connect()).await };
        if let Err(fault) = connected {
            let Some(fault) = fault else { return Then::Drop };
            let has_body = !request.body.is_done();
            let manner = Manner::of(request);
            let manner = if has_body { manner.closing() } else { manner };
            drop(self.inbound.split_to(request.length));
            let then = if manner.closes { Then::Close } else { Then::Next };
            return self.say(&manner.fault(&fault), then).await;
        }
        let Connection { client, inbound, client_ended, upstream, .. } = self;
        let (Some(wire), outbound) = upstream.parts() else { return Then::Drop };
        let flow = Flow::new(Toward::Dockerd, inbound, request.length, request.body.clone());
        let mut up = Up { flow, client_ended };
        let (is_sent, flowed) = {
            let mut down = pin!(flow_down(client, wire, outbound, request.is_head));
            let early = tokio::select! {
                // The request goes before a reply can come.
                biased;
                is_sent = up.send(client, wire) => (!is_sent).then_some(Flowed::ClientGone),
                flowed = &mut down => Some(flowed),
            };
            match early {
                Some(flowed) => (false, flowed),
                None => tokio::select! {
                    biased;
                    flowed = &mut down => (true, flowed),
                    () = up.watch(client, wire) => (true, Flowed::ClientGone),
                },
            }
        };
        match flowed {
            // What was sent behind it dockerd does not read, and neither do we.
            Flowed::Last => Then::Close,
            Flowed::Whole if is_sent && request.closes => Then::Close,
            Flowed::Whole if is_sent => Then::Next,
            // dockerd answered early. It reads on or closes; both are seen here.
            Flowed::Whole => tokio::select! {
                is_sent = up.send(client, wire) => if is_sent { Then::Next } else { Then::Close },
                _ = wire.read(outbound) => Then::Close,
            },
            Flowed::Stream => {
                // Whether dockerd still reads, the stream tells.
                let _ = up.flow.flush(wire).await;
                let (inbound, outbound) = (std::mem::take(up.flow.buffer), std::mem::take(outbound));
                relay::tunnel(client, wire, inbound, outbound).await.into()
            }
            Flowed::Strange => hear_out(client, wire, outbound).await,
            Flowed::Cut => Then::Close,
            Flowed::ClientGone => Then::Drop,
        }
    }
}

/// Ends what the client says to dockerd, and hands on what dockerd says until it has ended too, or the client is gone.
async fn hear_out(client: &Wire, wire: &Wire, outbound: &mut BytesMut) -> Then {
    wire.finish().await;
    let heard = async {
        loop {
            let mut count = outbound.len();
            if client.write_from(outbound, &mut count).await.is_err() {
                return Then::Drop;
            }
            match wire.read(outbound).await {
                Ok(1..) => {}
                Ok(0) => return Then::Close,
                Err(_) => return Then::Reset,
            }
        }
    };
    tokio::select! {
        biased;
        heard = heard => heard,
        () = relay::drain(client) => Then::Drop,
    }
}

impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        // Cut by the end of the process, or by a panic: that must not look like the end of an answer.
        if self.is_under_way {
            self.client.reset_on_close();
        }
    }
}

/// The end of the process.
struct Ending {
    /// Waited for once and not anew with each request.
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Since when a client has the time that is left to it.
    seen: Option<Instant>,
}

impl Ending {
    /// Whether it is here: those who would have a part in a further call are ending too.
    fn is_here(&mut self) -> bool {
        self.stop.as_mut().now_or_never().is_some()
    }

    /// Waits for it, and for a new client's time after it: the same however often it is waited for.
    async fn come(&mut self, is_new: bool) {
        self.stop.as_mut().await;
        if is_new {
            let until = *self.seen.get_or_insert_with(Instant::now) + FIRST_TIME;
            // Boxed, so that idle connections do not keep room for it.
            Box::pin(sleep_until(until)).await;
        }
    }
}

/// A request on its way up. What is known of it outlives a future that is dropped.
struct Up<'a> {
    flow: Flow<'a, Framing>,
    client_ended: &'a mut bool,
}

impl Up<'_> {
    /// Sends what is left of the request. `false`: it cannot be sent to its end, and nothing may follow it.
    async fn send(&mut self, client: &Wire, wire: &Wire) -> bool {
        match self.flow.carry(client, wire).await {
            Ok(true) if self.flow.bounds.is_done() => return true,
            Ok(is_over) => {
                *self.client_ended |= !is_over;
                wire.finish().await;
            }
            // Whether dockerd still speaks, the other direction tells.
            Err(Failed::Writing) => {}
            Err(Failed::Reading) => return false,
        }
        relay::drain(client).await;
        false
    }

    /// Watches a client whose request has gone, until the client has too.
    async fn watch(&mut self, client: &Wire, wire: &Wire) {
        if read_behind(client, self.flow.buffer, self.client_ended).await {
            if self.flow.buffer.is_empty() {
                wire.finish().await;
            }
            client.hung_up().await;
        }
    }
}

/// Reads what a client says behind its request: a pipelined one waits here, as it would in dockerd. Answers at its FIN, or
/// when there is much of it; `false`: the client is gone.
async fn read_behind(client: &Wire, inbound: &mut BytesMut, client_ended: &mut bool) -> bool {
    while !*client_ended && inbound.len() < READ_BYTES {
        match client.read(inbound).await {
            Ok(0) => *client_ended = true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Waits until a client is gone; says before if it has said all it had to say, which counts once all before it has been sent.
async fn left(client: &Wire, inbound: &mut BytesMut, client_ended: &mut bool, all_is_said: impl FnOnce()) {
    if read_behind(client, inbound, client_ended).await {
        if inbound.is_empty() {
            all_is_said();
        }
        client.hung_up().await;
    }
}

/// Lets a reply flow to the client, interim ones before it included.
///
/// Whatever dockerd says now is the client's, so it goes before it is read: the client does not wait for our understanding
/// of it.
async fn flow_down(client: &Wire, wire: &Wire, outbound: &mut BytesMut, to_head: bool) -> Flowed {
    // How much at the start of the buffer the client has already.
    let mut sent = 0;
    let flowed = loop {
        if client.write_all(&outbound[sent..]).await.is_err() {
            break Flowed::ClientGone;
        }
        sent = outbound.len();
        let reply = match head::parse_reply(outbound, to_head) {
            Some(Ok(reply)) if reply.status != 101 && reply.body != Framing::UntilClose => reply,
            Some(Ok(_)) => break Flowed::Stream,
            Some(Err(())) => break Flowed::Strange,
            None => match wire.read(outbound).await {
                Ok(1..) => continue,
                // A part of a head is what a client of dockerd's would have got.
                Ok(0) | Err(_) => break Flowed::Cut,
            },
        };
        let mut down = Flow::new(Toward::Client, outbound, reply.length, reply.body.clone());
        sent -= down.has_gone();
        match down.carry(wire, client).await {
            Ok(true) if down.bounds.is_done() => {}
            Ok(true) => break Flowed::Strange,
            Ok(false) | Err(Failed::Reading) => break Flowed::Cut,
            Err(Failed::Writing) => break Flowed::ClientGone,
        }
        if !reply.is_interim() {
            break if reply.closes { Flowed::Last } else { Flowed::Whole };
        }
    };
    outbound.advance(sent);
    flowed
}

pub(super) mod ours;

#[cfg(test)]
mod chaos;
#[cfg(test)]
mod tests;
