//! What a start costs, by kind of network.

use std::fmt;

use crate::docker::Engine;
use crate::figures::{Dice, Samples, ms, signed, span, table};
use crate::lab::{Lab, get};
use crate::{Arguments, Outcome, programmed};

/// `start [--n SAMPLES] [--sizes ENDPOINTS,…]`: what the life of a container costs.
pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let (mut samples, mut sizes) = (200, vec![10, 1000]);
    while let Some(option) = arguments.next() {
        match option.as_str() {
            "--n" => samples = arguments.value(&option)?.parse()?,
            "--sizes" => sizes = arguments.value(&option)?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            other => return Err(format!("unknown option {other:?}: it must be --n or --sizes").into()),
        }
    }
    let mut lab = Lab::up(&[])?;
    lab.start_node(&[])?;
    measure(&lab, samples)?;
    report_wiring()?;
    programmed::measure(&mut lab, samples, &sizes)
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    NoneAgain,
    Bridge,
    Calico,
}

const KINDS: [Kind; 4] = [Kind::None, Kind::NoneAgain, Kind::Bridge, Kind::Calico];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::None => "--net=none (A)",
            Kind::NoneAgain => "--net=none again (A/A)",
            Kind::Bridge => "Docker's bridge",
            Kind::Calico => "Calico, through the proxy",
        })
    }
}

#[derive(Default)]
struct Times {
    create: Samples,
    start: Samples,
    remove: Samples,
}

/// One container's life, timed.
fn sample(kind: Kind, dockerd: &Engine, proxy: &Engine, times: &mut Times) -> Outcome<()> {
    let (engine, network, env): (_, _, &[&str]) = match kind {
        Kind::None | Kind::NoneAgain => (dockerd, "none", &[]),
        Kind::Bridge => (dockerd, "bridge", &[]),
        Kind::Calico => (proxy, "default", &["CALICO_IP=auto", "CALICO_PROFILE=bench"]),
    };
    let (id, created) = engine.create(network, env)?;
    let started = engine.start(&id)?;
    let removed = engine.remove(&id)?;
    times.create.push(created);
    times.start.push(started);
    times.remove.push(removed);
    Ok(())
}

fn measure(lab: &Lab, samples: usize) -> Outcome<()> {
    let dockerd = Engine::new(&lab.docker_socket());
    let proxy = Engine::new(&lab.proxy_socket());
    let mut dice = Dice::new();
    let mut times: [Times; 4] = Default::default();
    let mut turn: [usize; 4] = [0, 1, 2, 3];
    // What happens only once (the first container, the first profile) is not in the figures.
    for kind in KINDS.iter().cycle().take(3 * KINDS.len()) {
        sample(*kind, &dockerd, &proxy, &mut Times::default())?;
    }
    for round in 0..samples {
        dice.shuffle(&mut turn);
        for &which in &turn {
            sample(KINDS[which], &dockerd, &proxy, &mut times[which])?;
        }
        if (round + 1) % 50 == 0 {
            eprintln!("bench: start: {} of {samples} rounds", round + 1);
        }
    }
    let base = &times[0];
    let mut rows = Vec::new();
    for (kind, times) in KINDS.iter().zip(&times) {
        let (low, high) = times.start.median_over(&base.start, &mut dice);
        let first = matches!(kind, Kind::None);
        rows.push(vec![
            kind.to_string(),
            times.start.len().to_string(),
            ms(times.start.median()),
            ms(times.start.quantile(990)),
            if first { String::new() } else { signed(times.start.median() - base.start.median()) },
            if first { String::new() } else { format!("{} … {}", signed(low), signed(high)) },
            ms(times.create.median()),
            ms(times.remove.median()),
        ]);
    }
    let head =
        ["kind", "n", "start p50 ms", "start p99 ms", "over A, p50", "95 % of that", "create p50 ms", "remove p50 ms"];
    table("`docker start`, kinds in turns", &head, &rows);
    Ok(())
}

/// The wiring alone, as the node timed it during the starts above.
fn report_wiring() -> Outcome<()> {
    const METRIC: &str = "calico_wiring_seconds";
    let row = match span(&get("/metrics")?, METRIC)? {
        Some(span) => vec![METRIC.to_owned(), format!("{:.0}", span.count), span.p50, span.p99],
        None => vec![METRIC.to_owned(), "0".to_owned(), "not told".to_owned(), "not told".to_owned()],
    };
    table("Wiring alone, from the node's own metric", &["metric", "n", "p50 ms", "p99 ms"], &[row]);
    Ok(())
}
