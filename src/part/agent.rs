//! The agent: makes this host's kernel hold what the datastore says.
//!
//! One loop. A wake (a new snapshot, something that happened to a link, a clock) leads to one apply, and whatever comes
//! during an apply is taken in by the next; so an idle host applies at once and a busy one in batches, without any delay
//! of its own. The datastore's word is turned into wanted state in [`crate::plan::desired`], the kernel is touched in
//! [`kernel`].
//!
//! Normally nothing is observed: what an apply left behind is remembered, so one endpoint costs one run of
//! `iptables-restore`. The kernel is looked at in whole at the start, after an apply that failed, and on a clock; steps
//! that are found that way are drift, and logged with the name of the object.
//!
//! Invariants: before the first snapshot is complete nothing is removed, and only the guard and the base chains are
//! written. An object that cannot be programmed is closed and reported, and does not keep the others from being
//! programmed. At the end the kernel stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::edge::bird::{Bird, BirdState};
use crate::edge::exec::Spawner;
use crate::edge::guard::Guard;
use crate::edge::kernel_routes::{KernelRoutes, LinkEvent, LinkEvents, listen};
use crate::edge::ruleset::{self, RulesetEvents};
use crate::edge::run_dir::Marks;
use crate::edge::{iptables, sysctl};
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, Key};
use crate::model::name::{EndpointId, HostName};
use crate::model::pool::Family;
use crate::part::store::Store;
use crate::plan::bird::{Speaker, desired_bird};
use crate::plan::desired::{self, Changes, Desired};
use crate::plan::diff::SeenTable;
use crate::plan::filter::{self, Way};
use crate::plan::sysctl::{HOST, REVERSE_PATH_FOR_ALL};

mod kernel;
mod speaker;

use kernel::{Kernel, Why};

/// How often the sizes of sets are looked at (decided: a flushed set is repaired within 2 s).
const SIZES_EVERY: Duration = Duration::from_secs(1);

/// How far apart the looks are that somebody else's changes of the firewall lead to: one who changes it without end must
/// not keep us busy without end.
const LOOKS_APART: Duration = Duration::from_millis(500);

/// How often the whole kernel state is looked at, unless `IptablesRefreshInterval` says otherwise (the original's default).
const AUDIT_EVERY: Duration = Duration::from_mins(1);

/// How long to wait after an apply that failed: doubled from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// What the frame tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentSettings {
    pub(crate) run_dir: PathBuf,
    pub(crate) host_ip: Ipv4Addr,
    /// Whether a BIRD is run.
    pub(crate) bgp: bool,
}

/// What the kernel holds, for those who wait for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Programmed {
    /// The newest revision of the datastore that is in the kernel.
    pub(crate) revision: i64,
    /// Whether the kernel holds all that the snapshot says, but for the objects in `faults`.
    pub(crate) in_sync: bool,
    /// The endpoints of this host whose policy stands.
    pub(crate) endpoints: BTreeMap<EndpointId, EndpointProgrammed>,
    /// What is closed or missing, and why; an endpoint under its bare id.
    pub(crate) faults: BTreeMap<String, String>,
    pub(crate) bird: BirdState,
}

/// An endpoint in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndpointProgrammed {
    /// The revision of its record that stands.
    pub(crate) revision: i64,
    /// Whether all its addresses are routed to it.
    pub(crate) active: bool,
}

/// What [`prepare`] has brought up.
pub(crate) struct Prepared {
    spawner: Spawner,
    guard: Guard,
    routes: KernelRoutes,
    links: LinkEvents,
    ruleset: RulesetEvents,
}

/// Brings up what keeps containers safe before anything is known: kernel settings, the guard, base chains and jumps.
/// Needs neither etcd nor dockerd.
///
/// # Errors
/// Each is fatal: without these the node must not start.
pub(crate) async fn prepare(spawner: Spawner, run_dir: &Path) -> Result<Prepared, Fault> {
    for (setting, value) in HOST {
        sysctl::write(setting, value)?;
    }
    let reverse_path = sysctl::read(REVERSE_PATH_FOR_ALL)?;
    if !matches!(reverse_path.as_str(), "0" | "1") {
        return Err(Fault::World(format!(
            "check kernel setting {REVERSE_PATH_FOR_ALL}: it is {reverse_path}, so containers could send under others' \
             addresses; it must be 0 or 1"
        )));
    }
    let guard = Guard::raise(&spawner).await?;
    let seen = iptables::observe(Family::V4).await?;
    check_marks(&Marks::programmed(run_dir), &seen.filter);
    let steps = iptables::Steps { filter: desired::first_steps(&seen.filter), nat: Vec::new() };
    iptables::apply(Family::V4, &steps).await.map_err(|fault| fault.during("set up the base chains"))?;
    Ok(Prepared { spawner, guard, routes: KernelRoutes::open()?, links: listen()?, ruleset: ruleset::listen()? })
}

