//! What packets pay between two endpoints of one host, beside Docker's bridge and a bare veth.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Plan, clear, populate, prepare, start_with};
use crate::Outcome;
use crate::datastore::{Fake, Store};
use crate::docker::Engine;
use crate::figures::{Dice, Samples, table, whole};
use crate::lab::{HOST, Lab, feed, run};
use crate::namespace::Namespace;

const PORT: u16 = 9_001;
/// How many round trips and connections there are in one turn.
const TRIPS: usize = 2_000;
const CONNECTS: usize = 500;
const ROUNDS: usize = 5;

/// The two ends of one kind of network, and the address of the second.
struct Pair {
    name: &'static str,
    client: Namespace,
    server: Namespace,
    address: String,
}

/// An interface for an endpoint, as the node makes one, with its other end in a namespace.
pub(super) fn wire(fake: &Fake, namespace: &Namespace) -> Outcome<()> {
    let (name, path) = (&fake.interface, &namespace.path);
    let mac: serde_json::Value = serde_json::from_str(&fake.value)?;
    let mac = mac["mac"].as_str().ok_or("a record without a MAC")?.to_owned();
    let outside = format!("link add {name} type veth peer name eth1 address {mac} netns {path}\nlink set {name} up\n");
    feed("ip", &["-batch", "-"], &outside)?;
    let inside = format!(
        "link set lo up\naddress add {}/32 dev eth1\nlink set eth1 up\nroute add 172.31.255.1 dev eth1\nroute add default via 172.31.255.1\n",
        fake.address
    );
    namespace.run(move || feed("ip", &["-batch", "-"], &inside))?;
    Ok(())
}

fn bare() -> Outcome<Pair> {
    let [client, server] = [Namespace::new()?, Namespace::new()?];
    let add =
        format!("link add left type veth peer name right netns {}\nlink set left netns {}\n", server.path, client.path);
    feed("ip", &["-batch", "-"], &add)?;
    for (namespace, name, address) in [(&client, "left", "10.9.9.1/24"), (&server, "right", "10.9.9.2/24")] {
        let text = format!("link set lo up\naddress add {address} dev {name}\nlink set {name} up\n");
        namespace.run(move || feed("ip", &["-batch", "-"], &text))?;
    }
    Ok(Pair { name: "bare veth", client, server, address: "10.9.9.2".to_owned() })
}

fn bridge(lab: &Lab) -> Outcome<(Pair, [String; 2])> {
    let engine = Engine::new(&lab.docker_socket());
    let host = format!("unix://{}", lab.docker_socket().display());
    let container = || -> Outcome<(String, Namespace, String)> {
        let (id, _) = engine.create("bridge", "", &[])?;
        engine.start(&id)?;
        let format = "{{.State.Pid}} {{.NetworkSettings.IPAddress}}";
        let text = run("docker", &["--host", &host, "inspect", "--format", format, &id])?;
        let (process, address) = text.trim().split_once(' ').ok_or("an inspect without an address")?;
        Ok((id, Namespace::existing(&format!("/proc/{process}/ns/net"))?, address.to_owned()))
    };
    let (first, second) = (container()?, container()?);
    let pair = Pair { name: "Docker's bridge", client: first.1, server: second.1, address: second.2 };
    Ok((pair, [first.0, second.0]))
}

#[derive(Default)]
struct Figures {
    throughput: Samples,
    trip: Samples,
    connect: Samples,
}

