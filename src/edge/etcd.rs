//! etcd v3: load everything at a revision, watch from it, change records by compare-and-swap.
//!
//! A watch of `etcd-client` does not survive a broken connection, so a watch here ends with the reason and its owner
//! loads again; nothing is resumed in secret. Every call ends after [`CALL_TIMEOUT`], and keep-alive pings find a peer
//! that is gone without a word. Of several members any that answers will do ([`members`]).

use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, GetResponse, PutOptions, SortOrder, SortTarget,
    Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};

pub(crate) use self::address::{EtcdAddress, parse_authority, parse_endpoints};
pub(crate) use self::members::CALL_TIMEOUT;
use self::members::Members;
use crate::model::fault::Fault;
use crate::model::key::{AFTER_REPORTS, Key, REPORTS, ROOT};
use crate::model::snapshot::{Change, Snapshot};
use crate::plan::standing::Standing;

mod address;
mod members;

/// How many keys the first page of a load holds, and how many bytes are aimed at in the later ones. For each page etcd
/// walks through its index up to the end of the range: a hundred thousand endpoints in pages of a thousand keys take it
/// nearly four times as long.
const PAGE: i64 = 1_000;
const PAGE_BYTES: usize = 8 << 20;

/// How long a page may take: over a slow link a page of so many bytes would not be there within [`CALL_TIMEOUT`].
const PAGE_TIME: Duration = Duration::from_secs(1);

/// How long a message of etcd may be: a page of records of ordinary size many times over. What gRPC takes by itself, 4 MB,
/// three records of the size that etcd allows exceed.
const MESSAGE_BYTES: usize = 1 << 30;

/// The way to the datastore; clones share the connections.
#[derive(Clone)]
pub(crate) struct Etcd {
    members: Members,
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum When {
    Absent(Key),
    Present(Key),
    /// The key was last written at this revision.
    At(Key, i64),
    /// No key below this path was written after this revision. Deletions do not count.
    Quiet(String, i64),
}

/// What a transaction writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Write {
    Put(Key, Vec<u8>),
    /// The key goes away with the lease.
    PutLeased(Key, Vec<u8>, i64),
    Delete(Key),
}

impl Write {
    pub(crate) fn key(&self) -> &Key {
        match self {
            Write::Put(key, _) | Write::PutLeased(key, _, _) | Write::Delete(key) => key,
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Carried out, at this revision; 0 if nothing had to be changed for it. The revision that etcd names with such an answer is
    /// that of whatever was written last, perhaps by somebody else below another root: a view of ours may never come to it.
    Done(i64),
    /// A condition did not hold; nothing was written.
    Lost,
}

/// A value and the revision at which it was last written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) revision: i64,
    pub(crate) value: Vec<u8>,
}

/// The first path of a range, and the first one behind it.
type Range = (Vec<u8>, Vec<u8>);

/// Changes as they happen, by a stream for each range: in each in the order of their revisions, between the two in whatever
/// order they come.
pub(crate) struct Watch {
    streams: [WatchStream; 2],
    address: String,
}

/// All that nodes read: what stands before reports, which is what is about BGP, and what stands behind them.
fn all_but_reports() -> [Range; 2] {
    [(ROOT.into(), REPORTS.into()), (AFTER_REPORTS.into(), end_of(ROOT))]
}

/// The JSON of a value that always has one.
///
/// # Errors
/// None in practice: serde_json fails only on maps with keys that are no strings, which no record here has.
pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value).map_err(|error| Fault::World(format!("write a record as JSON: {error}")))
}

/// The end of the range of all keys with a prefix: the prefix with its last byte one higher.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

impl Etcd {
    /// Prepares the connections; each is made with the first call and again whenever it broke.
    ///
    /// # Errors
    /// `Refusal` for an address or certificate that cannot be used.
    pub(crate) async fn connect(address: &EtcdAddress) -> Result<Etcd, Fault> {
        Ok(Etcd { members: Members::prepare(address).await? })
    }

    /// The endpoints, as text for people.
    pub(crate) fn address(&self) -> String {
        self.members.names()
    }

    /// What the datastore says of itself. One small read.
    pub(crate) async fn standing(&self) -> Result<Standing, Fault> {
        let look = |client: Client| async move { client.kv_client().get(Key::Ready.path(), None).await };
        let answer = self.members.ask("look at the datastore", look).await?;
        Ok(Standing {
            cluster: answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
            ready: answer.kvs().first().is_some_and(|pair| pair.value() == b"true"),
        })
    }

    /// The whole datastore at one revision, taken into an empty snapshot, which may be one that keeps less; with what the
    /// datastore said of itself meanwhile.
    pub(crate) async fn load_into(&self, mut snapshot: Snapshot) -> Result<(Standing, Snapshot), Fault> {
        let ranges = all_but_reports();
        let (cluster, revision) =
            self.each("load the datastore", &ranges, |change| drop(snapshot.apply(&change))).await?;
        snapshot.came_to(revision);
        let standing = Standing { cluster, ready: snapshot.is_ready() };
        Ok((standing, snapshot.packed()))
    }

