//! `calicoctl container`: give a container an address, take it away, say which profiles it has.

use clap::Subcommand;
use serde_json::json;

use super::datastore::{Datastore, Edit};
use super::endpoint::{Filter, reported};
use super::place::Place;
use super::{Answer, Failure, profile};
use crate::edge::control::{Control, Unanswered};
use crate::edge::etcd::{When, Write, to_json};
use crate::model::control::{ADD, ContainerAdd, ContainerAdded, ContainerCalled, ContainerNamed, REMOVE, RESOLVE};
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::key::{ADDRESSES, EndpointKey, Key, PROFILES, endpoints_of};
use crate::model::name::{CONTAINER_INTERFACE, HostName, IfName, ProfileName, WorkloadId};
use crate::model::snapshot::{Record, Snapshot};
use crate::model::wish::AddressWish;

pub(super) const USAGE: &str = "\
calicoctl container add <CONTAINER> <IP> [--interface=<INTERFACE>]
       calicoctl container remove <CONTAINER>
       calicoctl container <CONTAINER> profile append|remove|set [PROFILES]...
       calicoctl container <CONTAINER> endpoint show

A container that is called add, remove, show or help stands after --:
       calicoctl container -- add profile set web";

/// The least part of an id that stands for a container without asking Docker: what `docker ps` prints.
const SHORTEST_ID: usize = 12;

