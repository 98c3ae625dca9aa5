//! `calicoctl endpoint`: show what the datastore says of the endpoints of all hosts.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::datastore::Datastore;
use super::place::Place;
use super::table::Table;
use super::{Answer, Failure};
use crate::model::endpoint::{State, WiredBy};
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, HOSTS, REPORTS, endpoint_reports_of, endpoints_of};
use crate::model::name::{HostName, ProfileName};
use crate::model::report::EndpointReport;
use crate::model::snapshot::{Record, Snapshot};

type Stored = Record<crate::model::endpoint::Endpoint>;

#[derive(Debug, Subcommand)]
pub(super) enum Endpoint {
    /// Count them by host, or show each with its addresses and profiles
    Show {
        #[command(flatten)]
        filter: Filter,
        /// Show each endpoint
        #[arg(long)]
        detailed: bool,
    },
}

/// Which endpoints to show: those for which all that is given holds.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Filter {
    /// Only those of this host
    #[arg(long)]
    pub(super) host: Option<String>,
    /// Only those of this orchestrator, such as docker
    #[arg(long)]
    pub(super) orchestrator: Option<String>,
    /// Only those of this workload: the full id of a container
    #[arg(long)]
    pub(super) workload: Option<String>,
    /// Only the one with this id
    #[arg(long)]
    pub(super) endpoint: Option<String>,
}

impl Filter {
    fn holds(&self, key: &EndpointKey) -> bool {
        let fits = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        fits(&self.host, key.host.as_str())
            && fits(&self.orchestrator, key.orchestrator.as_str())
            && fits(&self.workload, key.workload.as_str())
            && fits(&self.endpoint, key.endpoint.as_str())
    }

    /// The host whose endpoints alone it lets through, if it is given one that can have any.
    fn one_host(&self) -> Option<HostName> {
        self.host.as_ref()?.parse().ok()
    }

    fn select<'s>(&'s self, snapshot: &'s Snapshot) -> impl Iterator<Item = (&'s EndpointKey, &'s Stored)> {
        snapshot.endpoints.iter().filter(|(key, _)| self.holds(key))
    }
}

pub(super) async fn run(command: Endpoint, place: &Place<'_>) -> Result<Answer, Failure> {
    let Endpoint::Show { filter, detailed: each } = command;
    let datastore = Datastore::connect(place).await?;
    let path = filter.one_host().map_or_else(|| HOSTS.to_owned(), |host| endpoints_of(&host));
    let snapshot = datastore.load(&[path]).await?;
    if !each {
        return Ok(counted(&snapshot, &filter));
    }
    Ok(reported(&datastore, &snapshot, &filter).await?)
}

/// Every endpoint that the filter lets through, with what is recorded of it and what its node says of it.
pub(super) async fn reported(datastore: &Datastore, snapshot: &Snapshot, filter: &Filter) -> Result<Answer, Fault> {
    let path = filter.one_host().map_or_else(|| REPORTS.to_owned(), |host| endpoint_reports_of(&host));
    Ok(with_reports(detailed(snapshot, filter), &datastore.reports(&path).await?))
}

/// With what the nodes say of the endpoints that are shown, as far as they say it.
fn with_reports(mut answer: Answer, reports: &BTreeMap<String, EndpointReport>) -> Answer {
    for shown in answer.json.as_array_mut().into_iter().flatten() {
        let id = shown["endpoint"].as_str().unwrap_or_default().to_owned();
        let Some(report) = reports.get(&id) else { continue };
        shown["status"] = json!(report.status);
        let mut say = |key: &str, value: &Option<String>, words: &dyn Fn(&str) -> String| {
            if let Some(value) = value {
                shown[key] = json!(value);
                answer.text.push_str(&super::table::printable(&words(value)));
                answer.text.push('\n');
            }
        };
        say("reason", &report.reason, &|reason| format!("Endpoint {id} does not work: {reason}"));
        say("beside", &report.beside, &|networks| {
            format!(
                "Endpoint {id} is not all: its container is on Docker's network {networks} too, and what goes over that escapes policy"
            )
        });
    }
    answer
}

fn counted(snapshot: &Snapshot, filter: &Filter) -> Answer {
    let mut counts: BTreeMap<_, (BTreeSet<_>, usize)> = BTreeMap::new();
    for (key, _) in filter.select(snapshot) {
        let (workloads, endpoints) = counts.entry((&key.host, &key.orchestrator)).or_default();
        workloads.insert(&key.workload);
        *endpoints += 1;
    }
    let mut table = Table::new(&["Hostname", "Orchestrator ID", "Number of Workloads", "Number of Endpoints"]);
    let mut json = Vec::new();
    for ((host, orchestrator), (workloads, endpoints)) in counts {
        table.row([host.to_string(), orchestrator.to_string(), workloads.len().to_string(), endpoints.to_string()]);
        json.push(json!({
            "host": host, "orchestrator": orchestrator, "workloads": workloads.len(), "endpoints": endpoints,
        }));
    }
    Answer { text: format!("{}\n", table.render()), json: Value::Array(json) }
}

