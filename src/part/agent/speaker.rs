//! BIRD's keeper: loads each new configuration, starts BIRD again when it dies, ends it gracefully.
//!
//! It runs beside the agent's loop, so that a BIRD that is slow to start holds up no container.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Programmed;
use crate::edge::bird::{Bird, BirdState};
use crate::plan::backoff::Backoff;

/// For how long BIRD has to run to count as healthy.
const HEALTHY: Duration = Duration::from_secs(30);

/// What is waited after a failure.
const RETRY: Backoff = Backoff::between(Duration::from_millis(200), HEALTHY);

/// Keeps BIRD running with the newest text until told to stop. Without a BIRD there is nothing to do.
pub(super) async fn run(
    bird: Option<Bird>,
    mut texts: watch::Receiver<Option<String>>,
    programmed: &watch::Sender<Programmed>,
    stop: &CancellationToken,
) {
    let Some(mut bird) = bird else { return };
    let tell = |state: BirdState| {
        programmed.send_if_modified(|programmed| {
            let differs = programmed.bird != state;
            programmed.bird = state;
            differs
        });
    };
    tell(BirdState::Down("it waits for the datastore".to_owned()));
    let mut backoff = RETRY;
    loop {
        let text = texts.borrow_and_update().clone();
        let mut failed = false;
        if let Some(text) = text {
            match bird.load(&text).await {
                Ok(()) => tell(BirdState::Up),
                Err(fault) => {
                    tracing::error!(%fault, "BIRD does not run as it should");
                    tell(BirdState::Down(fault.to_string()));
                    failed = true;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => break,
            changed = texts.changed() => if changed.is_err() { break },
            how = bird.fallen() => {
                tracing::error!(how, "BIRD has died: starting it again");
                tell(BirdState::Down(how));
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(backoff.failed()) => {}
                }
            }
            () = tokio::time::sleep(backoff.wait()), if failed => {
                backoff.failed();
            }
            () = tokio::time::sleep(HEALTHY), if !failed && !backoff.is_well() => backoff.well(),
        }
    }
    bird.end().await;
}
