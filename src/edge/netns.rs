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

impl Netns {
    /// The namespace of a container's first process.
    ///
    /// The number of a dead process may be given out again, so after the file is open the process is checked to be of
    /// this container still: its control group is named after the container's id, in full, whatever the driver.
    ///
    /// # Errors
    /// `Conflict` if the process is gone or belongs to something else: the container has exited meanwhile.
    pub(crate) fn of_container(id: &ContainerId, pid: i32) -> Result<Self, Fault> {
        let gone = |cause: String| Fault::Conflict(format!("open the network of container {}: {cause}", id.short()));
        let file =
            File::open(format!("/proc/{pid}/ns/net")).map_err(|error| gone(format!("process {pid}: {error}")))?;
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .map_err(|error| gone(format!("process {pid}: {error}")))?;
        if groups.contains(id.as_str()) {
            Ok(Netns { file, what: format!("container {}", id.short()) })
        } else {
            Err(gone(format!("process {pid} is not of this container any more")))
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