/// Serves as many connections as are said: reads what comes, and sends single bytes back.
fn serve(listener: &TcpListener, connections: usize) -> Outcome<()> {
    let mut buffer = vec![0; 256 << 10];
    for _ in 0..connections {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(1) => stream.write_all(&buffer[..1])?,
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

struct Turn {
    mib_a_second: f64,
    trips: Vec<Duration>,
    connects: Vec<Duration>,
}

fn turn(to: SocketAddr, time: Duration) -> Outcome<Turn> {
    let mut turn = Turn { mib_a_second: 0.0, trips: Vec::new(), connects: Vec::new() };
    let mut stream = TcpStream::connect(to)?;
    let (block, begun, mut bytes) = (vec![7; 128 << 10], Instant::now(), 0);
    while begun.elapsed() < time {
        stream.write_all(&block)?;
        bytes += block.len();
    }
    turn.mib_a_second = whole(bytes) / begun.elapsed().as_secs_f64() / f64::from(1 << 20);
    drop(stream);
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    for _ in 0..TRIPS {
        let (begun, mut byte) = (Instant::now(), [1]);
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        turn.trips.push(begun.elapsed());
    }
    drop(stream);
    for _ in 0..CONNECTS {
        let begun = Instant::now();
        let stream = TcpStream::connect(to)?;
        turn.connects.push(begun.elapsed());
        drop(stream);
    }
    Ok(turn)
}

impl Pair {
    fn turn(&self, figures: &mut Figures, time: Duration) -> Outcome<()> {
        let listener = self.server.run(|| Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
        let serving = self.server.begin(move || serve(&listener, 2 + CONNECTS))?;
        let to: SocketAddr = format!("{}:{PORT}", self.address).parse()?;
        let turn = self.client.run(move || turn(to, time))?;
        serving.recv()??;
        figures.throughput.push_ms(turn.mib_a_second);
        turn.trips.into_iter().for_each(|took| figures.trip.push(took));
        turn.connects.into_iter().for_each(|took| figures.connect.push(took));
        Ok(())
    }
}

pub(super) fn measure(lab: &mut Lab, store: &mut Store, plan: &Plan) -> Outcome<()> {
    let mut rows = Vec::new();
    let mut dice = Dice::new();
    let time = Duration::from_millis(u64::from(plan.seconds.clamp(1, 20)) * 100);
    let (bridge, containers) = bridge(lab)?;
    let mut pairs = vec![bare()?, bridge];
    let ends = [300_001, 300_002].map(|number| Fake::of(HOST, number, "active", "bench"));
    let [client, server] = [Namespace::new()?, Namespace::new()?];
    wire(&ends[0], &client)?;
    wire(&ends[1], &server)?;
    pairs.push(Pair { name: "Calico", client, server, address: ends[1].address.clone() });
    for &size in &plan.sizes {
        prepare(store, "bench")?;
        let mut fakes = populate(store, size.saturating_sub(2), "inactive", "bench")?;
        store.fill(ends.iter().map(|one| (one.key.clone(), one.value.clone())))?;
        fakes.extend(ends.iter().cloned());
        start_with(lab, &fakes)?;
        let mut figures: Vec<Figures> = pairs.iter().map(|_| Figures::default()).collect();
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        for _ in 0..ROUNDS {
            dice.shuffle(&mut order);
            for &which in &order {
                pairs[which].turn(&mut figures[which], time)?;
            }
        }
        let base = figures[0].throughput.median();
        for (pair, figures) in pairs.iter().zip(&figures) {
            let us = |value: f64| format!("{:.1}", value * 1e3);
            rows.push(vec![
                size.to_string(),
                pair.name.to_owned(),
                format!("{:.0}", figures.throughput.median()),
                format!("{:.2}", figures.throughput.median() / base),
                us(figures.trip.median()),
                us(figures.trip.quantile(990)),
                us(figures.connect.median()),
                us(figures.connect.quantile(990)),
            ]);
        }
        lab.stop_node()?;
        clear(store)?;
    }
    for id in &containers {
        Engine::new(&lab.docker_socket()).remove(id)?;
    }
    let head =
        ["endpoints", "network", "MiB/s", "of bare veth", "round trip p50 µs", "p99 µs", "connect p50 µs", "p99 µs"];
    let title = format!(
        "Packets between two of one host, {ROUNDS} turns (to be reached: as the bridge, whatever the number of endpoints)"
    );
    table(&title, &head, &rows);
    Ok(())
}
