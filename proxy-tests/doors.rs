//! The doors: where Docker's clients come in, who does and who does not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::lab::command::{Ran, Run};
use crate::lab::host::{Host, IDLE};
use crate::lab::wait::{pause, wait_for, wait_until};
use crate::lab::{Lab, START};

/// An authority and what it has signed, in files as docker wants them.
struct Authority(PathBuf);

impl Authority {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let authority = Authority(folder.to_owned());
        let name = folder.file_name().unwrap().display();
        authority
            .openssl(&format!("req -x509 -newkey rsa:2048 -nodes -subj /CN={name} -days 2 -keyout ca.key -out ca.pem"));
        authority
    }

    fn openssl(&self, line: &str) {
        let args: Vec<&str> = line.split(' ').collect();
        Run::new("sh").args(["-c", "cd \"$0\" && exec openssl \"$@\""]).arg(&self.0).args(args).run().ok();
    }

    /// A certificate and its key, in a folder of this name.
    fn sign(&self, name: &str, extensions: &str) -> PathBuf {
        let folder = self.0.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("extensions"), extensions).unwrap();
        std::fs::copy(self.0.join("ca.pem"), folder.join("ca.pem")).unwrap();
        self.openssl(&format!(
            "req -newkey rsa:2048 -nodes -subj /CN={name} -keyout {name}/key.pem -out {name}/request"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}/request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {name}/extensions \
             -out {name}/cert.pem"
        ));
        folder
    }

    fn sign_server(&self, name: &str) -> PathBuf {
        self.sign(name, "subjectAltName=DNS:localhost,DNS:docker1,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    }

    fn sign_client(&self, name: &str) -> PathBuf {
        self.sign(name, "extendedKeyUsage=clientAuth\n")
    }
}

const TLS: &str = "tcp://127.0.0.1:2376";

/// The options of a node that listens with TLS and asks its clients for certificates, and at its unix socket.
fn tls_options(host: &Host, server: &Path, address: &str) -> Vec<String> {
    let file = |name: &str| server.join(name).display().to_string();
    vec![
        format!("--listen=tls://{address},unix://{}", host.proxy_socket().display()),
        format!("--tlscert={}", file("cert.pem")),
        format!("--tlskey={}", file("key.pem")),
        format!("--tlscacert={}", file("ca.pem")),
    ]
}

fn as_words(options: &[String]) -> Vec<&str> {
    options.iter().map(String::as_str).collect()
}

/// docker as its users have it with TLS: told by the environment.
fn over_tls(host: &Host, certificates: &Path, to: &str, args: &[&str]) -> Run {
    host.docker_to(to, args).env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", certificates)
}

/// curl, which prints the status and nothing else of what came.
fn curl(host: &Host, args: &[&str]) -> Ran {
    host.command("curl").args(["-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}"]).args(args).run()
}

#[test]
fn docker_s_clients_speak_tls_with_certificates_on_both_sides() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let authority = Authority::new(&h1.scratch().join("ours"));
    let (server, client) = (authority.sign_server("server"), authority.sign_client("client"));
    h1.spawn_node_with(&as_words(&tls_options(h1, &server, "127.0.0.1:2376")));
    h1.await_ready();
    // One who connects and says nothing; what becomes of it is looked at below.
    let silent = h1.space.enter(|| TcpStream::connect("127.0.0.1:2376").unwrap());
    let docker = |args: &[&str]| over_tls(h1, &client, TLS, args);
    let same = |args: &[&str], input: &[u8]| {
        let [raw, tls] = [h1.raw_docker_run(args), docker(args)].map(|way| way.input(input).run());
        assert_eq!(tls.code, raw.code, "{raw}\n{tls}");
        assert!(tls.stdout == raw.stdout && tls.stderr == raw.stderr, "{raw}\n{tls}");
        tls
    };

    // Both directions of a stream end apart.
    let sh = |script: &'static str| ["run", "--rm", "-i", "busybox", "sh", "-c", script];
    assert_eq!(same(&sh("cat; sleep 1; echo late"), b"ok\n").out(), "ok\nlate");
    assert_eq!(same(&["run", "--rm", "busybox", "sh", "-c", "sleep 1; echo out"], b"").out(), "out");
    assert_eq!(same(&sh("echo out; echo err >&2; exit 42"), b"").code, Some(42));
    h1.raw_docker_run(&["run", "-d", "--name", "box", "busybox", "sh", "-c", IDLE]).run().ok();
    assert_eq!(same(&["exec", "-i", "box", "sh", "-c", "cat; sleep 1; echo late"], b"in\n").out(), "in\nlate");
    for name in ["raw", "tls"] {
        let talks = ["create", "-i", "--name", name, "busybox", "sh", "-c", "cat; sleep 1; echo late"];
        h1.raw_docker_run(&talks).run().ok();
    }
    let raw = h1.raw_docker_run(&["start", "-ai", "raw"]).input("in\n").run().ok();
    assert_eq!(
        (docker(&["start", "-ai", "tls"]).input("in\n").run().ok(), raw.as_str()),
        ("in\nlate".to_owned(), raw.as_str())
    );
    h1.raw_docker_run(&["create", "-i", "--name", "attached", "busybox", "sh", "-c", "cat; sleep 1; echo late"])
        .run()
        .ok();
    h1.raw_docker("start attached").ok();
    assert_eq!(docker(&["attach", "attached"]).input("in\n").run().ok(), "in\nlate");
    let file = |flag: &str, name: &str| format!("--{flag}={}", client.join(name).display());
    let flags = [file("tlscacert", "ca.pem"), file("tlscert", "cert.pem"), file("tlskey", "key.pem")];
    h1.docker_to("tcp://localhost:2376", &[&["--tlsverify"], &as_words(&flags)[..], &["version"]].concat()).run().ok();

    // Much, to one that reads nothing for a while, and from one that sends much.
    h1.raw_docker("exec box sh -c 'head -c 67108864 /dev/urandom >/tmp/noise'").ok();
    let digest = h1.raw_docker("exec box sha256sum /tmp/noise").ok().replace("/tmp/noise", "-");
    let slowly = format!("{} | {{ sleep 2; sha256sum; }}", docker(&["exec", "box", "cat", "/tmp/noise"]).line());
    assert_eq!(Run::new("sh").args(["-c", &slowly]).run().ok(), digest);
    let up = docker(&["exec", "box", "cat", "/tmp/noise"]).line();
    let back = format!("{up} | {}", docker(&["exec", "-i", "box", "sh", "-c", "sleep 1; sha256sum"]).line());
    assert_eq!(Run::new("sh").args(["-c", &back]).run().ok(), digest);
    h1.raw_docker("exec box rm /tmp/noise").ok();

    // Ours get their network this way too.
    docker(&[
        "run",
        "-d",
        "--name",
        "ann",
        "-e",
        "CALICO_IP=192.168.1.1",
        "-e",
        "CALICO_PROFILE=web",
        "busybox",
        "sh",
        "-c",
        IDLE,
    ])
    .run()
    .ok();
    assert!(h1.space.pings(h1.container("ann").ip()));

    refuses_who_is_not_trusted(h1, &authority, &client);
    knows_its_names(h1, &client);

    // The silent one is sent away after a while, and nobody waited for it.
    silent.set_read_timeout(Some(START)).unwrap();
    assert_eq!((&silent).read(&mut [0]).unwrap(), 0);
    lab.assert_consistent();
}

