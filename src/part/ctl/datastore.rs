//! The datastore as commands see it: load it, decide on an edit, write the edit if nothing it depends on has changed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::place::{EtcdPlace, Place};
use crate::edge::etcd::{Etcd, Outcome, When, Write};
use crate::model::fault::Fault;
use crate::model::key::{Key, answers_to};
use crate::model::name::HostName;
use crate::model::report::EndpointReport;
use crate::model::roll_call::RollAnswer;
use crate::model::snapshot::Snapshot;

/// How often a command decides anew because somebody else was quicker.
const TRIES: usize = 10;

/// How many conditions or writes one transaction holds (etcd's `--max-txn-ops`, which is 128 unless changed).
const TRANSACTION_LENGTH: usize = 128;

/// A change that a command decided on. It is carried out whole if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Edit<Answer> {
    pub(crate) when: Vec<When>,
    /// Empty: there is nothing to do.
    pub(crate) writes: Vec<Write>,
    /// What to tell the user once it is done.
    pub(crate) answer: Answer,
}

pub(crate) struct Datastore {
    etcd: Etcd,
    source: String,
    is_guessed: bool,
}

impl Datastore {
    pub(crate) async fn connect(place: &Place<'_>) -> Result<Self, Fault> {
        let EtcdPlace { address, source, is_guessed } = place.etcd()?;
        match Etcd::connect(&address).await {
            Ok(etcd) => Ok(Datastore { etcd, source, is_guessed }),
            Err(fault) => Err(with_advice(fault, &source)),
        }
    }

    /// What is below some paths: a command reads no more than it needs, of a hundred thousand endpoints none if it is not
    /// about endpoints.
    pub(crate) async fn load(&self, paths: &[impl AsRef<str>]) -> Result<Snapshot, Fault> {
        self.etcd.load_below(paths).await.map_err(|fault| with_advice(fault, &self.source))
    }

    /// What stands at a key.
    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Vec<u8>>, Fault> {
        let found = self.etcd.get(key).await.map_err(|fault| with_advice(fault, &self.source))?;
        Ok(found.map(|found| found.value))
    }

    /// A new lease.
    pub(crate) async fn lease(&self, lasts: Duration) -> Result<i64, Fault> {
        self.etcd.lease(lasts).await.map_err(|fault| with_advice(fault, &self.source))
    }

    pub(crate) async fn end_lease(&self, lease: i64) -> Result<(), Fault> {
        self.etcd.revoke(lease).await.map_err(|fault| with_advice(fault, &self.source))
    }

    /// The answers to a roll call, as far as they can be read.
    pub(crate) async fn answers(&self, call: i64) -> Result<BTreeMap<HostName, RollAnswer>, Fault> {
        let found = self.etcd.below(&answers_to(call)).await.map_err(|fault| with_advice(fault, &self.source))?;
        let answers = found.into_iter().filter_map(|(path, value)| match Key::parse(&path) {
            Some(Key::RollAnswer(_, host)) => Some((host, serde_json::from_slice(&value).ok()?)),
            _ => None,
        });
        Ok(answers.collect())
    }

    /// What the nodes say of the endpoints below a path of reports, by the endpoint's id.
    pub(crate) async fn reports(&self, path: &str) -> Result<BTreeMap<String, EndpointReport>, Fault> {
        let found = self.etcd.below(path).await.map_err(|fault| with_advice(fault, &self.source))?;
        let reports = found.into_iter().filter_map(|(path, value)| match Key::parse(&path) {
            Some(Key::EndpointStatus(key)) => Some((key.endpoint.to_string(), serde_json::from_slice(&value).ok()?)),
            _ => None,
        });
        Ok(reports.collect())
    }

    /// Decides on the newest view of what is below some paths and writes; again if a condition did not hold.
    ///
    /// # Errors
    /// What `decide` refuses; `Conflict` if others were quicker every time. Nothing is written then.
    pub(crate) async fn edit<Answer>(
        &self,
        doing: &str,
        paths: &[impl AsRef<str>],
        decide: impl Fn(&Snapshot) -> Result<Edit<Answer>, Fault>,
    ) -> Result<Answer, Fault> {
        for _ in 0..TRIES {
            let edit = decide(&self.load(paths).await?)?;
            if self.write(doing, &edit).await? {
                return Ok(edit.answer);
            }
        }
        Err(Fault::Conflict(format!(
            "{doing}: others changed it at the same time, {TRIES} times in a row: try again when they are done"
        )))
    }

    /// Carries an edit out; `false` if a condition did not hold.
    pub(crate) async fn write<Answer>(&self, doing: &str, edit: &Edit<Answer>) -> Result<bool, Fault> {
        if edit.writes.is_empty() {
            return Ok(true);
        }
        let length = edit.when.len().max(edit.writes.len());
        if length > TRANSACTION_LENGTH {
            return Err(Fault::Refusal(format!(
                "{doing}: {length} records in one step are too many for etcd, which takes {TRANSACTION_LENGTH}: name fewer"
            )));
        }
        let written = async {
            self.refuse_strange(doing).await?;
            self.etcd.transact(doing, &edit.when, &edit.writes).await
        };
        Ok(written.await.map_err(|fault| with_advice(fault, &self.source))? != Outcome::Lost)
    }

    /// Takes away everything below some paths; `false` if a condition did not hold.
    pub(crate) async fn delete_below(&self, doing: &str, when: &[When], paths: &[String]) -> Result<bool, Fault> {
        let deleted = async {
            self.refuse_strange(doing).await?;
            self.etcd.delete_below(doing, when, paths).await
        };
        Ok(deleted.await.map_err(|fault| with_advice(fault, &self.source))? != Outcome::Lost)
    }

    /// Refuses to write to an etcd that nobody has named and no node has filled: it is most likely another program's.
    async fn refuse_strange(&self, doing: &str) -> Result<(), Fault> {
        if !self.is_guessed || self.etcd.get(&Key::Ready).await?.is_some() {
            return Ok(());
        }
        Err(Fault::Refusal(format!(
            "{doing}: the etcd at {} holds nothing of Calico's ({} is not there), and nobody has named it: its address is {}; if \
             it is the right one, say so by ETCD_ENDPOINTS",
            self.etcd.address(),
            Key::Ready.path(),
            self.source
        )))
    }
}

/// Tells with the failure how the user names another etcd.
fn with_advice(fault: Fault, source: &str) -> Fault {
    match fault {
        Fault::Away(text) => Fault::Away(format!(
            "{text}\nIs etcd running there? The address comes from {source}; ETCD_ENDPOINTS=http://HOST:PORT names another."
        )),
        other => other,
    }
}
