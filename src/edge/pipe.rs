//! Pipes: bytes on their way from one socket to another that are never copied into this process.
//!
//! `splice(2)` hands over the pages in which they arrived. A copy through memory of ours costs both cores of a small
//! machine as much as all that dockerd does with an archive. It pays from some ten kilobytes on; heads and chunk sizes,
//! which have to be read, are read.
//!
//! Being woken costs more than carrying what has come, the more so on a virtual machine, and dockerd writes an archive in
//! pieces of 4 and 28 KiB. So a thread that has carried a little of much from there [rests](rest) before it waits again, as a
//! network card keeps its interrupts back. What else lives on that thread waits so long too, while an archive passes. On
//! the way to dockerd nothing rests: it is the slower of the two, and would wait.
//!
//! Limits: a pipe is two descriptors, so a stream has one only while it has bytes under way, and there are no more than
//! [`MOST_PIPES`], since readers that stall keep theirs; where none is to be had, or where bytes have to be decrypted, callers
//! read and write instead.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// How much a pipe is asked to hold. The kernel gives it to root; what it gives to others does too.
const PIPE_BYTES: i32 = 256 * 1024;

/// How many pipes there are at most: a fraction of the descriptors that are kept for the node's own work.
const MOST_PIPES: usize = 32;

/// How many there are.
static PIPES: AtomicUsize = AtomicUsize::new(0);

/// How many empty pipes a thread keeps.
const SPARE_PIPES: usize = 4;

/// How long a thread rests. A unix socket's queue (`wmem_default`, 208 KiB) holds what comes meanwhile, at up to a GiB a second.
const REST: Duration = Duration::from_micros(100);

/// After how many bytes it does. Who has carried more is about to be the one that the sender waits for.
const REST_AFTER: Range<usize> = 16 * 1024..96 * 1024;

thread_local! {
    /// How many bytes of dockerd's the thread has carried since it last waited.
    static CARRIED: Cell<usize> = const { Cell::new(0) };
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// So many bytes of dockerd's were carried on this thread.
pub(crate) fn note_carried(count: usize) {
    CARRIED.set(CARRIED.get() + count);
}

/// To be called when a thread is about to wait for its sockets: it rests first where that saves it from being woken for little.
#[expect(
    clippy::disallowed_methods,
    reason = "a thread that waits for its sockets would be woken by each of their pieces"
)]
pub(crate) fn rest() {
    if REST_AFTER.contains(&CARRIED.take()) {
        std::thread::sleep(REST);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
    _counted: Counted,
}

/// One of the pipes that there may be.
#[derive(Debug)]
struct Counted;

impl Counted {
    fn one() -> Option<Counted> {
        let more = |pipes| (pipes < MOST_PIPES).then_some(pipes + 1);
        PIPES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        PIPES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// An empty pipe; `None` where there are enough, or the kernel has no descriptors left.
    pub(crate) fn take() -> Option<Pipe> {
        if let Some(pipe) = SPARE.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        let counted = Counted::one()?;
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
        // A smaller one carries less at a time.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Some(Pipe { read, write, held: 0, _counted: counted })
    }

    /// Gives an empty pipe back.
    pub(crate) fn put_back(self) {
        if self.held == 0 {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_PIPES {
                    spare.push(self);
                }
            });
        }
    }

    /// How many bytes are in it.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes what has arrived at a socket, up to so many bytes; 0 is the peer's FIN. It must be empty, so that an
    /// `EAGAIN` speaks of the socket.
    pub(crate) fn fill(&mut self, from: &impl AsFd, most: u64) -> io::Result<usize> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(PIPE_BYTES.unsigned_abs() as usize);
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        self.held += splice(from, None, &self.write, None, most, flags)?;
        Ok(self.held)
    }

    /// Hands on what the other socket takes.
    pub(crate) fn drain(&mut self, to: &impl AsFd) -> io::Result<()> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        self.held -= splice(&self.read, None, to, None, self.held, flags)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn there_are_no_more_pipes_than_descriptors_are_kept_for() {
        let all: Vec<Pipe> = std::iter::from_fn(Pipe::take).take(MOST_PIPES + 1).collect();
        assert!(all.len() <= MOST_PIPES, "{}", all.len());
    }

    #[test]
    fn a_thread_rests_once_after_a_little_of_much() {
        note_carried(REST_AFTER.start);
        let began = Instant::now();
        rest();
        assert!(began.elapsed() >= REST);
        assert_eq!(CARRIED.get(), 0);
    }
}
