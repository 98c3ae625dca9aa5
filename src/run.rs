//! The frame: checks what the node needs, starts the parts, and joins them at the end.
//!
//! Order of the start: what is needed is checked and everything missing reported at once; the guard, the base chains and
//! the control socket come up; from then on containers are safe, and systemd is told READY. dockerd and etcd may come
//! later. A part that ends by itself, with an error or a panic, ends the process with a non-zero code: half a node must
//! not look like a whole one.

mod checks;
mod doors;
mod embedded;
mod parts;
mod systemd;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::checks::Only;
use self::doors::Doors;
use self::parts::{Cause, Parts, Signals};

use crate::config::{self, Command, Flags, LogFormat};
use crate::edge::activation::{self, Passed};
use crate::edge::docker::Docker;
use crate::edge::etcd::{Etcd, EtcdAddress};
use crate::edge::exec::Spawner;
use crate::edge::fail_point;
use crate::edge::handover::{self, Predecessor, Successor};
use crate::edge::http::{Door, open_unix, serve};
use crate::edge::kept_file::KeptFile;
use crate::edge::links::Netlink;
use crate::edge::reservations::Reservations;
use crate::edge::tls::Certificates;
use crate::edge::wire::Engine;
use crate::log::{self, Level};
use crate::model::control::SOCKET;
use crate::model::fault::Fault;
use crate::model::host::Host;
use crate::model::name::HostName;
use crate::model::pool::{Family, nobodys};
use crate::part::agent::{self, AgentSettings, Programmed};
use crate::part::clean;
use crate::part::control::{Control, Measures};
use crate::part::metrics::Metrics;
use crate::part::network::{Ground, Network};
use crate::part::proxy::listen::{SocketFile, docker_group};
use crate::part::proxy::{self, Served};
use crate::part::recording;
use crate::part::reports::Reporter;
use crate::part::runtime_entry;
use crate::part::status::Gauge;
use crate::part::store::{Holdings, Store};
use crate::plan::raw::port_of;

/// Where a node waits, in its run folder, for one that is to take its place.
const HANDOVER: &str = "handover.sock";

/// Where BIRD listens (RFC 4271, 8.2.1).
const BGP_PORT: u16 = 179;

/// The exit code of a command that needs root and has not got it.
const NOT_ROOT: u8 = 2;

