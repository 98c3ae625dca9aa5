//! Calls of ours: gathered whole, or as far as they must be seen, and answered by the service.

use std::convert::Infallible;
use std::pin::pin;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use super::{Connection, Then, left};
use crate::edge::relay;
use crate::edge::wire::READ_BYTES;
use crate::part::proxy::answer::Manner;
use crate::part::proxy::framing::Framing;
use crate::part::proxy::head::{LONGEST_HEAD, Request};
use crate::part::proxy::upstream::{Behind, Upstream};
use crate::plan::call::Call;

/// How long a body of ours may be (decided; dockerd itself has no limit).
pub(super) const LONGEST_BODY: usize = 16 << 20;

/// How long such a body may be with its framing around it.
const LONGEST_RAW_BODY: usize = 4 * LONGEST_BODY;

/// What a client waits for that asks before it sends a body.
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A call of ours, gathered, and the way to dockerd.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) request: Request,
    /// Head and body as they came; nothing where the request is not whole, and then it cannot be sent on.
    pub(crate) raw: Bytes,
    /// Whether the body was read to its end. dockerd reads no further than the end of what it wants to know.
    pub(crate) is_whole: bool,
    /// The content of the body.
    pub(crate) body: Vec<u8>,
    pub(crate) upstream: Upstream,
}

/// What the client gets.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) reply: Bytes,
    pub(crate) then: Behind,
    pub(crate) upstream: Upstream,
}

/// Why a request was not gathered.
enum Ungathered {
    /// The client is.
    Gone,
    TooLong,
    /// It ended too early, or its framing cannot be followed, after this.
    Broken(Vec<u8>),
}

/// What of a body must be seen before dockerd gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Never,
    /// That it ends, if the call is about a container of ours, and otherwise nothing.
    Ended,
    /// As much as dockerd reads of it: the container that the call is about stands there.
    InPart,
    Whole,
}

impl Request {
    fn must_be_seen(&self) -> Seen {
        match self.classified.call {
            Call::Create { .. } => Seen::Whole,
            // It may carry a HostConfig, which is no longer what the create's was.
            Call::Start { .. } if self.classified.is_before_1_24() => Seen::Whole,
            // dockerd does it without having read the body: whose container it is must be asked all the same.
            Call::Start { .. } | Call::Restart { .. } => Seen::Ended,
            Call::NetworkConnect { .. } | Call::NetworkDisconnect { .. } => Seen::InPart,
            _ => Seen::Never,
        }
    }
}

/// A gathered body: its content, and where it ends in what the client sent.
struct Body {
    content: Vec<u8>,
    end: usize,
}

impl<S> Connection<S>
where
    S: Service<Asked, Response = Answered, Error = Infallible>,
{
    /// Gathers a request of ours and has the service answer it.
    pub(super) async fn ours(&mut self, request: Request) -> Then {
        let only_reads = matches!(request.classified.call, Call::Inspect { .. } | Call::List);
        let arriving = self.arriving.take();
        if !only_reads && arriving.is_none() && self.ending.is_here() {
            let answer = Manner::of(&request).closing().error(503, "this node is ending; ask the next one");
            return self.say(&answer, Then::Close).await;
        }
        let _needs_others = (!only_reads).then(|| arriving.unwrap_or_else(|| self.arrivals.token()));
        let gathered = self.gather(&request).await;
        let (raw, body, is_whole) = match gathered {
            Ok(body) => (self.inbound.split_to(body.end).freeze(), body.content, true),
            Err(Ungathered::Gone) => return Then::Drop,
            Err(Ungathered::Broken(content)) if request.must_be_seen() == Seen::InPart => {
                (Bytes::new(), content, false)
            }
            Err(_) if request.must_be_seen() == Seen::Ended => (Bytes::new(), Vec::new(), false),
            // dockerd may say what it thinks of it; nothing that we edit is in it.
            Err(_) if request.must_be_seen() == Seen::Never => return self.pass(&request).await,
            Err(why) => {
                let (status, cause) = match why {
                    Ungathered::TooLong => (
                        413,
                        format!("it is longer than {LONGEST_BODY} bytes, or than {LONGEST_RAW_BODY} with its chunks"),
                    ),
                    _ => (400, "it is not whole, or its framing is broken".to_owned()),
                };
                let text = format!("read the body of the request: {cause}");
                let answer = Manner::of(&request).closing().error(status, &text);
                return self.say(&answer, Then::Close).await;
            }
        };
        let ended = CancellationToken::new();
        let upstream = self.upstream.take().for_client(ended.clone());
        let closes = request.closes || !is_whole;
        let asked = Asked { request: request.clone(), raw, is_whole, body, upstream };
        let Ok(service) = self.service.ready().await;
        let mut answering = pin!(service.call(asked));
        let Ok(answered) = tokio::select! {
            biased;
            answered = &mut answering => answered,
            () = left(&self.client, &mut self.inbound, &mut self.client_ended, || ended.cancel()) => {
                if only_reads {
                    return Then::Drop;
                }
                answering.await
            }
        };
        self.upstream = answered.upstream;
        if answered.then == Behind::Pass {
            return self.pass(&request).await;
        }
        let then = self.say(&answered.reply, Then::Next).await;
        match answered.then {
            _ if then != Then::Next => then,
            Behind::Nothing | Behind::Pass => Then::Close,
            // Where dockerd answered it closes too; where we did, nobody else would.
            Behind::Next if closes => Then::Close,
            Behind::Next => Then::Next,
            Behind::Stream => {
                let inbound = std::mem::take(&mut self.inbound);
                let (Some(wire), outbound) = self.upstream.parts() else { return Then::Drop };
                let outbound = std::mem::take(outbound);
                relay::tunnel(&self.client, wire, inbound, outbound).await.into()
            }
        }
    }

    /// Gathers the body of the request at the start of `inbound`, where all of it stays.
    async fn gather(&mut self, request: &Request) -> Result<Body, Ungathered> {
        let mut framing = request.body.clone();
        let (mut content, mut end) = (Vec::new(), request.length);
        if let Framing::Length(length) = framing
            && length > LONGEST_BODY as u64
        {
            return Err(Ungathered::TooLong);
        }
        // dockerd asks for a body when it reads one, whether some of it is there already or not.
        let is_read = matches!(
            request.classified.call,
            Call::Create { .. } | Call::NetworkConnect { .. } | Call::NetworkDisconnect { .. }
        );
        if request.expects_continue && !framing.is_done() && (is_read || self.inbound.len() == request.length) {
            self.client.write_all(CONTINUE).await.map_err(|_| Ungathered::Gone)?;
        }
        loop {
            end += framing.scan(&self.inbound[end..], |bytes| content.extend_from_slice(bytes));
            if framing.is_done() && content.len() <= LONGEST_BODY {
                return Ok(Body { content, end });
            }
            if content.len() > LONGEST_BODY || end > LONGEST_RAW_BODY + LONGEST_HEAD {
                return Err(Ungathered::TooLong);
            }
            if self.client_ended || framing == Framing::Malformed {
                return Err(Ungathered::Broken(content));
            }
            match self.client.read_up_to(&mut self.inbound, READ_BYTES).await {
                Ok(0) => self.client_ended = true,
                Ok(_) => {}
                Err(_) => return Err(Ungathered::Gone),
            }
        }
    }
}
