//! The ways to an engine that are compared, each a process of its own but for the direct ones.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::Outcome;
use crate::lab::{Lab, command, end, until};

/// Where an engine, or something before it, is reached.
#[derive(Clone)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A connection to an address.
pub(crate) trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// How long a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

impl Address {
    pub(crate) fn connect(&self) -> Outcome<Box<dyn Stream>> {
        Ok(match self {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                Box::new(stream)
            }
        })
    }
}

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) address: Address,
    /// The process that stands in between; `None`: nothing does.
    pub(crate) process: Option<u32>,
    /// Ended with this value, where the lab does not end it.
    child: Option<Child>,
}

impl Drop for Contender {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // What does not end now ends with the process namespace.
            let _ = end(child);
        }
    }
}

/// What a process and its children have used.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_s: f64,
    pub(crate) resident_kib: f64,
    /// The most since [`Contender::forget_peak`].
    pub(crate) peak_kib: f64,
}

/// Linux counts processor time for user space in this unit (`USER_HZ`, asm/param.h).
const TICKS_PER_S: f64 = 100.0;

impl Contender {
    /// Nothing in between.
    pub(crate) fn direct(name: &'static str, address: Address) -> Contender {
        Contender { name, address, process: None, child: None }
    }

    fn processes(&self) -> Outcome<Vec<u32>> {
        let Some(parent) = self.process else { return Ok(Vec::new()) };
        let mut all = vec![parent];
        // The node's children are etcd and BIRD: none of them carries bytes.
        if self.name != CALICO {
            let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
            all.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
        }
        Ok(all)
    }

    pub(crate) fn usage(&self) -> Outcome<Usage> {
        let mut usage = Usage::default();
        for process in self.processes()? {
            let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
            // After the name, which may hold anything: state is field 3, utime 14, stime 15 (proc(5)).
            let fields: Vec<&str> =
                stat.rsplit_once(')').ok_or("a stat without a name")?.1.split_whitespace().collect();
            usage.cpu_s += (fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / TICKS_PER_S;
            let status = fs::read_to_string(format!("/proc/{process}/status"))?;
            let line = |key: &str| -> Option<f64> {
                status.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
            };
            usage.resident_kib += line("VmRSS:").unwrap_or_default();
            usage.peak_kib += line("VmHWM:").unwrap_or_default();
        }
        Ok(usage)
    }

    /// Makes the peak of memory begin anew (5 in clear_refs, proc(5)).
    pub(crate) fn forget_peak(&self) -> Outcome<()> {
        for process in self.processes()? {
            fs::write(format!("/proc/{process}/clear_refs"), "5")?;
        }
        Ok(())
    }

    fn spawn(name: &'static str, port: u16, log: &Path, program: &str, arguments: &[&str]) -> Outcome<Contender> {
        let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("start {program}: {error}"))?;
        let address = Address::Tcp(([127, 0, 0, 1], port).into());
        Ok(Contender { name, address, process: Some(child.id()), child: Some(child) })
    }
}

pub(crate) const DIRECT_UNIX: &str = "dockerd, unix socket";
pub(crate) const DIRECT_TCP: &str = "dockerd, TCP";
pub(crate) const COPY_ONE: &str = "bare tokio copy, one thread";
pub(crate) const COPY_MANY: &str = "bare tokio copy, all cores";
pub(crate) const CALICO: &str = "Calico";
pub(crate) const HAPROXY: &str = "HAProxy";
pub(crate) const NGINX: &str = "nginx";
/// With a new connection to dockerd each time, as nginx has it without being told otherwise.
pub(crate) const NGINX_UNSHARED: &str = "nginx, nothing shared";

/// Where dockerd itself listens on TCP.
pub(crate) const DOCKERD_PORT: u16 = 2375;

/// All ways to an engine that go through something, each listening on TCP and connecting to the engine's unix socket.
/// Those that listen no more end with the value; the node is the lab's.
pub(crate) fn between(lab: &mut Lab, engine: &Path) -> Outcome<Vec<Contender>> {
    let folder = lab.folder.clone();
    let (log, socket) = (folder.join("contenders.log"), engine.display().to_string());
    let own = std::env::current_exe()?.display().to_string();
    let text = |name: &str, content: String| -> Outcome<String> {
        let path = folder.join(name).display().to_string();
        fs::write(&path, content)?;
        Ok(path)
    };
    let haproxy = text("haproxy.cfg", haproxy(&socket))?;
    let shared = text("nginx.conf", nginx(&socket, &folder.join("nginx.pid"), 2404, "keepalive 32;"))?;
    let unshared = text("nginx-unshared.conf", nginx(&socket, &folder.join("nginx-unshared.pid"), 2405, ""))?;
    let node = lab.spawn_node(engine, "tcp://127.0.0.1:2377", &[])?;
    let ours = Address::Tcp(([127, 0, 0, 1], 2377).into());
    let all = vec![
        Contender::spawn(COPY_ONE, 2401, &log, &own, &["copy", "one", "127.0.0.1:2401", &socket])?,
        Contender::spawn(COPY_MANY, 2402, &log, &own, &["copy", "many", "127.0.0.1:2402", &socket])?,
        Contender { name: CALICO, address: ours, process: Some(node), child: None },
        Contender::spawn(HAPROXY, 2403, &log, "haproxy", &["-db", "-f", &haproxy])?,
        Contender::spawn(NGINX, 2404, &log, "nginx", &["-c", &shared, "-g", "daemon off;"])?,
        Contender::spawn(NGINX_UNSHARED, 2405, &log, "nginx", &["-c", &unshared, "-g", "daemon off;"])?,
    ];
    for contender in &all {
        until(&format!("connect to {}", contender.name), Duration::from_mins(1), || contender.address.connect())
            .map_err(|error| if contender.name == CALICO { lab.with_log(&error).into() } else { error })?;
    }
    Ok(all)
}

/// As the socket proxies that are built on it have it, but without their time limits: those would end streams.
fn haproxy(engine: &str) -> String {
    format!(
        "global\n  maxconn 9800\ndefaults\n  mode http\n  option http-keep-alive\n  http-reuse always\n  timeout connect 5s\n  timeout client 24h\n  timeout server 24h\n  timeout tunnel 24h\n  timeout http-keep-alive 24h\nfrontend api\n  bind 127.0.0.1:2403\n  default_backend engine\nbackend engine\n  server engine unix@{engine}\n"
    )
}

/// As it is commonly put before a Docker socket: nothing buffered, upgrades passed on. `keepalive`: how connections to it are
/// kept, for all clients in common.
fn nginx(engine: &str, pid: &Path, port: u16, keepalive: &str) -> String {
    format!(
        "user root;\nworker_processes auto;\nworker_rlimit_nofile 20000;\npid {};\nerror_log stderr warn;\nevents {{ worker_connections 19900; }}\nhttp {{\n  access_log off;\n  keepalive_requests 100000000;\n  keepalive_timeout 24h;\n  client_max_body_size 0;\n  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n  upstream engine {{ server unix:{engine}; {keepalive} }}\n  server {{\n    listen 127.0.0.1:{port} backlog=1024;\n    location / {{\n      proxy_pass http://engine;\n      proxy_http_version 1.1;\n      proxy_set_header Host $http_host;\n      proxy_set_header Upgrade $http_upgrade;\n      proxy_set_header Connection $connection_upgrade;\n      proxy_buffering off;\n      proxy_request_buffering off;\n      proxy_read_timeout 24h;\n      proxy_send_timeout 24h;\n    }}\n  }}\n}}\n",
        pid.display()
    )
}
