//! Network namespaces for tests: each test that touches the kernel has one of its own and can harm nobody.

use std::future::Future;

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

/// Runs a command line that must succeed; answers what it printed.
pub(crate) async fn sh(line: &str) -> String {
    run("sh", &["-ec", line], "").await.unwrap().stdout
}

/// Whether a command line succeeds.
pub(crate) async fn sh_succeeds(line: &str) -> bool {
    run("sh", &["-ec", line], "").await.is_ok()
}
