//! The lab: a dockerd with its bridge on and a node with its embedded etcd, in the namespaces that `tools/bench.sh` made.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::{Outcome, docker};

/// The name of the host in the datastore.
pub(crate) const HOST: &str = "bench";
/// Where an etcd beside the node listens.
const PLACE: &str = "http://127.0.0.1:23790";
const METRICS: &str = "127.0.0.1:9091";

pub(crate) struct Lab {
    pub(crate) folder: PathBuf,
    dockerd: Child,
    node: Option<Child>,
    etcd: Option<Child>,
    /// What the node is started with besides.
    pub(crate) node_args: Vec<String>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // dockerd ends its containers; what is left of all this ends with the process namespace.
        let _ = self.stop_node();
        let _ = end(&mut self.dockerd);
        let _ = self.etcd.as_mut().map(end);
    }
}

/// A program with the environment that it has outside of cargo, which names dozens of its own folders for the dynamic linker to look
/// for every library in.
#[expect(clippy::disallowed_methods, reason = "a benchmark starts its lab's programs; this is its one place for that")]
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_remove("LD_LIBRARY_PATH");
    command
}

#[expect(clippy::disallowed_methods, reason = "no runtime is running on the benchmark's threads")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[expect(clippy::disallowed_methods, reason = "a benchmark has no configuration but what its lab tells it")]
fn setting(name: &str) -> Outcome<String> {
    Ok(std::env::var(name).map_err(|_| format!("{name} is not set: this needs a lab around it, run `make bench`"))?)
}

/// A command whose output is of no interest unless it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Outcome<String> {
    feed(program, arguments, "")
}

/// The same, with text on its standard input.
pub(crate) fn feed(program: &str, arguments: &[&str], input: &str) -> Outcome<String> {
    let mut child = command(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("start {program}: {error}"))?;
    // Written from a thread, since the child may write much before it has read all.
    let mut stdin = child.stdin.take().ok_or("no standard input")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    if !output.status.success() {
        return Err(format!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Outcome<T>) -> Outcome<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > limit => {
                return Err(format!("{what}: not within {limit:?}: {error}").into());
            }
            Err(_) => pause(Duration::from_millis(20)),
        }
    }
}

pub(crate) fn end(child: &mut Child) -> Outcome<()> {
    run("kill", &[&child.id().to_string()])?;
    until("end a process", Duration::from_secs(20), || child.try_wait()?.map(|_| ()).ok_or_else(|| "it runs".into()))
}

/// `GET` from the node's metrics address.
pub(crate) fn get(path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect(METRICS)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").ok_or("a reply without an end of its head")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!("GET {path}: {}: {body}", head.lines().next().unwrap_or_default()).into()),
    }
}

