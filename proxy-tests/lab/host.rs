//! One Docker host of a lab: its dockerd, its node, and what is to be seen on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::command::{Ran, Run};
use super::container::Container;
use super::etcd::Etcd;
use super::http::{self, Reply};
use super::invariants::Identity;
use super::netns::Netns;
use super::wait::{wait_for, wait_until};
use super::{START, image, ip, send, setting, spawn_logged};

/// What a container of a test does: nothing, until it is told to end.
pub(crate) const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done";

pub(crate) struct Host {
    /// `h1`, `h2`, …: the host's name in the datastore.
    pub(crate) name: String,
    pub(crate) ip: Ipv4Addr,
    pub(crate) ip6: Ipv6Addr,
    pub(crate) space: Netns,
    folder: PathBuf,
    /// `None`: the node runs its own.
    etcd: Option<Etcd>,
    bridge: bool,
    dockerd: Mutex<Option<Child>>,
    node: Mutex<Option<Child>>,
    /// The containers for whose network somebody got a success.
    pub(crate) promised: Mutex<BTreeSet<String>>,
    /// What each container was first seen with.
    pub(crate) known: Mutex<BTreeMap<String, Identity>>,
}

fn binary(variable: &str, built: &str) -> String {
    setting(variable).unwrap_or_else(|| built.to_owned())
}

