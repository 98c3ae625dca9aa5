//! etcd v3: load everything at a revision, watch from it, change records by compare-and-swap.
//!
//! A watch of `etcd-client` does not survive a broken connection, so a watch here ends with the reason and its owner
//! loads again; nothing is resumed in secret. Every call ends after [`CALL_TIMEOUT`], and keep-alive pings find a peer
//! that is gone without a word.

use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, GetResponse, Identity, PutOptions,
    SortOrder, SortTarget, TlsOptions, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use tokio::time::timeout;

use crate::model::fault::Fault;
use crate::model::key::{AFTER_REPORTS, Key, REPORTS, ROOT};
use crate::model::snapshot::{Change, Snapshot};
use crate::plan::standing::Standing;

/// How long one call may take (decided: calls on a request's path end after 5 s).
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a silent connection is asked whether its peer is there, and how long that may take. etcd cuts off who asks
/// more often than every 5 s (its `--grpc-keepalive-min-time`).
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(6), Duration::from_secs(3));

/// How long a connection may take to come up. A connection that begins just before a hole in the network closes is made by
/// the second SYN, a second later.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How many keys one page of a load holds.
const PAGE: i64 = 1_000;

/// How long a message of etcd may be: a page of records of ordinary size many times over. What gRPC takes by itself, 4 MB,
/// three records of the size that etcd allows exceed.
const MESSAGE_BYTES: usize = 1 << 30;

/// Where etcd is and how to speak to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EtcdAddress {
    /// `http://host:port` or `https://host:port`, all of one scheme.
    pub(crate) endpoints: Vec<String>,
    /// PEM texts: the authority that signed the server, and our own certificate with its key.
    pub(crate) ca: Option<String>,
    pub(crate) identity: Option<(String, String)>,
}