/// Takes away the marks of endpoints whose policy does not stand any more: somebody flushed it while no node ran.
fn check_marks(marks: &Marks, seen: &SeenTable) {
    let has = |chain| seen.chains.contains_key(&chain);
    for id in marks.all() {
        let interface = id.parse::<EndpointId>().ok().and_then(|id| id.interface());
        let stands = interface.as_ref().and_then(filter::suffix).is_some_and(|suffix| {
            Way::BOTH.iter().all(|way| has(way.dispatch_chain("")) && has(way.endpoint_chain(suffix)))
        });
        if !stands {
            mark(marks.clear(&id));
        }
    }
}

/// Programs the kernel until told to stop.
///
/// # Errors
/// Only what no retry can mend: the link to the kernel is gone.
pub(crate) async fn run(
    prepared: Prepared,
    host: HostName,
    store: Arc<Store>,
    programmed: watch::Sender<Programmed>,
    settings: AgentSettings,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let Prepared { spawner, guard, routes, links, ruleset } = prepared;
    let programmed = Arc::new(programmed);
    let (speech, spoken) = watch::channel(None);
    let agent = Agent {
        desired: Desired::new(host.clone(), Family::V4),
        kernel: Kernel::new(Family::V4, routes, ruleset),
        host,
        ip: settings.host_ip,
        store,
        programmed: Arc::clone(&programmed),
        pending: Changes::default(),
        known: None,
        speech,
        speaker: None,
        audit_every: AUDIT_EVERY,
        told: BTreeMap::new(),
        marks: Marks::programmed(&settings.run_dir),
    };
    let bird = settings.bgp.then(|| Bird::new(spawner.clone(), &settings.run_dir));
    // When the agent ends by itself BIRD ends with it, and the other way round.
    let stop = stop.child_token();
    let _ended = stop.clone().drop_guard();
    let speak = speaker::run(bird, spoken, &programmed, &stop);
    let (ended, ()) = tokio::join!(
        async {
            let ended = agent.run(spawner, guard, links, &stop).await;
            stop.cancel();
            ended
        },
        speak
    );
    ended
}

struct Agent {
    host: HostName,
    ip: Ipv4Addr,
    store: Arc<Store>,
    programmed: Arc<watch::Sender<Programmed>>,
    desired: Desired,
    kernel: Kernel,
    /// What was touched since the last apply.
    pending: Changes,
    /// The revision that `desired` was made from; `None` before the first load.
    known: Option<i64>,
    speaker: Option<Speaker>,
    speech: watch::Sender<Option<String>>,
    audit_every: Duration,
    /// The faults that the log tells of.
    told: BTreeMap<String, String>,
    marks: Marks,
}

/// What woke the loop.
enum Wake {
    Snapshot,
    Link(Option<LinkEvent>),
    Ruleset,
    Look,
    Sizes,
    Audit,
    Retry,
    GuardFell(String),
}

/// When the loop wakes by itself.
struct Clocks {
    sizes: Instant,
    audited: Instant,
    /// The last look at the ruleset that somebody else's change led to, and the next one.
    looked: Instant,
    look: Option<Instant>,
    /// When what failed is tried again, and how long after that the next time.
    retry: Option<Instant>,
    wait: Duration,
}

impl Clocks {
    fn start() -> Self {
        let now = Instant::now();
        Clocks { sizes: now + SIZES_EVERY, audited: now, looked: now, look: None, retry: None, wait: RETRY.0 }
    }

    fn failed(&mut self) {
        self.retry = Some(Instant::now() + self.wait);
        self.wait = (self.wait * 2).min(RETRY.1);
    }

    fn well(&mut self) {
        (self.retry, self.wait) = (None, RETRY.0);
    }
}

