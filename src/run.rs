//! The frame: checks what the node needs, starts the parts, and joins them at the end.
//!
//! Order of the start: what is needed is checked and everything missing reported at once; the guard, the base chains and
//! the control socket come up; from then on containers are safe, and systemd is told READY. dockerd and etcd may come
//! later. A part that ends by itself, with an error or a panic, ends the process with a non-zero code: half a node must
//! not look like a whole one.

mod checks;
mod doors;
mod embedded;

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Command, Flags};
use crate::edge::activation::{self, Passed};
use crate::edge::docker::Docker;
use crate::edge::etcd::Etcd;
use crate::edge::exec::Spawner;
use crate::edge::http::{Door, open_tcp, open_unix, serve};
use crate::edge::links::Netlink;
use crate::edge::relay::Engine;
use crate::edge::tls::Certificates;
use crate::log;
use crate::model::control::SOCKET;
use crate::model::fault::Fault;
use crate::part::agent::{self, AgentSettings, Programmed};
use crate::part::clean;
use crate::part::control::{Control, Measures};
use crate::part::defaults::{self, Host};
use crate::part::metrics::Metrics;
use crate::part::network::{Ground, Network};
use crate::part::proxy;
use crate::part::proxy::listen::docker_group;
use crate::part::status::Gauge;
use crate::part::store::Store;

/// Runs `calico-node`; the exit code is decided here and nowhere else.
pub(crate) fn node() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            let failed = error.use_stderr();
            // Nothing is left to tell it to when standard error is gone.
            let _ = error.print();
            return if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    // Before anything of ours opens a descriptor.
    let passed = activation::take(|name| config::variable(name).and_then(|value| value.into_string().ok()));
    let ended = log::start(flags.log_format, &flags.log_level).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| Fault::World(format!("start the runtime: {error}")))?;
        runtime.block_on(async {
            match flags.command {
                Some(Command::Clean) => {
                    prepare_folders(&flags)?;
                    let _only = checks::be_the_only_one(&flags.run_dir)?;
                    clean::run().await
                }
                None => run(&flags, passed).await,
            }
        })
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            tracing::error!("{fault}");
            eprintln!("calico-node: {fault}");
            ExitCode::FAILURE
        }
    }
}

/// The parts that run, each under its name.
struct Parts {
    tasks: JoinSet<(&'static str, Result<(), Fault>)>,
    stop: CancellationToken,
}

impl Parts {
    /// Starts a part, which is told when to stop.
    fn start<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), Fault>> + Send + 'static,
    {
        let part = part(self.stop.clone());
        self.tasks.spawn(async move { (name, part.await) });
    }

    /// Starts a part that nothing can go wrong with.
    fn keep<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, |stop| {
            let part = part(stop);
            async move {
                part.await;
                Ok(())
            }
        });
    }

    /// Waits for a signal or for a part that ends by itself, then stops all; answers the first fault.
    async fn join(mut self) -> Result<(), Fault> {
        let signals = async {
            let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
                return Err(Fault::World("listen for signals: the kernel refused".to_owned()));
            };
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            Ok(())
        };
        let mut ended = tokio::select! {
            told = signals => {
                tracing::info!("stopping: containers keep their network");
                told
            }
            Some(done) = self.tasks.join_next() => Err(by_itself(done)),
        };
        self.stop.cancel();
        while let Some(done) = self.tasks.join_next().await {
            let fault = match done {
                Ok((_, Ok(()))) => continue,
                Ok((name, Err(fault))) => fault.during(name),
                Err(error) => Fault::World(format!("a part panicked: {error}")),
            };
            if ended.is_ok() {
                ended = Err(fault);
            } else {
                tracing::error!(%fault, "a part ended with a fault");
            }
        }
        ended
    }
}

