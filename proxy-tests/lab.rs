//! A lab: several Docker hosts on one machine.
//!
//! Each host is a network namespace with a dockerd of its own, linked to the others by a bridge in a switch namespace, where
//! etcd listens too. Everything is named after the process and a counter, so labs live beside each other.
//!
//! One shell script takes a lab away again, and it is started before the lab: it waits at a pipe for the end of the test process, so
//! nothing stays behind when a test panics, nor when the process is killed.

pub(crate) mod between;
pub(crate) mod command;
pub(crate) mod container;
pub(crate) mod etcd;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod invariants;
pub(crate) mod netns;
pub(crate) mod traces;
pub(crate) mod wait;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::Duration;

use command::Run;
use etcd::Etcd;
use host::Host;
use netns::Netns;
use wait::wait_until;

/// Where the switch namespace is reached, and etcd in it. To the hosts it is the outside: it knows no route to any container.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(172, 25, 0, 254);

/// The same of IPv6.
pub(crate) const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 25, 0, 0, 0, 0, 254);

/// How long a daemon may take to come up.
pub(crate) const START: Duration = Duration::from_secs(30);

thread_local! {
    /// What this thread has panicked with first.
    static FAILURE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Has panics remembered as well as told.
fn remember_failures() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            FAILURE.with_borrow_mut(|failure| {
                // A test has a thread of its own; what fails while its lab is shown is not what it failed for.
                if failure.is_empty() {
                    *failure = panic.to_string();
                }
            });
            tell(panic);
        }));
    });
}

pub(crate) struct Lab {
    name: String,
    folder: PathBuf,
    hosts: Vec<Host>,
    /// The members of the common etcd that run, by their number; the first is 1.
    etcd: Mutex<BTreeMap<u8, Child>>,
    members: u8,
    undo: Child,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    hosts: u8,
    /// dockerd with its own bridge and its own firewall rules, as an ordinary installation has them.
    bridge: bool,
    /// How many members the etcd beside the hosts has; 0: there is none, and each node runs its own.
    members: u8,
    /// dockerd knows our OCI runtime.
    runtime: bool,
}

impl Lab {
    /// Hosts whose dockerd leaves the network alone, and one etcd for all.
    pub(crate) fn hosts(hosts: u8) -> Self {
        Lab::make(Plan { hosts, bridge: false, members: 1, runtime: true })
    }

    /// The same, where dockerd does not know our OCI runtime.
    pub(crate) fn without_runtime(hosts: u8) -> Self {
        Lab::make(Plan { hosts, bridge: false, members: 1, runtime: false })
    }

    /// One host whose dockerd has its bridge and writes its own firewall rules.
    pub(crate) fn bridged() -> Self {
        Lab::bridged_hosts(1)
    }

    /// The same, several of them.
    pub(crate) fn bridged_hosts(hosts: u8) -> Self {
        Lab::make(Plan { hosts, bridge: true, members: 1, runtime: true })
    }

    /// One host and no etcd.
    pub(crate) fn without_etcd() -> Self {
        Lab::make(Plan { hosts: 1, bridge: false, members: 0, runtime: true })
    }

    /// Hosts with an etcd of three members, of which they are told all.
    pub(crate) fn with_cluster(hosts: u8) -> Self {
        Lab::make(Plan { hosts, bridge: false, members: 3, runtime: true })
    }

    fn make(plan: Plan) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        check_tools();
        remember_failures();
        let name = format!("calab-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder).unwrap();
        let undo = start_undo(&folder, &name);
        // From here on a panic leads to `drop`, which takes away whatever is there.
        let mut lab = Lab { name, folder, hosts: Vec::new(), etcd: Mutex::default(), members: plan.members, undo };
        lab.make_switch();
        lab.start_etcd();
        for number in 1..=plan.hosts {
            let etcd = (plan.members > 0).then(|| lab.etcd());
            lab.hosts.push(Host::make(&lab.name, &lab.folder, number, etcd, plan.bridge, plan.runtime));
        }
        for host in &lab.hosts {
            host.await_dockerd();
            host.import_image();
        }
        if plan.members > 0 {
            wait_until("etcd is healthy", START, || lab.etcd().healthy());
        }
        lab
    }

