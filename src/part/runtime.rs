//! `calico-runtime`: the OCI runtime that stands in front of runc, and the hook that it puts into a container.
//!
//! As a runtime it hands every call on to the one that does the work, with the very arguments; into a bundle that a
//! container is made of it puts a hook first. The hook runs when the container's namespaces are there and its process is
//! not, on every start, whoever asks for it: it wires, or says why the start must fail.
//!
//! Which containers are ours is the node's to say. A hook that finds no node goes by what is kept on this host's disk, and
//! only where the policy is known to stand in the kernel.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::edge::control::{Control, Unanswered};
use crate::edge::exec;
use crate::edge::fail_point;
use crate::edge::iptables;
use crate::edge::netns::Netns;
use crate::edge::reservations::Reservations;
use crate::edge::run_dir::Marks;
use crate::edge::wall_clock;
use crate::edge::wiring::{Wirer, add_hosts_lines};
use crate::model::control::{
    ContainerNamed, ContainerRefused, ContainerStarting, ContainerWired, ContainerWiring, REFUSED, STARTING, WIRED,
};
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::model::pool::Family;
use crate::model::reservation::Reservation;
use crate::plan::bundle::{BundleConfig, HookState, RuntimeCall, log_line, read_call, with_hook};
use crate::plan::wiring::desired_wiring;

/// What does the work where a container asked for nothing else.
const RUNC: &str = "runc";

/// How long the hook waits for the node: above what the node itself waits for its agent, unless it is told to wait longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the hook waits for a node to hear that it refuses a start.
const LAST_WORD: Duration = Duration::from_secs(1);

/// The word behind our own options that makes a hook of the program.
const HOOK: &str = "calico-hook";

/// Where the node of this host keeps its things.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Folders {
    run_dir: PathBuf,
    state_dir: PathBuf,
}

/// Runs `calico-runtime`; its exit code is decided here.
pub(crate) fn calico_runtime_main(args: Vec<OsString>) -> ExitCode {
    let (folders, args) = read_folders(args);
    if args.first().is_some_and(|word| word == HOOK) {
        return match hook(&folders) {
            Ok(()) => ExitCode::SUCCESS,
            Err(fault) => {
                // runc repeats what a hook that fails has written, and dockerd tells it to the client: one line.
                eprintln!("calico: {fault}");
                ExitCode::FAILURE
            }
        };
    }
    let call = read_call(&args);
    let text = format!("calico-runtime: {}", run(&folders, &args, &call));
    eprintln!("{text}");
    log(&call, &text);
    ExitCode::FAILURE
}

/// Tells who called where he looks for it, as runc would: what fails before runc is there comes to dockerd's client too.
fn log(call: &RuntimeCall, text: &str) {
    let Some(path) = &call.log else { return };
    let line = log_line(text, &wall_clock::now(), call.logs_json);
    let written = OpenOptions::new().append(true).create(true).open(path);
    if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
        eprintln!("calico-runtime: write {}: {error}", path.display());
    }
}

/// Takes our own options from the front: they stand in dockerd's configuration.
fn read_folders(args: Vec<OsString>) -> (Folders, Vec<OsString>) {
    let mut folders = Folders { run_dir: PathBuf::from("/run/calico"), state_dir: PathBuf::from("/var/lib/calico") };
    let mut args: std::collections::VecDeque<OsString> = args.into();
    loop {
        let folder = match args.front().and_then(|arg| arg.to_str()) {
            Some("--run-dir") => &mut folders.run_dir,
            Some("--state-dir") => &mut folders.state_dir,
            _ => return (folders, args.into()),
        };
        args.pop_front();
        if let Some(value) = args.pop_front() {
            *folder = value.into();
        }
    }
}

