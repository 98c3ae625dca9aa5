//! What a start costs, by kind of network.

use std::fmt;
use std::time::{Duration, Instant};

use crate::docker::{BY_NODE, Engine};
use crate::figures::{Dice, Samples, ms, signed, span, table};
use crate::lab::{self, Lab, get};
use crate::{Arguments, Outcome, programmed};

/// `start [--n SAMPLES] [--sizes ENDPOINTS,…]`: what the life of a container costs.
pub(crate) fn run(arguments: &mut Arguments) -> Outcome<()> {
    let (samples, sizes) = arguments.samples_and_sizes(200, &[10, 1000])?;
    let mut lab = Lab::up(&[])?;
    lab.start_node(&[])?;
    measure(&lab, samples)?;
    report_wiring()?;
    measure_runs(&lab, samples.div_ceil(4))?;
    measure_at_once(&lab, samples.div_ceil(AT_ONCE))?;
    programmed::measure(&mut lab, samples, &sizes)
}

#[derive(Clone, Copy)]
enum Kind {
    None,
    NoneAgain,
    Bridge,
    Runtime,
    Node,
}

const KINDS: [Kind; 5] = [Kind::None, Kind::NoneAgain, Kind::Bridge, Kind::Runtime, Kind::Node];

/// How many are started at once.
const AT_ONCE: usize = 16;

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::None => "--net=none (A)",
            Kind::NoneAgain => "--net=none again (A/A)",
            Kind::Bridge => "Docker's bridge",
            Kind::Runtime => "Calico, by its runtime",
            Kind::Node => "Calico, by the node",
        })
    }
}

impl Kind {
    /// Network, runtime and environment of a container.
    fn asks_for(self) -> (&'static str, &'static str, &'static [&'static str]) {
        const WISH: &[&str] = &["CALICO_IP=auto", "CALICO_PROFILE=bench"];
        match self {
            Kind::None | Kind::NoneAgain => ("none", "", &[]),
            Kind::Bridge => ("bridge", "", &[]),
            Kind::Runtime => ("default", "", WISH),
            Kind::Node => ("default", BY_NODE, WISH),
        }
    }
}

#[derive(Default)]
struct Times {
    create: Samples,
    start: Samples,
    remove: Samples,
}

/// The two ways to an engine.
struct Engines {
    dockerd: Engine,
    proxy: Engine,
}

impl Engines {
    fn of(lab: &Lab) -> Engines {
        Engines { dockerd: Engine::new(&lab.docker_socket()), proxy: Engine::new(&lab.proxy_socket()) }
    }

    /// The engine that a kind's calls go to.
    fn of_kind(&self, kind: Kind) -> &Engine {
        match kind {
            Kind::None | Kind::NoneAgain | Kind::Bridge => &self.dockerd,
            Kind::Runtime | Kind::Node => &self.proxy,
        }
    }

    /// Creates a container of a kind; the engine that starts it, its id and the time that it took.
    fn create(&self, kind: Kind) -> Outcome<(&Engine, String, Duration)> {
        let engine = self.of_kind(kind);
        let (network, runtime, env) = kind.asks_for();
        let (id, took) = engine.create(network, runtime, env)?;
        Ok((engine, id, took))
    }

    /// Docker's own client runs a container that ends at once, and waits until it is gone.
    fn run(&self, kind: Kind) -> Outcome<Duration> {
        let host = format!("unix://{}", self.of_kind(kind).socket().display());
        let (network, runtime, env) = kind.asks_for();
        let mut arguments = vec!["--host", &host, "run", "--rm", "--network", network];
        if !runtime.is_empty() {
            arguments.extend(["--runtime", runtime]);
        }
        arguments.extend(env.iter().flat_map(|one| ["--env", one]));
        arguments.extend(["busybox", "/bin/busybox", "true"]);
        let start = Instant::now();
        lab::run("docker", &arguments)?;
        Ok(start.elapsed())
    }
}

/// One container's life, timed.
fn sample(kind: Kind, engines: &Engines, times: &mut Times) -> Outcome<()> {
    let (engine, id, created) = engines.create(kind)?;
    let started = engine.start(&id)?;
    let removed = engine.remove(&id)?;
    times.create.push(created);
    times.start.push(started);
    times.remove.push(removed);
    Ok(())
}

