//! Streams on which nothing is said.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use super::PING;
use super::contender::{Contender, Stream, between};
use super::http::{exchange, upgrade};
use crate::Outcome;
use crate::figures::{Samples, table};
use crate::lab::{Lab, command, end, pause, until};

/// How long nothing is done while the processor time of doing nothing is taken.
const REST: Duration = Duration::from_secs(2);

fn pings(one: &Contender) -> Outcome<Samples> {
    let (mut stream, mut figures) = (one.address.connect()?, Samples::default());
    for _ in 0..500 {
        let start = Instant::now();
        exchange(&mut *stream, PING)?;
        figures.push(start.elapsed());
    }
    Ok(figures)
}

fn open(one: &Contender, count: u32) -> Outcome<Vec<Box<dyn Stream>>> {
    (0..count)
        .map(|_| {
            let mut stream = one.address.connect()?;
            upgrade(&mut *stream, "/v1.41/containers/idle/attach?stream=1&stdin=1&stdout=1", "")?;
            Ok(stream)
        })
        .collect()
}

/// An engine that is nothing but sockets, and where it listens.
pub(super) fn engine(lab: &Lab) -> Outcome<(Child, PathBuf)> {
    let socket = lab.folder.join("engine.sock");
    // Of one that ended before.
    let _ = fs::remove_file(&socket);
    let engine = command(&std::env::current_exe()?.display().to_string()).arg("engine").arg(&socket).spawn()?;
    until("start the engine of sockets", Duration::from_secs(10), || {
        if socket.exists() { Ok(()) } else { Err("no socket".into()) }
    })?;
    Ok((engine, socket))
}

pub(crate) fn measure(lab: &mut Lab, counts: &[u32]) -> Outcome<()> {
    let (mut engine, socket) = engine(lab)?;
    let all = between(lab, &socket)?;
    let mut rows = Vec::new();
    for one in &all {
        let mut row = vec![one.name.to_owned()];
        let (empty, base) = (pings(one)?.median(), one.usage()?);
        for count in counts {
            match open(one, *count) {
                Err(error) => row.extend([format!("fails: {error}"), String::new(), String::new()]),
                Ok(streams) => {
                    let held = one.usage()?;
                    pause(REST);
                    let rested = one.usage()?;
                    let ping = pings(one)?.median();
                    drop(streams);
                    row.extend([
                        format!("{:.1}", (held.resident_kib - base.resident_kib) / f64::from(*count)),
                        format!("{:.1}", (rested.cpu_s - held.cpu_s) / REST.as_secs_f64() * 100.0),
                        format!("{:.2}", ping / empty),
                    ]);
                }
            }
            // What a closed stream leaves is taken back at its own time, by both sides.
            pause(Duration::from_millis(500));
        }
        row.push(format!("{:.1}", one.usage()?.resident_kib / 1024.0));
        rows.push(row);
    }
    let mut head = vec!["way".to_owned()];
    for count in counts {
        head.extend([format!("KiB each at {count}"), "CPU %".to_owned(), "ping, of empty".to_owned()]);
    }
    head.push("RSS after, MiB".to_owned());
    table("Idle streams", &head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    drop(all);
    lab.stop_node()?;
    end(&mut engine)
}
