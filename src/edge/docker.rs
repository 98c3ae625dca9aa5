//! dockerd, as our own client sees it: inspect, list, events, and the two calls that undo what we began.
//!
//! Never on the proxy's path: a typed client drops fields that it does not know. No call names a version of the API, so each
//! dockerd answers in its own, also one that takes the place of another under a node that runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use bollard::query_parameters::{
    EventsOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http_body_util::Full;
use hyper::{Request, header};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::http;
use super::wire::{Engine, connect_unix};
use crate::model::endpoint::OciRuntime;
use crate::model::fault::Fault;
use crate::model::name::ContainerId;
use crate::model::recreation::RecreationLabels;
use crate::plan::runtime::Runtimes;

/// How long one of our own calls may take, in seconds; `stop` adds its grace.
const CALL_TIMEOUT_S: u64 = 30;

/// How long an answer may be: far above the description of any container, and of tens of thousands in a list.
const MOST_BYTES: usize = 1 << 30;

/// How long a container whose wiring failed may take to stop, in seconds.
const STOP_GRACE_S: i32 = 5;

/// Where dockerd listens, and the client once there is a socket.
#[derive(Debug)]
pub(crate) struct Docker {
    host: String,
    client: OnceCell<bollard::Docker>,
}

/// A container as dockerd describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Without the leading slash.
    pub(crate) name: String,
    /// The process id of its first process, while it runs.
    pub(crate) pid: Option<i32>,
    /// Whether dockerd counts it among the running: so too while it waits to be restarted.
    pub(crate) is_up: bool,
    /// Its own host name, and the hosts file that dockerd mounts into it.
    pub(crate) hostname: String,
    pub(crate) hosts_path: Option<String>,
    pub(crate) network_mode: String,
    /// `NAME=value` entries, the image's among them.
    pub(crate) env: Vec<String>,
    pub(crate) labels: RecreationLabels,
    /// Whether its restart policy has it run whenever nobody stopped it.
    pub(crate) restarts: bool,
    /// The runtime that dockerd starts it with.
    pub(crate) runtime: String,
    /// Docker's networks that it is in, each with its id; `none` is no network.
    pub(crate) networks: BTreeMap<String, String>,
    /// The next hops of its way out by these.
    pub(crate) gateways: Vec<IpAddr>,
}

impl Container {
    /// Whether it looks like one that our proxy has made: without a network of Docker's, and with a wish for one of ours. The
    /// wish may be the image's.
    pub(crate) fn wishes(&self) -> bool {
        self.network_mode == "none" && self.env.iter().any(|entry| entry.starts_with("CALICO_IP="))
    }

    /// Whether it is in a network of Docker's that is named by name, id or part of an id.
    pub(crate) fn is_in(&self, network: &str) -> bool {
        self.networks.iter().any(|(name, id)| name == network || !network.is_empty() && id.starts_with(network))
    }
}

/// A line of the container list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: ContainerId,
    /// Without the leading slash; empty where it has none.
    pub(crate) name: String,
    pub(crate) running: bool,
    /// Seconds since 1970.
    pub(crate) created_s: i64,
    /// Docker's networks that it is connected to; `none` is no network.
    pub(crate) networks: Vec<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Started(ContainerId),
    /// A container's process has ended, or it is gone.
    Ended(ContainerId),
    /// dockerd has read its configuration again.
    Reloaded,
}

