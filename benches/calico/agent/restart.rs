//! A node that goes and comes while packets flow.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use super::packets::wire;
use super::{Plan, populate, prepare, start_with};
use crate::Outcome;
use crate::datastore::{Fake, Store};
use crate::figures::table;
use crate::lab::{HOST, Lab, get, pause, until};
use crate::namespace::Namespace;

const ENDPOINTS: usize = 1_000;
const PORT: u16 = 9_000;
/// How far apart datagrams of each kind are sent.
const EVERY: Duration = Duration::from_millis(1);

/// What was sent, or came, of an old flow and of flows that begin with it.
type Count = [usize; 2];

/// Sends for a time: each datagram once on a socket that is kept and once on a new one.
fn send(to: &str, time: Duration) -> Outcome<Count> {
    let kept = UdpSocket::bind("0.0.0.0:0")?;
    let begun = Instant::now();
    let mut count = [0, 0];
    while begun.elapsed() < time {
        for (kind, number) in count.iter_mut().enumerate() {
            let text = format!("{kind} {number}");
            let fresh = if kind == 1 { Some(UdpSocket::bind("0.0.0.0:0")?) } else { None };
            // What the node's absence refuses is lost like what it drops.
            let _ = fresh.as_ref().unwrap_or(&kept).send_to(text.as_bytes(), (to, PORT));
            *number += 1;
        }
        pause(EVERY);
    }
    Ok(count)
}

fn receive(time: Duration) -> Outcome<Count> {
    let socket = UdpSocket::bind(("0.0.0.0", PORT))?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let begun = Instant::now();
    let mut seen: [BTreeSet<String>; 2] = Default::default();
    let mut buffer = [0; 64];
    while begun.elapsed() < time {
        let Ok(length) = socket.recv(&mut buffer) else { continue };
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        seen[usize::from(text.starts_with('1'))].insert(text);
    }
    Ok(seen.map(|set| set.len()))
}

#[derive(Debug, Clone, Copy)]
enum How {
    NotAtAll,
    Ended,
    Killed,
}

pub(super) fn measure(lab: &mut Lab, store: &mut Store, plan: &Plan) -> Outcome<()> {
    prepare(store, "bench")?;
    let mut fakes = populate(store, ENDPOINTS, "active", "bench")?;
    let [from, to] = [Namespace::new()?, Namespace::new()?];
    let ends = [200_001, 200_002].map(|number| Fake::of(HOST, number, "active", "bench"));
    for (fake, namespace) in ends.iter().zip([&from, &to]) {
        wire(fake, namespace)?;
        store.put(&fake.key, &fake.value)?;
    }
    fakes.extend(ends.iter().cloned());
    start_with(lab, &fakes)?;
    let time = Duration::from_secs(u64::from(plan.seconds.clamp(5, 15)));
    let mut rows = Vec::new();
    for how in [How::NotAtAll, How::Ended, How::Killed] {
        let receiving = to.begin(move || receive(time + Duration::from_secs(1)))?;
        pause(Duration::from_millis(200));
        let address = ends[1].address.clone();
        let sending = from.begin(move || send(&address, time))?;
        pause(time / 5);
        let begun = Instant::now();
        match how {
            How::NotAtAll => {}
            How::Ended => lab.stop_node()?,
            How::Killed => lab.kill_node()?,
        }
        if !matches!(how, How::NotAtAll) {
            lab.start_node(&[])?;
            until("be in sync again", Duration::from_mins(1), || get("/readyz").map(drop))?;
        }
        let away = begun.elapsed();
        let (sent, came) = (sending.recv()??, receiving.recv()??);
        let lost = |kind: usize| format!("{} of {}", sent[kind].saturating_sub(came[kind]), sent[kind]);
        let what = match how {
            How::NotAtAll => "the node runs on",
            How::Ended => "SIGTERM, and started again",
            How::Killed => "SIGKILL, and started again",
        };
        rows.push(vec![what.to_owned(), format!("{:.1}", away.as_secs_f64()), lost(0), lost(1)]);
    }
    table(
        &format!("Packets lost between two endpoints while the node of {ENDPOINTS} starts again (to be reached: 0)"),
        &["what happens", "until in sync again, s", "lost of an old flow", "lost of new flows"],
        &rows,
    );
    Ok(())
}
