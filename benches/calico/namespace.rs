//! A network namespace of its own, with a thread that lives in it and does there what it is asked for.

use std::sync::mpsc::{Sender, channel};

use crate::Outcome;

type Work = Box<dyn FnOnce() + Send>;

/// It goes away with the value, unless a program that was started in it lives on.
pub(crate) struct Namespace {
    work: Sender<Work>,
    /// A file that stands for it, for `ip link set … netns`.
    pub(crate) path: String,
}

impl Namespace {
    pub(crate) fn new() -> Outcome<Namespace> {
        let (work, asked) = channel::<Work>();
        let (answer, made) = channel();
        std::thread::spawn(move || {
            if answer.send(leave()).is_ok() {
                for work in asked {
                    work();
                }
            }
        });
        Ok(Namespace { work, path: made.recv()?? })
    }

    /// One that is there, such as a container's.
    pub(crate) fn existing(path: &str) -> Outcome<Namespace> {
        let (work, asked) = channel::<Work>();
        let (answer, entered) = channel();
        let file = std::fs::File::open(path)?;
        std::thread::spawn(move || {
            if answer.send(enter(&file)).is_ok() {
                for work in asked {
                    work();
                }
            }
        });
        entered.recv()??;
        Ok(Namespace { work, path: path.to_owned() })
    }

    /// Begins some work in it; the answer is waited for with `recv`.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Outcome<T> + Send + 'static,
    ) -> Outcome<std::sync::mpsc::Receiver<Outcome<T>>> {
        let (answer, done) = channel();
        let send = Box::new(move || drop(answer.send(work())));
        self.work.send(send).map_err(|_| "the namespace's thread has ended")?;
        Ok(done)
    }

    pub(crate) fn run<T: Send + 'static>(&self, work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
        self.begin(work)?.recv()?
    }
}

#[expect(clippy::disallowed_methods, reason = "the calling thread stays in its new network namespace until it ends")]
fn leave() -> Outcome<String> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    Ok(format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()))
}

#[expect(clippy::disallowed_methods, reason = "the calling thread stays in that network namespace until it ends")]
fn enter(file: &std::fs::File) -> Outcome<()> {
    Ok(nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?)
}