/// Those without a certificate, with one that somebody else signed, with old versions of TLS, with HTTP/2, without TLS.
fn refuses_who_is_not_trusted(h1: &Host, authority: &Authority, client: &Path) {
    let url = "https://127.0.0.1:2376/_ping";
    let file = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let (ca, cert, key) = (file(client, "ca.pem"), file(client, "cert.pem"), file(client, "key.pem"));
    let trusted = ["--cacert", &ca, "--cert", &cert, "--key", &key, url];
    assert_eq!(curl(h1, &trusted).ok(), "200");

    let none = curl(h1, &["--cacert", &ca, url]);
    assert!(none.code != Some(0) && none.err().contains("certificate required"), "{none}");
    let stranger = Authority::new(&h1.scratch().join("theirs"));
    let foreign = stranger.sign_client("client");
    std::fs::copy(&ca, foreign.join("ca.pem")).unwrap();
    let said = over_tls(h1, &foreign, TLS, &["version"]).run().fails_with(1);
    // Go's clients keep a certificate to themselves that no authority of ours has signed.
    assert!(said.contains("tls: certificate required"), "{said}");
    let (cert_of_theirs, key_of_theirs) = (file(&foreign, "cert.pem"), file(&foreign, "key.pem"));
    let theirs = curl(h1, &["--cacert", &ca, "--cert", &cert_of_theirs, "--key", &key_of_theirs, url]);
    assert!(theirs.code != Some(0) && theirs.err().contains("unknown ca"), "{theirs}");
    // One that was signed for servers only is none of a client.
    let server = authority.0.join("server");
    let said = over_tls(h1, &server, TLS, &["version"]).run().fails_with(1);
    assert!(said.contains("tls: "), "{said}");

    let old = curl(h1, &[&["--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0"], &trusted[..]].concat());
    assert!(old.code == Some(35) && old.err().contains("alert"), "{old}");
    for version in ["1.2", "1.3"] {
        let flag = format!("--tlsv{version}");
        assert_eq!(curl(h1, &[&[&*flag, "--tls-max", version], &trusted[..]].concat()).ok(), "200");
    }
    let offer = |protocols: &str| {
        let said = h1
            .command("openssl")
            .args(["s_client", "-connect", "127.0.0.1:2376", "-alpn", protocols, "-cert", &cert, "-key", &key])
            .run();
        format!("{}{}", said.out(), said.err())
    };
    assert!(offer("h2,http/1.1").contains("ALPN protocol: http/1.1"));
    assert!(offer("h2").contains("no application protocol"));

    let plain = h1.docker_to(TLS, &["version"]).run().fails_with(1);
    assert!(plain.contains("calico: TLS is spoken at this address"), "{plain}");
}

