//! What Calico costs, measured interleaved in one run and printed as tables for `docs/benchmarks.md`.
//!
//! Run it with `make bench` or `make bench-proxy`, which give it a network, mount and process namespace of its own and remove them. Options:
//! `make bench ARGS="--n 200 --sizes 10,1000"`, `make bench-proxy ARGS="--n 5000 --bulk-mib 1024"`.
//!
//! `make bench`:
//!
//! - **start**: the time of `POST /containers/{id}/start`, over unix sockets and without a command line client, for `--net=none` (twice, as two
//!   kinds: their difference is the noise of the method), Docker's own bridge, and Calico through the proxy. The kinds take turns in a
//!   shuffled order, a new container for each sample.
//! - **wiring**: the node's own word on it, from its metrics.
//! - **programmed**: from the acknowledged put of an endpoint's record to its chain in the kernel, as the kernel tells it on netlink; beside
//!   it, in turns, the very calls that the node made for that, fed by hand to the same tools in a copy of the same rule set.
//!
//! `make bench-many`: see [`many`].
//!
//! `make bench-proxy`: see [`proxy`]. `make bench-agent`: see [`agent`].

mod agent;
mod datastore;
mod docker;
mod figures;
mod hand;
mod lab;
mod many;
mod namespace;
mod programmed;
mod proxy;
mod sets;
mod start;
mod watch;

use std::error::Error;
use std::process::ExitCode;

/// A benchmark that cannot be carried out ends with the reason.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// What of the command line every benchmark reads for itself: words, without what cargo itself passes.
struct Arguments(std::vec::IntoIter<String>);

impl Arguments {
    fn next(&mut self) -> Option<String> {
        self.0.next()
    }

    /// `--n` and `--sizes`, the only options of some benchmarks, where they differ from these.
    fn samples_and_sizes(&mut self, samples: usize, sizes: &[usize]) -> Outcome<(usize, Vec<usize>)> {
        let (mut samples, mut sizes) = (samples, sizes.to_vec());
        while let Some(option) = self.next() {
            match option.as_str() {
                "--n" => samples = self.value(&option)?.parse()?,
                "--sizes" => sizes = self.value(&option)?.split(',').map(str::parse).collect::<Result<_, _>>()?,
                other => return Err(format!("unknown option {other:?}: it must be --n or --sizes").into()),
            }
        }
        Ok((samples, sizes))
    }

    fn value(&mut self, option: &str) -> Outcome<String> {
        Ok(self.0.next().ok_or_else(|| format!("{option} needs a value"))?)
    }
}

fn run() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let mut arguments = Arguments(words.into_iter());
    match arguments.next().as_deref() {
        Some("start") => start::run(&mut arguments),
        Some("many") => many::run(&mut arguments),
        Some("proxy") => proxy::run(&mut arguments),
        Some("agent") => agent::run(&mut arguments),
        // What `proxy` starts beside itself.
        Some("copy") => proxy::copy::run(&mut arguments),
        Some("engine") => proxy::engine::run(&mut arguments),
        other => Err(format!("what is to be measured is {other:?}: it must be start, many, proxy or agent").into()),
    }
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
