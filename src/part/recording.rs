//! Recording: this host writes down itself and what a new cluster needs, once it can.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::edge::etcd::Etcd;
use crate::model::fault::Fault;
use crate::model::host::Host;
use crate::part::defaults;
use crate::part::store::Store;

/// How long to wait before trying etcd again.
const RETRY: Duration = Duration::from_millis(500);

/// Records defaults and this host as soon as etcd is there.
///
/// # Errors
/// `Conflict` if another host records this host's address as its own: two hosts with one address cannot both be reached.
pub(crate) async fn record(host: &Host, store: &Store, etcd: &Etcd, stop: &CancellationToken) -> Result<(), Fault> {
    let mut told = None;
    loop {
        let mut synced = store.synced();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            ready = synced.wait_for(|synced| synced.connected) => if ready.is_err() { return Ok(()) },
        }
        store.read(|snapshot| defaults::check(host, snapshot))?;
        let mut done = Ok(());
        for (when, writes) in store.read(|snapshot| defaults::wanted(host, snapshot))? {
            done = etcd.transact("record the defaults", &when, &writes).await.map(drop);
            // What comes later speaks for what comes before.
            if done.is_err() {
                break;
            }
        }
        match done {
            Ok(()) => return Ok(()),
            Err(fault) => {
                if told.as_ref() != Some(&fault) {
                    tracing::warn!(%fault, "the defaults are not recorded yet");
                }
                told = Some(fault);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}