/// Names of the certificate are our own, others are what a page points at us.
fn knows_its_names(h1: &Host, client: &Path) {
    let hosts = h1.scratch().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost docker1 docker2\n").unwrap();
    let line = over_tls(h1, client, "tcp://docker1:2376", &["version"]).line();
    let bound = format!("mount --bind {} /etc/hosts && {line}", hosts.display());
    Run::new("unshare").args(["-m", "sh", "-c", &bound]).run().ok();

    let file = |name: &str| client.join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
    let with = |more: &[&str]| {
        let all = [&["--cacert", &ca, "--cert", &cert, "--key", &key, "https://localhost:2376/_ping"], more].concat();
        curl(h1, &all).ok()
    };
    assert_eq!(with(&["-H", "Host: docker1:2376"]), "200");
    assert_eq!(with(&["-H", "Host: docker1:2376", "-H", "Origin: https://docker1:2376"]), "200");
    assert_eq!(with(&["-H", "Host: docker2:2376"]), "403");
    assert_eq!(with(&["-H", "Origin: https://evil.example"]), "403");
    assert_eq!(with(&["-H", "Sec-Fetch-Site: cross-site"]), "403");
}

/// The serial number of the certificate that is shown.
fn shown(host: &Host) -> String {
    let line = "openssl s_client -connect 127.0.0.1:2376 </dev/null 2>/dev/null | openssl x509 -noout -serial";
    host.sh(line)
}

