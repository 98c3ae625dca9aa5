//! Fail points: the steps between which a crash must lose nothing. A test has the process killed at one of them.
//!
//! The name of a step in the file `fail-point` of the run folder arms it, in debug builds only. Who comes to it takes the
//! file away, so that the next one lives, and is gone as by `kill -9`. A file rather than a variable, because a hook is
//! started without an environment.

#[cfg(debug_assertions)]
static FILE: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

/// Says where this process looks for the name of an armed step.
#[cfg(debug_assertions)]
pub(crate) fn look_in(run_dir: &std::path::Path) {
    // A second node in one process, as in a test, looks where the first does.
    let _ = FILE.set(run_dir.join("fail-point"));
}

#[cfg(not(debug_assertions))]
pub(crate) fn look_in(_: &std::path::Path) {}

/// A step that may be a process's last.
#[cfg(debug_assertions)]
pub(crate) fn fail_point(step: &str) {
    let Some(file) = FILE.get() else { return };
    if std::fs::read_to_string(file).is_ok_and(|armed| armed == step) && std::fs::remove_file(file).is_ok() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
        // The signal is for the whole process, and may come to this thread last.
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
pub(crate) fn fail_point(_: &str) {}
