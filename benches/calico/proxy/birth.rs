//! How soon a node that is started serves its clients.

use std::time::{Duration, Instant};

use super::PING;
use super::contender::Address;
use super::http::exchange;
use super::idle::engine;
use crate::Outcome;
use crate::figures::{Samples, ms, table};
use crate::lab::{Lab, end, pause};

/// How often a client tries to connect.
const TRIES_EVERY: Duration = Duration::from_micros(200);

/// How long it tries.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the node so many times, with an etcd that runs already and before an engine that is nothing but sockets: neither of
/// their beginnings is measured.
pub(crate) fn measure(lab: &mut Lab, starts: usize) -> Outcome<()> {
    let (mut engine, socket) = engine(lab)?;
    let address = Address::Tcp(([127, 0, 0, 1], 2377).into());
    let (mut connected, mut answered) = (Samples::default(), Samples::default());
    for _ in 0..starts {
        let start = Instant::now();
        lab.spawn_node(&socket, "tcp://127.0.0.1:2377", &[])?;
        let mut client = loop {
            match address.connect() {
                Ok(client) => break client,
                Err(error) if start.elapsed() > PATIENCE => return Err(error),
                Err(_) => pause(TRIES_EVERY),
            }
        };
        connected.push(start.elapsed());
        exchange(&mut *client, PING)?;
        answered.push(start.elapsed());
        drop(client);
        lab.stop_node()?;
    }
    let row = [&connected, &answered].map(|times| [ms(times.median()), ms(times.quantile(900))]).concat();
    let head = ["connects after, p50 ms", "p90", "is answered after, p50 ms", "p90"];
    table(&format!("A client's first ping, from the start of the node, {starts} times"), &head, &[row]);
    end(&mut engine)
}
