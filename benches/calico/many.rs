//! What the life of one container costs beside many others on the same host.

use std::time::Duration;

use crate::docker::Engine;
use crate::figures::{Dice, Samples, ms, table};
use crate::lab::{self, Lab, Share};
use crate::{Arguments, Outcome};

/// How long the node is watched while nothing happens: more than two of its comparisons with Docker.
const IDLE: Duration = Duration::from_secs(25);

const WISH: &[&str] = &["CALICO_IP=auto", "CALICO_PROFILE=bench"];

/// `many [--n SAMPLES] [--sizes CONTAINERS,…]`.
pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let (samples, sizes) = arguments.samples_and_sizes(30, &[10, 1000, 5000])?;
    let mut lab = Lab::up(&[])?;
    lab.start_node(&[])?;
    let (mut rows, mut there) = (Vec::new(), 0);
    for size in sizes {
        while there < size {
            Engine::new(&lab.proxy_socket()).create("default", "", WISH)?;
            there += 1;
        }
        rows.extend(beside(&lab, size, samples)?);
        eprintln!("bench: many: beside {size} containers");
    }
    let head = [
        "containers",
        "way",
        "ps -a p50 ms",
        "ratio",
        "inspect",
        "ratio",
        "create",
        "start",
        "rm -f",
        "node idle, CPU %",
    ];
    table("One container beside many, dockerd with --net=none and Calico in turns, p50 ms", &head, &rows);
    Ok(())
}

#[derive(Default)]
struct Times {
    list: Samples,
    inspect: Samples,
    create: Samples,
    start: Samples,
    remove: Samples,
}

fn beside(lab: &Lab, size: usize, samples: usize) -> Outcome<[Vec<String>; 2]> {
    let engines = [Engine::new(&lab.docker_socket()), Engine::new(&lab.proxy_socket())];
    let asks: [(&str, &[&str]); 2] = [("none", &[]), ("default", WISH)];
    let mut times: [Times; 2] = Default::default();
    let (mut dice, mut turn) = (Dice::new(), [0, 1]);
    for _ in 0..samples {
        dice.shuffle(&mut turn);
        for which in turn {
            let (engine, times, (network, env)) = (&engines[which], &mut times[which], asks[which]);
            let (id, created) = engine.create(network, "", env)?;
            times.create.push(created);
            times.start.push(engine.start(&id)?);
            times.list.push(engine.get("/containers/json?all=1")?);
            times.inspect.push(engine.get(&format!("/containers/{id}/json"))?);
            times.remove.push(engine.remove(&id)?);
        }
    }
    let share = Share::begin(lab)?;
    lab::pause(IDLE);
    let idle = share.end()?.as_secs_f64() / IDLE.as_secs_f64();
    let [bare, ours] = &times;
    let row = |way: &str, own: &Times| {
        let ratio = |kind: fn(&Times) -> &Samples| format!("{:.2}", kind(own).median() / kind(bare).median());
        vec![
            size.to_string(),
            way.to_owned(),
            ms(own.list.median()),
            ratio(|times| &times.list),
            ms(own.inspect.median()),
            ratio(|times| &times.inspect),
            ms(own.create.median()),
            ms(own.start.median()),
            ms(own.remove.median()),
        ]
    };
    let mut rows = [row("dockerd", bare), row("Calico", ours)];
    rows[0].push(String::new());
    rows[1].push(format!("{:.1}", idle * 100.0));
    Ok(rows)
}