impl Agent {
    async fn run(
        mut self,
        spawner: Spawner,
        guard: Guard,
        mut links: LinkEvents,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        let mut guard = Some(guard);
        let mut synced = self.store.synced();
        let mut clocks = Clocks::start();
        loop {
            // Marks the state as seen before it is read: what comes later wakes the loop again.
            synced.mark_unchanged();
            self.take_in();
            if self.known.is_some() && clocks.retry.is_none() {
                if self.apply().await { clocks.well() } else { clocks.failed() }
            }
            // The interval may have changed with the snapshot.
            let audit = clocks.audited + self.audit_every;
            let fell = async {
                match guard.as_mut() {
                    Some(guard) => guard.fallen().await,
                    None => std::future::pending().await,
                }
            };
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                how = fell => Wake::GuardFell(how),
                changed = synced.changed() => match changed {
                    Ok(()) => Wake::Snapshot,
                    Err(_) => return Ok(()),
                },
                event = links.next() => Wake::Link(event),
                changed = self.kernel.ruleset_changed() => {
                    changed?;
                    Wake::Ruleset
                }
                () = sleep_until(clocks.look.unwrap_or(audit)), if clocks.look.is_some() => Wake::Look,
                () = sleep_until(clocks.retry.unwrap_or(audit)), if clocks.retry.is_some() => Wake::Retry,
                () = sleep_until(clocks.sizes) => Wake::Sizes,
                () = sleep_until(audit) => Wake::Audit,
            };
            if let Wake::GuardFell(how) = &wake {
                tracing::error!(how, "the guard has fallen: raising it again");
                guard = None;
            }
            self.heed(wake, &mut clocks).await?;
            if guard.is_none() {
                guard = self.raise(&spawner, &mut clocks).await;
            }
        }
    }

    async fn heed(&mut self, wake: Wake, clocks: &mut Clocks) -> Result<(), Fault> {
        match wake {
            // News may be just what the failed apply lacked.
            Wake::Snapshot | Wake::Retry => clocks.retry = None,
            Wake::Link(None) => {
                return Err(Fault::World("listen to links: the kernel closed the socket".to_owned()));
            }
            Wake::Link(Some(event)) => {
                self.heed_link(&event);
                clocks.retry = None;
            }
            Wake::Ruleset => {
                let soonest = Instant::now().max(clocks.looked + LOOKS_APART);
                clocks.look = clocks.look.or(Some(soonest));
            }
            Wake::Look => {
                self.kernel.doubt(Why::Ruleset);
                (clocks.look, clocks.looked) = (None, Instant::now());
            }
            Wake::Sizes => {
                self.look_at_sizes().await;
                clocks.sizes = Instant::now() + SIZES_EVERY;
            }
            Wake::Audit => {
                self.kernel.doubt(Why::Clock);
                self.check_interfaces();
                clocks.audited = Instant::now();
            }
            Wake::GuardFell(_) => {}
        }
        Ok(())
    }

    async fn raise(&mut self, spawner: &Spawner, clocks: &mut Clocks) -> Option<Guard> {
        match Guard::raise(spawner).await {
            Ok(raised) => {
                self.kernel.clear("guard");
                Some(raised)
            }
            Err(fault) => {
                self.kernel.blame("guard", fault.to_string());
                clocks.failed();
                None
            }
        }
    }

    /// Takes the newest snapshot in, if the datastore has been loaded at all.
    fn take_in(&mut self) {
        let Agent { store, desired, pending, known, host, ip, speaker, speech, audit_every, .. } = self;
        store.take(|snapshot, news| {
            if snapshot.revision == 0 {
                return;
            }
            pending.merge(desired.update(snapshot, news));
            *known = Some(snapshot.revision);
            // Most news is of endpoints, on which nothing of the following depends.
            if !news.any(|key| !matches!(key, Key::Endpoint(_) | Key::Assignment(_))) {
                return;
            }
            let now = desired_bird(snapshot, host, *ip);
            if speaker.as_ref() != Some(&now) {
                speech.send_replace(Some(now.render()));
                *speaker = Some(now);
            }
            let interval = snapshot.setting(host, "IptablesRefreshInterval").and_then(|text| text.trim().parse().ok());
            *audit_every = interval.filter(|seconds| *seconds > 0).map_or(AUDIT_EVERY, Duration::from_secs);
        });
    }

    /// Makes the kernel hold what is wanted; answers whether all went well. What came of it is published.
    async fn apply(&mut self) -> bool {
        let pending = std::mem::take(&mut self.pending);
        let well = self.kernel.apply(&self.desired, &pending).await;
        self.publish(&pending);
        well
    }

    /// Tells what came of an apply, if anything did.
    fn publish(&mut self, pending: &Changes) {
        let Agent { programmed, desired, kernel, known, told, marks, .. } = self;
        let revision = known.unwrap_or_default();
        let mut faults = desired.faults.clone();
        faults.extend(kernel.faults().map(|(object, why)| (object.clone(), why.clone())));
        told.retain(|object, why| faults.get(object) == Some(why));
        for (object, why) in &faults {
            // A fault of the kernel is told when it has outlived one retry: an interface that goes with its container
            // takes its route along before anybody can say so in the datastore.
            let lasts = desired.faults.contains_key(object) || programmed.borrow().faults.get(object) == Some(why);
            if lasts && told.insert(object.clone(), why.clone()).is_none() {
                tracing::warn!(object, why, "not as it should be");
            }
        }
        let mut keys: BTreeSet<&EndpointKey> = pending.endpoints.iter().chain(kernel.rerouted()).collect();
        if kernel.looked_at_all() {
            keys.extend(desired.placed().map(|(key, _)| key));
        }
        programmed.send_if_modified(|programmed| {
            let in_sync = kernel.is_known();
            let same = keys.is_empty()
                && programmed.revision == revision
                && programmed.in_sync == in_sync
                && programmed.faults == faults;
            if same {
                return false;
            }
            programmed.revision = revision;
            programmed.in_sync = in_sync;
            programmed.faults = faults;
            let before = programmed.endpoints.len();
            for key in keys {
                match desired.endpoint(key).filter(|(_, endpoint)| kernel.holds(endpoint)) {
                    Some((revision, endpoint)) => {
                        let active = endpoint.is_active() && kernel.routes_to(endpoint, &desired.routes);
                        let stands = EndpointProgrammed { revision, active };
                        if programmed.endpoints.insert(key.endpoint.clone(), stands).is_none() {
                            mark(marks.set(key.endpoint.as_str(), ""));
                        }
                    }
                    None => {
                        programmed.endpoints.remove(&key.endpoint);
                        mark(marks.clear(key.endpoint.as_str()));
                    }
                }
            }
            // Those of an earlier run, once everything has been looked at.
            if before == 0 && in_sync {
                let strangers = marks
                    .all()
                    .into_iter()
                    .filter(|id| id.parse::<EndpointId>().is_ok_and(|id| !programmed.endpoints.contains_key(&id)));
                strangers.for_each(|id| mark(marks.clear(&id)));
            }
            true
        });
    }

    fn heed_link(&mut self, event: &LinkEvent) {
        match event {
            LinkEvent::Lost => self.kernel.doubt(Why::Links),
            LinkEvent::Changed(name) => {
                let Some(key) = self.desired.owner(name).cloned() else { return };
                if let Some((_, endpoint)) = self.desired.endpoint(&key) {
                    self.kernel.forget_routes(&endpoint.interface);
                    self.pending.routes.extend(&endpoint.addresses);
                    self.pending.endpoints.insert(key);
                }
            }
        }
    }

    /// Notices that a set was flushed or filled behind our back.
    async fn look_at_sizes(&mut self) {
        if self.known.is_some() && !self.desired.sets.is_empty() {
            self.kernel.compare_sizes(&self.desired.sets).await;
        }
    }

    /// Puts right what settings of containers' interfaces somebody has changed.
    fn check_interfaces(&mut self) {
        let routed =
            self.desired.placed().filter(|(_, endpoint)| self.kernel.routes_to(endpoint, &self.desired.routes));
        let faults: Vec<(String, String)> = routed
            .filter(|(_, endpoint)| endpoint.is_active())
            .filter_map(|(key, endpoint)| {
                let fault = sysctl::apply_to_interface(&endpoint.interface).err()?;
                Some((desired::endpoint_object(&key.endpoint), fault.to_string()))
            })
            .collect();
        for (object, why) in faults {
            tracing::warn!(object, why, "kernel settings of an interface are not as they should be");
        }
    }
}

/// The marks are for a hook that finds no node; without one it refuses a start.
fn mark(marked: Result<(), Fault>) {
    if let Err(fault) = marked {
        tracing::warn!(%fault, "a mark of what the kernel holds is not right");
    }
}

#[cfg(test)]
mod tests;
