//! Pipes: bytes on their way from one socket to another that are never copied into this process.
//!
//! `splice(2)` hands over the pages in which they arrived. A copy through memory of ours costs both cores of a small
//! machine as much as all that dockerd does with an archive. It pays from some ten kilobytes on; heads and chunk sizes,
//! which have to be read, are read.
//!
//! Limits: a pipe is two descriptors, so a stream has one only while it has bytes under way; where no more can be had,
//! or where bytes have to be decrypted, callers read and write instead.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// How much a pipe is asked to hold. The kernel gives it to root; what it gives to others does too.
const PIPE_BYTES: i32 = 256 * 1024;

/// How many empty pipes a thread keeps.
const SPARE_PIPES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    held: usize,
}

impl Pipe {
    /// An empty pipe; `None` where the kernel has no descriptors left.
    pub(crate) fn take() -> Option<Pipe> {
        if let Some(pipe) = SPARE.with_borrow_mut(Vec::pop) {
            return Some(pipe);
        }
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
        // A smaller one carries less at a time.
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        Some(Pipe { read, write, held: 0 })
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