    /// What is below some paths, at one revision: to whom the rest says nothing, it is as good as the whole.
    pub(crate) async fn load_below(&self, paths: &[impl AsRef<str>]) -> Result<Snapshot, Fault> {
        let mut snapshot = Snapshot::default();
        let ranges: Vec<Range> = paths.iter().map(AsRef::as_ref).map(|path| (path.into(), end_of(path))).collect();
        let (_, revision) = self.each("load the datastore", &ranges, |change| drop(snapshot.apply(&change))).await?;
        snapshot.came_to(revision);
        Ok(snapshot)
    }

    /// Everything below a path, with the paths, at one revision.
    pub(crate) async fn below(&self, path: &str) -> Result<Vec<(String, Vec<u8>)>, Fault> {
        let mut found = Vec::new();
        let take = |Change { path, value, .. }| found.extend(value.map(|value| (path, value)));
        self.each(&format!("read what is below {path}"), &[(path.into(), end_of(path))], take).await?;
        Ok(found)
    }

    /// Shows every key of some ranges, as the change that wrote it. Answers the id of the cluster, and the revision of which
    /// all are.
    async fn each(&self, doing: &str, ranges: &[Range], mut show: impl FnMut(Change)) -> Result<(u64, i64), Fault> {
        let (mut cluster, mut revision, mut keys) = (0, 0, PAGE);
        for (from, end) in ranges {
            let mut from = from.clone();
            loop {
                let asked = Instant::now();
                let mut page = match self.page(doing, (&from, end), keys, revision).await {
                    // Over a slow link that would be so each time, however often all is begun again.
                    Err(Fault::Away(_)) if keys > PAGE => {
                        keys = PAGE.max(keys / 4);
                        continue;
                    }
                    page => page?,
                };
                let took = asked.elapsed();
                if revision == 0 {
                    revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
                    cluster = page.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
                }
                let more = page.more();
                let bytes: usize = page.kvs().iter().map(|pair| pair.key().len() + pair.value().len()).sum();
                if bytes > PAGE_BYTES || took > PAGE_TIME {
                    keys = PAGE.max(keys / 2);
                } else if bytes < PAGE_BYTES / 2 && took < PAGE_TIME / 2 {
                    keys *= 2;
                }
                for pair in page.take_kvs() {
                    let revision = pair.mod_revision();
                    let (path, value) = pair.into_key_value();
                    from.clone_from(&path);
                    from.push(0);
                    if let Ok(path) = String::from_utf8(path) {
                        show(Change { revision, path, value: Some(value) });
                    }
                }
                if !more {
                    break;
                }
            }
        }
        Ok((cluster, revision))
    }

    /// The first keys of a range, with their values, at a revision; 0 is the newest.
    async fn page(
        &self,
        doing: &str,
        (from, end): (&[u8], &[u8]),
        keys: i64,
        revision: i64,
    ) -> Result<GetResponse, Fault> {
        let options = GetOptions::new().with_range(end).with_limit(keys).with_revision(revision);
        let read = |client: Client| {
            let options = options.clone();
            async move { client.kv_client().max_decoding_message_size(MESSAGE_BYTES).get(from, Some(options)).await }
        };
        self.members.ask(doing, read).await
    }

    /// All changes after a revision, but of reports: each host makes some all the time, and none reads another's.
    pub(crate) async fn watch_after(&self, revision: i64) -> Result<Watch, Fault> {
        let [before, behind] = all_but_reports().map(|range| self.watch_range(range, revision));
        let (before, behind) = tokio::try_join!(before, behind)?;
        Ok(Watch { streams: [before, behind], address: self.address() })
    }

    async fn watch_range(&self, (from, end): Range, revision: i64) -> Result<WatchStream, Fault> {
        let options = WatchOptions::new().with_range(end).with_start_revision(revision + 1);
        let watch = |client: Client| {
            let (from, options) = (from.clone(), options.clone());
            async move { client.watch_client().max_decoding_message_size(MESSAGE_BYTES).watch(from, Some(options)).await }
        };
        self.members.ask("watch the datastore", watch).await
    }

    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Found>, Fault> {
        let path = key.path();
        let read = |client: Client| {
            let path = path.clone();
            async move { client.kv_client().get(path, None).await }
        };
        let mut answer = self.members.ask(&format!("read {path}"), read).await?;
        Ok(answer.take_kvs().pop().map(|pair| {
            let revision = pair.mod_revision();
            Found { revision, value: pair.into_key_value().1 }
        }))
    }