#[derive(Debug, Subcommand)]
pub(super) enum Container {
    /// Give a running container an address; all its traffic is dropped until it has a profile
    Add {
        /// Its name, id or part of the id
        container: String,
        /// An address of a pool, `auto`, `ipv4` or `ipv6`, or the CIDR of a pool
        #[arg(value_parser = address_wish)]
        ip: String,
        /// What the interface is called in the container
        #[arg(long, default_value = CONTAINER_INTERFACE)]
        interface: IfName,
    },
    /// Take a container out of Calico and free its addresses
    Remove {
        /// Its name, id or part of the id
        container: String,
    },
    /// Say which profiles a container has
    #[command(subcommand, override_usage = "calicoctl container <CONTAINER> profile append|remove|set [PROFILES]...")]
    Profile(ProfileChange),
    /// Show a container's endpoint
    #[command(subcommand, override_usage = "calicoctl container <CONTAINER> endpoint show")]
    Endpoint(EndpointOf),
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(super) enum ProfileChange {
    /// Add profiles behind those that the container has
    #[command(override_usage = "calicoctl container <CONTAINER> profile append <PROFILES>...")]
    Append {
        /// Names of profiles, in the order in which they are consulted
        profiles: Vec<ProfileName>,
    },
    /// Take profiles away
    #[command(override_usage = "calicoctl container <CONTAINER> profile remove <PROFILES>...")]
    Remove {
        /// Names of profiles
        profiles: Vec<ProfileName>,
    },
    /// Replace the profiles; none given: the container has none, and all its traffic is dropped
    #[command(override_usage = "calicoctl container <CONTAINER> profile set [PROFILES]...")]
    Set {
        /// Names of profiles, in the order in which they are consulted
        profiles: Vec<ProfileName>,
    },
}

impl ProfileChange {
    pub(super) fn profiles(&self) -> &[ProfileName] {
        match self {
            ProfileChange::Append { profiles }
            | ProfileChange::Remove { profiles }
            | ProfileChange::Set { profiles } => profiles,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum EndpointOf {
    /// Show it with its addresses and profiles
    #[command(override_usage = "calicoctl container <CONTAINER> endpoint show")]
    Show,
}

/// Checks an address as typed, and leaves it so for the node.
fn address_wish(text: &str) -> Result<String, String> {
    text.parse::<AddressWish>().map(|_| text.to_owned())
}

pub(super) async fn run(command: Container, subject: Option<String>, place: &Place<'_>) -> Result<Answer, Failure> {
    let subject = || {
        subject.ok_or_else(|| {
            Failure::usage(
                "container",
                "the container is missing: its name or id stands before `profile` and `endpoint`",
            )
        })
    };
    match command {
        Container::Add { container, ip, interface } => add(container, ip, interface, place).await,
        Container::Remove { container } => remove(container, place).await,
        Container::Profile(change) => change_profiles(&subject()?, &change, place).await,
        Container::Endpoint(EndpointOf::Show) => show_endpoint(&subject()?, place).await,
    }
}

async fn add(container: String, ip: String, interface: IfName, place: &Place<'_>) -> Result<Answer, Failure> {
    if !place.root {
        return Err(Failure::NotRoot);
    }
    let request = ContainerAdd { container, ip, interface };
    let added: ContainerAdded = Control::in_run_dir(&place.run_dir()).post(ADD, &request).await.map_err(Fault::from)?;
    let addresses: Vec<String> = added.addresses.iter().map(ToString::to_string).collect();
    let text = format!("IP {} added to {}", addresses.join(", "), request.container);
    Ok(Answer { text, json: json!({ "container": added.container, "addresses": added.addresses }) })
}

async fn remove(container: String, place: &Place<'_>) -> Result<Answer, Failure> {
    if !place.root {
        return Err(Failure::NotRoot);
    }
    let request = ContainerCalled { container };
    let removed: ContainerNamed =
        Control::in_run_dir(&place.run_dir()).post(REMOVE, &request).await.map_err(Fault::from)?;
    let text = format!("Removed Calico from {}", request.container);
    Ok(Answer { text, json: json!({ "container": removed.container }) })
}

async fn show_endpoint(container: &str, place: &Place<'_>) -> Result<Answer, Failure> {
    let host = place.host()?;
    let resolved = ask_node(container, place).await?;
    let datastore = Datastore::connect(place).await?;
    let snapshot = datastore.load(&paths(&host, resolved.is_err())).await?;
    let workload = workload_of(resolved, &snapshot, &host, container)?;
    let filter = Filter { host: Some(host.to_string()), workload: Some(workload.to_string()), ..Filter::default() };
    Ok(reported(&datastore, &snapshot, &filter).await?)
}

async fn change_profiles(container: &str, change: &ProfileChange, place: &Place<'_>) -> Result<Answer, Failure> {
    let host = place.host()?;
    named_once(change)?;
    let resolved = ask_node(container, place).await?;
    let datastore = Datastore::connect(place).await?;
    let doing = format!("change the profiles of container {container}");
    let decide = |snapshot: &Snapshot| {
        let workload = workload_of(resolved.clone(), snapshot, &host, container)?;
        let (key, record) = endpoint_of(snapshot, &host, &workload, container)?;
        edit_profiles(snapshot, key, record, change)
    };
    let paths = [paths(&host, resolved.is_err()), vec![PROFILES.to_owned()]].concat();
    Ok(Answer::said(datastore.edit(&doing, &paths, decide).await?))
}

/// Where what is to be known of a host's containers stands: their names in the claims alone, if no node tells them.
fn paths(host: &HostName, names: bool) -> Vec<String> {
    let claims = names.then(|| ADDRESSES.to_owned());
    [endpoints_of(host)].into_iter().chain(claims).collect()
}

/// What the node says which container a name stands for.
async fn ask_node(container: &str, place: &Place<'_>) -> Result<Result<WorkloadId, Unanswered>, Fault> {
    let called = ContainerCalled { container: container.to_owned() };
    let answer: Result<ContainerNamed, _> = Control::in_run_dir(&place.run_dir()).post(RESOLVE, &called).await;
    match answer {
        Ok(named) => Ok(Ok(named.container.workload())),
        Err(Unanswered::Said(fault)) => Err(fault),
        Err(silent) => Ok(Err(silent)),
    }
}

/// The workload that a name stands for: the node's word, else what the datastore knows of this host.
fn workload_of(
    resolved: Result<WorkloadId, Unanswered>,
    snapshot: &Snapshot,
    host: &HostName,
    container: &str,
) -> Result<WorkloadId, Fault> {
    let silent = match resolved {
        Ok(workload) => return Ok(workload),
        Err(silent) => silent,
    };
    let mut found = recorded(snapshot, host, container);
    found.sort_unstable();
    found.dedup();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Fault::Away(format!(
            "find container {container} on host {host}: no endpoint is recorded under this id or name, and Docker cannot be asked for it: {silent}"
        ))),
        several => Err(Fault::Refusal(format!(
            "find container {container} on host {host}: {} containers are called so: {}; use the id",
            several.len(),
            several.iter().map(|id| id.as_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The workloads of a host that are recorded with this id, an id that begins so, or a claim under this name.
fn recorded<'s>(snapshot: &'s Snapshot, host: &HostName, container: &str) -> Vec<&'s WorkloadId> {
    let workloads = || snapshot.endpoints.keys().filter(|key| key.host == *host).map(|key| &key.workload);
    if let Some(exact) = workloads().find(|id| id.as_str() == container) {
        return vec![exact];
    }
    let long = container.len() >= SHORTEST_ID && container.bytes().all(|b| b.is_ascii_hexdigit());
    let by_id = workloads().filter(|id| long && id.as_str().starts_with(container));
    let owners = snapshot.claims.values().filter_map(Record::readable).map(|claim| &claim.owner);
    let name = container.trim_start_matches('/');
    let named = owners.filter(|owner| owner.host == *host && !name.is_empty() && owner.name == name);
    by_id.chain(named.filter_map(|owner| owner.workload.as_ref())).collect()
}

/// The one endpoint of a workload.
fn endpoint_of<'s>(
    snapshot: &'s Snapshot,
    host: &HostName,
    workload: &WorkloadId,
    container: &str,
) -> Result<(&'s EndpointKey, &'s Record<Endpoint>), Fault> {
    let of_workload = |key: &EndpointKey| key.host == *host && key.workload == *workload;
    let found: Vec<_> = snapshot.endpoints.iter().filter(|(key, _)| of_workload(key)).collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Fault::Refusal(format!(
            "find the endpoint of container {container}: it is unknown to Calico on host {host}: give it an address with `calicoctl container add {container} <IP>`"
        ))),
        several => Err(Fault::Refusal(format!(
            "find the endpoint of container {container}: it has {}, not one: {}",
            several.len(),
            several.iter().map(|(key, _)| key.endpoint.as_str()).collect::<Vec<_>>().join(", ")
        ))),
    }
}

impl ProfileChange {
    fn named(&self) -> &[ProfileName] {
        match self {
            ProfileChange::Append { profiles }
            | ProfileChange::Remove { profiles }
            | ProfileChange::Set { profiles } => profiles,
        }
    }
}

fn joined(profiles: &[ProfileName]) -> String {
    profiles.iter().map(ProfileName::as_str).collect::<Vec<_>>().join(", ")
}

/// Refuses a change that names a profile twice, or none where it must.
fn named_once(change: &ProfileChange) -> Result<(), Fault> {
    let named = change.named();
    if named.is_empty() && !matches!(change, ProfileChange::Set { .. }) {
        return Err(Fault::Refusal("No profile specified.".to_owned()));
    }
    let twice: Vec<_> =
        named.iter().enumerate().filter(|(index, name)| named[..*index].contains(name)).map(|(_, name)| name).collect();
    refuse_all(&twice, |name| format!("Profile with name {name} was specified more than once."))
}

fn refuse_all(wrong: &[&ProfileName], say: impl Fn(&ProfileName) -> String) -> Result<(), Fault> {
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Fault::Refusal(wrong.iter().map(|&name| say(name)).collect::<Vec<_>>().join("\n")))
}

/// The edit of one endpoint's record, and the words that tell of it.
fn edit_profiles(
    snapshot: &Snapshot,
    key: &EndpointKey,
    record: &Record<Endpoint>,
    change: &ProfileChange,
) -> Result<Edit<String>, Fault> {
    let path = || Key::Endpoint(key.clone()).path();
    let endpoint = record.value.as_ref().map_err(|why| {
        Fault::World(format!(
            "change the profiles of endpoint {}: its record {} cannot be read: {why}",
            key.endpoint,
            path()
        ))
    })?;
    let named = change.named();
    let mut when = vec![When::At(Key::Endpoint(key.clone()), record.revision)];
    if !matches!(change, ProfileChange::Remove { .. }) {
        // It must still be there when the endpoint begins to use it.
        let missing: Vec<_> = named.iter().filter(|name| profile::key_of(snapshot, name).is_none()).collect();
        refuse_all(&missing, |name| format!("Profile with name {name} was not found."))?;
        when.extend(named.iter().filter_map(|name| profile::key_of(snapshot, name)).map(When::Present));
    }
    let (profiles, answer) = changed(&endpoint.profiles, change)?;
    let endpoint = Endpoint { profiles, ..endpoint.clone() };
    let writes = vec![Write::Put(Key::Endpoint(key.clone()), to_json(&endpoint)?)];
    Ok(Edit { when, writes, answer })
}

/// The list of profiles after a change, and the words that tell of it.
fn changed(old: &[ProfileName], change: &ProfileChange) -> Result<(Vec<ProfileName>, String), Fault> {
    match change {
        ProfileChange::Append { profiles } => {
            let there: Vec<_> = profiles.iter().filter(|name| old.contains(name)).collect();
            refuse_all(&there, |name| format!("Profile {name} is already in endpoint profile list."))?;
            Ok(([old, profiles].concat(), format!("Profile(s) {} appended.", joined(profiles))))
        }
        ProfileChange::Remove { profiles } => {
            let absent: Vec<_> = profiles.iter().filter(|name| !old.contains(name)).collect();
            refuse_all(&absent, |name| format!("Profile {name} is not in endpoint profile list."))?;
            let left = old.iter().filter(|name| !profiles.contains(name)).cloned().collect();
            Ok((left, format!("Profile(s) {} removed.", joined(profiles))))
        }
        ProfileChange::Set { profiles } if profiles.is_empty() => {
            Ok((Vec::new(), "Removed all profiles from endpoint.".to_owned()))
        }
        ProfileChange::Set { profiles } => Ok((profiles.clone(), format!("Profile(s) set to {}.", joined(profiles)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    const WEB: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const DB: &str = "aaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn names(list: &[&str]) -> Vec<ProfileName> {
        list.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn host() -> HostName {
        "h1".parse().unwrap()
    }

    /// Two containers on h1, `web` under profiles a and b; a, b and c exist.
    fn snapshot() -> Snapshot {
        let endpoint = r#"{"state":"active","name":"cali1","profile_ids":["a","b"],"ipv4_nets":["192.168.1.1/32"]}"#;
        let owner = format!(
            r#"{{"host":"h1","orchestrator":"docker","workload":"{WEB}","endpoint":"e1","name":"web","since":"s"}}"#
        );
        from_json(&format!(
            r#"{{
            "/calico/v1/host/h1/workload/docker/{WEB}/endpoint/e1": {endpoint},
            "/calico/v1/host/h1/workload/docker/{DB}/endpoint/e2": {endpoint},
            "/calico/v1/host/h2/workload/docker/{WEB}/endpoint/e3": {endpoint},
            "/calico/v1/ipam/v4/assignment/192.168.0.0-16/192.168.1.1":
                {{"v":1,"state":"bound","owner":{owner},"request":"","successor":null}},
            "/calico/v1/policy/profile/a/rules": {{}},
            "/calico/v1/policy/profile/b/tags": [],
            "/calico/v1/policy/profile/c/rules": {{}}
            }}"#
        ))
    }

    fn edit(change: &ProfileChange) -> Result<Edit<String>, Fault> {
        let snapshot = snapshot();
        named_once(change)?;
        let (key, record) = endpoint_of(&snapshot, &host(), &WEB.parse().unwrap(), "web")?;
        edit_profiles(&snapshot, key, record, change)
    }

    fn written(edit: &Edit<String>) -> Vec<String> {
        let [Write::Put(_, value)] = edit.writes.as_slice() else { panic!("{edit:?}") };
        let endpoint: Endpoint = serde_json::from_slice(value).unwrap();
        endpoint.profiles.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn profiles_are_appended_removed_and_set_in_their_order() {
        let append = edit(&ProfileChange::Append { profiles: names(&["c"]) }).unwrap();
        assert_eq!((written(&append).join(" ").as_str(), append.answer.as_str()), ("a b c", "Profile(s) c appended."));
        assert_eq!(append.when.len(), 2, "the endpoint unchanged, the profile still there: {append:?}");
        let remove = edit(&ProfileChange::Remove { profiles: names(&["a"]) }).unwrap();
        assert_eq!((written(&remove).join(" ").as_str(), remove.answer.as_str()), ("b", "Profile(s) a removed."));
        let set = edit(&ProfileChange::Set { profiles: names(&["c", "a"]) }).unwrap();
        assert_eq!((written(&set).join(" ").as_str(), set.answer.as_str()), ("c a", "Profile(s) set to c, a."));
        let none = edit(&ProfileChange::Set { profiles: Vec::new() }).unwrap();
        assert!(written(&none).is_empty());
        assert_eq!(none.answer, "Removed all profiles from endpoint.");
    }

    #[test]
    fn a_change_that_cannot_be_names_every_wrong_profile() {
        for (change, message) in [
            (
                ProfileChange::Append { profiles: names(&["x", "c", "y"]) },
                "Profile with name x was not found.\nProfile with name y was not found.",
            ),
            (ProfileChange::Append { profiles: names(&["b"]) }, "Profile b is already in endpoint profile list."),
            (ProfileChange::Append { profiles: Vec::new() }, "No profile specified."),
            (ProfileChange::Remove { profiles: names(&["c"]) }, "Profile c is not in endpoint profile list."),
            (
                ProfileChange::Set { profiles: names(&["a", "c", "a"]) },
                "Profile with name a was specified more than once.",
            ),
        ] {
            assert_eq!(edit(&change).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn without_a_node_a_container_is_found_by_id_part_of_it_or_the_name_of_its_claim() {
        let snapshot = snapshot();
        let find = |container: &str| {
            let silent = Unanswered::NoNode { socket: "/s".to_owned(), cause: "gone".to_owned() };
            workload_of(Err(silent), &snapshot, &host(), container).map(String::from)
        };
        assert_eq!(find(WEB).unwrap(), WEB);
        assert_eq!(find(&DB[..13]).unwrap(), DB);
        assert_eq!(find("web").unwrap(), WEB);
        assert!(find(&DB[..12]).unwrap_err().to_string().contains("2 containers"), "an ambiguous part");
        for unknown in ["nosuch", &DB[..11], ""] {
            let error = find(unknown).unwrap_err().to_string();
            assert!(error.contains("calico-node is not running"), "{error}");
        }
    }

    #[test]
    fn a_container_with_no_or_several_endpoints_is_refused() {
        let mut snapshot = snapshot();
        let of = |snapshot: &Snapshot, id: &str| {
            endpoint_of(snapshot, &host(), &id.parse().unwrap(), "web").map(|_| ()).map_err(|error| error.to_string())
        };
        assert!(of(&snapshot, "other").unwrap_err().contains("unknown to Calico"));
        let (key, record) =
            snapshot.endpoints.iter().next().map(|(key, record)| (key.clone(), record.clone())).unwrap();
        assert!(of(&snapshot, key.workload.as_str()).is_ok());
        let second = EndpointKey { endpoint: "e9".parse().unwrap(), ..key.clone() };
        snapshot.endpoints.insert(second, record);
        assert!(of(&snapshot, key.workload.as_str()).unwrap_err().contains("it has 2"));
    }
}
