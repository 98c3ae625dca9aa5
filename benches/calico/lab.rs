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
const METRICS: &str = "127.0.0.1:9091";

pub(crate) struct Lab {
    pub(crate) folder: PathBuf,
    dockerd: Child,
    node: Option<Child>,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // dockerd ends its containers; what is left of all this ends with the process namespace.
        let _ = self.stop_node();
        let _ = end(&mut self.dockerd);
    }
}

#[expect(clippy::disallowed_methods, reason = "a benchmark starts its lab's programs; this is its one place for that")]
pub(crate) fn command(program: &str) -> Command {
    Command::new(program)
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
        let lab = Lab { folder, dockerd, node: None };
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

    pub(crate) fn etcd_endpoint(&self) -> Outcome<String> {
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
        until("start calico-node", Duration::from_mins(1), || get("/readyz").map(|_| ())).map_err(|error| {
            let log = fs::read_to_string(self.folder.join("node.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            format!("{error}\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")).into()
        })
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