/// A connection; clones share it.
#[derive(Clone)]
pub(crate) struct Etcd {
    client: Client,
    address: String,
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

/// A stream of changes.
pub(crate) struct Watch {
    stream: WatchStream,
    address: String,
}

/// Reads the addresses of etcd's members, separated by commas, all http or all https. `source` names them.
///
/// # Errors
/// `Refusal`.
pub(crate) fn parse_endpoints(source: &str, list: &str) -> Result<Vec<String>, Fault> {
    let endpoints: Vec<String> =
        list.split(',').map(|item| parse_endpoint(source, item.trim())).collect::<Result<_, _>>()?;
    let secure = endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
    if secure != 0 && secure != endpoints.len() {
        return Err(Fault::Refusal(format!(
            "read {source}: {list:?} mixes http and https: all endpoints must have one scheme"
        )));
    }
    Ok(endpoints)
}

/// Reads the address of one member as the original's tools are told it: `ETCD_AUTHORITY` is `host:port`, `ETCD_SCHEME` what
/// stands before it.
///
/// # Errors
/// `Refusal`.
pub(crate) fn parse_authority(authority: &str, scheme: Option<&str>) -> Result<String, Fault> {
    let scheme = scheme.unwrap_or("http");
    if !matches!(scheme, "http" | "https") {
        return Err(Fault::Refusal(format!("read ETCD_SCHEME: {scheme:?} must be http or https")));
    }
    parse_endpoint("ETCD_AUTHORITY", &format!("{scheme}://{authority}"))
}

/// Checks `http://host:port` and takes a closing slash off. `source` named it.
fn parse_endpoint(source: &str, text: &str) -> Result<String, Fault> {
    let wrong = || {
        let right = "it must be http://HOST:PORT or https://HOST:PORT";
        let right = if source == "ETCD_AUTHORITY" { "it must be HOST:PORT" } else { right };
        Fault::Refusal(format!("read {source}: {text:?} is not the address of an etcd: {right}"))
    };
    let text = text.strip_suffix('/').unwrap_or(text);
    let (scheme, authority) = text.split_once("://").ok_or_else(wrong)?;
    let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
    // An IPv6 address stands in brackets; without them its last group would be taken for a port.
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good_host = match bracketed {
        Some(inside) => inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')),
    };
    let good = matches!(scheme, "http" | "https") && good_host && port.parse::<u16>().is_ok_and(|port| port > 0);
    if good { Ok(text.to_owned()) } else { Err(wrong()) }
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
    /// Prepares a connection; it is made with the first call and again whenever it broke.
    ///
    /// # Errors
    /// `Refusal` for an address or certificate that cannot be used.
    pub(crate) async fn connect(address: &EtcdAddress) -> Result<Etcd, Fault> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1)
            .with_keep_alive_while_idle(true)
            // A member that has lost the others would go on answering, and tell a watch of nothing.
            .with_require_leader(true);
        let text = address.endpoints.join(",");
        if address.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            // Without one the client would trust nobody, and etcd would be away for ever.
            let ca = address.ca.as_ref().ok_or_else(|| {
                Fault::Refusal(format!(
                    "prepare the connection to etcd at {text}: https needs the authority that signed etcd's certificate: give its file with --etcd-cacert or ETCD_CA_CERT_FILE"
                ))
            })?;
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
            if let Some((certificate, key)) = &address.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let unusable = |error| Fault::Refusal(format!("prepare the connection to etcd at {text}: {error}"));
        let client = Client::connect(&address.endpoints, Some(options)).await.map_err(unusable)?;
        Ok(Etcd { client, address: text })
    }

    /// The endpoints, as text for people.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    async fn call<T>(
        &self,
        doing: &str,
        call: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Fault> {
        match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Fault::Away(format!("{doing} in etcd at {}: {error}", self.address))),
            Err(_) => Err(Fault::Away(format!(
                "{doing} in etcd at {}: no answer within {} s",
                self.address,
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }

    /// What the datastore says of itself. One small read.
    pub(crate) async fn standing(&self) -> Result<Standing, Fault> {
        let mut kv = self.client.kv_client();
        let answer = self.call("look at the datastore", kv.get(Key::Ready.path(), None)).await?;
        Ok(Standing {
            cluster: answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id),
            revision: answer.header().map_or(0, etcd_client::ResponseHeader::revision),
            ready: answer.kvs().first().is_some_and(|pair| pair.value() == b"true"),
        })
    }

    /// The whole datastore at one revision.
    pub(crate) async fn load(&self) -> Result<Snapshot, Fault> {
        self.load_into(Snapshot::default()).await.map(|(_, snapshot)| snapshot)
    }

    /// The same, taken into an empty snapshot, which may be one that keeps less; with what the datastore said of itself
    /// meanwhile.
    pub(crate) async fn load_into(&self, mut snapshot: Snapshot) -> Result<(Standing, Snapshot), Fault> {
        let mut from = ROOT.as_bytes().to_vec();
        let end = end_of(ROOT);
        let (mut revision, mut cluster) = (0, 0);
        loop {
            let mut page = self.page("load the datastore", &from, &end, revision).await?;
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
                cluster = page.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
            }
            let mut more = page.more();
            for pair in page.take_kvs() {
                let revision = pair.mod_revision();
                let (path, value) = pair.into_key_value();
                if path.starts_with(REPORTS.as_bytes()) {
                    from = AFTER_REPORTS.as_bytes().to_vec();
                    more = true;
                    break;
                }
                from.clone_from(&path);
                from.push(0);
                if let Ok(path) = String::from_utf8(path) {
                    snapshot.apply(&Change { revision, path, value: Some(value) });
                }
            }
            if !more {
                break;
            }
        }
        snapshot.revision = revision;
        let standing = Standing { cluster, revision, ready: snapshot.is_ready() };
        Ok((standing, snapshot.packed()))
    }

    /// The first keys of a range, with their values, at a revision; 0 is the newest.
    async fn page(&self, doing: &str, from: &[u8], end: &[u8], revision: i64) -> Result<GetResponse, Fault> {
        let options = GetOptions::new().with_range(end).with_limit(PAGE).with_revision(revision);
        let mut kv = self.client.kv_client().max_decoding_message_size(MESSAGE_BYTES);
        self.call(doing, kv.get(from, Some(options))).await
    }

    /// All changes after a revision.
    pub(crate) async fn watch_after(&self, revision: i64) -> Result<Watch, Fault> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let mut client = self.client.watch_client().max_decoding_message_size(MESSAGE_BYTES);
        let stream = self.call("watch the datastore", client.watch(ROOT, Some(options))).await?;
        Ok(Watch { stream, address: self.address.clone() })
    }

    pub(crate) async fn get(&self, key: &Key) -> Result<Option<Found>, Fault> {
        let path = key.path();
        let mut kv = self.client.kv_client();
        let mut answer = self.call(&format!("read {path}"), kv.get(path.clone(), None)).await?;
        Ok(answer.take_kvs().pop().map(|pair| {
            let revision = pair.mod_revision();
            Found { revision, value: pair.into_key_value().1 }
        }))
    }

    /// Everything below a path, with the paths, at one revision.
    pub(crate) async fn below(&self, path: &str) -> Result<Vec<(String, Vec<u8>)>, Fault> {
        let doing = format!("read what is below {path}");
        let (mut from, end, mut revision) = (path.as_bytes().to_vec(), end_of(path), 0);
        let mut found = Vec::new();
        loop {
            let mut page = self.page(&doing, &from, &end, revision).await?;
            if revision == 0 {
                revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let more = page.more();
            for pair in page.take_kvs() {
                let (path, value) = pair.into_key_value();
                from.clone_from(&path);
                from.push(0);
                found.extend(String::from_utf8(path).ok().map(|path| (path, value)));
            }
            if !more {
                return Ok(found);
            }
        }
    }

    /// The revision at which the newest of the keys below a path was written; 0 if there is none.
    pub(crate) async fn newest(&self, path: &str) -> Result<i64, Fault> {
        let options = GetOptions::new().with_prefix().with_sort(SortTarget::Mod, SortOrder::Descend).with_limit(1);
        let mut kv = self.client.kv_client();
        let answer =
            self.call(&format!("look for news below {path}"), kv.get(path, Some(options.with_keys_only()))).await?;
        Ok(answer.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision))
    }

    /// Carries out all writes in one step if all conditions hold. `doing` begins the message of a failure.
    pub(crate) async fn transact(&self, doing: &str, when: &[When], writes: &[Write]) -> Result<Outcome, Fault> {
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
        let operations: Vec<TxnOp> = writes
            .iter()
            .map(|write| match write {
                Write::Put(key, value) => TxnOp::put(key.path(), value.clone(), None),
                Write::PutLeased(key, value, lease) => {
                    TxnOp::put(key.path(), value.clone(), Some(PutOptions::new().with_lease(*lease)))
                }
                Write::Delete(key) => TxnOp::delete(key.path(), None),
            })
            .collect();
        let mut kv = self.client.kv_client();
        let answer = self.call(doing, kv.txn(Txn::new().when(compares).and_then(operations))).await?;
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

    /// A new lease; what hangs on it goes away when it is not kept alive for `seconds`.
    pub(crate) async fn lease(&self, seconds: i64) -> Result<i64, Fault> {
        let mut client = self.client.lease_client();
        Ok(self.call("grant a lease", client.grant(seconds, None)).await?.id())
    }

    /// Keeps a lease alive until that fails; answers why.
    pub(crate) async fn keep_lease(&self, lease: i64, every: Duration) -> Fault {
        let mut client = self.client.lease_client();
        let (mut keeper, mut answers) = match self.call("keep a lease", client.keep_alive(lease)).await {
            Ok(pair) => pair,
            Err(fault) => return fault,
        };
        loop {
            if let Err(fault) = self.call("keep a lease", keeper.keep_alive()).await {
                return fault;
            }
            match self.call("keep a lease", answers.message()).await {
                Ok(Some(answer)) if answer.ttl() > 0 => tokio::time::sleep(every).await,
                Ok(_) => return Fault::Away(format!("keep a lease in etcd at {}: it has expired", self.address)),
                Err(fault) => return fault,
            }
        }
    }
}

impl Watch {
    /// The next changes, of one or more revisions, in order.
    ///
    /// # Errors
    /// The watch is over and the reason: the connection broke, or the revisions asked for are compacted away. Load again.
    ///
    /// # Cancel safety
    /// No change is lost when the future is dropped before it is ready.
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Fault> {
        let away = |cause: String| Fault::Away(format!("watch the datastore in etcd at {}: {cause}", self.address));
        let answer = match self.stream.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Err(away("the stream ended".to_owned())),
            Err(error) => return Err(away(error.to_string())),
        };
        if answer.canceled() {
            return Err(away(format!("cancelled: {} {}", answer.cancel_reason(), answer.compact_revision())));
        }
        let changes = answer.events().iter().filter_map(|event| {
            let pair = event.kv().filter(|pair| !pair.key().starts_with(REPORTS.as_bytes()))?;
            Some(Change {
                revision: pair.mod_revision(),
                path: String::from_utf8(pair.key().to_vec()).ok()?,
                value: (event.event_type() == EventType::Put).then(|| pair.value().to_vec()),
            })
        });
        Ok(changes.collect())
    }
}