    fn make_switch(&self) {
        let switch = format!("{}-sw", self.name);
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "set", "lo", "up"]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "address", "add", &format!("{OUTSIDE}/24"), "dev", "br0"]);
        ip(&["-n", &switch, "address", "add", &format!("{OUTSIDE6}/64"), "dev", "br0", "nodad"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
    }

    /// Starts the common etcd, with the data of an earlier one if there was one.
    pub(crate) fn start_etcd(&self) {
        self.start_etcd_of("calico", &[]);
    }

    /// The same, of a cluster of this name if it has no data yet, and with these further options.
    pub(crate) fn start_etcd_of(&self, cluster: &str, options: &[&str]) {
        for number in 1..=self.members {
            self.start_member_of(number, cluster, options);
        }
    }

    /// Starts one member of the common etcd.
    pub(crate) fn start_member(&self, number: u8) {
        self.start_member_of(number, "calico", &[]);
    }

    fn start_member_of(&self, number: u8, cluster: &str, options: &[&str]) {
        let [client, peer] = [client_url(number), peer_url(number)];
        let name = |number: u8| format!("m{number}");
        let all: Vec<String> = (1..=self.members).map(|each| format!("{}={}", name(each), peer_url(each))).collect();
        let command = Run::new("nsenter").arg(format!("--net={}", self.outside().path())).args([
            "etcd",
            "--name",
            &name(number),
            "--data-dir",
            &self.member_folder(number).display().to_string(),
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &all.join(","),
            "--initial-cluster-token",
            cluster,
        ]);
        let log = self.folder.join(format!("etcd-{number}.log"));
        let member = spawn_logged(command.args(options), &log);
        self.etcd.lock().unwrap().insert(number, member);
    }

    /// Where the common etcd of one member keeps its data.
    pub(crate) fn etcd_folder(&self) -> PathBuf {
        self.member_folder(1)
    }

    fn member_folder(&self, number: u8) -> PathBuf {
        self.folder.join(format!("etcd-{number}"))
    }

    /// Kills the common etcd. Its port refuses connections from now on.
    pub(crate) fn kill_etcd(&self) {
        (1..=self.members).for_each(|number| self.kill_member(number));
    }

    /// Kills one member of the common etcd.
    pub(crate) fn kill_member(&self, number: u8) {
        let mut member = self.etcd.lock().unwrap().remove(&number).expect("the member runs");
        member.kill().unwrap();
        member.wait().unwrap();
    }

    /// Sends etcd a signal: `STOP` makes it accept connections and say nothing.
    pub(crate) fn signal_etcd(&self, signal: nix::sys::signal::Signal) {
        (1..=self.members).for_each(|number| self.signal_member(number, signal));
    }

    /// Sends one member of the common etcd a signal.
    pub(crate) fn signal_member(&self, number: u8, signal: nix::sys::signal::Signal) {
        send(self.etcd.lock().unwrap().get(&number).expect("the member runs"), signal);
    }

    /// The common etcd, all members of it.
    pub(crate) fn etcd(&self) -> Etcd {
        let all: Vec<String> = (1..=self.members).map(client_url).collect();
        Etcd { space: self.outside(), endpoint: all.join(",") }
    }

    /// The switch namespace.
    pub(crate) fn outside(&self) -> Netns {
        Netns::named(&format!("{}-sw", self.name))
    }

    /// Host 1 is the first.
    pub(crate) fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    pub(crate) fn all_hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A lab of this many hosts with a node on each.
    pub(crate) fn running(hosts: u8) -> Self {
        let lab = Lab::hosts(hosts);
        lab.start_nodes();
        lab
    }

    /// The same, where dockerd does not know our OCI runtime.
    pub(crate) fn running_without_runtime(hosts: u8) -> Self {
        let lab = Lab::without_runtime(hosts);
        lab.start_nodes();
        lab
    }

    pub(crate) fn start_nodes(&self) {
        for host in &self.hosts {
            host.spawn_node(&[]);
        }
        for host in &self.hosts {
            host.await_ready();
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A further namespace that goes with the lab.
    pub(crate) fn namespace(&self, suffix: &str) -> Netns {
        let name = format!("{}-{suffix}", self.name);
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        Netns::named(&name)
    }

    /// What has failed stands last: who keeps only the end of a long output has it.
    fn tell_how_to_look_around(&self) {
        eprintln!("\n---- the lab {} of the failed test", self.name);
        for host in &self.hosts {
            host.print_logs();
        }
        if !self.etcd.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            eprintln!("---- the datastore");
            for (key, entry) in self.etcd().entries("/calico/") {
                eprintln!("{key}{} = {}", if entry.leased { " (leased)" } else { "" }, entry.value);
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let keep = std::thread::panicking() && setting("CALICO_LAB_KEEP").is_some();
        if std::thread::panicking() {
            // A second panic while unwinding would abort before anything is taken away.
            let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.tell_how_to_look_around()));
            if told.is_err() {
                eprintln!("---- the rest of the lab cannot be shown");
            }
            FAILURE.with_borrow(|failure| eprintln!("---- the failure once more: {failure}"));
            if !keep {
                eprintln!("---- run with CALICO_LAB_KEEP=1 to keep a lab that fails, and enter it");
            }
        }
        let mut sign = self.undo.stdin.take();
        if keep {
            let script = self.folder.join("undo.sh");
            let _ = sign.as_mut().map(|pipe| pipe.write_all(b"keep\n"));
            eprintln!("---- kept; enter a host by one of the lines above; take it all away by");
            eprintln!("sh {} {} {} </dev/null", script.display(), self.folder.display(), self.name);
        }
        drop(sign);
        let _ = self.undo.wait();
        if !keep {
            for host in &self.hosts {
                host.reap();
            }
            for member in self.etcd.lock().unwrap_or_else(PoisonError::into_inner).values_mut() {
                let _ = member.wait();
            }
        }
    }
}

/// Where a member of the common etcd listens for the hosts: the first at etcd's own port.
pub(crate) fn client_port(member: u8) -> u16 {
    2279 + 100 * u16::from(member)
}

fn client_url(member: u8) -> String {
    format!("http://{OUTSIDE}:{}", client_port(member))
}

/// Where it listens for the other members.
fn peer_url(member: u8) -> String {
    format!("http://{OUTSIDE}:{}", client_port(member) + 1)
}

/// Starts the script that takes the lab away at the end of this process, in a session of its own so that a signal to our terminal's
/// group does not end it.
fn start_undo(folder: &Path, name: &str) -> Child {
    let script = folder.join("undo.sh");
    std::fs::write(&script, include_str!("lab/undo.sh")).unwrap();
    let mut command = Run::new("setsid").arg("sh").arg(&script).arg(folder).arg(name).background();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("start setsid")
}

/// Runs `ip`, which has to succeed.
pub(crate) fn ip(args: &[&str]) -> String {
    Run::new("ip").args(args).run().ok()
}

/// Starts what runs beside the test, with its output at the end of a file.
pub(crate) fn spawn_logged(command: Run, log: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut command = command.background();
    // A group of its own: the terminal's interrupt is for the test process alone.
    command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"))
}

pub(crate) fn send(child: &Child, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, signal).unwrap();
}