/// Every endpoint that the filter lets through, with what is recorded of it.
fn detailed(snapshot: &Snapshot, filter: &Filter) -> Answer {
    let mut table = Table::new(&[
        "Hostname",
        "Orchestrator ID",
        "Workload ID",
        "Endpoint ID",
        "Addresses",
        "MAC",
        "Profiles",
        "State",
        "Wired by",
    ]);
    let mut json = Vec::new();
    let mut unreadable = Vec::new();
    for (key, record) in filter.select(snapshot) {
        let [addresses, mac, profiles] = match &record.value {
            Ok(endpoint) => [
                endpoint.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
                endpoint.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                endpoint.profiles.iter().map(ProfileName::as_str).collect::<Vec<_>>().join(","),
            ],
            Err(why) => {
                unreadable.push(format!("Endpoint {} cannot be read: {why}", key.endpoint));
                Default::default()
            }
        };
        table.row([
            key.host.to_string(),
            key.orchestrator.to_string(),
            key.workload.to_string(),
            key.endpoint.to_string(),
            addresses,
            mac,
            profiles,
            state(record).to_owned(),
            record.readable().and_then(|endpoint| endpoint.wired_by).map_or("", WiredBy::as_str).to_owned(),
        ]);
        json.push(as_json(key, record));
    }
    let mut text = format!("{}\n", table.render());
    for line in unreadable {
        text.push_str(&super::table::printable(&line));
        text.push('\n');
    }
    Answer { text, json: Value::Array(json) }
}

/// The state of an endpoint in one word.
pub(super) fn state(record: &Stored) -> &'static str {
    match record.readable().map(|endpoint| endpoint.state) {
        Some(State::Active) => "active",
        Some(State::Inactive) => "inactive",
        None => "unreadable",
    }
}

fn as_json(key: &EndpointKey, record: &Stored) -> Value {
    let mut object = json!({
        "host": key.host,
        "orchestrator": key.orchestrator,
        "workload": key.workload,
        "endpoint": key.endpoint,
        "state": state(record),
    });
    match &record.value {
        Ok(endpoint) => {
            object["addresses"] = json!(endpoint.addresses);
            object["mac"] = json!(endpoint.mac);
            object["profiles"] = json!(endpoint.profiles);
            object["interface"] = json!(endpoint.interface);
            object["container_interface"] = json!(endpoint.container_interface);
            object["ipv4_gateway"] = json!(endpoint.ipv4_gateway);
            object["ipv6_gateway"] = json!(endpoint.ipv6_gateway);
            object["wired_by"] = json!(endpoint.wired_by);
        }
        Err(why) => object["error"] = json!(why),
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::Health;
    use crate::model::snapshot::tests::from_json;

    fn snapshot() -> Snapshot {
        from_json(
            r#"{
            "/calico/v1/host/h1/workload/docker/w1/endpoint/e1":
                {"state":"active","name":"cali1","mac":"02:00:00:00:00:01","profile_ids":["b","a"],
                 "ipv4_nets":["192.168.1.1/32","10.0.0.1/32"]},
            "/calico/v1/host/h1/workload/docker/w1/endpoint/e2": {"state":"inactive","name":"cali2"},
            "/calico/v1/host/h2/workload/libnetwork/w2/endpoint/e3": {"state":"up"}
            }"#,
        )
    }

    #[test]
    fn endpoints_are_counted_by_host_and_orchestrator() {
        let answer = counted(&snapshot(), &Filter::default());
        assert_eq!(
            answer.text,
            "\
+----------+-----------------+---------------------+---------------------+
| Hostname | Orchestrator ID | Number of Workloads | Number of Endpoints |
+----------+-----------------+---------------------+---------------------+
|    h1    |      docker     |          1          |          2          |
|    h2    |    libnetwork   |          1          |          1          |
+----------+-----------------+---------------------+---------------------+
"
        );
        assert_eq!(answer.json[0]["endpoints"], 2);
    }

    #[test]
    fn each_endpoint_is_shown_and_one_that_cannot_be_read_says_why() {
        let answer = detailed(&snapshot(), &Filter::default());
        assert!(answer.text.contains(" b,a "), "{}", answer.text);
        assert!(answer.text.contains("Endpoint e3 cannot be read: "), "{}", answer.text);
        assert_eq!(answer.json[0]["addresses"], json!(["10.0.0.1", "192.168.1.1"]));
        assert_eq!(answer.json[2]["state"], "unreadable");
    }

    #[test]
    fn what_the_node_says_is_wrong_with_an_endpoint_is_shown() {
        let beside = EndpointReport { beside: Some("bridge".to_owned()), ..EndpointReport::plain(Health::Up) };
        let reports = [("e1".to_owned(), EndpointReport::error("profile a: it is closed")), ("e2".to_owned(), beside)];
        let reports = reports.into();
        let answer = with_reports(detailed(&snapshot(), &Filter::default()), &reports);
        assert!(answer.text.contains("\nEndpoint e1 does not work: profile a: it is closed\n"), "{}", answer.text);
        assert_eq!((&answer.json[0]["status"], &answer.json[2]["status"]), (&json!("error"), &Value::Null));
        let escapes = "\nEndpoint e2 is not all: its container is on Docker's network bridge too, ";
        assert!(answer.text.contains(escapes), "{}", answer.text);
        assert_eq!(answer.json[1]["beside"], "bridge");
    }

    #[test]
    fn filters_must_all_hold() {
        let ids = |filter: &Filter| {
            let answer = detailed(&snapshot(), filter);
            answer.json.as_array().unwrap().iter().map(|each| each["endpoint"].to_string()).collect::<Vec<_>>()
        };
        let host = Some("h1".to_owned());
        assert_eq!(ids(&Filter { host: host.clone(), ..Filter::default() }).len(), 2);
        assert_eq!(ids(&Filter { host: host.clone(), endpoint: Some("e2".to_owned()), ..Filter::default() }).len(), 1);
        assert_eq!(ids(&Filter { host, endpoint: Some("e3".to_owned()), ..Filter::default() }).len(), 0);
    }

    #[test]
    fn an_empty_datastore_shows_an_empty_table() {
        for answer in
            [counted(&Snapshot::default(), &Filter::default()), detailed(&Snapshot::default(), &Filter::default())]
        {
            assert!(answer.text.contains("| Hostname |"));
            assert_eq!(answer.json, json!([]));
        }
    }
}