fn by_itself(done: Result<(&'static str, Result<(), Fault>), tokio::task::JoinError>) -> Fault {
    match done {
        Ok((name, Ok(()))) => Fault::World(format!("{name} ended by itself")),
        Ok((name, Err(fault))) => fault.during(name),
        Err(error) => Fault::World(format!("a part panicked: {error}")),
    }
}

async fn run(flags: &Flags, passed: Result<Vec<Passed>, Vec<String>>) -> Result<(), Fault> {
    // From here on a hangup ends nothing.
    let hangups =
        signal(SignalKind::hangup()).map_err(|error| Fault::World(format!("listen for the signal SIGHUP: {error}")))?;
    let host = flags.host()?;
    let engine: Engine = flags.docker_host.parse()?;
    let named = flags.etcd()?;
    let doors = doors::wanted(flags, &engine, passed)?;
    checks::run(flags, named.is_none()).await?;
    let most_connections = checks::most_connections()?;
    prepare_folders(flags)?;
    let _only = checks::be_the_only_one(&flags.run_dir)?;
    let host_ip = host_address(flags).await?;
    let spawner = Spawner::new()?;
    let mut parts = Parts { tasks: JoinSet::new(), stop: CancellationToken::new() };

    let address = if let Some(address) = named {
        address
    } else {
        let (address, server) = embedded::prepare(spawner.clone(), &flags.state_dir, &flags.run_dir)?;
        parts.start("the embedded etcd", |stop| async move { server.run(&stop).await });
        address
    };
    let etcd = Etcd::connect(&address).await?;
    let store = Arc::new(Store::new());
    let metrics = Arc::new(Metrics::new());
    let (programmed_sender, programmed) = watch::channel(Programmed::default());
    let ground = Ground {
        host: host.clone(),
        host_ip,
        state_dir: flags.state_dir.clone(),
        apply_timeout: flags.apply_timeout()?,
    };
    let docker = Docker::new(&flags.docker_host);
    let network =
        Network::new(ground, Arc::clone(&store), etcd.clone(), docker, Arc::clone(&metrics), programmed.clone())?;
    let network = Arc::new(network);

    let settings = AgentSettings { run_dir: flags.run_dir.clone(), host_ip, bgp: flags.runs_bird() };
    let prepared = agent::prepare(spawner).await?;
    let doors = doors.open().await?;
    let gauge = Arc::new(Gauge {
        host: host.clone(),
        host_ip,
        etcd: etcd.address().to_owned(),
        docker: flags.docker_host.clone(),
        listeners: doors.places,
        bird_socket: flags.runs_bird().then(|| flags.run_dir.join("bird.ctl")),
        store: Arc::clone(&store),
        network: Arc::clone(&network),
        programmed: programmed.clone(),
    });
    let control_door = open_unix(&flags.run_dir.join(SOCKET), docker_group())?;
    let metrics_door = open_tcp(&flags.metrics_listen).await?;
    notify_systemd("READY=1");
    tracing::info!(%host, ip = %host_ip, listeners = ?gauge.listeners, "guard, base chains and sockets are up");

    start_servers(&mut parts, control_door, metrics_door, &network, &gauge, metrics);
    start_followers(&mut parts, flags.this_host(host.clone(), host_ip), &network, &store, etcd);
    parts.start("the agent", |stop| agent::run(prepared, host, store, programmed_sender, settings, stop));
    let names = doors.names;
    parts.start("the proxy", |stop| proxy::serve(doors.listeners, names, engine, network, most_connections, stop));
    parts.keep("the watch for hangups", |stop| reread(hangups, doors.certificates, stop));
    parts.keep("the watch for readiness", |stop| async move {
        announce(&gauge, programmed, &stop).await;
        stop.cancelled().await;
    });
    let ended = parts.join().await;
    // Only now, when nobody is served any more.
    drop(doors.files);
    ended
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
    let service = Arc::new(Control { network: Arc::clone(network), gauge: Arc::clone(gauge) });
    parts.keep("the control socket", |stop| serve(control, service, stop));
    let service = Arc::new(Measures { metrics, gauge: Arc::clone(gauge) });
    parts.keep("the metrics address", |stop| serve(measures, service, stop));
}

/// Starts the parts that follow etcd and Docker.
fn start_followers(parts: &mut Parts, this: Host, network: &Arc<Network>, store: &Arc<Store>, etcd: Etcd) {
    let (followed, recorded) = (Arc::clone(store), Arc::clone(store));
    let (leasing, reconciling) = (Arc::clone(network), Arc::clone(network));
    let watched = etcd.clone();
    parts.keep("the view of etcd", |stop| async move { followed.run(&watched, &stop).await });
    parts.start("the record of this host", |stop| async move {
        defaults::record(&this, &recorded, &etcd, &stop).await?;
        stop.cancelled().await;
        Ok(())
    });
    parts.keep("the lease", |stop| async move { leasing.keep_lease(&stop).await });
    parts.keep("the reconciler", |stop| async move { reconciling.reconcile(&stop).await });
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
    match gauge.network.pool_warnings().await {
        Ok(warnings) => warnings.iter().for_each(|warning| tracing::warn!("{warning}")),
        Err(fault) => tracing::warn!(%fault, "the pools are not compared with this host's networks"),
    }
}

fn prepare_folders(flags: &Flags) -> Result<(), Fault> {
    for folder in [&flags.state_dir, &flags.run_dir] {
        let fault = |error: std::io::Error| Fault::World(format!("make folder {}: {error}", folder.display()));
        std::fs::create_dir_all(folder).map_err(fault)?;
        // Others may pass through the run folder to the socket that the docker group may use.
        let mode = if folder == &flags.run_dir { 0o755 } else { 0o700 };
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).map_err(fault)?;
    }
    Ok(())
}

async fn host_address(flags: &Flags) -> Result<Ipv4Addr, Fault> {
    let netlink = Netlink::open()?;
    let Some(ip) = flags.ip else {
        let found = netlink.detect_ipv4().await?;
        let missing = || Fault::Refusal("detect this host's IPv4 address: none found; name it with --ip".to_owned());
        let ip = found.ok_or_else(missing)?;
        tracing::info!(%ip, "no --ip given: using the detected address");
        return Ok(ip);
    };
    let own = netlink.host_addresses().await?;
    if !own.iter().any(|address| address.net.addr() == ip) {
        tracing::warn!(%ip, "the address given with --ip is on no interface of this host");
    }
    Ok(ip)
}

/// Tells systemd how far we are, if it started us. Source: sd_notify(3).
fn notify_systemd(state: &str) {
    let Some(path) = config::variable("NOTIFY_SOCKET") else { return };
    let sent = std::os::unix::net::UnixDatagram::unbound()
        .and_then(|socket| socket.send_to(state.as_bytes(), Path::new(&path)));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd could not be told of {state}");
    }
}
