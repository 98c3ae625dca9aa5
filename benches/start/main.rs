//! What Calico costs, measured interleaved in one run and printed as tables for `docs/benchmarks.md`.
//!
//! Run it with `make bench`, which gives it a network, mount and process namespace of its own and removes them. Options:
//! `make bench ARGS="--n 200 --sizes 10,1000"`.
//!
//! - **start**: the time of `POST /containers/{id}/start`, over unix sockets and without a command line client, for `--net=none` (twice, as two
//!   kinds: their difference is the noise of the method), Docker's own bridge, and Calico through the proxy. The kinds take turns in a
//!   shuffled order, a new container for each sample.
//! - **wiring**: the node's own word on it, from its metrics.
//! - **programmed**: from the acknowledged put of an endpoint's record to its chain in the kernel, as the kernel tells it on netlink; beside
//!   it, in turns, the very calls that the node made for that, fed by hand to the same tools in a copy of the same rule set.

mod docker;
mod figures;
mod lab;
mod programmed;
mod start;
mod watch;

use std::error::Error;
use std::process::ExitCode;

/// A benchmark that cannot be carried out ends with the reason.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

struct Options {
    /// Samples of each kind.
    samples: usize,
    /// Endpoints on the host, for `programmed`.
    sizes: Vec<usize>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Options> {
    let mut options = Options { samples: 200, sizes: vec![10, 1000] };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            // What cargo itself passes to every benchmark.
            "--bench" => {}
            "--n" => options.samples = value()?.parse()?,
            "--sizes" => options.sizes = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            other => return Err(format!("unknown option {other:?}: it must be --n or --sizes").into()),
        }
    }
    Ok(options)
}

fn run() -> Outcome<()> {
    let options = parse(std::env::args().skip(1))?;
    let mut lab = lab::Lab::up()?;
    lab.start_node(&[])?;
    start::measure(&lab, options.samples)?;
    start::report_wiring()?;
    programmed::measure(&mut lab, options.samples, &options.sizes)?;
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