impl Lab {
    /// A lab whose dockerd gets these further arguments.
    pub(crate) fn up(more: &[&str]) -> Outcome<Lab> {
        let (folder, group) = (PathBuf::from(setting("CALICO_BENCH_LAB")?), setting("CALICO_BENCH_CGROUP")?);
        run("ip", &["link", "set", "lo", "up"])?;
        run("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "uplink"])?;
        run("ip", &["address", "add", "172.31.255.1/24", "dev", "eth0"])?;
        run("ip", &["link", "set", "eth0", "up"])?;
        run("ip", &["link", "set", "uplink", "up"])?;
        // A dockerd that sees the socket of the machine's containerd would use that one.
        fs::create_dir_all("/run/containerd")?;
        run("mount", &["-t", "tmpfs", "tmpfs", "/run/containerd"])?;
        let path = |name: &str| folder.join(name).display().to_string();
        // Ours, and another name for runc: a container that asks for that one is wired by the node.
        let args = ["--run-dir", &path("run"), "--state-dir", &path("state")];
        let ours = json!({ "path": env!("CARGO_BIN_EXE_calico-runtime"), "runtimeArgs": args });
        let config = json!({ "runtimes": { "calico": ours, docker::BY_NODE: { "path": "runc" } } });
        fs::write(folder.join("daemon.json"), config.to_string())?;
        let log = fs::File::create(folder.join("dockerd.log"))?;
        let dockerd = command("dockerd")
            .args(["--host", &format!("unix://{}", path("docker.sock"))])
            .args(["--data-root", &path("root"), "--exec-root", &path("exec"), "--pidfile", &path("dockerd.pid")])
            .args(["--config-file", &path("daemon.json"), "--cgroup-parent", &group])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start dockerd: {error}"))?;
        let lab = Lab { folder, dockerd, node: None, etcd: None, node_args: Vec::new() };
        until("start dockerd", Duration::from_mins(1), || docker::Engine::new(&lab.docker_socket()).ping())?;
        lab.make_image()?;
        Ok(lab)
    }

    pub(crate) fn docker_socket(&self) -> PathBuf {
        self.folder.join("docker.sock")
    }

    pub(crate) fn proxy_socket(&self) -> PathBuf {
        self.folder.join("proxy.sock")
    }

    /// An etcd that outlives nodes, on a disk that takes no time. Answers where it listens.
    pub(crate) fn start_etcd(&mut self) -> Outcome<String> {
        let data = self.in_memory("etcd")?;
        let log = fs::File::create(self.folder.join("etcd.log"))?;
        let etcd = command("etcd")
            .args([
                "--data-dir",
                &format!("{data}/data"),
                "--listen-client-urls",
                PLACE,
                "--advertise-client-urls",
                PLACE,
            ])
            .args(["--listen-peer-urls", "http://127.0.0.1:23800", "--quota-backend-bytes", "6000000000"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start etcd: {error}"))?;
        self.etcd = Some(etcd);
        until("start etcd", Duration::from_secs(20), || {
            Ok(TcpStream::connect(PLACE.trim_start_matches("http://")).map(drop)?)
        })?;
        self.node_args.extend(["--etcd-endpoints".to_owned(), PLACE.to_owned()]);
        Ok(PLACE.to_owned())
    }

    /// Has the next node keep its state on a disk that takes no time.
    pub(crate) fn keep_state_in_memory(&self) -> Outcome<()> {
        self.in_memory("state").map(drop)
    }

    fn in_memory(&self, name: &str) -> Outcome<String> {
        let folder = self.folder.join(name).display().to_string();
        fs::create_dir_all(&folder)?;
        run("mount", &["-t", "tmpfs", "-o", "mode=700", "tmpfs", &folder])?;
        Ok(folder)
    }

    pub(crate) fn node_id(&self) -> Outcome<u32> {
        Ok(self.node.as_ref().ok_or("no node runs")?.id())
    }

    pub(crate) fn kill_node(&mut self) -> Outcome<()> {
        if let Some(mut node) = self.node.take() {
            node.kill()?;
            node.wait()?;
        }
        Ok(())
    }

    pub(crate) fn etcd_endpoint(&self) -> Outcome<String> {
        if self.etcd.is_some() {
            return Ok(PLACE.to_owned());
        }
        Ok(fs::read_to_string(self.folder.join("run/etcd-endpoint"))?.trim().to_owned())
    }

    /// An image `busybox` that holds the one static binary.
    fn make_image(&self) -> Outcome<()> {
        let tree = self.folder.join("image");
        fs::create_dir_all(tree.join("bin"))?;
        fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
        let archive = self.folder.join("image.tar");
        run("tar", &["-C", &tree.display().to_string(), "-cf", &archive.display().to_string(), "."])?;
        let host = format!("unix://{}", self.docker_socket().display());
        run("docker", &["--host", &host, "import", &archive.display().to_string(), "busybox"])?;
        Ok(())
    }

    /// Starts the node, with folders put before the search path for tools, and waits until it is ready.
    pub(crate) fn start_node(&mut self, tools: &[&Path]) -> Outcome<()> {
        let listen = format!("unix://{}", self.proxy_socket().display());
        self.spawn_node(&self.docker_socket(), &listen, tools)?;
        let ready = until("start calico-node", Duration::from_mins(1), || get("/readyz").map(|_| ()));
        ready.map_err(|error| self.with_log(&error).into())
    }

    /// What went wrong, with what the node said last.
    pub(crate) fn with_log(&self, error: &dyn std::fmt::Display) -> String {
        let log = fs::read_to_string(self.folder.join("node.log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(15).collect();
        format!("{error}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// Starts the node before an engine, and does not wait for it. Answers its process.
    pub(crate) fn spawn_node(&mut self, engine: &Path, listen: &str, tools: &[&Path]) -> Outcome<u32> {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut search: Vec<String> = tools.iter().map(|folder| folder.display().to_string()).collect();
        search.push(setting("PATH")?);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("node.log"))?;
        let node = command(env!("CARGO_BIN_EXE_calico-node"))
            .args(["--listen", listen])
            .args(["--docker-host", &format!("unix://{}", engine.display())])
            .args(["--state-dir", &path("state"), "--run-dir", &path("run")])
            .args(["--hostname", HOST, "--ip", "172.31.255.1", "--metrics-listen", METRICS])
            .args(&self.node_args)
            .env("PATH", search.join(":"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start calico-node: {error}"))?;
        let id = node.id();
        self.node = Some(node);
        Ok(id)
    }

    pub(crate) fn stop_node(&mut self) -> Outcome<()> {
        match self.node.take() {
            Some(mut node) => end(&mut node),
            None => Ok(()),
        }
    }
}

/// The node's own processor time, its children left out, from one moment to another.
pub(crate) struct Share {
    id: u32,
    begun: Duration,
}

impl Share {
    pub(crate) fn begin(lab: &Lab) -> Outcome<Share> {
        let id = lab.node_id()?;
        Ok(Share { id, begun: own_time(id)? })
    }

    pub(crate) fn end(&self) -> Outcome<Duration> {
        Ok(own_time(self.id)?.saturating_sub(self.begun))
    }
}

/// Of all threads of a process: the first number of `schedstat` (Linux, Documentation/scheduler/sched-stats.rst), in nanoseconds.
fn own_time(id: u32) -> Outcome<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir(format!("/proc/{id}/task"))? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// The processor time of a process's children that have ended: fields 16 and 17 of `stat` (proc(5)), in hundredths of a second.
pub(crate) fn childrens_time(id: u32) -> Outcome<Duration> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(") ").ok_or("a stat without a name")?.1.split(' ').collect();
    let ticks: u64 = fields.iter().skip(13).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Resident memory now and at its highest, in MiB.
pub(crate) fn memory(id: u32) -> Outcome<(f64, f64)> {
    let text = fs::read_to_string(format!("/proc/{id}/status"))?;
    let of = |name: &str| -> Outcome<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("a status without memory")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    };
    Ok((of("VmRSS:")?, of("VmHWM:")?))
}
