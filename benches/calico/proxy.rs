//! What standing between a client and dockerd costs: Calico beside HAProxy, nginx and a bare copy of bytes, in turns in one run.
//!
//! - **calls**: `/_ping` on a kept connection and on a new one each time, requests a second at sixteen connections, and the create of a
//!   container. "added" is the difference of a quantile to dockerd's own unix socket, to which everything in between connects.
//! - **keystrokes**: one byte through an interactive exec and back.
//! - **bulk**: an archive into a container and out of it; the processor time and the growth of memory are those of the process in between.
//! - **idle streams**: upgraded attaches without a byte, before an engine that is nothing but sockets.
//! - **starts**: from the start of a node until its first client is answered, before such an engine too.
//!
//! Options: `--n` samples of each kind of call, `--creates` of creates, `--bulk-mib` size of the archive, `--rounds` archives each way, `--streams` how
//! many, `--starts` of the node, `--no-disk` for an etcd and a node that wait for no disk.

mod birth;
mod bulk;
mod contender;
pub(crate) mod copy;
pub(crate) mod engine;
mod http;
mod idle;

use std::time::{Duration, Instant};

use contender::{Address, CALICO, COPY_ONE, Contender, DIRECT_TCP, DIRECT_UNIX, DOCKERD_PORT, Stream};
use http::{exchange, upgrade};

use crate::docker::Engine;
use crate::figures::{Dice, Samples, table};
use crate::lab::Lab;
use crate::{Arguments, Outcome};

pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let (mut samples, mut creates, mut bulk_mib, mut rounds, mut streams) = (5000, 100, 1024, 3, vec![1000, 9000]);
    let (mut starts, mut without_disk) = (31, false);
    while let Some(option) = arguments.next() {
        match option.as_str() {
            "--no-disk" => without_disk = true,
            "--n" => samples = arguments.value(&option)?.parse()?,
            "--creates" => creates = arguments.value(&option)?.parse()?,
            "--bulk-mib" => bulk_mib = arguments.value(&option)?.parse()?,
            "--rounds" => rounds = arguments.value(&option)?.parse()?,
            "--starts" => starts = arguments.value(&option)?.parse()?,
            "--streams" => streams = arguments.value(&option)?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            other => {
                let known = "--n, --creates, --bulk-mib, --rounds, --streams, --starts or --no-disk";
                return Err(format!("unknown option {other:?}: it must be {known}").into());
            }
        }
    }
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most)?;
    let mut lab = Lab::up(&["--host", &format!("tcp://127.0.0.1:{DOCKERD_PORT}"), "--tls=false"])?;
    if without_disk {
        lab.start_etcd()?;
        lab.keep_state_in_memory()?;
    }
    {
        let dockerd = lab.docker_socket();
        let mut all = vec![
            Contender::direct(DIRECT_UNIX, Address::Unix(dockerd.clone())),
            Contender::direct(DIRECT_TCP, Address::Tcp(([127, 0, 0, 1], DOCKERD_PORT).into())),
        ];
        all.extend(contender::between(&mut lab, &dockerd)?);
        // Its memory before it has carried anything.
        let idle: Vec<f64> =
            all.iter().map(|one| one.usage().map(|usage| usage.resident_kib)).collect::<Outcome<_>>()?;
        calls(&all, &Engine::new(&dockerd), samples, creates, &idle)?;
        keystrokes(&all, &Engine::new(&dockerd), samples)?;
        if rounds > 0 {
            bulk::measure(&all, &Engine::new(&dockerd), bulk_mib, rounds)?;
        }
        lab.stop_node()?;
    }
    if !streams.is_empty() {
        idle::measure(&mut lab, &streams)?;
    }
    if starts > 0 {
        if !without_disk {
            lab.start_etcd()?;
        }
        birth::measure(&mut lab, starts)?;
    }
    Ok(())
}

const PING: &[u8] = b"GET /_ping HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// How long requests are counted at a time, and how often.
const COUNTED: Duration = Duration::from_millis(700);
const COUNTS: usize = 5;

/// How many connections ask at once when requests are counted.
const CONNECTIONS: usize = 16;