#[test]
fn certificates_are_read_again_on_sighup_and_no_stream_is_cut() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let authority = Authority::new(&h1.scratch().join("ours"));
    let (server, client) = (authority.sign_server("server"), authority.sign_client("client"));
    let next = authority.sign_server("next");
    h1.spawn_node_with(&as_words(&tls_options(h1, &server, "127.0.0.1:2376")));
    h1.await_ready();
    h1.raw_docker_run(&["run", "-d", "--name", "box", "busybox", "sh", "-c", IDLE]).run().ok();
    let mut stream = over_tls(h1, &client, TLS, &["exec", "-i", "box", "cat"])
        .background()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (stream.stdin.take().unwrap(), BufReader::new(stream.stdout.take().unwrap()));
    let mut echo = |word: &str| {
        writeln!(to, "{word}").unwrap();
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    };
    echo("before");
    let first = shown(h1);

    let replace = |from: &Path| {
        for name in ["cert.pem", "key.pem"] {
            std::fs::copy(from.join(name), server.join(name)).unwrap();
        }
        h1.signal_node(Signal::SIGHUP);
    };
    replace(&next);
    wait_until("the new certificate is shown", START, || shown(h1) != first);
    let second = shown(h1);
    echo("after");

    // What cannot be used changes nothing, and is told with its file and the cause.
    std::fs::write(server.join("key.pem"), "no key").unwrap();
    h1.signal_node(Signal::SIGHUP);
    let key = server.join("key.pem").display().to_string();
    let told = || {
        let log = h1.node_log_text();
        log.lines().any(|line| line.contains("ERROR") && line.contains(&key) && line.contains("PRIVATE KEY"))
    };
    wait_until("the fault is told", START, told);
    assert_eq!(shown(h1), second);
    over_tls(h1, &client, TLS, &["version"]).run().ok();
    echo("still");
    drop(to);
    assert!(stream.wait().unwrap().success());
}

#[test]
fn the_default_doors_are_both_loopbacks_and_no_page_comes_in() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    // What is refused is refused before anything else.
    let refused = h1.calico_node(&["--listen", "tcp://0.0.0.0:2377"]).run().fails_with(1);
    for word in ["tcp://0.0.0.0:2377", "root on this host", "tls://", "--insecure-root-for-anyone-who-connects"] {
        assert!(refused.contains(word), "no {word} in {refused}");
    }
    // In a log for machines it is a line like any other.
    let refused = h1.calico_node(&["--listen", "tcp://0.0.0.0:2377", "--log-format", "json"]).run().fails_with(1);
    let lines: Vec<serde_json::Value> = refused.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_it = |line: &serde_json::Value| line["level"] == "ERROR" && line.to_string().contains("root on this host");
    assert_eq!(
        (lines.iter().filter(|line| is_it(line)).count(), refused.matches("calico-node: ").count()),
        (1, 0),
        "{refused}"
    );
    let missing = ["--listen=tls://0.0.0.0:2376", "--tlscert=/no/cert.pem", "--tlskey=/no/key.pem"];
    let refused = h1.calico_node(&missing).run().fails_with(1);
    for word in ["/no/cert.pem", "/no/key.pem", "No such file", "--tlscacert"] {
        assert!(refused.contains(word), "no {word} in {refused}");
    }

    h1.spawn_node_with(&["--allow-host", "docker1"]);
    h1.await_ready();
    // Who is not told rightly what to do takes nobody's place.
    let etcd = "--etcd-endpoints";
    for (wrong, why) in [
        (&["--metrics-listen", "nonsense"][..], "it must be ADDR:PORT"),
        (&[etcd, "http://127.0.0.1"], "it must be http://HOST:PORT"),
        (&[etcd, "https://127.0.0.1:2379", "--etcd-cacert", "/etc/hostname"], "holds no CERTIFICATE"),
        (&[etcd, "https://127.0.0.1:2379"], "give its file with --etcd-cacert"),
        (&["--ip", "0.0.0.0"], "use --ip 0.0.0.0: it is"),
        (&["--ip", "127.0.0.1"], "use --ip 127.0.0.1: it is"),
    ] {
        let refused = h1.calico_node(&[&["--take-over"][..], wrong].concat()).run().fails_with(1);
        assert!(refused.contains(why), "no {why} in {refused}");
    }
    for host in ["127.0.0.1", "[::1]", "localhost"] {
        assert_eq!(curl(h1, &[&format!("http://{host}:2377/_ping")]).ok(), "200", "{host}");
        h1.docker_to(&format!("tcp://{host}:2377"), &["version"]).run().ok();
    }
    let config = h1.scratch().join("contexts");
    std::fs::create_dir_all(&config).unwrap();
    let docker =
        |args: &[&str]| h1.command("docker").env("DOCKER_CONFIG", &config).without_env("DOCKER_CONTEXT").args(args);
    for host in ["localhost:2377", "tcp://localhost:2377", "tcp://[::1]:2377"] {
        docker(&["version"]).env("DOCKER_HOST", host).run().ok();
        docker(&["-H", host, "version"]).without_env("DOCKER_HOST").run().ok();
    }
    let docker = |args: &[&str]| docker(args).without_env("DOCKER_HOST").run();
    docker(&["context", "create", "calico", "--docker", "host=tcp://localhost:2377"]).ok();
    assert_eq!(docker(&["--context", "calico", "run", "--rm", "busybox", "echo", "through"]).ok(), "through");

    // A client that wants TLS where none is spoken gets dockerd's answer at once, instead of waiting for another one.
    let told = curl(h1, &["-k", "https://localhost:2377/_ping"]);
    assert!(told.code == Some(35) && told.err().contains("wrong version number"), "{told}");

    // A page in a browser is told from a client over TCP.
    let with = |headers: &[&str]| {
        let headers: Vec<&str> = headers.iter().flat_map(|header| ["-H", *header]).collect();
        curl(h1, &[&headers[..], &["http://127.0.0.1:2377/_ping"]].concat()).ok()
    };
    for headers in [
        &["Host: localhost"][..],
        &["Host: docker1:2377"],
        &["Origin: http://localhost:9000"],
        &["Origin: http://127.0.0.1:2377"],
        &["Sec-Fetch-Site: none"],
    ] {
        assert_eq!(with(headers), "200", "{headers:?}");
    }
    for headers in [
        &["Host: evil.example"][..],
        &["Host: docker1.evil.example"],
        &["Origin: http://evil.example"],
        &["Origin: null"],
        &["Host: docker1:2377", "Origin: http://evil.example"],
        &["Sec-Fetch-Site: cross-site"],
    ] {
        assert_eq!(with(headers), "403", "{headers:?}");
    }
    let told = h1.command("curl").args(["-si", "-H", "Host: evil.example", "http://127.0.0.1:2377/_ping"]).run().ok();
    assert!(
        told.contains("Content-Type: application/json\r\n") && told.contains("{\"message\":\"calico: Host"),
        "{told}"
    );
    attach_by_websocket(h1);

    // Without TLS a hangup ends nothing, and there is nothing to read again.
    h1.signal_node(Signal::SIGHUP);
    wait_until("the hangup was seen", START, || h1.node_log_text().contains("SIGHUP"));
    assert!(h1.is_ready());
    assert_eq!(curl(h1, &["http://127.0.0.1:2377/_ping"]).ok(), "200");
}