/// Becomes the runtime that does the work; answers why it could not.
fn run(folders: &Folders, args: &[OsString], call: &RuntimeCall) -> Fault {
    if let Some(bundle) = &call.makes
        && let Err(fault) = put_hook(folders, bundle)
    {
        return fault;
    }
    let reservation = match &call.container {
        None => None,
        Some(container) => match Reservations::in_state_dir(&folders.state_dir).read(container) {
            Ok(reservation) => reservation,
            // What runs must be stopped and removed whatever has become of the file.
            Err(fault) if call.makes.is_some() => return fault,
            Err(_) => None,
        },
    };
    let endpoints = reservation.map(|reservation| reservation.endpoints).unwrap_or_default();
    let behind = endpoints.into_values().find_map(|endpoint| endpoint.requested?.runtime);
    match behind {
        None => exec::become_program(RUNC, args),
        Some(runtime) => {
            let own = runtime.args.into_iter().map(OsString::from);
            exec::become_program(&runtime.path, &own.chain(args.iter().cloned()).collect::<Vec<_>>())
        }
    }
}

/// Puts the hook into the configuration of a bundle, which is whole at any time.
fn put_hook(folders: &Folders, bundle: &Path) -> Result<(), Fault> {
    let path = bundle.join("config.json");
    let fault = |error: std::io::Error| Fault::World(format!("put a hook into {}: {error}", path.display()));
    let program = std::env::current_exe().map_err(fault)?;
    let words = [&folders.run_dir, &folders.state_dir].map(|folder| folder.display().to_string());
    let [run_dir, state_dir] = words;
    let args = ["calico-runtime", "--run-dir", &run_dir, "--state-dir", &state_dir, HOOK].map(str::to_owned);
    let edited = with_hook(&std::fs::read(&path).map_err(fault)?, &program, &args)?;
    let aside = path.with_extension("json.calico");
    std::fs::write(&aside, edited).map_err(fault)?;
    let mode = std::fs::metadata(&path).map_err(fault)?.permissions();
    std::fs::set_permissions(&aside, mode).map_err(fault)?;
    std::fs::rename(&aside, &path).map_err(fault)
}

/// The hook: wires the container that runc tells of, or says why it must not start.
fn hook(folders: &Folders) -> Result<(), Fault> {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text);
    read.map_err(|error| Fault::World(format!("read from runc which container starts: {error}")))?;
    let state: HookState = serde_json::from_str(&text)
        .map_err(|error| Fault::World(format!("read from runc which container starts: {error}")))?;
    // Who calls this runtime by hand may call a container whatever he likes; Docker's have ids like this.
    let Ok(container) = state.id.parse::<ContainerId>() else { return Ok(()) };
    fail_point::look_in(&folders.run_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::World(format!("start the runtime: {error}")))?;
    let wired = runtime.block_on(async {
        let wired = wire(folders, &container, &state).await;
        // What was refused before counts no more: who stops it now wants it stopped.
        let wired = wired.and_then(|()| Marks::refused(&folders.run_dir).clear(container.as_str()));
        if let Err(fault) = &wired {
            let refused = ContainerRefused { container: container.clone(), why: fault.to_string() };
            // A node that is away has nobody who watches it.
            let node = Control::in_run_dir(&folders.run_dir).waiting_at_most(LAST_WORD);
            let _ = node.post::<ContainerNamed>(REFUSED, &refused).await;
        }
        wired
    });
    wired.map_err(|fault| {
        // What is missing may come: then the node starts it, if its restart policy wants that. What somebody has decided stays so.
        let marked = match fault {
            Fault::Refusal(_) | Fault::Conflict(_) => Ok(()),
            _ => Marks::refused(&folders.run_dir).set(container.as_str(), &fault.to_string()),
        };
        let fault = fault.during(&format!("wire container {} before it runs", container.short()));
        match marked {
            Ok(()) => fault,
            Err(unmarked) => fault.during(&format!("{unmarked}; before that")),
        }
    })
}

