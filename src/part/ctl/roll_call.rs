//! `--wait`: after a command, waits until the kernels of all hosts hold what the datastore says.
//!
//! Every host is asked by one record ([`RollCall`]), and answers by one: a command of a cluster with hundreds of hosts costs
//! as many small writes, and one that does not wait none. The alternative, that each host says of every change how far it
//! is, would write as much for every change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::datastore::{Datastore, Edit};
use super::node::{hosts, last_report};
use super::place::Place;
use super::{Command, Failure, container, profile};
use crate::edge::etcd::{Write, to_json};
use crate::model::fault::Fault;
use crate::model::key::{BGP, Key};
use crate::model::name::{HostName, ProfileName};
use crate::model::roll_call::{RollAnswer, RollCall};

/// How long to wait before answers are looked for again.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How much longer than anybody waits the question stands.
const SPARE: Duration = Duration::from_secs(30);

/// How many hosts are named at most.
const MOST_NAMED: usize = 20;

/// The objects that a command is about, as a node calls them among its faults.
pub(super) fn objects(command: &Command, subject: Option<&str>) -> BTreeSet<String> {
    let named: Vec<String> = match command {
        Command::Profile(profile::Profile::Add { profile } | profile::Profile::Remove { profile, .. }) => {
            vec![profile.to_string()]
        }
        Command::Profile(_) => subject.map(str::to_owned).into_iter().collect(),
        Command::Container(container::Container::Profile(change)) => {
            change.profiles().iter().map(ProfileName::to_string).collect()
        }
        _ => Vec::new(),
    };
    named.into_iter().map(|profile| format!("profile {profile}")).collect()
}

/// Waits until every host has programmed all that has been written before, for so long at most.
///
/// # Errors
/// `NotEverywhere`: which hosts have not, or have some of the objects otherwise than the datastore says; or that this could
/// not be learnt.
pub(super) async fn everywhere(
    objects: BTreeSet<String>,
    patience: Duration,
    place: &Place<'_>,
) -> Result<(), Failure> {
    let lacking = call(objects, patience, place).await.map_err(|fault| {
        Failure::NotEverywhere(format!("It is done, but whether it holds on every host is not known: {fault}"))
    })?;
    if lacking.is_empty() {
        return Ok(());
    }
    Err(Failure::NotEverywhere(format!("It is done, but does not hold on every host yet:\n{}", lacking.join("\n"))))
}

/// Calls the roll; answers what is lacking where, in words.
async fn call(objects: BTreeSet<String>, patience: Duration, place: &Place<'_>) -> Result<Vec<String>, Fault> {
    let deadline = Instant::now() + patience;
    let datastore = Datastore::connect(place).await?;
    let hosts = hosts(&datastore.load(&[BGP]).await?);
    let call = datastore.lease(patience + SPARE).await?;
    let asked = to_json(&RollCall { objects })?;
    let writes = vec![Write::PutLeased(Key::RollCall(call), asked, call)];
    datastore.write("ask every host how far it is", &Edit { when: Vec::new(), writes, answer: () }).await?;
    let answers = loop {
        let answers = datastore.answers(call).await?;
        if Instant::now() >= deadline || hosts.iter().all(|host| answers.contains_key(host)) {
            break answers;
        }
        sleep(LOOK_EVERY).await;
    };
    // It runs out by itself too, and what was learnt is as true.
    let _ = datastore.end_lease(call).await;
    let missing: Vec<&HostName> = hosts.iter().filter(|host| !answers.contains_key(*host)).collect();
    let mut lacking = faults(&answers);
    for host in missing.iter().take(MOST_NAMED) {
        let report = last_report(&datastore, host).await?;
        let silent = if report.holds { "" } else { "; its node has not reported itself lately" };
        lacking.push(format!("  host {host}: not within {} s{silent}", patience.as_secs()));
    }
    if let Some(more) = missing.len().checked_sub(MOST_NAMED).filter(|more| *more > 0) {
        lacking.push(format!("  and {more} other hosts"));
    }
    Ok(lacking)
}

/// What is wrong where, in words.
fn faults(answers: &BTreeMap<HostName, RollAnswer>) -> Vec<String> {
    let of_host = |(host, answer): (&HostName, &RollAnswer)| {
        let line = |(object, why): (&String, &String)| format!("  host {host}: {object}: {why}");
        answer.faults.iter().map(line).collect::<Vec<_>>()
    };
    answers.iter().flat_map(of_host).collect()
}

/// Reads a number of seconds.
pub(super) fn patience(text: &str) -> Result<Duration, Fault> {
    let seconds = text.parse::<u64>().ok().filter(|seconds| *seconds <= 3600);
    seconds
        .map(Duration::from_secs)
        .ok_or_else(|| Fault::Refusal("it must be a number of seconds up to 3600".to_owned()))
}