/// What dockerd says of a container, as far as it concerns us. Source: Engine API, `ContainerInspect`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: Option<String>,
    hosts_path: Option<String>,
    state: Option<InspectedState>,
    config: Option<InspectedConfig>,
    host_config: Option<InspectedHostConfig>,
    network_settings: Option<InspectedNetworkSettings>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedNetworkSettings {
    networks: Option<BTreeMap<String, Option<InspectedEndpoint>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedEndpoint {
    #[serde(rename = "NetworkID")]
    network_id: Option<String>,
    gateway: Option<String>,
    #[serde(rename = "IPv6Gateway")]
    ipv6_gateway: Option<String>,
}

impl InspectedEndpoint {
    fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        [&self.gateway, &self.ipv6_gateway].into_iter().flatten().filter_map(|text| text.parse().ok())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedNetwork {
    name: Option<String>,
    id: Option<String>,
}

/// What dockerd says of itself, as far as it concerns us. Source: Engine API, `SystemInfo`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Info {
    driver: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedState {
    pid: i32,
    running: bool,
    restarting: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedConfig {
    hostname: Option<String>,
    env: Option<Vec<String>>,
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedHostConfig {
    network_mode: Option<String>,
    runtime: Option<String>,
    restart_policy: Option<InspectedRestartPolicy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct InspectedRestartPolicy {
    name: Option<String>,
}

/// What dockerd lists of a container, as far as it concerns us. Source: Engine API, `ContainerList`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: Option<String>,
    names: Option<Vec<String>>,
    state: Option<String>,
    created: Option<i64>,
    host_config: Option<SummaryHostConfig>,
    network_settings: Option<SummaryNetworkSettings>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SummaryHostConfig {
    network_mode: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SummaryNetworkSettings {
    networks: Option<BTreeMap<String, serde_json::Value>>,
}

impl Summary {
    fn read(self) -> Option<Listed> {
        // Others may call it by names of theirs: `/other/alias`.
        let names = self.names.unwrap_or_default();
        let own = names.iter().find(|name| name.rfind('/') == Some(0)).or(names.first());
        let name = own.cloned().unwrap_or_default();
        let networks = self.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        Some(Listed {
            id: self.id?.parse().ok()?,
            name: name.trim_start_matches('/').to_owned(),
            running: matches!(self.state.as_deref(), Some("running" | "paused")),
            created_s: self.created.unwrap_or_default(),
            networks: networks.into_keys().filter(|network| network != "none").collect(),
        })
    }
}

impl Inspected {
    fn read(self) -> Result<Container, String> {
        let id = self.id.parse().map_err(|error| format!("it has no id: {error}"))?;
        let (state, config) = (self.state.unwrap_or_default(), self.config.unwrap_or_default());
        let host = self.host_config.unwrap_or_default();
        let networks = self.network_settings.unwrap_or_default().networks.into_iter().flatten();
        let networks: Vec<(String, InspectedEndpoint)> = networks
            .filter(|(name, _)| name != "none")
            .map(|(name, network)| (name, network.unwrap_or_default()))
            .collect();
        let policy = host.restart_policy.and_then(|policy| policy.name);
        Ok(Container {
            id,
            name: self.name.unwrap_or_default().trim_start_matches('/').to_owned(),
            pid: Some(state.pid).filter(|pid| state.running && *pid > 0),
            is_up: state.running || state.restarting,
            hostname: config.hostname.unwrap_or_default(),
            hosts_path: self.hosts_path.filter(|path| !path.is_empty()),
            network_mode: host.network_mode.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            labels: config.labels.into_iter().flatten().collect(),
            restarts: policy.is_some_and(|policy| !matches!(policy.as_str(), "" | "no")),
            runtime: host.runtime.unwrap_or_default(),
            gateways: networks.iter().flat_map(|(_, network)| network.gateways()).collect(),
            networks: networks
                .into_iter()
                .map(|(name, network)| (name, network.network_id.unwrap_or_default()))
                .collect(),
        })
    }
}

/// The longest segment of a path that is asked for: a path of `http::Uri` has at most 65,534 bytes.
const LONGEST_SEGMENT: usize = 65_000;

/// A name as one segment of a path, which bollard puts together from it as it is.
fn segment(name: &str) -> String {
    use std::fmt::Write as _;
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            segment.push(char::from(byte));
        } else {
            let _ = write!(segment, "%{byte:02X}");
        }
    }
    segment
}

fn unexpected(doing: &str, status: u16, body: &[u8]) -> Fault {
    Fault::World(format!("{doing}: it answered {status} {}", String::from_utf8_lossy(body).trim()))
}

fn status_of(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

impl Docker {
    /// `host` is `unix:///path` or `tcp://host:port`.
    pub(crate) fn new(host: &str) -> Self {
        Docker { host: host.to_owned(), client: OnceCell::new() }
    }

    fn fault(&self, doing: &str, error: &bollard::errors::Error) -> Fault {
        let text = format!("{doing} at dockerd {}: {error}", self.host);
        if status_of(error).is_some() { Fault::World(text) } else { Fault::DockerAway(text) }
    }

    async fn client(&self) -> Result<&bollard::Docker, Fault> {
        let make = || async {
            // It asks for this and sends it to nobody.
            let version = bollard::API_DEFAULT_VERSION;
            let client = if let Some(path) = self.host.strip_prefix("unix://") {
                bollard::Docker::connect_with_unix(path, CALL_TIMEOUT_S, version)
            } else {
                bollard::Docker::connect_with_http(&self.host, CALL_TIMEOUT_S, version)
            };
            client.map_err(|error| self.fault("connect", &error))
        };
        self.client.get_or_try_init(make).await
    }

    /// Whether dockerd answers.
    pub(crate) async fn ping(&self) -> Result<(), Fault> {
        let client = self.client().await?;
        client.ping().await.map(drop).map_err(|error| self.fault("ping", &error))
    }

    /// The runtimes that it knows.
    pub(crate) async fn runtimes(&self) -> Result<Runtimes, Fault> {
        let client = self.client().await?;
        let info = client.info().await.map_err(|error| self.fault("ask for the runtimes", &error))?;
        let known = info.runtimes.unwrap_or_default().into_iter().map(|(name, runtime)| {
            let args = runtime.runtime_args.unwrap_or_default();
            (name, OciRuntime { path: runtime.path.unwrap_or_default(), args })
        });
        Ok(Runtimes { default: info.default_runtime.unwrap_or_default(), known: known.collect() })
    }

    /// Starts a container; one that runs already is no error.
    pub(crate) async fn start(&self, id: &ContainerId) -> Result<(), Fault> {
        let client = self.client().await?;
        match client.start_container(id.as_str(), None::<StartContainerOptions>).await {
            Err(error) if status_of(&error) != Some(304) => {
                Err(self.fault(&format!("start container {}", id.short()), &error))
            }
            _ => Ok(()),
        }
    }

    /// A container by name, id or part of an id; `None` if that names none.
    pub(crate) async fn inspect(&self, name: &str) -> Result<Option<Container>, Fault> {
        let late = || Fault::DockerAway(format!("inspect container {name} at dockerd {}: no answer yet", self.host));
        timeout(Duration::from_secs(CALL_TIMEOUT_S), self.look_up(name)).await.map_err(|_| late())?
    }

    /// The same for somebody who waits for dockerd anyhow, however long it takes.
    ///
    /// Read here and not by bollard, whose types know every value that a field may have: dockerd keeps some as the client
    /// spelled them, and a newer one has more.
    pub(crate) async fn look_up(&self, name: &str) -> Result<Option<Container>, Fault> {
        if name.is_empty() {
            return Ok(None);
        }
        let mut path = segment(name);
        if path.len() > LONGEST_SEGMENT {
            // dockerd sets no limit to a name. So long it is no id.
            let own = name.strip_prefix('/').unwrap_or(name);
            let listed = self.list().await?.into_iter().find(|one| one.name == own);
            let Some(listed) = listed else { return Ok(None) };
            listed.id.as_str().clone_into(&mut path);
        }
        let doing = format!("inspect container {name} at dockerd {}", self.host);
        match self.ask(&format!("/containers/{path}/json"), &doing).await? {
            (200, body) => {
                let found = serde_json::from_slice::<Inspected>(&body).map_err(|error| error.to_string());
                found.and_then(Inspected::read).map(Some).map_err(|error| Fault::World(format!("{doing}: {error}")))
            }
            (404, _) => Ok(None),
            // A part of several ids is as good as none, and so is what is no name at all. Of a container that is known by its
            // id, only 404 says that it is gone: whoever stands before dockerd may have other reasons.
            (300..=400, _) if name.parse::<ContainerId>().is_err() => Ok(None),
            (status, body) => Err(unexpected(&doing, status, &body)),
        }
    }

    /// The name and the id of a network that is named by either; `None` if there is none. For somebody who waits for dockerd
    /// anyhow.
    pub(crate) async fn network(&self, name: &str) -> Result<Option<(String, String)>, Fault> {
        // One that is longer is no network's that a container can name.
        if name.is_empty() || segment(name).len() > LONGEST_SEGMENT {
            return Ok(None);
        }
        let doing = format!("inspect network {name} at dockerd {}", self.host);
        match self.ask(&format!("/networks/{}", segment(name)), &doing).await? {
            (200, body) => {
                let found = serde_json::from_slice::<InspectedNetwork>(&body);
                let found = found.map_err(|error| Fault::World(format!("{doing}: {error}")))?;
                Ok(found.name.zip(found.id))
            }
            // An ambiguous part of an id is as good as none.
            (400..500, _) => Ok(None),
            (status, body) => Err(unexpected(&doing, status, &body)),
        }
    }

    /// What tells it from a dockerd that has other containers: the id of its network `none`, which it has as long as them, and
    /// the name of its storage driver, if it says one. `None` where there is no such network. For somebody who waits for
    /// dockerd anyhow.
    pub(crate) async fn identity(&self) -> Result<Option<String>, Fault> {
        let Some((_, id)) = self.network("none").await? else { return Ok(None) };
        let doing = format!("ask dockerd {} for its storage driver", self.host);
        let (status, body) = self.ask("/info", &doing).await?;
        let info = serde_json::from_slice::<Info>(&body).ok().filter(|_| status == 200);
        Ok(Some(info.and_then(|info| info.driver).map_or_else(|| id.clone(), |driver| format!("{id} {driver}"))))
    }

    /// What dockerd answers to a question, with its status, however long it takes.
    async fn ask(&self, path: &str, doing: &str) -> Result<(u16, Bytes), Fault> {
        let request = Request::get(path)
            .header(header::HOST, "docker")
            .body(Full::default())
            .map_err(|error| Fault::World(format!("{doing}: {error}")))?;
        let away = |error: &dyn std::fmt::Display| Fault::DockerAway(format!("{doing}: {error}"));
        let answer = match self.host.parse()? {
            Engine::Unix(path) => {
                let stream = connect_unix(&path).await.map_err(|error| away(&error))?;
                http::ask(stream, request, MOST_BYTES).await
            }
            Engine::Tcp(address) => {
                let stream = TcpStream::connect(address).await.map_err(|error| away(&error))?;
                http::ask(stream, request, MOST_BYTES).await
            }
        };
        answer.map_err(|error| away(&error))
    }

    /// Which network a container was made with, also while dockerd is starting it: then it inspects it for nobody, and lists
    /// it all the same.
    pub(crate) async fn network_mode(&self, id: &ContainerId) -> Result<Option<String>, Fault> {
        let filters = segment(&format!("{{\"id\":[\"{id}\"]}}"));
        let listed = self.summaries(&format!("&filters={filters}"), &format!("list container {}", id.short())).await?;
        Ok(listed.into_iter().find_map(|summary| summary.host_config?.network_mode))
    }

    /// All containers, running or not.
    pub(crate) async fn list(&self) -> Result<Vec<Listed>, Fault> {
        Ok(self.summaries("", "list containers").await?.into_iter().filter_map(Summary::read).collect())
    }

    /// Lines of the container list; `narrowed` stands at the end of the query. Read here for the same reason as an inspect.
    async fn summaries(&self, narrowed: &str, doing: &str) -> Result<Vec<Summary>, Fault> {
        let doing = format!("{doing} at dockerd {}", self.host);
        let late = |_| Fault::DockerAway(format!("{doing}: no answer within {CALL_TIMEOUT_S} s"));
        let path = format!("/containers/json?all=1{narrowed}");
        let asked = timeout(Duration::from_secs(CALL_TIMEOUT_S), self.ask(&path, &doing));
        match asked.await.map_err(late)?? {
            (200, body) => serde_json::from_slice(&body).map_err(|error| Fault::World(format!("{doing}: {error}"))),
            (status, body) => Err(unexpected(&doing, status, &body)),
        }
    }

    /// Stops a container; one that is gone or stopped already is no error.
    pub(crate) async fn stop(&self, id: &ContainerId) -> Result<(), Fault> {
        let client = self.client().await?;
        let options = StopContainerOptionsBuilder::default().t(STOP_GRACE_S).build();
        match client.stop_container(id.as_str(), Some(options)).await {
            Err(error) if !matches!(status_of(&error), Some(304 | 404)) => {
                Err(self.fault(&format!("stop container {}", id.short()), &error))
            }
            _ => Ok(()),
        }
    }

    /// Removes a container that nobody has been told of yet; one that is gone is no error.
    pub(crate) async fn remove(&self, id: &ContainerId) -> Result<(), Fault> {
        let client = self.client().await?;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match client.remove_container(id.as_str(), Some(options)).await {
            Err(error) if status_of(&error) != Some(404) => {
                Err(self.fault(&format!("remove container {}", id.short()), &error))
            }
            _ => Ok(()),
        }
    }

    /// What happens to containers from now on. The stream ends when the connection does; what happened meanwhile is
    /// found by listing.
    pub(crate) async fn events(&self) -> Result<impl Stream<Item = Result<Event, Fault>> + Send + '_, Fault> {
        let client = self.client().await?;
        let filters = std::collections::HashMap::from([
            ("type", vec!["container", "daemon"]),
            ("event", vec!["start", "die", "destroy", "reload"]),
        ]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        let events = client.events(Some(options)).filter_map(move |message| {
            let event = match message {
                Ok(message) => {
                    let id = || message.actor.as_ref()?.id.as_ref()?.parse().ok();
                    match message.action.as_deref() {
                        Some("start") => id().map(Event::Started),
                        Some("die" | "destroy") => id().map(Event::Ended),
                        Some("reload") => Some(Event::Reloaded),
                        _ => None,
                    }
                    .map(Ok)
                }
                Err(error) => Some(Err(self.fault("read events", &error))),
            };
            std::future::ready(event)
        });
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_read_whatever_spellings_dockerd_has_kept_of_it() {
        let id = "a".repeat(64);
        let text = format!(
            r#"{{"Id":"{id}","Name":"/web","HostsPath":"","State":{{"Status":"stopping","Running":true,"Pid":7}},
              "Config":{{"Hostname":"h","Env":null,"Labels":null}},
              "HostConfig":{{"Isolation":"Default","NetworkMode":"none","RestartPolicy":{{"Name":"Sometimes"}}}}}}"#
        );
        let found = serde_json::from_str::<Inspected>(&text).unwrap().read().unwrap();
        assert_eq!((found.id.as_str(), found.name.as_str(), found.pid), (id.as_str(), "web", Some(7)));
        assert_eq!((found.hosts_path, found.network_mode.as_str(), found.restarts), (None, "none", true));
        let bare = serde_json::from_str::<Inspected>(&format!(r#"{{"Id":"{id}","State":{{"Pid":7}}}}"#)).unwrap();
        assert_eq!(bare.read().unwrap().pid, None, "a process that has ended has no pid");
        assert!(serde_json::from_str::<Inspected>(r#"{"Id":"x"}"#).unwrap().read().is_err());
    }

    /// One state that it did not know ended the following of dockerd, for every container, over and over.
    #[test]
    fn a_container_is_listed_whatever_state_a_newer_dockerd_has_for_it() {
        let id = "a".repeat(64);
        let text = format!(
            r#"[{{"Id":"{id}","Names":["/app/db","/web"],"State":"stopping","Created":7,"HostConfig":{{"NetworkMode":"none","New":[]}},
              "NetworkSettings":{{"Networks":{{"none":{{}},"bridge":null}}}},"Health":{{"Status":"new"}}}},
              {{"Id":"{id}","Names":null,"State":"paused","NetworkSettings":null}}]"#
        );
        let listed: Vec<Summary> = serde_json::from_str(&text).unwrap();
        let listed: Vec<Listed> = listed.into_iter().filter_map(Summary::read).collect();
        let id: ContainerId = id.parse().unwrap();
        let web = Listed {
            id: id.clone(),
            name: "web".to_owned(),
            running: false,
            created_s: 7,
            networks: vec!["bridge".to_owned()],
        };
        assert_eq!(listed, [web, Listed { id, name: String::new(), running: true, created_s: 0, networks: vec![] }]);
    }

    #[tokio::test]
    async fn only_404_says_that_a_container_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let docker = Docker::new(&format!("unix://{}", path.display()));
        let id = "a".repeat(64);
        let answered = async |name: &str, status: u16| {
            let answer = async {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut asked = listener.accept().await.unwrap().0;
                let _ = asked.read(&mut [0; 4096]).await.unwrap();
                let reply = format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
                asked.write_all(reply.as_bytes()).await.unwrap();
            };
            tokio::join!(docker.look_up(name), answer).0
        };
        for (name, status, is_gone) in [
            (id.as_str(), 404, true),
            (&id, 403, false),
            (&id, 400, false),
            (&id, 500, false),
            ("web", 404, true),
            ("web", 400, true),
            ("web", 301, true),
            ("web", 403, false),
            ("web", 429, false),
        ] {
            assert_eq!(answered(name, status).await.is_ok_and(|found| found.is_none()), is_gone, "{name}: {status}");
        }
    }

    /// One that was negotiated once would be refused by a newer dockerd under a node that runs.
    #[tokio::test]
    async fn no_call_names_a_version_of_the_api() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let docker = Docker::new(&format!("unix://{}", path.display()));
        let answer = async {
            let mut asked = listener.accept().await.unwrap().0;
            let mut head = [0; 4096];
            let length = asked.read(&mut head).await.unwrap();
            let reply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]";
            asked.write_all(reply.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..length]).into_owned()
        };
        let (listed, head) = tokio::join!(docker.list(), answer);
        assert_eq!(listed, Ok(vec![]));
        assert!(head.starts_with("GET /containers/json?"), "{head}");
    }

    /// After half a minute a create that named a network was a 502, while dockerd was only slow.
    #[tokio::test(start_paused = true)]
    async fn a_network_is_asked_for_as_long_as_dockerd_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let docker = Docker::new(&format!("unix://{}", path.display()));
        let asked = timeout(Duration::from_mins(10), docker.network("web")).await;
        assert!(asked.is_err(), "{asked:?}");
    }

    #[test]
    fn a_name_does_not_leave_its_segment_of_the_path() {
        assert_eq!(segment("web_1.a-b"), "web_1.a-b");
        assert_eq!(segment("../x?y#z é"), "..%2Fx%3Fy%23z%20%C3%A9");
    }
}