fn measure(lab: &Lab, samples: usize) -> Outcome<()> {
    let engines = Engines::of(lab);
    let mut dice = Dice::new();
    let mut times: [Times; KINDS.len()] = Default::default();
    let mut turn: [usize; KINDS.len()] = std::array::from_fn(|which| which);
    // What happens only once (the first container, the first profile) is not in the figures.
    for kind in KINDS.iter().cycle().take(3 * KINDS.len()) {
        sample(*kind, &engines, &mut Times::default())?;
    }
    for round in 0..samples {
        dice.shuffle(&mut turn);
        for &which in &turn {
            sample(KINDS[which], &engines, &mut times[which])?;
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

/// `docker run --rm` of a process that ends at once, as Docker's client sees it.
fn measure_runs(lab: &Lab, rounds: usize) -> Outcome<()> {
    let engines = Engines::of(lab);
    let mut dice = Dice::new();
    let mut took: [Samples; KINDS.len()] = Default::default();
    let mut turn: [usize; KINDS.len()] = std::array::from_fn(|which| which);
    for _ in 0..rounds {
        dice.shuffle(&mut turn);
        for &which in &turn {
            took[which].push(engines.run(KINDS[which])?);
        }
    }
    let rows = KINDS.iter().zip(&took).map(|(kind, own)| {
        let ratio = format!("{:.3}", own.median() / took[0].median());
        vec![kind.to_string(), own.len().to_string(), ms(own.median()), ms(own.quantile(990)), ratio]
    });
    table("`docker run --rm`", &["kind", "n", "p50 ms", "p99 ms", "over A, ratio"], &rows.collect::<Vec<_>>());
    Ok(())
}

/// Starts of many containers at once: each start, and all together.
fn measure_at_once(lab: &Lab, rounds: usize) -> Outcome<()> {
    let engines = Engines::of(lab);
    let mut dice = Dice::new();
    let mut each: [Samples; KINDS.len()] = Default::default();
    let mut all: [Samples; KINDS.len()] = Default::default();
    let mut turn: [usize; KINDS.len()] = std::array::from_fn(|which| which);
    for _ in 0..rounds {
        dice.shuffle(&mut turn);
        for &which in &turn {
            let containers = (0..AT_ONCE).map(|_| engines.create(KINDS[which])).collect::<Outcome<Vec<_>>>()?;
            let begin = Instant::now();
            let started = std::thread::scope(|scope| {
                let starts = containers
                    .iter()
                    .map(|(engine, id, _)| scope.spawn(move || engine.start(id).map_err(|error| error.to_string())));
                let starts: Vec<_> = starts.collect();
                starts.into_iter().map(|start| start.join().map_err(|_| "a start panicked".to_owned())?).collect()
            });
            all[which].push(begin.elapsed());
            let started: Result<Vec<Duration>, String> = started;
            started?.into_iter().for_each(|took| each[which].push(took));
            for (engine, id, _) in &containers {
                engine.remove(id)?;
            }
        }
    }
    let ratio = |samples: &Samples, base: &Samples| format!("{:.2}", samples.median() / base.median());
    let rows = KINDS.iter().zip(each.iter().zip(&all)).map(|(kind, (one, together))| {
        vec![
            kind.to_string(),
            one.len().to_string(),
            ms(one.median()),
            ms(one.quantile(990)),
            ratio(one, &each[0]),
            ms(together.median()),
            ratio(together, &all[0]),
        ]
    });
    let head = ["kind", "n", "start p50 ms", "start p99 ms", "over A, ratio", "all 16 p50 ms", "over A, ratio"];
    table("`docker start`, 16 at once", &head, &rows.collect::<Vec<_>>());
    Ok(())
}

/// The wiring alone, as the node timed it during the starts above.
fn report_wiring() -> Outcome<()> {
    const METRICS: [&str; 2] = ["calico_hook_seconds", "calico_wiring_seconds"];
    let text = get("/metrics")?;
    let row = |metric: &str| {
        Ok(match span(&text, metric)? {
            Some(span) => vec![metric.to_owned(), format!("{:.0}", span.count), span.p50, span.p99],
            None => vec![metric.to_owned(), "0".to_owned(), "not told".to_owned(), "not told".to_owned()],
        })
    };
    let rows = METRICS.into_iter().map(row).collect::<Outcome<Vec<_>>>()?;
    table(
        "Wiring alone, by the hook and by the node, from the node's own metrics",
        &["metric", "n", "p50 ms", "p99 ms"],
        &rows,
    );
    Ok(())
}
