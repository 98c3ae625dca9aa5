//! systemd: tells it how the node is, if it started us.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::config;
use crate::part::control::SILENT_MOST;
use crate::part::metrics::Metrics;

/// Tells systemd how far we are. Source: sd_notify(3).
pub(super) fn notify(state: &str) {
    if let Err(error) = send(state, false) {
        tracing::warn!(%error, "systemd could not be told of {state}");
    }
}

/// Tells systemd, where its unit asks for that, as long as the agent's loop comes round; a node of which it does not hear it
/// systemd starts anew. Source: sd_watchdog_enabled(3).
pub(super) async fn watch_over(metrics: Arc<Metrics>, stop: CancellationToken) {
    let asked = config::variable("WATCHDOG_USEC").and_then(|value| value.to_str()?.parse::<u64>().ok());
    let Some(every) = asked.filter(|most| *most > 0).map(|most| Duration::from_micros(most) / 3) else {
        return stop.cancelled().await;
    };
    while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
        if metrics.silent_for() < SILENT_MOST
            && let Err(error) = send("WATCHDOG=1", true)
        {
            tracing::debug!(%error, "systemd could not be told that the node lives");
        }
    }
}

/// Sends a word to systemd. `at_once`: not if that has to wait until systemd has read others.
fn send(state: &str, at_once: bool) -> io::Result<()> {
    let Some(path) = config::variable("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(at_once)?;
    socket.send_to(state.as_bytes(), Path::new(&path)).map(drop)
}