/// A setting of the test run.
#[expect(clippy::disallowed_methods, reason = "the one place where the tests read their environment")]
pub(crate) fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// How many of something a test does: the first in `make test`, the second in `make soak`.
pub(crate) fn counts(small: usize, full: usize) -> usize {
    if setting("CALICO_LAB_SOAK").is_some() { full } else { small }
}

/// Prints a table of what was seen, which `make soak` collects.
pub(crate) fn tell(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let lines = ["| --- ".repeat(columns.len())].map(|line| format!("{line}|")).into_iter();
    let lines = std::iter::once(format!("| {} |", columns.join(" | "))).chain(lines);
    let lines: Vec<String> = lines.chain(rows.into_iter().map(|cells| format!("| {} |", cells.join(" | ")))).collect();
    // In one piece: tests print at the same time.
    println!("\n{}\n", lines.join("\n"));
}

/// What a lab is made with; a missing one fails the test with its name.
fn check_tools() {
    static CHECKED: OnceLock<Vec<String>> = OnceLock::new();
    let missing = CHECKED.get_or_init(|| {
        let mut missing = Vec::new();
        if !nix::unistd::geteuid().is_root() {
            missing.push("the rights of root".to_owned());
        }
        let path = setting("PATH").unwrap_or_default();
        for tool in [
            "awk",
            "birdc",
            "curl",
            "docker",
            "dockerd",
            "etcd",
            "etcdctl",
            "ip",
            "ipset",
            "iptables",
            "iptables-save",
            "nft",
            "nsenter",
            "openssl",
            "runc",
            "script",
            "setpriv",
            "setsid",
            "sysctl",
            "tar",
            "unshare",
            "xargs",
        ] {
            if !std::env::split_paths(&path).any(|folder| folder.join(tool).exists()) {
                missing.push(tool.to_owned());
            }
        }
        if busybox().is_none() {
            missing.push("busybox (package busybox-static)".to_owned());
        }
        missing
    });
    assert!(missing.is_empty(), "a lab needs what is not here: {}", missing.join(", "));
}

fn busybox() -> Option<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists())
}

/// A tar of a root file system that holds busybox and nothing else.
pub(crate) fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        for folder in ["bin", "tmp", "etc", "root"] {
            std::fs::create_dir(root.path().join(folder)).unwrap();
        }
        let busybox = busybox().expect("busybox is here");
        std::fs::copy(busybox, root.path().join("bin/busybox")).unwrap();
        for applet in Run::new(busybox).arg("--list").run().ok().lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet)).unwrap();
        }
        Run::new("tar").arg("-C").arg(root.path()).args(["-c", "."]).run().stdout
    })
}
