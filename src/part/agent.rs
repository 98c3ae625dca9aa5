//! The agent: makes this host's kernel hold what the datastore says.
//!
//! One loop. A wake (a new snapshot, something that happened to a link, a clock) leads to one apply, and whatever comes
//! during an apply is taken in by the next; so an idle host applies at once and a busy one in batches. What concerns an
//! endpoint of this host never waits; members of tags that come and go elsewhere, which may be a thousand in a second, are
//! applied together where they come faster than [`REST`]. The datastore's word is turned into wanted state in
//! [`crate::plan::desired`], the kernel is touched in [`kernel`], and what came of it is told in [`programmed`].
//!
//! Normally nothing is observed: what an apply left behind is remembered, so one endpoint costs one run of
//! `iptables-restore`. The kernel is looked at in whole at the start, after an apply that failed, and on a clock; steps
//! that are found that way are drift, and logged with the name of the object. So is what [`upkeep`] puts right: settings of
//! the kernel, and next hops, at once where the kernel tells of them ([`netconf`]), else on the clock.
//!
//! IPv4 and IPv6 are two planes of the same: each has its wanted state and its kernel, and an endpoint stands in those that
//! it has an address of. On a kernel without IPv6 there is the one plane.
//!
//! Invariants: before the first snapshot is complete nothing is removed, and only the guard and the base chains are
//! written. An object that cannot be programmed is closed and reported, and does not keep the others from being
//! programmed. At the end the kernel stays as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::edge::bird::Bird;
use crate::edge::exec::Spawner;
use crate::edge::guard::Guard;
use crate::edge::iptables::{self, Seen};
use crate::edge::kernel_routes::{KernelRoutes, LinkEvent, LinkEvents, listen};
use crate::edge::netconf::{self, SettingEvents, Touched};
use crate::edge::ruleset;
use crate::edge::run_dir::Marks;
use crate::edge::{ipsets, sysctl};
use crate::model::fault::Fault;
use crate::model::host::Host;
use crate::model::key::Key;
use crate::model::pool::Family;
use crate::part::metrics::Metrics;
use crate::part::store::Store;
use crate::part::under_way::or_never;
use crate::plan::backoff::Backoff;
use crate::plan::bird::{Speaker, desired_bird};
use crate::plan::desired::{self, Changes, Desired};
use crate::plan::diff::{self, FILTER, RAW, SeenTable};
use crate::plan::raw::desired_raw;
use crate::plan::rota::Rota;
use crate::plan::settings::Settings;
use crate::plan::sysctl::FORWARD_IPV4;

mod kernel;
mod programmed;
mod speaker;
mod upkeep;

use kernel::{Ear, Kernel, Why};
pub(crate) use kernel::{LOOK, WHOLE};
use programmed::check_marks;
pub(crate) use programmed::{EndpointProgrammed, Programmed};

/// How often the sizes of sets are looked at (decided: a flushed set is repaired within 2 s).
const SIZES_EVERY: Duration = Duration::from_secs(1);

/// How far apart the looks are that somebody else's changes of the firewall, or of settings, lead to, at least and at most,
/// and in between as many times as long as a look takes: one who changes them without end must not keep us busy without end.
const LOOKS_APART: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
const LOOKS_SHARE: u32 = 10;

/// How far apart the applies are that only endpoints of other hosts lead to: each is a run of ipset.
const REST: Duration = Duration::from_millis(20);

/// How long to wait after an apply that failed, or a guard that could not be raised; and how long at most before an apply
/// for which somebody waits.
const RETRY: Backoff = Backoff::between(Duration::from_millis(200), Duration::from_secs(10));
const HASTE: Duration = Duration::from_secs(1);

/// What the frame tells the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentSettings {
    pub(crate) run_dir: PathBuf,
    pub(crate) host: Host,
    /// Whether a BIRD is run.
    pub(crate) bgp: bool,
}

