//! Archives into a container and out of it.

use std::io::Write;
use std::time::Instant;

use super::contender::{COPY_ONE, Contender, DIRECT_TCP, Usage};
use super::http::read_reply;
use crate::Outcome;
use crate::docker::Engine;
use crate::figures::{Dice, Samples, table};

/// The unit of a tar file, and of the file in it that is sent.
const TAR_BLOCK_BYTES: usize = 512;
const PIECE_BYTES: usize = 4 << 20;

#[derive(Default, Clone)]
struct Figures {
    mib_per_s: Samples,
    cpu_s: f64,
    grown_kib: f64,
}

/// The head of a tar archive's one file (POSIX ustar).
fn tar_head(length: usize) -> Vec<u8> {
    let mut head = vec![0; TAR_BLOCK_BYTES];
    let mut put = |at: usize, text: &str| head[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, "blob");
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{length:011o}\0"));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    head
}

fn put(one: &Contender, id: &str, length: usize, piece: &[u8]) -> Outcome<()> {
    let mut stream = one.address.connect()?;
    let total = TAR_BLOCK_BYTES + length + 2 * TAR_BLOCK_BYTES;
    let head = format!(
        "PUT /v1.41/containers/{id}/archive?path=/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-tar\r\nContent-Length: {total}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&tar_head(length))?;
    for _ in 0..length / piece.len() {
        stream.write_all(piece)?;
    }
    stream.write_all(&[0; 2 * TAR_BLOCK_BYTES])?;
    read_reply(&mut *stream, &mut Vec::new(), |_| ()).map(drop)
}

fn get(one: &Contender, id: &str, length: usize) -> Outcome<()> {
    let mut stream = one.address.connect()?;
    let head = format!("GET /v1.41/containers/{id}/archive?path=/blob HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut got = 0;
    read_reply(&mut *stream, &mut Vec::new(), |count| got += count)?;
    if got < length { Err(format!("{got} bytes of {length} came").into()) } else { Ok(()) }
}

pub(crate) fn measure(all: &[Contender], dockerd: &Engine, mib: u32, rounds: u32) -> Outcome<()> {
    let length = (mib as usize) << 20;
    let mut dice = Dice::new();
    let piece: Vec<u8> = (0..PIECE_BYTES).map(|_| u8::try_from(dice.below(256)).unwrap_or_default()).collect();
    let (id, _) = dockerd.create("none", "", &[])?;
    let mut order: Vec<usize> = (0..all.len()).collect();
    let mut figures = vec![[Figures::default(), Figures::default()]; all.len()];
    for round in 0..=rounds {
        dice.shuffle(&mut order);
        for at in &order {
            let one = &all[*at];
            for (way, figures) in figures[*at].iter_mut().enumerate() {
                one.forget_peak()?;
                let before = one.usage()?;
                let start = Instant::now();
                if way == 0 {
                    put(one, &id, length, &piece)?;
                } else {
                    get(one, &id, length)?;
                }
                let took = start.elapsed();
                let after = if one.process.is_some() { one.usage()? } else { Usage::default() };
                // The first round fills caches and grows files.
                if round > 0 {
                    figures.mib_per_s.push_ms(f64::from(mib) / took.as_secs_f64());
                    figures.cpu_s += after.cpu_s - before.cpu_s;
                }
                figures.grown_kib = figures.grown_kib.max(after.peak_kib - before.resident_kib);
            }
        }
    }
    dockerd.remove(&id)?;
    let gib = f64::from(mib) / 1024.0 * f64::from(rounds);
    let find = |name| all.iter().position(|one| one.name == name).ok_or("a contender is missing");
    let (tcp, floor) = (find(DIRECT_TCP)?, find(COPY_ONE)?);
    for (way, title) in ["Archive into a container", "Archive out of a container"].into_iter().enumerate() {
        let rows: Vec<Vec<String>> = all
            .iter()
            .enumerate()
            .map(|(at, one)| {
                let own = &figures[at][way];
                let to =
                    |other: usize| format!("{:.2}", own.mib_per_s.median() / figures[other][way].mib_per_s.median());
                let (cpu, grown) = match one.process {
                    Some(_) => (format!("{:.2}", own.cpu_s / gib), format!("{:.0}", own.grown_kib)),
                    None => (String::new(), String::new()),
                };
                vec![one.name.to_owned(), format!("{:.0}", own.mib_per_s.median()), to(tcp), to(floor), cpu, grown]
            })
            .collect();
        let head = ["way", "MiB/s", "of direct TCP", "of bare copy", "CPU s/GiB", "RSS grew, KiB"];
        table(&format!("{title}, {mib} MiB, {rounds} rounds"), &head, &rows);
    }
    Ok(())
}