fn timed(work: impl FnOnce() -> Outcome<()>) -> Outcome<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}

/// Requests a second from several connections at once.
fn throughput(address: &Address) -> Outcome<f64> {
    let counts: Vec<Outcome<u32>> = std::thread::scope(|scope| {
        let ask = || -> Outcome<u32> {
            let (mut stream, start, mut count) = (address.connect()?, Instant::now(), 0);
            while start.elapsed() < COUNTED {
                exchange(&mut *stream, PING)?;
                count += 1;
            }
            Ok(count)
        };
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into()))).collect()
    });
    let total: u32 = counts.into_iter().sum::<Outcome<u32>>()?;
    Ok(f64::from(total) / COUNTED.as_secs_f64())
}

#[derive(Default, Clone)]
struct Calls {
    kept: Samples,
    new: Samples,
    create: Samples,
    per_s: Samples,
}

fn create(address: &Address, env: &str, network: &str, dockerd: &Engine) -> Outcome<Duration> {
    let body = format!(
        r#"{{"Image":"busybox","Cmd":["/bin/busybox","true"],"Env":[{env}],"HostConfig":{{"NetworkMode":"{network}"}}}}"#
    );
    let request = http::post("/v1.41/containers/create", &body);
    let start = Instant::now();
    let reply = exchange(&mut *address.connect()?, &request)?;
    let took = start.elapsed();
    let id = reply.text("Id")?;
    dockerd.remove(&id)?;
    Ok(took)
}

