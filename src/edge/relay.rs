//! The relay: the pump that carries bytes between two wires, within bounds or for ever.
//!
//! Bytes go on at once and as they are. Where much comes they are spliced, not read. tokio's own `copy_bidirectional` holds
//! two buffers for as long as the stream lives, knows no bounds, and tells nothing of a client that is gone.
//!
//! A FIN is no goodbye: it is passed on as `shutdown(WR)` and the other direction stays open, as long as its sender is
//! there. That it is gone is told by the kernel: at once on a unix socket, by a reset or by keep-alive probes on TCP.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use tokio::sync::Notify;

use super::clock::timeout;
use super::pipe::{self, Pipe};
use super::wire::{LITTLE_BYTES, READ_BYTES, Wire};

/// How a stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The client is gone: nobody reads or writes any more.
    ClientGone,
    /// The upstream side has said all it had to say. The client has our FIN and may still have bytes to read.
    Finished,
    /// The upstream side broke: what the client has is not the whole.
    Broken,
}

/// Which end of a one-way stream failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    Reading,
    Writing,
}

/// What tells how far bytes may go.
pub(crate) trait Bounds {
    /// Looks through bytes that were read. Answers how many of them may go.
    fn pass(&mut self, bytes: &[u8]) -> usize;
    /// How many of the bytes that come next may go without being looked at.
    fn unseen(&self) -> u64;
    /// So many went that way.
    fn skip(&mut self, count: u64);
    /// Whether no more may go.
    fn is_over(&self) -> bool;
}

/// Everything may go.
struct Boundless;

impl Bounds for Boundless {
    fn pass(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn unseen(&self) -> u64 {
        u64::MAX
    }
    fn skip(&mut self, _: u64) {}
    fn is_over(&self) -> bool {
        false
    }
}

/// More bytes follow at once: TCP makes one segment of them (`MSG_MORE`, linux/socket.h; nix does not name it).
const MORE: MsgFlags = MsgFlags::from_bits_retain(0x8000);

/// How long what was sent so waits for them. The kernel would keep it for 200 ms.
const MORE_TIME: Duration = Duration::from_millis(1);

/// From how many bytes at a time on a splice pays.
const SPLICE_FROM: usize = LITTLE_BYTES;

/// What comes in smaller pieces is read again.
const SPLICE_UNTIL: usize = 1024;

/// How much is read to find the size of a next chunk when the one before was spliced: what dockerd writes at once of a large
/// chunk, and its size with it (Go's net/http/server.go, `newBufioWriterSize(…, 4<<10)`).
const BETWEEN_BYTES: usize = 4096;

/// Which way bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Toward {
    Client,
    Dockerd,
}

/// Bytes on their way in one direction, within bounds.
#[derive(Debug)]
pub(crate) struct Flow<'a, B> {
    toward: Toward,
    pub(crate) bounds: B,
    /// What was read and has not gone.
    pub(crate) buffer: &'a mut BytesMut,
    /// So many bytes of the buffer may go.
    cleared: usize,
    pipe: Option<Pipe>,
    /// Whether so much comes that it should not be read.
    is_busy: bool,
    was_spliced: bool,
}

impl<'a, B: Bounds> Flow<'a, B> {
    /// A flow of which a part may have been read: `head` bytes in the buffer may go whatever the bounds, and what
    /// follows them within the bounds.
    pub(crate) fn new(toward: Toward, buffer: &'a mut BytesMut, head: usize, mut bounds: B) -> Self {
        let cleared = head + bounds.pass(&buffer[head..]);
        Flow { toward, bounds, buffer, cleared, pipe: None, is_busy: false, was_spliced: false }
    }

    /// Takes the bytes that may go for bytes that have gone. Answers how many they are.
    pub(crate) fn has_gone(&mut self) -> usize {
        self.buffer.advance(self.cleared);
        std::mem::take(&mut self.cleared)
    }

    /// Writes the bytes that are neither with the sender nor in the buffer any more.
    pub(crate) async fn flush(&mut self, to: &Wire) -> Result<(), Failed> {
        if let Some(pipe) = &mut self.pipe {
            to.write_pipe(pipe).await.map_err(|_| Failed::Writing)?;
            if let Some(pipe) = self.pipe.take() {
                pipe.put_back();
            }
        }
        Ok(())
    }