/// What [`prepare`] has brought up.
pub(crate) struct Prepared {
    spawner: Spawner,
    guard: Guard,
    routes: KernelRoutes,
    links: LinkEvents,
    settings: SettingEvents,
    ear: Ear,
    /// Those that this host's kernel has.
    families: Vec<Family>,
    services: BTreeSet<u16>,
}

impl Prepared {
    /// Whether containers are given IPv6 here.
    pub(crate) fn gives_ipv6(&self) -> bool {
        self.families.contains(&Family::V6)
    }
}

/// Brings up what keeps containers safe before anything is known: kernel settings, the guard, base chains and jumps.
/// Needs neither etcd nor dockerd. The services are the TCP ports of this host's that no container gets to.
///
/// # Errors
/// Each is fatal: without these the node must not start.
pub(crate) async fn prepare(spawner: Spawner, run_dir: &Path, services: BTreeSet<u16>) -> Result<Prepared, Fault> {
    forward_ipv4().await?;
    // All that is but looked at is looked at while the guard is made, which takes its time.
    let (guard, seen, seen6) =
        tokio::join!(Guard::raise(&spawner), iptables::observe(Family::V4), iptables::observe(Family::V6));
    let guard = guard?;
    let ipv6 = async {
        let stood = set_up(Family::V6, seen6?, &services).await?;
        if !sysctl::forwards_ipv6()? {
            iptables::close_forward(Family::V6).await?;
        }
        sysctl::forward_ipv6().map(|()| stood)
    };
    let (stood, ipv6) = tokio::join!(set_up(Family::V4, seen?, &services), ipv6);
    let (mut families, mut stood) = (vec![Family::V4], vec![stood?]);
    match ipv6 {
        Ok(also) => {
            families.push(Family::V6);
            stood.push(also);
        }
        // The tool, not the kernel: what an earlier node has left there must not be taken for in force and be left alone.
        Err(fault @ Fault::Away(_)) => return Err(fault),
        Err(fault) => tracing::warn!(%fault, "no IPv6 for containers on this host"),
    }
    check_marks(&Marks::programmed(run_dir), &stood);
    let ear = Ear::new(ruleset::listen()?);
    let (routes, links, settings) = (KernelRoutes::open()?, listen()?, netconf::listen()?);
    Ok(Prepared { spawner, guard, routes, links, settings, ear, families, services })
}

/// Makes the host forward IPv4. Who switches that on opens the host to whatever its neighbours send through it: dockerd then
/// closes the chain FORWARD but for what it lets through itself, and does not where it finds that somebody else was first.
async fn forward_ipv4() -> Result<(), Fault> {
    if sysctl::read(FORWARD_IPV4)? != "1" {
        iptables::close_forward(Family::V4).await?;
    }
    sysctl::write(FORWARD_IPV4, "1").map(drop)
}

/// Writes the base chains of a family and the jumps to them; answers what stood in the filter table before.
async fn set_up(family: Family, mut seen: Seen, services: &BTreeSet<u16>) -> Result<SeenTable, Fault> {
    let mut table = |name| seen.remove(name).unwrap_or_default();
    let (stood, raw) = (table(FILTER), table(RAW));
    let steps = iptables::Steps::from([
        (FILTER, desired::first_steps(family, &stood)),
        (RAW, diff::steps(&desired_raw(family, services), &raw, None)),
    ]);
    iptables::apply(family, &steps).await.map_err(|fault| fault.during("set up the base chains"))?;
    Ok(stood)
}

