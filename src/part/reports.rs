//! Reports: tells in the datastore that this node runs and how its endpoints are, for orchestrators and operators.
//!
//! A part of its own that nobody waits for: a slow etcd keeps reports back and nothing else. News are gathered for
//! `EndpointReportingDelaySecs`, only what differs from what stands there is written, and at most [`MOST`] records at
//! once, [`APART`] apart. What stands there is read when this begins and whenever etcd has been away, so what an earlier
//! run has left is put right. The keys are of no use to agents, so no node's view holds them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::edge::etcd::{Etcd, Outcome, When, Write, to_json};
use crate::edge::wall_clock;
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, Key, endpoint_reports_of};
use crate::model::name::HostName;
use crate::model::report::{EndpointReport, Health, HostReport};
use crate::model::roll_call::{RollAnswer, RollCall};
use crate::part::agent::Programmed;
use crate::part::network::Network;
use crate::part::store::Store;
use crate::part::under_way::or_never;
use crate::plan::reports::{Known, Reports, changes, desired_report};
use crate::plan::settings::HostReport as Interval;

/// How many reports one transaction holds, below etcd's limit of 128.
const MOST: usize = 100;

/// The least time between two transactions.
const APART: Duration = Duration::from_millis(200);

/// How long to wait after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Reporter {
    pub(crate) host: HostName,
    pub(crate) store: Arc<Store>,
    pub(crate) etcd: Etcd,
    pub(crate) network: Arc<Network>,
    pub(crate) programmed: watch::Receiver<Programmed>,
}