impl Host {
    pub(super) fn make(lab: &str, folder: &Path, number: u8, etcd: Option<Etcd>, bridge: bool, runtime: bool) -> Self {
        let name = format!("h{number}");
        let (space, switch) = (format!("{lab}-{name}"), format!("{lab}-sw"));
        let address = Ipv4Addr::new(172, 25, 0, number);
        ip(&["netns", "add", &space]);
        ip(&["-n", &space, "link", "set", "lo", "up"]);
        // Both ends are born where they belong, so no name is taken in the machine's own namespace.
        ip(&["-n", &switch, "link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &space]);
        ip(&["-n", &switch, "link", "set", &name, "master", "br0", "up"]);
        ip(&["-n", &space, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        let address6 = Ipv6Addr::new(0x2001, 0xdb8, 25, 0, 0, 0, 0, u16::from(number));
        ip(&["-n", &space, "address", "add", &format!("{address6}/64"), "dev", "eth0", "nodad"]);
        ip(&["-n", &space, "link", "set", "eth0", "up"]);
        let host = Host {
            ip: address,
            ip6: address6,
            space: Netns::named(&space),
            folder: folder.join(&name),
            name,
            etcd,
            bridge,
            dockerd: Mutex::default(),
            node: Mutex::default(),
            promised: Mutex::default(),
            known: Mutex::default(),
        };
        for folder in [host.run_dir(), host.state_dir(), host.folder.join("docker-cli")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let daemon = if runtime { host.daemon_config() } else { json!({}) };
        std::fs::write(host.daemon_json(), daemon.to_string()).unwrap();
        // As a machine is that was installed just now. A new namespace has what the machine has.
        host.sh("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0");
        host.spawn_dockerd();
        host
    }

    /// What `install-runtime` writes.
    pub(crate) fn daemon_config(&self) -> Value {
        let path = binary("CALICO_RUNTIME_BIN", env!("CARGO_BIN_EXE_calico-runtime"));
        let args = json!(["--run-dir", self.run_dir(), "--state-dir", self.state_dir()]);
        json!({ "runtimes": { "calico": { "path": path, "runtimeArgs": args } } })
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    pub(crate) fn raw_socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    pub(crate) fn proxy_socket(&self) -> PathBuf {
        self.folder.join("proxy.sock")
    }

    /// A command in the host's network.
    pub(crate) fn command(&self, program: &str) -> Run {
        // `ip netns exec` would remount /sys, and dockerd would find no cgroups there.
        Run::new("nsenter").arg(format!("--net={}", self.space.path())).arg(program)
    }

    /// A shell line in the host's network, which has to succeed.
    #[track_caller]
    pub(crate) fn sh(&self, line: &str) -> String {
        self.command("sh").args(["-c", line]).run().ok()
    }

    // ---- dockerd

    /// The file that configures dockerd.
    pub(crate) fn daemon_json(&self) -> PathBuf {
        self.folder.join("daemon.json")
    }

    pub(crate) fn spawn_dockerd(&self) {
        self.spawn_dockerd_with(&[]);
    }

    /// A dockerd with these further options.
    pub(crate) fn spawn_dockerd_with(&self, options: &[&str]) {
        let mut command = if self.subordinate_ids().exists() {
            // Over the machine's own files, for this dockerd and what it starts alone.
            let bound = "mount --bind \"$0\" /etc/subuid && mount --bind \"$0\" /etc/subgid && exec dockerd \"$@\"";
            self.command("unshare").args(["--mount", "sh", "-c", bound]).arg(self.subordinate_ids())
        } else {
            self.command("dockerd")
        };
        if !self.bridge {
            command = command.args(["--bridge", "none", "--iptables=false", "--ip-forward=false"]);
        }
        let path = |name: &str| self.folder.join(name).display().to_string();
        let command = command
            .args(["--host", &format!("unix://{}", path("docker.sock"))])
            .args(["--data-root", &path("root"), "--exec-root", &path("exec"), "--pidfile", &path("dockerd.pid")])
            .args(["--config-file", &path("daemon.json")])
            // What its containerd leaves behind goes with the lab.
            .env("TMPDIR", &self.folder)
            .args(options);
        *self.dockerd.lock().unwrap() = Some(spawn_logged(command, &self.folder.join("dockerd.log")));
    }

    /// Which ids of the machine are root's and the others' in a container, as /etc/subuid has it.
    fn subordinate_ids(&self) -> PathBuf {
        self.folder.join("subordinate-ids")
    }

    /// Starts dockerd anew, with containers whose root is this user of the machine. What the former one had made, this one
    /// does not know.
    pub(crate) fn remap_users(&self, first: u32) {
        self.stop_dockerd();
        let ids = ["nobody", "nogroup"].map(|name| format!("{name}:{first}:65536\n"));
        std::fs::write(self.subordinate_ids(), ids.concat()).unwrap();
        self.configure_dockerd("userns-remap", json!("nobody:nogroup"));
        self.spawn_dockerd();
        self.await_dockerd();
        self.import_image();
    }

    pub(crate) fn await_dockerd(&self) {
        wait_until(&format!("dockerd of {} answers", self.name), START, || {
            let mut dockerd = self.dockerd.lock().unwrap();
            let ended = dockerd.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "dockerd of {} ended: {}", self.name, tail(&self.folder.join("dockerd.log"), 5));
            self.try_raw_api("GET", "/_ping", None).is_some_and(|reply| reply.status == 200)
        });
    }

    /// Kills dockerd and its containerd; the containers live on. Returns once a new one can start on the same folders.
    pub(crate) fn kill_dockerd(&self) {
        let containerd = std::fs::read_to_string(self.folder.join("exec/containerd/containerd.pid")).unwrap();
        let mut dockerd = self.dockerd.lock().unwrap().take().expect("dockerd runs");
        dockerd.kill().unwrap();
        dockerd.wait().unwrap();
        // dockerd asks the kernel to kill its containerd with it.
        let process = PathBuf::from("/proc").join(containerd.trim());
        wait_until("containerd has gone", START, || !process.exists());
    }

    /// SIGTERM; returns once dockerd has ended.
    pub(crate) fn stop_dockerd(&self) {
        let mut dockerd = self.dockerd.lock().unwrap().take().expect("dockerd runs");
        send(&dockerd, Signal::SIGTERM);
        wait_for(&format!("dockerd of {} ends after SIGTERM", self.name), START, || dockerd.try_wait().unwrap());
    }

    /// Changes one setting in dockerd's configuration file, for the next dockerd or the next SIGHUP.
    pub(crate) fn configure_dockerd(&self, setting: &str, value: Value) {
        let file = self.folder.join("daemon.json");
        let mut settings: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        settings[setting] = value;
        std::fs::write(file, settings.to_string()).unwrap();
    }

    /// The processes that stand between containerd and the containers of this host.
    pub(crate) fn shims(&self) -> Vec<Pid> {
        let socket = self.folder.join("exec/containerd/containerd.sock").display().to_string();
        processes_where(|pid| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains("containerd-shim") && command.split('\0').any(|word| word == socket)
        })
    }

    /// The host goes as with its power: every process, all that is in the kernel, all that is in a tmpfs.
    pub(crate) fn lose_power(&self) {
        if self.node.lock().unwrap().is_some() {
            self.kill_node();
        }
        self.kill_dockerd();
        let shims = self.shims();
        let containers = processes_where(|pid| parent_of(pid).is_some_and(|parent| shims.contains(&parent)));
        for pid in shims.iter().chain(&containers) {
            // What went with another is what is wanted.
            let _ = kill(*pid, Signal::SIGKILL);
        }
        wait_until("all processes of the host have gone", START, || {
            shims.iter().chain(&containers).all(|pid| kill(*pid, None).is_err())
        });
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let below = format!("{}/", self.folder.display());
        let mut mounts: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        mounts.retain(|mount| mount.starts_with(&below));
        mounts.sort_unstable();
        for mount in mounts.iter().rev() {
            Run::new("umount").arg("-l").arg(mount).run().ok();
        }
        for folder in [self.run_dir(), self.folder.join("exec")] {
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::create_dir(&folder).unwrap();
        }
        for file in ["docker.pid", "docker.sock", "proxy.sock"] {
            let _ = std::fs::remove_file(self.folder.join(file));
        }
        wait_until("the interfaces have gone with their containers", START, || self.cali_links().is_empty());
        self.sh("nft flush ruleset; ipset destroy; ip route flush proto 97; sysctl -qw net.ipv4.ip_forward=0");
    }

    /// Sends dockerd a signal: `STOP` makes it accept connections and say nothing.
    pub(crate) fn signal_dockerd(&self, signal: Signal) {
        send(self.dockerd.lock().unwrap().as_ref().expect("dockerd runs"), signal);
    }

    pub(crate) fn dockerd_pid(&self) -> u32 {
        self.dockerd.lock().unwrap().as_ref().expect("dockerd runs").id()
    }

    /// The OCI runtime of a name, as dockerd says that it knows it; null: not at all.
    pub(crate) fn runtime(&self, name: &str) -> Value {
        self.raw_api("GET", "/info").json()["Runtimes"][name].clone()
    }

    /// The file in which dockerd keeps what a container has said.
    pub(crate) fn container_log(&self, id: &str) -> PathBuf {
        self.folder.join(format!("root/containers/{id}/{id}-json.log"))
    }

    pub(super) fn import_image(&self) {
        let import = ["import", "--change", "CMD [\"sh\"]", "-", "busybox:latest"];
        self.raw_docker_run(&import).input(image()).run().ok();
    }

    /// docker at any place.
    pub(crate) fn docker_to(&self, to: &str, args: &[&str]) -> Run {
        self.command("docker")
            .args(["-H", to])
            .args(args)
            .env("DOCKER_CONFIG", self.folder.join("docker-cli"))
            .env("DOCKER_BUILDKIT", "0")
            .without_env("DOCKER_HOST")
            .without_env("DOCKER_CONTEXT")
    }

    /// docker through the node, on its unix socket.
    pub(crate) fn docker_run(&self, args: &[&str]) -> Run {
        self.docker_to(&format!("unix://{}", self.proxy_socket().display()), args)
    }

    /// docker through the node, on port 2377, as the seeds have it.
    pub(crate) fn docker_over_tcp(&self, args: &[&str]) -> Run {
        self.docker_to("tcp://127.0.0.1:2377", args)
    }

    /// docker straight at dockerd.
    pub(crate) fn raw_docker_run(&self, args: &[&str]) -> Run {
        self.docker_to(&format!("unix://{}", self.raw_socket().display()), args)
    }

    pub(crate) fn docker(&self, line: &str) -> Ran {
        self.docker_run(&words(line)).run()
    }

    pub(crate) fn raw_docker(&self, line: &str) -> Ran {
        self.raw_docker_run(&words(line)).run()
    }

    pub(crate) fn try_exchange(
        socket: &Path,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> std::io::Result<Reply> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        http::exchange(stream, method, path, body)
    }

    pub(crate) fn try_raw_api(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Reply> {
        Host::try_exchange(&self.raw_socket(), method, path, body).ok()
    }

    /// One call of the Docker API through the node. `None`: no whole answer, as when the node is killed.
    pub(crate) fn try_api(&self, method: &str, path: &str, body: Option<&Value>) -> Option<Reply> {
        Host::try_exchange(&self.proxy_socket(), method, path, body).ok()
    }

    #[track_caller]
    pub(crate) fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        Host::try_exchange(&self.proxy_socket(), method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path} through {}: {error}", self.name))
    }

    #[track_caller]
    pub(crate) fn raw_api(&self, method: &str, path: &str) -> Reply {
        Host::try_exchange(&self.raw_socket(), method, path, None)
            .unwrap_or_else(|error| panic!("{method} {path} at dockerd of {}: {error}", self.name))
    }

    /// Full ids of all containers that dockerd knows.
    pub(crate) fn container_ids(&self) -> Vec<String> {
        let list = self.raw_api("GET", "/containers/json?all=1").json();
        list.as_array().unwrap().iter().map(|one| one["Id"].as_str().unwrap().to_owned()).collect()
    }

    // ---- the node

    fn node_env(&self, mut command: Run) -> Run {
        for variable in ["ETCD_ENDPOINTS", "ETCD_AUTHORITY", "IP", "IP6", "AS", "CALICO_LISTEN"] {
            command = command.without_env(variable);
        }
        if let Some(etcd) = &self.etcd {
            command = command.env("ETCD_ENDPOINTS", &etcd.endpoint);
        }
        command
            .env("HOSTNAME", &self.name)
            .env("CALICO_RUN_DIR", self.run_dir())
            .env("CALICO_STATE_DIR", self.state_dir())
            .env("CALICO_DOCKER_HOST", format!("unix://{}", self.raw_socket().display()))
            .env("CALICO_DOCKER_CONFIG", self.daemon_json())
            .env("DOCKER_HOST", format!("unix://{}", self.raw_socket().display()))
    }

    /// calico-node with this host's environment; another binary can be named by `CALICO_NODE_BIN`.
    pub(crate) fn calico_node(&self, args: &[&str]) -> Run {
        let program = binary("CALICO_NODE_BIN", env!("CARGO_BIN_EXE_calico-node"));
        self.node_env(self.command(&program)).args(args)
    }

    /// A calico-node of another folder, with this host's environment.
    pub(crate) fn calico_node_in(&self, folder: &Path, args: &[&str]) -> Run {
        self.node_env(self.command(&folder.join("calico-node").display().to_string())).args(args)
    }

    /// A folder with a calico-node and a calico-runtime that nobody else uses.
    pub(crate) fn programs(&self) -> PathBuf {
        let folder = self.scratch().join("programs");
        if !folder.exists() {
            std::fs::create_dir(&folder).unwrap();
            let node = binary("CALICO_NODE_BIN", env!("CARGO_BIN_EXE_calico-node"));
            std::fs::copy(node, folder.join("calico-node")).unwrap();
            let runtime = binary("CALICO_RUNTIME_BIN", env!("CARGO_BIN_EXE_calico-runtime"));
            std::fs::copy(runtime, folder.join("calico-runtime")).unwrap();
        }
        folder
    }

    /// Makes the runtime of that folder known to dockerd, and tells what was said of it.
    #[track_caller]
    pub(crate) fn install_runtime(&self) -> String {
        self.calico_node_in(&self.programs(), &["install-runtime"]).run().ok()
    }

    /// calicoctl with this host's environment; another binary can be named by `CALICOCTL_BIN`.
    pub(crate) fn calicoctl_run(&self, args: &[&str]) -> Run {
        let program = binary("CALICOCTL_BIN", env!("CARGO_BIN_EXE_calicoctl"));
        self.node_env(self.command(&program)).args(args)
    }

    pub(crate) fn calicoctl(&self, line: &str) -> Ran {
        self.calicoctl_run(&words(line)).run()
    }

    /// What a user of this host types into a shell, with docker going through the node.
    pub(crate) fn user_shell(&self, script: &str) -> Ran {
        let program = binary("CALICOCTL_BIN", env!("CARGO_BIN_EXE_calicoctl"));
        let folder = Path::new(&program).parent().expect("a program in a folder");
        let script = format!("PATH={}:$PATH\n{script}", folder.display());
        self.node_env(self.command("bash"))
            .args(["-c", &script])
            .env("DOCKER_HOST", format!("unix://{}", self.proxy_socket().display()))
            .env("DOCKER_CONFIG", self.folder.join("docker-cli"))
            .run()
    }

    /// A folder for files of the user's.
    pub(crate) fn scratch(&self) -> PathBuf {
        let scratch = self.folder.join("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        scratch
    }

    pub(crate) fn spawn_node(&self, more: &[&str]) {
        let listen = format!("unix://{}", self.proxy_socket().display());
        let doors = ["--listen", &listen, "--listen", "tcp://127.0.0.1:2377"];
        self.spawn_node_with(&[&doors, more].concat());
    }

    /// A node that listens where these options say.
    pub(crate) fn spawn_node_with(&self, options: &[&str]) {
        self.keep_node(spawn_logged(self.node_command(options), &self.node_log()));
    }

    /// What `spawn_node_with` runs.
    pub(crate) fn node_command(&self, options: &[&str]) -> Run {
        let address = self.ip.to_string();
        self.calico_node(&["--ip", &address])
            .args(["--metrics-listen", "127.0.0.1:9091", "--log-level", "info,calico=debug"])
            .args(options)
    }

    /// Takes a node into its care that was started elsewhere.
    pub(crate) fn keep_node(&self, node: Child) {
        let before = self.node.lock().unwrap().replace(node);
        assert!(before.is_none(), "{} has a node already", self.name);
    }

    /// Sends the node a signal.
    pub(crate) fn signal_node(&self, signal: Signal) {
        send(self.node.lock().unwrap().as_ref().expect("a node runs"), signal);
    }

    pub(crate) fn node_log(&self) -> PathBuf {
        self.folder.join("node.log")
    }

    pub(crate) fn node_log_text(&self) -> String {
        std::fs::read_to_string(self.node_log()).unwrap()
    }

    /// How long the node has been at work, in ticks of 10 ms.
    pub(crate) fn node_ticks(&self) -> u64 {
        let pid = self.node.lock().unwrap().as_ref().expect("a node runs").id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        // The name before them has no blank in it.
        stat.split(' ').skip(13).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
    }

    /// How many descriptors the node has open.
    pub(crate) fn node_descriptors(&self) -> usize {
        let pid = self.node.lock().unwrap().as_ref().expect("a node runs").id();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    /// How many descriptors the node may have from now on.
    pub(crate) fn limit_node_descriptors(&self, most: usize) {
        let pid = self.node.lock().unwrap().as_ref().expect("a node runs").id();
        Run::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={most}:")]).run().ok();
    }

    /// Whether the node may start processes and threads from now on: the control group that it then is in has room for none.
    pub(crate) fn let_node_start_processes(&self, may: bool) {
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let groups = Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" });
        let path = self.space.path();
        let group = groups.join(path.rsplit('/').next().unwrap());
        if !group.exists() {
            if unified {
                std::fs::write(groups.join("cgroup.subtree_control"), "+pids").unwrap();
            }
            std::fs::create_dir(&group).unwrap();
            let pid = self.node.lock().unwrap().as_ref().expect("a node runs").id();
            std::fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
        }
        std::fs::write(group.join("pids.max"), if may { "max" } else { "0" }).unwrap();
    }

    /// How much memory the node has in use, in bytes.
    pub(crate) fn node_memory(&self) -> usize {
        let pid = self.node.lock().unwrap().as_ref().expect("a node runs").id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    pub(crate) fn is_ready(&self) -> bool {
        let stream = self.space.enter(|| TcpStream::connect(("127.0.0.1", 9091)));
        stream.is_ok_and(|stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            http::exchange(stream, "GET", "/readyz", None).is_ok_and(|reply| reply.status == 200)
        })
    }

    pub(crate) fn await_ready(&self) {
        wait_until(&format!("the node of {} is ready", self.name), START, || {
            let mut node = self.node.lock().unwrap();
            let ended = node.as_mut().expect("a node was started").try_wait().unwrap();
            assert!(ended.is_none(), "the node of {} ended, {ended:?}: {}", self.name, tail(&self.node_log(), 5));
            self.is_ready()
        });
    }

    pub(crate) fn start_node(&self) {
        self.spawn_node(&[]);
        self.await_ready();
    }

    /// The node that runs, out of this host's hands.
    pub(crate) fn take_node(&self) -> Child {
        self.node.lock().unwrap().take().expect("a node runs")
    }

    /// Starts another node that takes the place of the one that runs, which is answered.
    pub(crate) fn take_over(&self) -> Child {
        let before = self.take_node();
        self.spawn_node(&["--take-over"]);
        before
    }

    /// SIGTERM; the node has to end well.
    pub(crate) fn stop_node(&self) {
        let mut node = self.node.lock().unwrap().take().expect("a node runs");
        send(&node, Signal::SIGTERM);
        let what = format!("the node of {} ends after SIGTERM", self.name);
        // Ten seconds each for calls, parts and streams, where dockerd hangs.
        let status = wait_for(&what, Duration::from_secs(45), || node.try_wait().unwrap());
        assert!(status.success(), "the node of {} ended with {status}", self.name);
    }

    /// SIGKILL: no time for anything.
    pub(crate) fn kill_node(&self) {
        let mut node = self.node.lock().unwrap().take().expect("a node runs");
        // One that has ended already is no error.
        let _ = node.kill();
        node.wait().unwrap();
    }

    /// Whether its node has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        let mut node = self.node.lock().unwrap();
        node.as_mut().expect("a node was started").try_wait().unwrap().is_some()
    }

    pub(super) fn reap(&self) {
        for child in [&self.dockerd, &self.node] {
            // A panic while one waited for it is no reason to leave it unburied.
            if let Some(mut child) = child.lock().unwrap_or_else(PoisonError::into_inner).take() {
                let _ = child.wait();
            }
        }
    }

    /// The datastore that this host's node uses.
    pub(crate) fn etcd(&self) -> Etcd {
        if let Some(etcd) = &self.etcd {
            return etcd.clone();
        }
        let endpoint = std::fs::read_to_string(self.run_dir().join("etcd-endpoint")).unwrap();
        Etcd { space: self.space.clone(), endpoint: endpoint.trim().to_owned() }
    }

    /// The keys below the host's part of the datastore that concern containers.
    pub(crate) fn workload_keys(&self) -> Vec<String> {
        self.etcd().keys(&format!("/calico/v1/host/{}/workload/", self.name))
    }

    /// The claims of addresses of every host.
    pub(crate) fn claims(&self) -> Vec<String> {
        ["v4", "v6"]
            .iter()
            .flat_map(|family| self.etcd().keys(&format!("/calico/v1/ipam/{family}/assignment/")))
            .collect()
    }

    // ---- containers

    /// `docker run -d` through the node, with these further options, of a container that idles.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, options: &str) -> Container<'_> {
        let ran = self.try_run(name, options);
        ran.ok();
        let container = self.container(name);
        if options.contains("CALICO_IP") {
            self.promised.lock().unwrap().insert(container.id.clone());
        }
        container
    }

    /// The same, which may fail.
    pub(crate) fn try_run(&self, name: &str, options: &str) -> Ran {
        let mut args = vec!["run", "-d", "--name", name];
        args.extend(words(options));
        args.extend(["busybox", "sh", "-c", IDLE]);
        self.docker_run(&args).run()
    }

    /// A container that is there, by its name.
    #[track_caller]
    pub(crate) fn container(&self, name: &str) -> Container<'_> {
        let reply = self.raw_api("GET", &format!("/containers/{name}/json"));
        assert_eq!(reply.status, 200, "no container {name} on {}: {}", self.name, reply.message());
        Container { host: self, name: name.to_owned(), id: reply.json()["Id"].as_str().unwrap().to_owned() }
    }

    /// Asks the API for a container that idles, not started. `None`: no whole answer.
    pub(crate) fn try_create(&self, name: &str, env: &[&str], host_config: &Value) -> Option<Reply> {
        let body = json!({
            "Image": "busybox", "Cmd": ["sh", "-c", IDLE], "Env": env, "HostConfig": host_config,
        });
        let reply = self.try_api("POST", &format!("/v1.41/containers/create?name={name}"), Some(&body))?;
        if reply.status == 201 && env.iter().any(|entry| entry.starts_with("CALICO_IP=")) {
            let id = reply.json()["Id"].as_str().unwrap().to_owned();
            self.promised.lock().unwrap().insert(id);
        }
        Some(reply)
    }

    /// The same, which has to be answered.
    #[track_caller]
    pub(crate) fn create(&self, name: &str, env: &[&str]) -> Reply {
        self.try_create(name, env, &json!({})).unwrap_or_else(|| panic!("create {name} on {}: no answer", self.name))
    }

    pub(crate) fn has_container(&self, name: &str) -> bool {
        self.raw_api("GET", &format!("/containers/{name}/json")).status == 200
    }

    // ---- the kernel

    /// `ip -json …` in the host's namespace.
    pub(crate) fn ip_json(&self, args: &[&str]) -> Vec<Value> {
        let printed = self.command("ip").args(["-json", "-details"]).args(args).run().ok();
        // It says nothing at all where there is nothing to say.
        if printed.is_empty() { Vec::new() } else { serde_json::from_str(&printed).unwrap() }
    }

    /// The main table of IPv4, one route to a line.
    pub(crate) fn routes(&self) -> Vec<String> {
        self.command("ip").args(["-4", "route", "show"]).run().ok().lines().map(|line| line.trim().to_owned()).collect()
    }

    pub(crate) fn has_route(&self, begin: &str) -> bool {
        self.routes().iter().any(|route| format!("{route} ").starts_with(&format!("{begin} ")))
    }

    /// The names of this software's interfaces on the host.
    pub(crate) fn cali_links(&self) -> BTreeSet<String> {
        let links = self.ip_json(&["link", "show"]);
        let names = links.iter().filter_map(|link| link["ifname"].as_str());
        names.filter(|name| name.starts_with("cali")).map(str::to_owned).collect()
    }

    /// How many processes of this name run in the host's network.
    pub(crate) fn processes(&self, name: &str) -> usize {
        let space = self.space.path().rsplit('/').next().unwrap().to_owned();
        let pids = ip(&["netns", "pids", &space]);
        let names = pids.lines().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default());
        names.filter(|found| found.trim() == name).count()
    }

    /// What a tool shows of all rules. It fails where a set goes between its look at the rule and that at the set.
    fn saved(&self, tool: &str) -> String {
        let shown = || {
            let run = self.command(tool).run();
            run.succeeded().then(|| run.out())
        };
        wait_for(&format!("{tool} shows the rules of {}", self.name), START, shown)
    }

    /// All rules of IPv4, counters left out.
    pub(crate) fn rules(&self) -> Vec<String> {
        let saved = self.saved("iptables-save");
        let lines = saved.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| line.split(" [").next().unwrap().to_owned()).collect()
    }

    /// The same of IPv6.
    pub(crate) fn rules6(&self) -> Vec<String> {
        let saved = self.saved("ip6tables-save");
        saved.lines().filter(|line| line.starts_with("-A")).map(str::to_owned).collect()
    }

    /// The names of this software's chains.
    pub(crate) fn chains(&self) -> BTreeSet<String> {
        let rules = self.rules();
        let declared = rules.iter().filter_map(|line| line.strip_prefix(":calico-"));
        declared.map(|rest| format!("calico-{}", rest.split(' ').next().unwrap())).collect()
    }

    /// This software's sets and what is in them.
    pub(crate) fn sets(&self) -> BTreeMap<String, BTreeSet<String>> {
        let saved = self.command("ipset").arg("save").run().ok();
        let mut sets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let is_ours = |set: &str| set.starts_with("calico4-") || set.starts_with("calico6-");
        for line in saved.lines() {
            match line.split(' ').collect::<Vec<_>>().as_slice() {
                ["create", set, ..] if is_ours(set) => {
                    sets.entry((*set).to_owned()).or_default();
                }
                ["add", set, member, ..] if is_ours(set) => {
                    sets.entry((*set).to_owned()).or_default().insert((*member).to_owned());
                }
                _ => {}
            }
        }
        sets
    }

    pub(crate) fn birdc(&self, line: &str) -> String {
        let socket = self.run_dir().join("bird.ctl");
        let ran = self.command("birdc").args(["-r", "-s"]).arg(socket).args(line.split(' ')).run();
        format!("{}\n{}", ran.out(), ran.err())
    }

    /// How many BGP sessions are up.
    pub(crate) fn established_sessions(&self) -> usize {
        let protocols = self.birdc("show protocols");
        protocols.lines().filter(|line| line.contains("BGP") && line.contains("Established")).count()
    }

    pub(super) fn print_logs(&self) {
        eprintln!("---- {}: nsenter --net={}", self.name, self.space.path());
        eprintln!("     docker -H unix://{}   raw: docker.sock beside it", self.proxy_socket().display());
        for (log, lines) in [(self.node_log(), 60), (self.folder.join("dockerd.log"), 15)] {
            eprintln!("---- {}\n{}", log.display(), tail(&log, lines));
        }
    }
}

/// The processes of the machine of which this holds.
fn processes_where(holds: impl Fn(Pid) -> bool) -> Vec<Pid> {
    let names = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let pids = names.filter_map(|name| name.parse().ok()).map(Pid::from_raw);
    pids.filter(|pid| holds(*pid)).collect()
}

/// `None`: it has ended.
fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything, come the state and the parent.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(1)?.parse().ok().map(Pid::from_raw)
}

fn tail(file: &Path, lines: usize) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    // A body in a log line can be longer than all the rest.
    let all: Vec<String> = text.lines().map(|line| line.chars().take(500).collect()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The words of a command line as a user types it, single quotes included.
pub(crate) fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (number, part) in line.split('\'').enumerate() {
        if number % 2 == 1 { words.push(part) } else { words.extend(part.split_whitespace()) }
    }
    words
}