/// Runs `calico-node`; the exit code is decided here and nowhere else.
pub(crate) fn node() -> ExitCode {
    let flags = match Flags::read() {
        Ok(flags) => flags,
        Err(error) => {
            let failed = error.use_stderr();
            // Nothing is left to tell it to when standard error is gone.
            let _ = error.print();
            return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    if flags.command.is_some() && !nix::unistd::geteuid().is_root() {
        eprintln!("calico-node: This command must be run as root.");
        return ExitCode::from(NOT_ROOT);
    }
    // Before anything of ours opens a descriptor.
    let passed = activation::take(|name| config::variable(name).and_then(|value| value.into_string().ok()));
    let started = log::start(flags.log_format, flags.log_level());
    // Whoever reads a node's log by machine is told there what ended it; people are told as by any command.
    let is_logged = started.is_ok() && flags.log_format == LogFormat::Json && flags.command.is_none();
    let ended = started.and_then(|level| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Fault::World(format!("start the runtime: {error}")))?;
        runtime.block_on(async {
            match flags.command {
                Some(Command::Clean) => {
                    prepare_folders(&flags)?;
                    let _only = checks::be_the_only_one(&flags.run_dir).await?;
                    clean::run(&flags.run_dir).await
                }
                Some(Command::InstallRuntime) => say(&runtime_entry::install(&flags.site()?).await?),
                Some(Command::UninstallRuntime { force }) => {
                    say(&runtime_entry::uninstall(&flags.site()?, force).await?)
                }
                None => run(&flags, passed, level).await,
            }
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            if is_logged {
                tracing::error!("{fault}");
            } else {
                eprintln!("calico-node: {fault}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Tells the user what a command has come to.
fn say(lines: &[String]) -> Result<(), Fault> {
    lines
        .iter()
        .try_for_each(|line| writeln!(std::io::stdout(), "{line}"))
        .map_err(|error| Fault::World(format!("all is done, but could not be told: write standard output: {error}")))
}

/// What a node is told and finds before it touches anything.
struct Checked {
    name: HostName,
    ip: Ipv4Addr,
    engine: Engine,
    /// `None`: there is an etcd for this host alone.
    etcd: Option<EtcdAddress>,
    drain_timeout: Duration,
    apply_timeout: Duration,
    doors: doors::Wanted,
    most_connections: usize,
    /// The node whose place this one is to take.
    predecessor: Option<Predecessor>,
}

/// Finds whatever can be found wrong while nothing has been changed but that the folders are there.
async fn check(flags: &Flags, passed: Result<Vec<Passed>, Vec<String>>) -> Result<Checked, Fault> {
    let name = flags.host()?;
    let engine: Engine = flags.docker_host.parse()?;
    fail_point::look_in(&flags.run_dir);
    let etcd = flags.etcd()?;
    if let Some(address) = &etcd {
        // It is not dialled yet.
        Etcd::connect(address).await?;
    }
    let (drain_timeout, apply_timeout) = (flags.drain_timeout()?, flags.apply_timeout()?);
    let (predecessor, taken) = flags.take_over.then(|| taken_over(&flags.run_dir.join(HANDOVER))).transpose()?.unzip();
    let passed = passed.map(|passed| passed.into_iter().chain(taken.into_iter().flatten()).collect());
    let doors = doors::wanted(flags, &engine, passed)?;
    checks::run(flags, etcd.is_none()).await?;
    let most_connections = checks::most_connections()?;
    prepare_folders(flags)?;
    let ip = host_address(flags).await?;
    Ok(Checked { name, ip, engine, etcd, drain_timeout, apply_timeout, doors, most_connections, predecessor })
}

async fn run(flags: &Flags, passed: Result<Vec<Passed>, Vec<String>>, level: Level) -> Result<(), Fault> {
    // From here on a hangup ends nothing.
    let hangups =
        signal(SignalKind::hangup()).map_err(|error| Fault::World(format!("listen for the signal SIGHUP: {error}")))?;
    let mut signals = Signals::listen()?;
    let checked = check(flags, passed).await?;
    let Checked { name, ip, engine, drain_timeout, apply_timeout, doors, most_connections, .. } = checked;
    let ports = doors.ports();
    let (only, doors) = take_place(&flags.run_dir, doors, checked.predecessor).await?;
    let spawner = Spawner::new()?;
    let mut parts = Parts::new();

    let address = datastore(flags, checked.etcd, &spawner, &mut parts)?;
    let etcd = Etcd::connect(&address).await?;
    let store = Arc::new(Store::new(name.clone()));
    let metrics = Arc::new(Metrics::new());
    let (programmed_sender, programmed) = watch::channel(Programmed::default());
    let prepared = agent::prepare(spawner, &flags.run_dir, services(ports, flags, &address)).await?;
    let gives_ipv6 = prepared.gives_ipv6();
    let host = Host { name, ip, ip6: flags.ip6, gives_ipv6, as_number: flags.as_number };
    let (state_dir, run_dir) = (flags.state_dir.clone(), flags.run_dir.clone());
    let ground = Ground { host: host.clone(), state_dir, run_dir: run_dir.clone(), apply_timeout };
    let docker = Docker::new(&flags.docker_host);
    let network =
        Network::new(ground, Arc::clone(&store), etcd.clone(), docker, Arc::clone(&metrics), programmed.clone())?;
    let network = Arc::new(network);

    let settings = AgentSettings { run_dir, host: host.clone(), bgp: flags.runs_bird() };
    let gauge = Arc::new(Gauge {
        host: host.clone(),
        etcd: etcd.address(),
        docker: flags.docker_host.clone(),
        listeners: doors.places.clone(),
        bird_socket: flags.runs_bird().then(|| flags.run_dir.join("bird.ctl")),
        store: Arc::clone(&store),
        network: Arc::clone(&network),
        programmed: programmed.clone(),
    });
    let (control_door, metrics_door) = own_doors(flags, &engine, &doors)?;
    let handover_door = open_unix(&flags.run_dir.join(HANDOVER), None)?;
    systemd::notify("READY=1");
    tracing::info!(host = %host.name, %ip, listeners = ?gauge.listeners, "guard, base chains and sockets are up");

    start_servers(&mut parts, control_door, metrics_door, &network, &gauge, Arc::clone(&metrics));
    let reported = etcd.clone();
    let reservations = Reservations::in_state_dir(&flags.state_dir);
    let last_seen = KeptFile::datastore(&flags.state_dir);
    let holdings = Holdings { host: host.clone(), reservations, last_seen, metrics: Arc::clone(&metrics) };
    let reporter = Reporter {
        host: host.name.clone(),
        store: Arc::clone(&store),
        etcd: reported,
        network: Arc::clone(&network),
        programmed: programmed.clone(),
    };
    start_followers(&mut parts, host, holdings, &network, &store, etcd);
    start_tellers(&mut parts, reporter, flags.log_level().is_none().then_some(level), Arc::clone(&metrics));
    parts.start("the agent", |stop| agent::run(prepared, store, programmed_sender, settings, metrics, stop));
    let served = Served {
        listeners: Arc::clone(&doors.listeners),
        names: Arc::clone(&doors.names),
        engine,
        network,
        arrivals: parts.arrivals.clone(),
        calls: parts.calls.clone(),
        most: most_connections,
    };
    parts.serve(|ends| proxy::serve(served, ends));
    let certificates = doors.certificates.clone();
    parts.keep("the watch for hangups", |stop| reread(hangups, certificates, stop));
    parts.keep("the watch for readiness", |stop| async move {
        announce(&gauge, programmed, &stop).await;
        stop.cancelled().await;
    });
    let cause = parts.cause(&mut signals, succeeded(&handover_door, &doors)).await;
    if matches!(cause, Cause::Successor(_)) {
        // Who comes from then on waits for the next node.
        parts.quiet(&mut signals, drain_timeout).await;
    }
    tracing::info!("stopping: containers keep their network");
    let Doors { listeners, metrics, files, .. } = doors;
    // Who comes now is refused at once, or waits for the next node.
    drop((listeners, metrics, handover_door));
    end(parts, cause, &mut signals, drain_timeout, (only, files)).await
}

/// Where the datastore is; an etcd for this host alone is started where none is named.
fn datastore(
    flags: &Flags,
    named: Option<EtcdAddress>,
    spawner: &Spawner,
    parts: &mut Parts,
) -> Result<EtcdAddress, Fault> {
    if let Some(address) = named {
        embedded::forget(&flags.run_dir)?;
        return Ok(address);
    }
    let (address, server) = embedded::prepare(spawner.clone(), &flags.state_dir, &flags.run_dir)?;
    parts.start("the embedded etcd", |stop| async move { server.run(&stop).await });
    Ok(address)
}

/// The control socket and the address for metrics.
fn own_doors(flags: &Flags, engine: &Engine, doors: &Doors) -> Result<(Door, Door), Fault> {
    let control = open_unix(&flags.run_dir.join(SOCKET), control_group(docker_group(), engine))?;
    let measures = doors.metrics.try_clone().and_then(TcpListener::from_std);
    let measures = measures.map_err(|error| Fault::World(format!("listen on {}: {error}", flags.metrics_listen)))?;
    Ok((Door::Unix(control), Door::Tcp(measures)))
}

/// Makes this node the only one, with its doors open: after the one before it, if it is to take that one's place.
async fn take_place(
    run_dir: &Path,
    doors: doors::Wanted,
    predecessor: Option<Predecessor>,
) -> Result<(Only, Doors), Fault> {
    let Some(predecessor) = predecessor else {
        return Ok((checks::be_the_only_one(run_dir).await?, doors.open().await?));
    };
    // It goes on where a door does not open.
    let mut doors = doors.open().await?;
    replace(predecessor).await?;
    doors.take_files();
    Ok((checks::be_the_only_one(run_dir).await?, doors))
}

/// The TCP ports of this host at which this software and its datastore are.
fn services(doors: BTreeSet<u16>, flags: &Flags, etcd: &EtcdAddress) -> BTreeSet<u16> {
    let places = etcd.endpoints.iter().chain([&flags.metrics_listen]);
    places.filter_map(|place| port_of(place)).chain(doors).chain([BGP_PORT]).collect()
}

/// Ends the parts; answers the first fault. What only one node may have is given up before streams have ended, if there
/// is another node that waits for it.
async fn end(
    mut parts: Parts,
    cause: Cause,
    signals: &mut Signals,
    drain_timeout: Duration,
    (only, files): (Only, Vec<SocketFile>),
) -> Result<(), Fault> {
    let mut faults = parts.stop(signals, drain_timeout).await;
    let patience = match cause {
        Cause::Signal => Some(drain_timeout),
        Cause::Fault(fault) => {
            faults.insert(0, fault);
            Some(drain_timeout)
        }
        Cause::Successor(successor) => {
            files.into_iter().for_each(SocketFile::leave);
            drop((only, successor));
            tracing::info!("another node has taken over; open streams go on to their end");
            None
        }
    };
    faults.extend(parts.drain(signals, patience).await);
    let mut faults = faults.into_iter();
    let first = faults.next();
    faults.for_each(|fault| tracing::error!(%fault, "a part ended with a fault"));
    first.map_or(Ok(()), Err)
}

/// Asks the node that runs here for its listening sockets.
fn taken_over(path: &Path) -> Result<(Predecessor, Vec<Passed>), Fault> {
    handover::ask(path).map_err(|error| {
        Fault::World(format!(
            "take over the node that waits at {}: {error}; without --take-over it is stopped first",
            path.display()
        ))
    })
}

/// Has the node before give up what only one node may have, and waits for it.
async fn replace(predecessor: Predecessor) -> Result<(), Fault> {
    let fault = |cause: &dyn std::fmt::Display| Fault::World(format!("take over: the node before: {cause}"));
    let replaced = tokio::task::spawn_blocking(|| predecessor.replace()).await;
    replaced.map_err(|error| fault(&error))?.map_err(|error| fault(&error))
}

/// Waits for a node that takes the place of this one.
async fn succeeded(door: &UnixListener, doors: &Doors) -> Successor {
    let sockets = doors.to_pass();
    loop {
        match handover::give(door, &sockets).await {
            Ok(successor) => return successor,
            Err(error) => {
                tracing::warn!(%error, "another node wanted to take over and left again");
                // An error of the socket itself comes back at once.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Reads the certificates again whenever SIGHUP comes. Streams keep what they began with.
async fn reread(mut hangups: Signal, certificates: Option<Arc<Certificates>>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hangups.recv() => {}
        }
        match certificates.as_ref().map(|certificates| certificates.reload()) {
            Some(Ok(())) => tracing::info!("SIGHUP: the certificates were read again, for the clients from now on"),
            Some(Err(fault)) => tracing::error!(%fault, "SIGHUP: the certificates that were read before stay in force"),
            None => tracing::info!("SIGHUP: there is no TLS, and nothing else is read again"),
        }
    }
}

fn start_servers(
    parts: &mut Parts,
    control: Door,
    measures: Door,
    network: &Arc<Network>,
    gauge: &Arc<Gauge>,
    metrics: Arc<Metrics>,
) {
    let under_way = parts.calls.clone();
    let service = Arc::new(Control { network: Arc::clone(network), gauge: Arc::clone(gauge), under_way });
    parts.keep("the control socket", |stop| serve(control, service, stop));
    let service = Arc::new(Measures { metrics, gauge: Arc::clone(gauge) });
    parts.keep("the metrics address", |stop| serve(measures, service, stop));
}

/// Starts the parts that follow etcd and Docker.
fn start_followers(
    parts: &mut Parts,
    host: Host,
    holdings: Holdings,
    network: &Arc<Network>,
    store: &Arc<Store>,
    etcd: Etcd,
) {
    let (followed, recorded) = (Arc::clone(store), Arc::clone(store));
    let (leasing, reconciling) = (Arc::clone(network), Arc::clone(network));
    let watched = etcd.clone();
    parts.keep("the view of etcd", |stop| async move { followed.run(&watched, &holdings, &stop).await });
    parts.start("the record of this host", |stop| async move {
        recording::record(&host, &recorded, &etcd, &stop).await?;
        stop.cancelled().await;
        Ok(())
    });
    parts.keep("the lease", |stop| async move { leasing.keep_lease(&stop).await });
    parts.start("the reconciler", |stop| async move { reconciling.reconcile(&stop).await });
}

/// Starts the parts that tell: in the datastore, and in the log as much as the datastore wants, unless a flag says.
fn start_tellers(parts: &mut Parts, reporter: Reporter, level: Option<Level>, metrics: Arc<Metrics>) {
    parts.keep("the watchdog", |stop| systemd::watch_over(metrics, stop));
    if let Some(level) = level {
        let store = Arc::clone(&reporter.store);
        parts.keep("the level of the log", |stop| async move { follow_level(&store, &level, &stop).await });
    }
    parts.keep("the reports", |stop| async move { Box::pin(reporter.run(&stop)).await });
}

/// Has the log say as much as the datastore wants it to.
async fn follow_level(store: &Store, level: &Level, stop: &CancellationToken) {
    let mut settings = store.settings();
    let mut now = log::DEFAULT_LEVEL;
    loop {
        let wanted = settings.borrow_and_update().log.unwrap_or(log::DEFAULT_LEVEL);
        if wanted != now {
            tracing::info!(level = wanted, "LogSeverityScreen: the log says so much from now on");
            if let Err(fault) = level.set(wanted) {
                tracing::error!(%fault, "the log says as much as before");
            }
            now = wanted;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = settings.changed() => if changed.is_err() {
                return stop.cancelled().await;
            }
        }
    }
}

/// Says `ready` in the log when the node is, once.
async fn announce(gauge: &Gauge, programmed: watch::Receiver<Programmed>, stop: &CancellationToken) {
    let mut programmed = programmed;
    let mut look = tokio::time::interval(Duration::from_millis(200));
    while !gauge.waiting_for().is_empty() {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = look.tick() => {}
            _ = programmed.changed() => {}
        }
    }
    tracing::info!("ready");
    match gauge.network.warnings().await {
        Ok(warnings) => warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
        Err(fault) => tracing::warn!(%fault, "the pools are not compared with this host's networks"),
    }
}

fn prepare_folders(flags: &Flags) -> Result<(), Fault> {
    for folder in [&flags.state_dir, &flags.run_dir] {
        let fault = |error: std::io::Error| Fault::World(format!("make folder {}: {error}", folder.display()));
        if let Ok(there) = std::fs::metadata(folder) {
            // It may be somebody else's too, so it stays as it is.
            if there.permissions().mode() & 0o022 != 0 {
                return Err(Fault::Refusal(format!(
                    "use folder {}: others may write to it; name one of this node's own, or take that right away",
                    folder.display()
                )));
            }
            continue;
        }
        std::fs::create_dir_all(folder).map_err(fault)?;
        // Others may pass through the run folder to the socket that the docker group may use.
        let mode = if folder == &flags.run_dir { 0o755 } else { 0o700 };
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).map_err(fault)?;
    }
    Ok(())
}

async fn host_address(flags: &Flags) -> Result<Ipv4Addr, Fault> {
    let given = [("--ip", flags.ip.map(IpAddr::from)), ("--ip6", flags.ip6.map(IpAddr::from))];
    for (flag, ip) in given.into_iter().filter_map(|(flag, ip)| Some((flag, ip?))) {
        if let Some((_, kind)) = nobodys(ip) {
            return Err(Fault::Refusal(format!(
                "use {flag} {ip}: it is {kind}; other hosts must reach this one at it"
            )));
        }
    }
    let netlink = Netlink::open()?;
    let Some(ip) = flags.ip else {
        let found = netlink.detect_ipv4().await?;
        let missing = || Fault::Refusal("detect this host's IPv4 address: none found; name it with --ip".to_owned());
        let ip = found.ok_or_else(missing)?;
        tracing::info!(%ip, "no --ip given: using the detected address");
        return Ok(ip);
    };
    let own = netlink.host_addresses(Family::V4).await?;
    if !own.iter().any(|address| address.net.addr() == ip) {
        tracing::warn!(%ip, "the address given with --ip is on no interface of this host");
    }
    Ok(ip)
}

/// Who may use the control socket besides root: Docker's group, or where that has no name, as in a container, the group of
/// dockerd's socket, unless it is root's.
fn control_group(docker: Option<u32>, engine: &Engine) -> Option<u32> {
    docker.or_else(|| engine.group().filter(|group| *group != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a container nobody but root could ask the node, though the host's clients are of the group that Docker's socket has.
    #[test]
    fn without_a_group_of_dockers_name_who_may_open_dockerds_socket_may_use_the_control_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let engine: Engine = format!("unix://{}", path.display()).parse().unwrap();
        assert_eq!((control_group(None, &engine), control_group(Some(7), &engine)), (None, Some(7)));
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        for (group, allowed) in [(4711, Some(4711)), (0, None)] {
            std::os::unix::fs::chown(&path, None, Some(group)).unwrap();
            assert_eq!(control_group(None, &engine), allowed);
        }
    }
}
