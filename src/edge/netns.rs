//! Network namespaces: a handle that cannot be reused for another, and work done inside one.
//!
//! A thread that has entered a namespace must never serve anything else, so the work runs in a synchronous closure on a
//! thread of its own that ends with it; a tokio worker never enters. A netlink socket stays in the namespace that it was
//! opened in, so opening it is all the work that has to be done inside.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use nix::sched::{CloneFlags, setns};

use crate::model::fault::Fault;
use crate::model::name::ContainerId;

/// A network namespace, held open.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    what: String,
}

/// Whether a file of a process is not there because the process is not. Source: linux fs/proc/base.c; of a process that ends
/// between two calls it is `ESRCH`.
fn is_gone(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error().map(nix::Error::from_raw), Some(nix::Error::ENOENT | nix::Error::ESRCH))
}

impl Netns {
    /// The namespace of a container's first process; `None` if no such process is to be seen, or it belongs to something
    /// else: the container has exited meanwhile, unless this host's processes are hidden from us.
    ///
    /// The number of a dead process may be given out again, so after the file is open the process is checked to be of
    /// this container still: its control group is named after the container's id, in full, whatever the driver.
    ///
    /// # Errors
    /// `Away`: whether it is there could not be seen.
    pub(crate) fn of_container(id: &ContainerId, pid: i32) -> Result<Option<Self>, Fault> {
        let open = || {
            let file = File::open(format!("/proc/{pid}/ns/net"))?;
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
            Ok(groups.contains(id.as_str()).then_some(file))
        };
        match open() {
            Ok(file) => Ok(file.map(|file| Netns { file, what: format!("container {}", id.short()) })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => {
                Err(Fault::Away(format!("open the network of container {}: process {pid}: {error}", id.short())))
            }
        }
    }

    /// The namespace of a process of a test's own.
    #[cfg(test)]
    pub(crate) fn of_process(pid: u32) -> Self {
        let file = File::open(format!("/proc/{pid}/ns/net")).unwrap();
        Netns { file, what: format!("process {pid}") }
    }

    /// For netlink messages that name a namespace.
    pub(crate) fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs a closure inside, on a thread of its own, with the caller's tokio runtime at hand.
    ///
    /// # Errors
    /// `Away`: there is no thread to be had. `World`: the namespace cannot be entered, or the work panicked.
    #[expect(clippy::disallowed_methods, reason = "the one place that enters a namespace")]
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Fault> {
        let enter = |cause: String| Fault::World(format!("enter the network of {}: {cause}", self.what));
        let runtime = tokio::runtime::Handle::try_current().ok();
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, move || {
                    setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                    let _runtime = runtime.as_ref().map(tokio::runtime::Handle::enter);
                    Ok::<T, nix::Error>(work())
                })
                .map_err(|error| Fault::Away(enter(error.to_string()).to_string()))?;
            match thread.join() {
                Ok(Ok(answer)) => Ok(answer),
                Ok(Err(error)) => Err(enter(error.to_string())),
                Err(_) => Err(enter("the work inside panicked".to_owned())),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever kept the node from looking was taken for the end of the container, and darkened it.
    #[test]
    fn a_process_is_gone_only_if_it_is_not_there() {
        let id: ContainerId = "a".repeat(64).parse().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        // No process has the first; the second is of another.
        for pid in [i32::MAX, own] {
            assert!(Netns::of_container(&id, pid).unwrap().is_none(), "{pid}");
        }
        for (error, gone) in [
            (nix::Error::ENOENT, true),
            (nix::Error::ESRCH, true),
            (nix::Error::EMFILE, false),
            (nix::Error::ENFILE, false),
            (nix::Error::ENOMEM, false),
            (nix::Error::EACCES, false),
        ] {
            assert_eq!(is_gone(&error.into()), gone, "{error}");
        }
    }
}