    /// Carries bytes until the bounds are reached (`true`) or the sender has sent its FIN (`false`).
    ///
    /// # Cancel safety
    /// After the future was dropped it can be called again, and goes on where that was.
    pub(crate) async fn carry(&mut self, from: &Wire, to: &Wire) -> Result<bool, Failed> {
        loop {
            // Whoever sends without end does not keep the thread from everybody else.
            tokio::task::consume_budget().await;
            self.flush(to).await?;
            let unseen = self.bounds.unseen();
            let splices =
                self.is_busy && unseen >= SPLICE_FROM as u64 && from.plain().is_some() && to.plain().is_some();
            // The start of a chunk goes with the rest of it; nothing else has to wait for what follows it.
            let is_start = splices && self.cleared <= BETWEEN_BYTES;
            let is_withheld = is_start && self.cleared > 0;
            let more = if is_start { MORE } else { MsgFlags::empty() };
            to.write_before(self.buffer, &mut self.cleared, more).await.map_err(|_| Failed::Writing)?;
            if self.bounds.is_over() {
                return Ok(true);
            }
            if let Some(mut pipe) = splices.then(Pipe::take).flatten() {
                match from.fill(&mut pipe, unseen) {
                    Ok(0) => return Ok(false),
                    Ok(count) => {
                        self.bounds.skip(count as u64);
                        self.is_busy = count >= SPLICE_UNTIL || self.bounds.unseen() == 0;
                        self.was_spliced = true;
                        if self.toward == Toward::Client {
                            pipe::note_carried(count);
                        }
                        self.pipe = Some(pipe);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        // Others may need it while nothing comes here.
                        pipe.put_back();
                        // Boxed, so that an idle stream does not keep room for it.
                        if is_withheld && Box::pin(timeout(MORE_TIME, from.readable())).await.is_err() {
                            to.push();
                        }
                        from.readable().await.map_err(|_| Failed::Reading)?;
                    }
                    // No socket that bytes can be spliced from.
                    Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => self.is_busy = false,
                    // The kernel tells of an error once: to read now would find a FIN.
                    Err(_) => return Err(Failed::Reading),
                }
                continue;
            }
            let is_between = std::mem::take(&mut self.was_spliced);
            let most = match (is_between, self.is_busy) {
                (true, _) => BETWEEN_BYTES,
                (false, true) => READ_BYTES,
                (false, false) => LITTLE_BYTES,
            };
            let count = from.read_up_to(self.buffer, most).await.map_err(|_| Failed::Reading)?;
            if count == 0 {
                return Ok(false);
            }
            self.is_busy = if is_between { self.is_busy } else { count >= SPLICE_FROM };
            self.cleared = self.bounds.pass(self.buffer);
        }
    }
}

/// Carries bytes one way until the FIN, and passes that on. `left` are bytes that were read before.
async fn pump(toward: Toward, from: &Wire, to: &Wire, left: &mut BytesMut) -> Result<(), Failed> {
    Flow::new(toward, left, 0, Boundless).carry(from, to).await?;
    to.finish().await;
    Ok(())
}

/// Reads and drops what a client sends, until its FIN. Answers whether there was one.
pub(crate) async fn read_out(client: &Wire) -> bool {
    let mut dropped = BytesMut::new();
    while let Ok(count) = client.read(&mut dropped).await {
        if count == 0 {
            return true;
        }
        dropped.clear();
    }
    false
}

/// Reads and drops what a client sends, until it is gone.
pub(crate) async fn drain(client: &Wire) {
    if read_out(client).await {
        client.hung_up().await;
    }
}

/// Carries bytes both ways until both sides have ended, or one is gone. Bytes that were read before go first.
pub(crate) async fn tunnel(client: &Wire, upstream: &Wire, mut inbound: BytesMut, mut outbound: BytesMut) -> End {
    let up_ended = Notify::new();
    let up = async {
        match pump(Toward::Dockerd, client, upstream, &mut inbound).await {
            Ok(()) => {
                up_ended.notify_one();
                client.hung_up().await;
            }
            // Upstream reads no more. Whether it still speaks, the other direction tells.
            Err(Failed::Writing) => drain(client).await,
            Err(Failed::Reading) => {}
        }
    };
    tokio::pin!(up);
    tokio::select! {
        () = &mut up => return End::ClientGone,
        ended = pump(Toward::Client, upstream, client, &mut outbound) => match ended {
            Ok(()) => {}
            Err(Failed::Reading) => return End::Broken,
            Err(Failed::Writing) => return End::ClientGone,
        },
    }
    // dockerd ends most streams by half (moby httputils.CloseStreams); then the client is the one to close.
    tokio::select! {
        () = up_ended.notified() => End::Finished,
        () = up => End::ClientGone,
        () = upstream.hung_up() => End::Finished,
    }
}

#[cfg(test)]
mod tests;