/// A client of `attach/ws`, which sends an Origin as such clients do, gets through; a page of somebody else's does not.
fn attach_by_websocket(h1: &Host) {
    h1.raw_docker_run(&["run", "-d", "--name", "talker", "busybox", "sh", "-c", "echo said; sleep 600"]).run().ok();
    let ask = |origin: &str| {
        let request = format!(
            "GET /v1.41/containers/talker/attach/ws?logs=1&stream=1&stdout=1 HTTP/1.1\r\nHost: localhost:2377\r\n\
             Origin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut stream = h1.space.enter(|| TcpStream::connect("127.0.0.1:2377").unwrap());
        stream.set_read_timeout(Some(START)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut all = Vec::new();
        let is_over = |all: &[u8]| all.windows(4).any(|four| four == b"said") || all.starts_with(b"HTTP/1.1 403");
        while !is_over(&all) {
            let mut buffer = [0; 1024];
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&all));
            all.extend(&buffer[..count]);
        }
        String::from_utf8_lossy(&all).lines().next().unwrap().to_owned()
    };
    assert!(ask("http://localhost").starts_with("HTTP/1.1 101 "));
    assert!(ask("http://localhost:2377").starts_with("HTTP/1.1 101 "));
    assert!(ask("http://evil.example").starts_with("HTTP/1.1 403 "));
}