fn calls(all: &[Contender], dockerd: &Engine, samples: usize, creates: usize, idle: &[f64]) -> Outcome<()> {
    let (mut dice, mut order) = (Dice::new(), (0..all.len()).collect::<Vec<_>>());
    let mut figures = vec![Calls::default(); all.len()];
    let mut kept: Vec<Box<dyn Stream>> = all.iter().map(|one| one.address.connect()).collect::<Outcome<_>>()?;
    for _ in 0..samples {
        dice.shuffle(&mut order);
        for at in &order {
            figures[*at].kept.push(timed(|| exchange(&mut *kept[*at], PING).map(drop))?);
        }
        for at in &order {
            figures[*at].new.push(timed(|| exchange(&mut *all[*at].address.connect()?, PING).map(drop))?);
        }
    }
    drop(kept);
    for _ in 0..COUNTS {
        dice.shuffle(&mut order);
        for at in &order {
            figures[*at].per_s.push_ms(throughput(&all[*at].address)?);
        }
    }
    let (mut wished, mut unwished) = (Samples::default(), Samples::default());
    for _ in 0..creates {
        dice.shuffle(&mut order);
        for at in &order {
            figures[*at].create.push(create(&all[*at].address, "", "none", dockerd)?);
        }
        unwished.push(create(&Address::Unix(dockerd.socket().to_owned()), "", "none", dockerd)?);
        let ours = all.iter().find(|one| one.name == CALICO).ok_or("no node among the contenders")?;
        wished.push(create(&ours.address, r#""CALICO_IP=auto""#, "default", dockerd)?);
    }
    let us = |ms: f64| format!("{:.0}", ms * 1e3);
    let over = |kind: &dyn Fn(&Calls) -> &Samples, at: usize, rank: usize| {
        us(kind(&figures[at]).quantile(rank) - kind(&figures[0]).quantile(rank))
    };
    let rows: Vec<Vec<String>> = all
        .iter()
        .enumerate()
        .map(|(at, one)| {
            let own = &figures[at];
            let added = |kind: &dyn Fn(&Calls) -> &Samples, rank: usize| {
                if at == 0 {
                    format!("{} in all", us(kind(own).quantile(rank)))
                } else {
                    format!("+{}", over(kind, at, rank))
                }
            };
            let kept: &dyn Fn(&Calls) -> &Samples = &|calls| &calls.kept;
            let new: &dyn Fn(&Calls) -> &Samples = &|calls| &calls.new;
            let made: &dyn Fn(&Calls) -> &Samples = &|calls| &calls.create;
            vec![
                one.name.to_owned(),
                added(kept, 500),
                added(kept, 990),
                added(new, 500),
                added(new, 990),
                format!("{:.0}", own.per_s.median()),
                added(made, 500),
                format!("{:.1}", idle[at] / 1024.0),
            ]
        })
        .collect();
    let title = format!("Calls, {samples} of each ({creates} creates), µs added to dockerd's unix socket");
    let head = ["way", "ping p50", "ping p99", "new conn. p50", "p99", "req/s at 16", "create p50", "RSS before, MiB"];
    table(&title, &head, &rows);
    let find = |name| all.iter().position(|one| one.name == name).ok_or("a contender is missing");
    let (ours, floor) = (find(CALICO)?, find(COPY_ONE)?);
    let ratio = |kind: &dyn Fn(&Calls) -> &Samples, rank: usize| {
        let added = |at: usize| kind(&figures[at]).quantile(rank) - kind(&figures[0]).quantile(rank);
        format!("{:.2}", added(ours) / added(floor))
    };
    let kept: &dyn Fn(&Calls) -> &Samples = &|calls| &calls.kept;
    let new: &dyn Fn(&Calls) -> &Samples = &|calls| &calls.new;
    let row = vec![ratio(kept, 500), ratio(kept, 990), ratio(new, 500), ratio(new, 990)];
    let head = ["ping p50", "ping p99", "new conn. p50", "p99"];
    table("What Calico adds, over what the bare copy (one thread) adds", &head, &[row]);
    println!(
        "\nA create with CALICO_IP=auto takes {} µs more than one without at dockerd itself (p50, n = {}).",
        us(wished.median() - unwished.median()),
        wished.len()
    );
    Ok(())
}

fn keystrokes(all: &[Contender], dockerd: &Engine, samples: usize) -> Outcome<()> {
    let (id, _) = dockerd.create("none", "", &[])?;
    dockerd.start(&id)?;
    let open = |one: &Contender| -> Outcome<Box<dyn Stream>> {
        let body = r#"{"AttachStdin":true,"AttachStdout":true,"Tty":true,"Cmd":["/bin/busybox","cat"]}"#;
        let path = format!("/v1.41/containers/{id}/exec");
        let direct = Address::Unix(dockerd.socket().to_owned());
        let exec = exchange(&mut *direct.connect()?, &http::post(&path, body))?.text("Id")?;
        let mut stream = one.address.connect()?;
        upgrade(&mut *stream, &format!("/v1.41/exec/{exec}/start"), r#"{"Detach":false,"Tty":true}"#)?;
        Ok(stream)
    };
    let mut streams: Vec<Result<Box<dyn Stream>, String>> =
        all.iter().map(|one| open(one).map_err(|error| error.to_string())).collect();
    let mut figures = vec![Samples::default(); all.len()];
    let (mut dice, mut order) = (Dice::new(), (0..all.len()).collect::<Vec<_>>());
    for _ in 0..samples {
        dice.shuffle(&mut order);
        for at in &order {
            if let Ok(stream) = &mut streams[*at] {
                let mut echo = [0; 1];
                figures[*at].push(timed(|| {
                    stream.write_all(b"x")?;
                    Ok(stream.read_exact(&mut echo)?)
                })?);
            }
        }
    }
    let rows: Vec<Vec<String>> = all
        .iter()
        .enumerate()
        .map(|(at, one)| {
            let (p50, p99) = match (&streams[at], at) {
                (Err(reason), _) => (format!("fails: {reason}"), String::new()),
                (_, 0) => {
                    let us = |rank| format!("{:.0} in all", figures[0].quantile(rank) * 1e3);
                    (us(500), us(990))
                }
                _ => {
                    let added =
                        |rank| format!("{:+.0}", (figures[at].quantile(rank) - figures[0].quantile(rank)) * 1e3);
                    (added(500), added(990))
                }
            };
            vec![one.name.to_owned(), p50, p99]
        })
        .collect();
    table(&format!("Keystrokes through exec, {samples} of each, µs added"), &["way", "p50", "p99"], &rows);
    drop(streams);
    dockerd.remove(&id)?;
    Ok(())
}
