//! Network namespaces for tests: each test that touches the kernel has one of its own and can harm nobody.

use std::future::Future;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

use super::exec::run;

/// Runs a test on a thread of its own in a new network namespace. Tools that it starts, sockets that it opens and threads
/// that it makes are in there too. A machine on which that cannot be done fails the test.
#[expect(clippy::disallowed_methods, reason = "a test's own namespace, on a thread that ends with it")]
pub(crate) fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests must be run as root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            sh("ip link set lo up").await;
            test().await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// From here on what is mounted is mounted for this test alone. Called on the thread of [`in_own_network`].
#[expect(clippy::disallowed_methods, reason = "a test's own namespace, on a thread that ends with it")]
pub(crate) async fn own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("kernel tests must be run as root");
    sh("mount --make-rprivate /").await;
}

/// Runs a command line that must succeed; answers what it printed.
pub(crate) async fn sh(line: &str) -> String {
    run("sh", &["-ec", line], "").await.unwrap()
}

/// Whether a command line succeeds.
pub(crate) async fn sh_succeeds(line: &str) -> bool {
    run("sh", &["-ec", line], "").await.is_ok()
}

/// A namespace beside a test's own, held by a process that lives as long as the value.
pub(crate) struct Elsewhere {
    child: std::process::Child,
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Elsewhere {
    #[expect(clippy::disallowed_methods, reason = "a namespace is held by a process of its own")]
    pub(crate) async fn new() -> Self {
        let child = std::process::Command::new("unshare").args(["-n", "sleep", "600"]).spawn().unwrap();
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{}/ns/net", child.id())).is_ok_and(|net| net == own) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Elsewhere { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command line in there that must succeed; answers what it printed.
    pub(crate) async fn sh(&self, line: &str) -> String {
        sh(&self.entering(line)).await
    }

    pub(crate) async fn sh_succeeds(&self, line: &str) -> bool {
        sh_succeeds(&self.entering(line)).await
    }

    fn entering(&self, line: &str) -> String {
        format!("nsenter --net=/proc/{}/ns/net sh -ec '{line}'", self.pid())
    }
}