#[test]
fn containers_do_not_reach_a_door_that_is_open_to_everybody_else() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let unix = format!("--listen=unix://{}", h1.proxy_socket().display());
    h1.spawn_node_with(&["--listen=tcp://0.0.0.0:2377", "--insecure-root-for-anyone-who-connects", &unix]);
    h1.await_ready();
    let log = h1.node_log_text();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("tcp://0.0.0.0:2377")), "{log}");
    let ann = h1.run("ann", "-e CALICO_IP=auto -e CALICO_PROFILE=web");
    let connects = |space: &crate::lab::netns::Netns, to: Ipv4Addr| {
        let address = SocketAddr::from((to, 2377));
        space.enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(600))).is_ok()
    };
    assert!(connects(&lab.outside(), h1.ip), "it is open");
    assert!(connects(&h1.space, h1.ip));
    let addresses = h1.ip_json(&["-4", "address", "show"]);
    let own = addresses
        .iter()
        .flat_map(|link| link["addr_info"].as_array().unwrap())
        .map(|address| address["local"].as_str().unwrap().parse::<Ipv4Addr>().unwrap());
    let own: Vec<Ipv4Addr> = own.filter(|address| !address.is_loopback()).collect();
    assert!(own.contains(&h1.ip), "{own:?}");
    for address in own {
        assert!(!connects(&ann.space(), address), "a container reaches the port at {address}");
    }
    // Nor by its own tools.
    ann.exec(&["nc", "-w", "1", &h1.ip.to_string(), "2377"]).fails_with(1);
    lab.assert_consistent();
}

#[test]
fn a_unix_door_is_as_open_as_the_engine_s_and_nobody_takes_it_from_another_node() {
    let lab = Lab::hosts(2);
    let (h1, h2) = (lab.host(1), lab.host(2));
    // A group of numbers that nobody else has here.
    const GROUP: u32 = 54321;
    let engine = h1.raw_socket();
    std::os::unix::fs::chown(&engine, Some(0), Some(GROUP)).unwrap();
    std::fs::set_permissions(&engine, PermissionsExt::from_mode(0o660)).unwrap();
    let path = h1.proxy_socket();
    // Left by somebody who is gone.
    drop(UnixListener::bind(&path).unwrap());
    h1.start_node();
    let by = |group: u32| {
        let group = format!("--regid={group}");
        let url = ["-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://docker/_ping", "--unix-socket"];
        Run::new("setpriv").args(["--reuid=54321", &group, "--clear-groups", "curl"]).args(url).arg(&path).run()
    };
    assert_eq!(by(GROUP).ok(), "200");
    assert!(!by(54322).succeeded(), "somebody outside the group came in");

    // What ssh:// runs on the far machine: the client's end comes first, the answer after it.
    let ping = "GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n";
    assert!(h1.docker_run(&["system", "dial-stdio"]).input(ping).run().ok().ends_with("\r\n\r\nOK"));

    let door = format!("--listen=unix://{}", path.display());
    let said = h2.calico_node(&["--ip", &h2.ip.to_string(), &door]).run().fails_with(1);
    assert!(said.contains(&path.display().to_string()) && said.contains("somebody listens there already"), "{said}");
    assert_eq!(by(GROUP).ok(), "200");
    // The engine's own place is nobody else's, whether it runs or not.
    let door = format!("--listen=unix://{}", engine.display());
    let said = h1.calico_node(&[&door]).run().fails_with(1);
    assert!(said.contains("engine's own socket"), "{said}");

    h1.stop_node();
    assert!(!path.exists(), "the socket stayed behind");
    h1.start_node();
    h1.kill_node();
    assert!(path.exists());
    h1.start_node();
    assert_eq!(by(GROUP).ok(), "200");
    // One that was put in its place by hand is not ours to remove.
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    h1.stop_node();
    assert!(path.exists());
}

/// Starts a node as systemd does: with listening sockets from descriptor 3 on.
fn spawn_with_passed(host: &Host, sockets: [OwnedFd; 2], names: &str, options: &[&str]) {
    let script = "exec 3<&0 4<&1 0</dev/null 1>&2; export LISTEN_PID=$$ LISTEN_FDS=2; exec \"$@\"";
    let line = host.node_command(options).line();
    let command =
        Run::new("sh").args(["-c", script, "sh", "sh", "-c", &format!("exec {line}")]).env("LISTEN_FDNAMES", names);
    let [stdin, stdout] = sockets;
    let log = std::fs::OpenOptions::new().create(true).append(true).open(host.node_log()).unwrap();
    let mut command = command.background();
    command.stdin(Stdio::from(stdin)).stdout(Stdio::from(stdout)).stderr(log);
    host.keep_node(command.spawn().unwrap());
}