async fn wire(folders: &Folders, container: &ContainerId, state: &HookState) -> Result<(), Fault> {
    let begun = Instant::now();
    let control = Control::in_run_dir(&folders.run_dir).waiting_at_most(PATIENCE);
    let config = state.bundle.join("config.json");
    let config: BundleConfig = std::fs::read(&config)
        .map_err(|error| error.to_string())
        .and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()))
        .map_err(|error| Fault::World(format!("read {}: {error}", config.display())))?;
    let starting = ContainerStarting { container: container.clone(), wishes: config.speaks_of_calico() };
    let reservation = match control.post(STARTING, &starting).await {
        Ok(ContainerWiring::Wire(reservation)) => reservation,
        Ok(ContainerWiring::NotOurs) => return Ok(()),
        Ok(ContainerWiring::Unknown) => match kept(folders, container, &config, "its node has no datastore yet").await?
        {
            Some(reservation) => reservation,
            None => return Ok(()),
        },
        Err(Unanswered::Said(fault)) => return Err(fault),
        Err(away @ (Unanswered::NoNode { .. } | Unanswered::Denied(_))) => {
            match kept(folders, container, &config, &away.to_string()).await? {
                Some(reservation) => reservation,
                None => return Ok(()),
            }
        }
    };
    let wirer = Wirer::open()?;
    let netns = Netns::of_container(container, state.pid)?
        .ok_or_else(|| Fault::World(format!("open its network: its process {} is not to be seen", state.pid)))?;
    for endpoint in reservation.endpoints.values() {
        wirer.wire(&desired_wiring(endpoint, reservation.gateway)?, &netns).await?;
        let addresses: Vec<IpAddr> = endpoint.addresses.iter().copied().collect();
        if let Some(path) = config.hosts_path() {
            add_hosts_lines(path, container, &addresses, &config.hostname)?;
        }
    }
    // A node that is away now finds the container by itself when it is back.
    let wired = ContainerWired { container: container.clone(), took_s: begun.elapsed().as_secs_f64() };
    let _ = control.post::<ContainerNamed>(WIRED, &wired).await;
    Ok(())
}

/// What is kept of a container on this host's disk, if its policy is known to stand in the kernel; `None`: it is none of
/// ours.
async fn kept(
    folders: &Folders,
    container: &ContainerId,
    config: &BundleConfig,
    why: &str,
) -> Result<Option<Reservation>, Fault> {
    let Some(reservation) = Reservations::in_state_dir(&folders.state_dir).read(container)? else {
        let is_released = || Marks::released(&folders.state_dir).is_set(container.as_str());
        if config.speaks_of_calico() && !is_released() {
            return Err(Fault::Away(format!("{why}, and nothing is known of the container here")));
        }
        return Ok(None);
    };
    if let Some(withheld) = &reservation.withheld {
        return Err(Fault::Away(format!("{why}, and {withheld}")));
    }
    let programmed = Marks::programmed(&folders.run_dir);
    let endpoints = &reservation.endpoints;
    for endpoint in endpoints.keys() {
        if !programmed.is_set(endpoint.as_str()) {
            return Err(Fault::Away(format!(
                "{why}, and the policy of endpoint {endpoint} does not stand in the kernel"
            )));
        }
    }
    for family in Family::BOTH {
        if endpoints.values().any(|endpoint| endpoint.is_of(family)) {
            iptables::has_jumps(family).await.map_err(|fault| fault.during(why))?;
        }
    }
    Ok(Some(reservation))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_options_stand_in_front_and_all_else_is_the_runtimes() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let (folders, rest) = read_folders(words("--run-dir /r --state-dir /s --root /x create --run-dir y"));
        assert_eq!(folders, Folders { run_dir: "/r".into(), state_dir: "/s".into() });
        assert_eq!(rest, words("--root /x create --run-dir y"));
        let (folders, rest) = read_folders(words("--version"));
        assert_eq!(folders.run_dir, Path::new("/run/calico"));
        assert_eq!(rest, words("--version"));
    }
}