    /// The revision at which the newest of the keys below a path was written; 0 if there is none.
    pub(crate) async fn newest(&self, path: &str) -> Result<i64, Fault> {
        let read = |client: Client| async move {
            let newest = GetOptions::new().with_prefix().with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(1);
            client.kv_client().get(path, Some(newest.with_keys_only())).await
        };
        let answer = self.members.ask(&format!("look for news below {path}"), read).await?;
        Ok(answer.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision))
    }

    /// Carries out all writes in one step if all conditions hold. `doing` begins the message of a failure.
    pub(crate) async fn transact(&self, doing: &str, when: &[When], writes: &[Write]) -> Result<Outcome, Fault> {
        let operations = writes.iter().map(|write| match write {
            Write::Put(key, value) => TxnOp::put(key.path(), value.clone(), None),
            Write::PutLeased(key, value, lease) => {
                TxnOp::put(key.path(), value.clone(), Some(PutOptions::new().with_lease(*lease)))
            }
            Write::Delete(key) => TxnOp::delete(key.path(), None),
        });
        self.commit(doing, when, operations.collect()).await
    }

    /// The same with everything below some paths, which is taken away.
    pub(crate) async fn delete_below(&self, doing: &str, when: &[When], paths: &[String]) -> Result<Outcome, Fault> {
        let below = |path: &String| TxnOp::delete(path.clone(), Some(DeleteOptions::new().with_prefix()));
        self.commit(doing, when, paths.iter().map(below).collect()).await
    }

    async fn commit(&self, doing: &str, when: &[When], operations: Vec<TxnOp>) -> Result<Outcome, Fault> {
        let compares: Vec<Compare> = when
            .iter()
            .map(|when| match when {
                When::Absent(key) => Compare::version(key.path(), CompareOp::Equal, 0),
                When::Present(key) => Compare::version(key.path(), CompareOp::Greater, 0),
                When::At(key, revision) => Compare::mod_revision(key.path(), CompareOp::Equal, *revision),
                When::Quiet(path, revision) => {
                    Compare::mod_revision(path.clone(), CompareOp::Less, *revision + 1).with_prefix()
                }
            })
            .collect();
        let transaction = Txn::new().when(compares).and_then(operations);
        let write = |client: Client| {
            let transaction = transaction.clone();
            async move { client.kv_client().txn(transaction).await }
        };
        let answer = self.members.tell(doing, write).await?;
        if !answer.succeeded() {
            return Ok(Outcome::Lost);
        }
        let changed = answer.op_responses().iter().any(|done| match done {
            TxnOpResponse::Delete(deleted) => deleted.deleted() > 0,
            _ => true,
        });
        let revision = answer.header().filter(|_| changed).map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Outcome::Done(revision))
    }

    /// A new lease; what hangs on it goes away when it is not kept alive for so long.
    pub(crate) async fn lease(&self, lasts: Duration) -> Result<i64, Fault> {
        let seconds = i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX);
        // One that was granted twice is not kept alive.
        let grant = |client: Client| async move { client.lease_client().grant(seconds, None).await };
        Ok(self.members.ask("grant a lease", grant).await?.id())
    }

    /// Ends a lease: what hangs on it goes away.
    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), Fault> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease).await };
        self.members.ask("end a lease", revoke).await.map(drop)
    }

    /// Keeps a lease alive. `false`: it has run out, or this etcd never granted it.
    pub(crate) async fn renew(&self, lease: i64) -> Result<bool, Fault> {
        // A stream each time: whichever member answers then renews it.
        let renew = |client: Client| async move {
            match client.lease_client().keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.members.ask("keep a lease", renew).await
    }
}

impl Watch {
    /// The next changes of one of the ranges, of one or more revisions, in order.
    ///
    /// # Errors
    /// The watch is over and the reason: the connection broke, or the revisions asked for are compacted away. Load again.
    ///
    /// # Cancel safety
    /// No change is lost when the future is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Fault> {
        let away = |cause: String| Fault::Away(format!("watch the datastore in etcd at {}: {cause}", self.address));
        let [before, behind] = &mut self.streams;
        let told = tokio::select! {
            told = before.message() => told,
            told = behind.message() => told,
        };
        let answer = match told {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(away("the stream ended".to_owned())),
            Err(error) => return Err(away(error.to_string())),
        };
        if answer.canceled() {
            return Err(away(format!("cancelled: {} {}", answer.cancel_reason(), answer.compact_revision())));
        }
        let changes = answer.events().iter().filter_map(|event| {
            let pair = event.kv()?;
            Some(Change {
                revision: pair.mod_revision(),
                path: String::from_utf8(pair.key().to_vec()).ok()?,
                value: (event.event_type() == EventType::Put).then(|| pair.value().to_vec()),
            })
        });
        Ok(changes.collect())
    }
}