/// Programs the kernel until told to stop.
///
/// # Errors
/// Only what no retry can mend: the link to the kernel is gone.
pub(crate) async fn run(
    prepared: Prepared,
    store: Arc<Store>,
    programmed: watch::Sender<Programmed>,
    settings: AgentSettings,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<(), Fault> {
    let Prepared { spawner, guard, routes, links, settings: setting_events, ear, families, services } = prepared;
    let routes = Arc::new(routes);
    let plane = |family: Family| Plane {
        desired: Desired::new(settings.host.name.clone(), family).with_services(&services),
        kernel: Kernel::new(family, Arc::clone(&routes), Arc::clone(&metrics)),
        pending: Changes::default(),
    };
    let programmed = Arc::new(programmed);
    let (speech, spoken) = watch::channel(None);
    let agent = Agent {
        planes: families.into_iter().map(plane).collect(),
        routes,
        ear,
        host: settings.host,
        store,
        programmed: Arc::clone(&programmed),
        metrics,
        known: None,
        guard_lost: None,
        strangers: BTreeSet::new(),
        may_be_strange: true,
        touched: Touched::default(),
        rota: Rota::default(),
        speech,
        speaker: None,
        audit_every: Settings::default().refresh,
        told: BTreeMap::new(),
        marks: Marks::programmed(&settings.run_dir),
        swept: false,
    };
    let bird = settings.bgp.then(|| Bird::new(spawner.clone(), &settings.run_dir));
    // When the agent ends by itself BIRD ends with it, and the other way round.
    let stop = stop.child_token();
    let _ended = stop.clone().drop_guard();
    let speak = speaker::run(bird, spoken, &programmed, &stop);
    let (ended, ()) = tokio::join!(
        async {
            let ended = agent.run(spawner, guard, links, setting_events, &stop).await;
            stop.cancel();
            ended
        },
        speak
    );
    ended
}

/// One family: what should be, what is, and what was touched since the last apply.
struct Plane {
    desired: Desired,
    kernel: Kernel,
    pending: Changes,
}

struct Agent {
    host: Host,
    store: Arc<Store>,
    programmed: Arc<watch::Sender<Programmed>>,
    metrics: Arc<Metrics>,
    planes: Vec<Plane>,
    routes: Arc<KernelRoutes>,
    ear: Ear,
    /// Interfaces whose settings and next hops somebody may have changed.
    touched: Touched,
    /// The interfaces that are looked at whether or not anything was told of them.
    rota: Rota<String>,
    /// Why there is no guard.
    guard_lost: Option<String>,
    /// Interfaces with our prefix that no endpoint of this host has.
    strangers: BTreeSet<String>,
    /// There may be others than those by now.
    may_be_strange: bool,
    /// The revision that was taken in; `None` before the first load.
    known: Option<i64>,
    speaker: Option<Speaker>,
    speech: watch::Sender<Option<String>>,
    audit_every: Duration,
    /// The faults that the log tells of.
    told: BTreeMap<String, String>,
    marks: Marks,
    /// Whether the marks of an earlier run that stand for nothing any more are gone.
    swept: bool,
}

/// What woke the loop.
enum Wake {
    Snapshot,
    Link(Option<LinkEvent>),
    Ruleset,
    Look,
    Settings,
    LookAtSettings,
    Sizes,
    Audit,
    Retry,
    Guard,
    Rested,
    GuardFell(String),
}

/// The looks that somebody else's changes of something lead to.
struct Looks {
    last: Instant,
    /// How long a look took.
    took: Duration,
    next: Option<Instant>,
}

impl Looks {
    fn none() -> Self {
        Looks { last: Instant::now(), took: Duration::ZERO, next: None }
    }

    /// Something was changed.
    fn ask(&mut self) {
        let apart = (self.took * LOOKS_SHARE).clamp(LOOKS_APART.0, LOOKS_APART.1);
        let soonest = Instant::now().max(self.last + apart);
        self.next.get_or_insert(soonest);
    }

    fn done(&mut self) {
        (self.last, self.next) = (Instant::now(), None);
    }

    /// Waits for the next; for ever, while there is none.
    async fn due(&self) {
        or_never(self.next.map(sleep_until)).await;
    }
}

/// When the loop wakes by itself.
struct Clocks {
    sizes: Instant,
    audited: Instant,
    ruleset: Looks,
    settings: Looks,
    /// When what is not pressing may be applied.
    rested: Instant,
    /// An apply that failed.
    apply: Retry,
    /// A guard that could not be raised.
    guard: Retry,
}

/// When something that failed is tried again.
struct Retry {
    next: Option<Instant>,
    backoff: Backoff,
    /// When it was tried the last time.
    tried: Instant,
}

impl Retry {
    fn none() -> Self {
        Retry { next: None, backoff: RETRY, tried: Instant::now() }
    }

    /// Notes how a try went.
    fn came_to(&mut self, well: bool) {
        self.tried = Instant::now();
        self.next = if well { None } else { Some(self.tried + self.backoff.failed()) };
        if well {
            self.backoff.well();
        }
    }

    /// Somebody waits for it: it does not wait as long as it might, where it has been tried in vain many times.
    fn hasten(&mut self) {
        let soonest = self.tried + HASTE;
        self.next = self.next.map(|next| next.min(soonest));
    }

    /// It does not wait any longer.
    fn try_now(&mut self) {
        self.next = None;
    }

    fn waits(&self) -> bool {
        self.next.is_some()
    }

    /// Waits for the next try; for ever, while nothing has failed.
    async fn due(&self) {
        or_never(self.next.map(sleep_until)).await;
    }
}

impl Clocks {
    fn start() -> Self {
        let now = Instant::now();
        Clocks {
            sizes: now + SIZES_EVERY,
            audited: now,
            ruleset: Looks::none(),
            settings: Looks::none(),
            rested: now,
            apply: Retry::none(),
            guard: Retry::none(),
        }
    }

    /// Whether what there is to apply has to wait.
    fn rests(&self, pressing: bool) -> bool {
        !pressing && Instant::now() < self.rested
    }

    /// Notes an apply. One without news, to which a clock led, keeps none waiting.
    fn applied(&mut self, news: bool) {
        if news {
            self.rested = Instant::now() + REST;
        }
    }
}

impl Agent {
    async fn run(
        mut self,
        spawner: Spawner,
        guard: Guard,
        mut links: LinkEvents,
        mut settings: SettingEvents,
        stop: &CancellationToken,
    ) -> Result<(), Fault> {
        let mut guard = Some(guard);
        let mut synced = self.store.synced();
        let mut clocks = Clocks::start();
        loop {
            // Marks the state as seen before it is read: what comes later wakes the loop again.
            synced.mark_unchanged();
            self.metrics.beat();
            self.take_in();
            let again = !clocks.apply.waits() || self.has_refused();
            let due = self.known.is_some() && (again || self.has_pending() && !self.is_lost());
            let pressing = self.is_pressing();
            if !due && pressing {
                clocks.apply.hasten();
            }
            let rests = clocks.rests(pressing || again && self.doubts());
            if due && !rests {
                let (news, began) = (self.has_news(), Instant::now());
                let well = self.apply(again).await;
                if again {
                    clocks.apply.came_to(well);
                }
                clocks.applied(news);
                if self.planes.iter().any(|plane| plane.kernel.looked_at_all()) {
                    clocks.ruleset.took = began.elapsed();
                }
            }
            // The interval may have changed with the snapshot.
            let audit = clocks.audited + self.audit_every;
            let fell = or_never(guard.as_mut().map(Guard::fallen));
            let wake = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                how = fell => Wake::GuardFell(how),
                // What is due by the clock comes first: it is rare, and news may come without end.
                () = sleep_until(clocks.sizes) => Wake::Sizes,
                () = sleep_until(audit) => Wake::Audit,
                () = clocks.ruleset.due() => Wake::Look,
                () = clocks.settings.due() => Wake::LookAtSettings,
                () = clocks.guard.due() => Wake::Guard,
                () = clocks.apply.due() => Wake::Retry,
                event = links.next() => Wake::Link(event),
                changed = synced.changed() => match changed {
                    Ok(()) => Wake::Snapshot,
                    Err(_) => return Ok(()),
                },
                changed = self.ear.changed() => {
                    changed?;
                    Wake::Ruleset
                }
                // What comes after the first is taken with the look: to wire one container is some ten changes.
                changed = settings.next(&mut self.touched), if clocks.settings.next.is_none() => {
                    changed?;
                    Wake::Settings
                }
                () = sleep_until(clocks.rested), if due && rests => Wake::Rested,
            };
            if let Wake::GuardFell(how) = &wake {
                tracing::error!(how, "the guard has fallen: raising it again");
                guard = None;
            }
            if let Wake::LookAtSettings = &wake {
                settings.take(&mut self.touched);
            }
            self.heed(wake, &mut clocks).await?;
            if guard.is_none() && !clocks.guard.waits() {
                guard = self.raise(&spawner, &mut clocks.guard).await;
            }
        }
    }

    /// The next apply looks at the kernel first, in both families.
    fn doubt(&mut self, why: Why) {
        self.planes.iter_mut().for_each(|plane| plane.kernel.doubt(why));
    }

    async fn heed(&mut self, wake: Wake, clocks: &mut Clocks) -> Result<(), Fault> {
        match wake {
            Wake::Retry => clocks.apply.try_now(),
            Wake::Guard => clocks.guard.try_now(),
            Wake::Link(None) => {
                return Err(Fault::World("listen to links: the kernel closed the socket".to_owned()));
            }
            Wake::Link(Some(event)) => {
                if event == LinkEvent::Lost {
                    self.touched.everything = true;
                    clocks.settings.ask();
                }
                self.heed_link(&event);
                if event == LinkEvent::Lost {
                    clocks.apply.try_now();
                }
            }
            Wake::Ruleset => clocks.ruleset.ask(),
            Wake::Look => {
                self.doubt(Why::Ruleset);
                clocks.apply.try_now();
                clocks.ruleset.done();
            }
            Wake::Settings => clocks.settings.ask(),
            Wake::LookAtSettings => {
                let began = Instant::now();
                self.check_host();
                let touched = std::mem::take(&mut self.touched);
                self.check_interfaces(touched).await;
                clocks.settings.done();
                clocks.settings.took = began.elapsed();
            }
            Wake::Sizes => {
                self.check_host();
                let turn = self.next_in_turn();
                self.check_interfaces(turn).await;
                if self.look_at_sizes().await {
                    clocks.apply.try_now();
                }
                if self.may_be_strange || !self.strangers.is_empty() {
                    self.look_for_strangers();
                }
                for Plane { desired, kernel, .. } in &mut self.planes {
                    kernel.recheck_flows(desired).await;
                }
                clocks.sizes = Instant::now() + SIZES_EVERY;
            }
            Wake::Audit => {
                if self.routes.has_ended() {
                    return Err(Fault::World("program routes: the netlink socket has broken".to_owned()));
                }
                self.doubt(Why::Clock);
                clocks.apply.try_now();
                self.may_be_strange = true;
                clocks.audited = Instant::now();
            }
            Wake::Snapshot | Wake::Rested | Wake::GuardFell(_) => {}
        }
        Ok(())
    }

    async fn raise(&mut self, spawner: &Spawner, retry: &mut Retry) -> Option<Guard> {
        let raised = Guard::raise(spawner).await;
        self.guard_lost = raised.as_ref().err().map(ToString::to_string);
        self.publish(BTreeSet::new());
        retry.came_to(raised.is_ok());
        raised.ok()
    }

    /// Takes the newest snapshot in, if the datastore has been loaded at all.
    fn take_in(&mut self) {
        let Agent { store, planes, known, host, speaker, speech, audit_every, .. } = self;
        store.take(|snapshot, news| {
            if snapshot.revision == 0 {
                return;
            }
            for Plane { desired, pending, .. } in planes {
                pending.merge(desired.update(snapshot, news));
            }
            *known = Some(snapshot.revision);
            // Most news is of endpoints, on which nothing of the following depends.
            if !news.any(|key| !matches!(key, Key::Endpoint(_) | Key::Assignment(_))) {
                return;
            }
            let now = desired_bird(snapshot, host);
            if speaker.as_ref() != Some(&now) {
                speech.send_replace(Some(now.render()));
                *speaker = Some(now);
            }
            *audit_every = Settings::of(snapshot, &host.name).refresh;
        });
    }

    /// Whether more was touched than members of tags that came or went.
    fn is_pressing(&self) -> bool {
        self.planes.iter().any(|plane| plane.pending.is_pressing())
    }

    /// Whether the kernel is to be looked at.
    fn doubts(&self) -> bool {
        self.planes.iter().any(|plane| plane.kernel.doubts())
    }

    /// Whether anything was touched since the last apply.
    fn has_pending(&self) -> bool {
        self.has_news() || self.planes.iter().any(|plane| plane.pending != Changes::default())
    }

    /// Whether nothing can be done before the kernel was looked at.
    fn is_lost(&self) -> bool {
        self.planes.iter().any(|plane| plane.kernel.is_lost())
    }

    /// Whether something was touched that the kernel has refused.
    fn has_refused(&self) -> bool {
        self.planes.iter().any(|plane| plane.kernel.has_refused(&plane.pending))
    }

    /// Whether a snapshot was taken in that is not yet told of as applied.
    fn has_news(&self) -> bool {
        self.known.is_some_and(|known| known != self.programmed.borrow().revision)
    }

    /// Makes the kernel hold what is wanted; answers whether all went well. What came of it is published. `again`: what was
    /// refused is tried once more.
    async fn apply(&mut self, again: bool) -> bool {
        let (mut well, mut busy, mut touched) = (true, false, BTreeSet::new());
        let began = Instant::now();
        for Plane { desired, kernel, pending } in &mut self.planes {
            let pending = std::mem::take(pending);
            well &= kernel.apply(desired, &pending, again, &mut self.ear).await;
            busy |= pending != Changes::default() || kernel.looked_at_all();
            touched.extend(pending.endpoints);
        }
        if busy {
            self.metrics.count_apply(began.elapsed(), well);
        }
        if self.ear.take_strangers() {
            self.doubt(Why::Ruleset);
        }
        self.publish(touched);
        well
    }

    fn heed_link(&mut self, event: &LinkEvent) {
        let name = match event {
            LinkEvent::Lost => return self.doubt(Why::Links),
            LinkEvent::Rerouted(address) => {
                for Plane { desired, kernel, pending } in &mut self.planes {
                    if desired.routes.contains_key(address) {
                        kernel.doubt_route(*address);
                        pending.routes.insert(*address);
                    }
                }
                return;
            }
            LinkEvent::Changed(name) => name,
        };
        self.may_be_strange |= self.planes.iter().all(|plane| plane.desired.owner(name).is_none());
        for Plane { desired, kernel, pending } in &mut self.planes {
            let Some(key) = desired.owner(name).cloned() else { return };
            if let Some((_, endpoint)) = desired.endpoint(&key) {
                kernel.forget_routes(endpoint);
                pending.routes.extend(&endpoint.addresses);
                pending.endpoints.insert(key);
            }
        }
    }

    /// Notices that a set was flushed or filled behind our back; answers whether one was.
    async fn look_at_sizes(&mut self) -> bool {
        if self.known.is_none() || self.planes.iter().all(|plane| plane.desired.sets.is_empty()) {
            return false;
        }
        let Ok(sizes) = ipsets::sizes().await else {
            self.doubt(Why::Sizes);
            return false;
        };
        let compare = |plane: &mut Plane| plane.kernel.compare_sizes(&plane.desired.sets, &sizes);
        self.planes.iter_mut().map(compare).fold(false, |any, differs| any | differs)
    }
}

#[cfg(test)]
mod tests;