impl Reporter {
    /// Reports until told to stop. What is said then stays, but for the host's own report, which runs out.
    pub(crate) async fn run(self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.tell_of_host() => {}
            () = self.tell_of_endpoints() => {}
            () = self.answer_roll_calls() => {}
        }
    }

    async fn tell_of_host(&self) {
        let (born, mut first) = (Instant::now(), true);
        let (mut synced, mut settings) = (self.store.synced(), self.store.settings());
        loop {
            if synced.wait_for(|synced| synced.connected).await.is_err() {
                return std::future::pending().await;
            }
            let interval = settings.borrow_and_update().host_report;
            if let Some(interval) = interval {
                match self.put_host_report(interval, born.elapsed(), first).await {
                    Ok(()) => first = false,
                    Err(fault) => tracing::debug!(%fault, "this host is not reported"),
                }
            }
            // Until the next is due, or something else is asked for.
            let due = or_never(interval.map(|interval| sleep(interval.every)));
            tokio::select! {
                () = due => {}
                // Who was cut off says that it is there again at once.
                () = async { drop(synced.wait_for(|synced| !synced.connected).await) } => {}
                () = async { drop(settings.wait_for(|settings| settings.host_report != interval).await) } => {}
            }
        }
    }

    async fn put_host_report(&self, interval: Interval, uptime: Duration, first_update: bool) -> Result<(), Fault> {
        let report = to_json(&HostReport { time: wall_clock::now(), uptime: uptime.as_secs(), first_update })?;
        // A lease for each: it outlasts the next report or takes the key with it.
        let lease = self.etcd.lease(interval.ttl).await?;
        let writes = [
            Write::PutLeased(Key::HostStatus(self.host.clone()), report.clone(), lease),
            Write::Put(Key::HostLastStatus(self.host.clone()), report),
        ];
        if let Outcome::Done(revision) = self.etcd.transact("report this host", &[], &writes).await? {
            self.store.reported(revision);
        }
        Ok(())
    }

    /// Answers each roll call when this host's kernel holds what the datastore said when it was made.
    async fn answer_roll_calls(&self) {
        let (mut synced, mut programmed) = (self.store.synced(), self.programmed.clone());
        let mut answered = BTreeSet::new();
        loop {
            synced.borrow_and_update();
            programmed.borrow_and_update();
            let mut failed = false;
            for (call, answer) in self.due_answers(&mut answered) {
                match self.answer(call, &answer).await {
                    Ok(()) => {
                        answered.insert(call);
                    }
                    Err(fault) => {
                        tracing::debug!(%fault, "a roll call is not answered yet");
                        failed = true;
                    }
                }
            }
            if failed {
                sleep(RETRY).await;
                continue;
            }
            let ended = tokio::select! {
                changed = synced.changed() => changed.is_err(),
                changed = programmed.changed() => changed.is_err(),
            };
            if ended {
                return std::future::pending().await;
            }
        }
    }

    /// The answers that can be given and are not among those which were.
    fn due_answers(&self, answered: &mut BTreeSet<i64>) -> Vec<(i64, RollAnswer)> {
        self.store.read(|snapshot| {
            answered.retain(|call| snapshot.roll_calls.contains_key(call));
            let open = snapshot.roll_calls.iter().filter(|(call, _)| !answered.contains(call));
            let open: Vec<_> =
                open.filter_map(|(call, record)| Some((*call, record.revision, record.readable()?))).collect();
            let programmed = self.programmed.borrow();
            let reached =
                open.into_iter().filter(|(_, revision, _)| programmed.in_sync && programmed.revision >= *revision);
            let faults_of = |call: &RollCall| {
                let fault = |object: &String| Some((object.clone(), programmed.faults.get(object)?.clone()));
                RollAnswer { faults: call.objects.iter().filter_map(fault).collect() }
            };
            reached.map(|(call, _, asked)| (call, faults_of(asked))).collect()
        })
    }

    async fn answer(&self, call: i64, answer: &RollAnswer) -> Result<(), Fault> {
        let write = Write::PutLeased(Key::RollAnswer(call, self.host.clone()), to_json(answer)?, call);
        // Nobody waits any more if it is gone, and its lease with it.
        self.etcd.transact("answer a roll call", &[When::Present(Key::RollCall(call))], &[write]).await.map(drop)
    }

    async fn tell_of_endpoints(&self) {
        let (mut synced, mut programmed) = (self.store.synced(), self.programmed.clone());
        let (mut failing, mut settings) = (self.network.failing(), self.store.settings());
        let mut beside = self.network.beside();
        // What stands in the datastore; `None`: not known.
        let mut there: Option<Reports> = None;
        loop {
            let connected = synced.borrow_and_update().connected;
            programmed.borrow_and_update();
            failing.borrow_and_update();
            beside.borrow_and_update();
            let delay = settings.borrow_and_update().endpoint_report;
            let mut more = false;
            if connected {
                match self.bring(&mut there, delay.is_some()).await {
                    Ok(left) => more = left,
                    Err(fault) => {
                        tracing::debug!(%fault, "endpoints are not reported");
                        there = None;
                        sleep(RETRY).await;
                        continue;
                    }
                }
            } else {
                there = None;
            }
            if !more {
                let ended = tokio::select! {
                    changed = synced.changed() => changed.is_err(),
                    changed = programmed.changed() => changed.is_err(),
                    changed = failing.changed() => changed.is_err(),
                    changed = beside.changed() => changed.is_err(),
                    changed = settings.changed() => changed.is_err(),
                };
                if ended {
                    return std::future::pending().await;
                }
                sleep(delay.unwrap_or_default()).await;
            }
            sleep(APART).await;
        }
    }

    /// Writes the next of what differs; answers whether there is more.
    async fn bring(&self, there: &mut Option<Reports>, enabled: bool) -> Result<bool, Fault> {
        let known = match there.take() {
            Some(known) => known,
            None => self.read().await?,
        };
        let known = there.insert(known);
        let changes = if enabled { self.differing(known) } else { changes(std::iter::empty(), known, MOST) };
        if changes.is_empty() {
            return Ok(false);
        }
        let writes: Result<Vec<Write>, Fault> = changes.iter().map(write).collect();
        self.etcd.transact("report endpoints", &[], &writes?).await?;
        let more = changes.len() == MOST;
        for (key, report) in changes {
            let _ = match report {
                Some(report) => known.insert(key, report),
                None => known.remove(&key),
            };
        }
        Ok(more)
    }

    /// The next of what is to be said of this host's endpoints now and is not what is there.
    fn differing(&self, there: &Reports) -> Vec<(EndpointKey, Option<EndpointReport>)> {
        let programmed = self.programmed.borrow();
        let failing: BTreeMap<String, String> = self.network.failing().borrow().clone();
        let beside = self.network.beside().borrow().clone();
        let known = Known {
            faults: &programmed.faults,
            failing: &failing,
            beside: &beside,
            routed: &|key| programmed.endpoints.get(key).map(|one| one.active),
        };
        self.store.read(|snapshot| {
            let own = snapshot.endpoints_of(&self.host);
            changes(own.map(|(key, record)| (key, desired_report(key, record, &known))), there, MOST)
        })
    }

    /// What stands in the datastore of this host's endpoints. What cannot be read counts as an error without a reason,
    /// which nothing says, so it is written anew or taken away.
    async fn read(&self) -> Result<Reports, Fault> {
        let found = self.etcd.below(&endpoint_reports_of(&self.host)).await?;
        let reports = found.into_iter().filter_map(|(path, value)| {
            let Some(Key::EndpointStatus(key)) = Key::parse(&path) else { return None };
            let unreadable = || EndpointReport::plain(Health::Error);
            Some((key, serde_json::from_slice(&value).unwrap_or_else(|_| unreadable())))
        });
        Ok(reports.collect())
    }
}

fn write((key, report): &(EndpointKey, Option<EndpointReport>)) -> Result<Write, Fault> {
    let key = Key::EndpointStatus(key.clone());
    Ok(match report {
        Some(report) => Write::Put(key, to_json(report)?),
        None => Write::Delete(key),
    })
}