#[test]
fn sockets_that_systemd_passes_are_listened_at_and_nobody_is_refused_while_the_node_restarts() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let authority = Authority::new(&h1.scratch().join("ours"));
    let (server, client) = (authority.sign_server("server"), authority.sign_client("client"));
    let path = h1.scratch().join("passed.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = h1.space.enter(|| TcpListener::bind("0.0.0.0:2376").unwrap());
    let sockets = || [tcp.as_fd(), unix.as_fd()].map(|socket| socket.try_clone_to_owned().unwrap());
    let file = |flag: &str, name: &str| format!("{flag}={}", server.join(name).display());
    let options = [
        file("--tlscert", "cert.pem"),
        file("--tlskey", "key.pem"),
        file("--tlscacert", "ca.pem"),
        format!("--listen=unix://{}", h1.proxy_socket().display()),
    ];
    let options = as_words(&options);
    spawn_with_passed(h1, sockets(), "tls:docker", &options);
    h1.await_ready();

    let by_unix = || h1.docker_to(&format!("unix://{}", path.display()), &["version"]).run();
    by_unix().ok();
    over_tls(h1, &client, TLS, &["version"]).run().ok();
    h1.docker("version").ok();
    let loopback = h1.space.enter(|| TcpStream::connect("[::1]:2377"));
    assert!(loopback.is_err(), "passed sockets stand in the place of the default ones");
    let listeners = h1.calicoctl("status").ok();
    assert!(listeners.contains("tls://0.0.0.0:2376") && listeners.contains(&path.display().to_string()), "{listeners}");

    // What was passed to the node stays with it: its children have neither the sockets nor what the environment says of them.
    let ours: Vec<String> = [tcp.as_raw_fd(), unix.as_raw_fd()]
        .map(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap().display().to_string())
        .to_vec();
    let space = h1.space.path().rsplit('/').next().unwrap().to_owned();
    let mut children = 0;
    for pid in crate::lab::ip(&["netns", "pids", &space]).lines() {
        let process = PathBuf::from("/proc").join(pid);
        if std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.trim() == "bird") {
            children += 1;
            let environment = std::fs::read(process.join("environ")).unwrap();
            assert!(!String::from_utf8_lossy(&environment).contains("LISTEN_"));
            for fd in std::fs::read_dir(process.join("fd")).unwrap() {
                let target = std::fs::read_link(fd.unwrap().path()).unwrap_or_default().display().to_string();
                assert!(!ours.contains(&target), "BIRD holds a socket of ours");
            }
        }
    }
    assert_eq!(children, 1, "a BIRD runs");

    // While the node is away clients wait.
    h1.stop_node();
    assert!(path.exists(), "what systemd made is systemd's to remove");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(by_unix);
        pause(Duration::from_millis(500));
        assert!(!waiting.is_finished());
        spawn_with_passed(h1, sockets(), "tls:docker", &options);
        waiting.join().unwrap().ok();
    });
    h1.await_ready();
    h1.stop_node();

    // What is passed is held to the same rules, and what is no listening socket is told.
    let log_before = h1.node_log_text().len();
    spawn_with_passed(h1, sockets(), "calico-node.socket:docker", &[]);
    let said = wait_for("the node refuses", START, || {
        let said = h1.node_log_text()[log_before..].to_owned();
        said.contains("calico-node: ").then_some(said)
    });
    for word in ["tcp://0.0.0.0:2376, which was passed", "root on this host", "FileDescriptorName=tls"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    let line = h1.node_command(&[]).line();
    let script = format!("exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec {line}");
    let said = Run::new("sh").args(["-c", &script]).run().fails_with(1);
    assert!(said.contains("descriptor 3") && said.contains("Socket operation on non-socket"), "{said}");
}
