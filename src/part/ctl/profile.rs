//! `calicoctl profile`: make profiles, remove them, show and replace their rules.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::datastore::{Datastore, Edit};
use super::place::Place;
use super::table::Table;
use super::{Answer, Failure};
use crate::edge::etcd::{When, Write, to_json};
use crate::model::endpoint::Endpoint;
use crate::model::fault::Fault;
use crate::model::key::{EndpointKey, HOSTS, Key, PROFILES};
use crate::model::name::{ProfileName, TagName};
use crate::model::pool::Family;
use crate::model::profile::{Rules, default_rules, default_tags};
use crate::model::rule::Rule;
use crate::model::snapshot::{Record, Snapshot};
use crate::plan::json;
use crate::plan::rules::too_many;

pub(super) const USAGE: &str = "\
calicoctl profile add <PROFILE>
       calicoctl profile remove <PROFILE> [--no-check]
       calicoctl profile show [--detailed]
       calicoctl profile <PROFILE> rule show|json|update
       calicoctl profile <PROFILE> tag show

A profile that is called add, remove, show or help stands after --:
       calicoctl profile -- add rule show";

/// How much JSON is read: etcd takes 1.5 MiB in a request.
const RULES_BYTES: u64 = 1 << 20;

#[derive(Debug, Subcommand)]
pub(super) enum Profile {
    /// Make a profile whose members reach each other and everything outside
    Add {
        /// Its name: up to 40 letters, digits, dots, dashes and underscores
        profile: ProfileName,
    },
    /// Remove a profile that no endpoint uses
    Remove {
        /// Its name
        profile: ProfileName,
        /// Remove it though endpoints use it: what only it allowed is dropped
        #[arg(long)]
        no_check: bool,
    },
    /// List the profiles
    Show {
        /// With the endpoints that use them
        #[arg(long)]
        detailed: bool,
    },
    /// Show or replace a profile's rules
    #[command(subcommand, override_usage = "calicoctl profile <PROFILE> rule show|json|update")]
    Rule(RuleOf),
    /// Show a profile's tags
    #[command(subcommand, override_usage = "calicoctl profile <PROFILE> tag show")]
    Tag(TagOf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(super) enum RuleOf {
    /// Print the rules in words, numbered
    #[command(override_usage = "calicoctl profile <PROFILE> rule show")]
    Show,
    /// Print the rules as JSON, in the form that update reads
    #[command(override_usage = "calicoctl profile <PROFILE> rule json")]
    Json,
    /// Replace all rules by the JSON on standard input
    #[command(override_usage = "calicoctl profile <PROFILE> rule update < RULES.json")]
    Update,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub(super) enum TagOf {
    /// Print the tags, one per line
    #[command(override_usage = "calicoctl profile <PROFILE> tag show")]
    Show,
}

pub(super) async fn run(command: Profile, subject: Option<String>, place: &Place<'_>) -> Result<Answer, Failure> {
    let subject = || -> Result<ProfileName, Failure> {
        let name = subject.ok_or_else(|| {
            Failure::usage("profile", "the profile is missing: its name stands before `rule` and `tag`")
        })?;
        Ok(name.parse().map_err(|error| Fault::Refusal(format!("{error}")))?)
    };
    match command {
        Profile::Add { profile } => {
            let doing = format!("create profile {profile}");
            let datastore = Datastore::connect(place).await?;
            Ok(Answer::said(datastore.edit(&doing, &[PROFILES], |snapshot| add(snapshot, &profile)).await?))
        }
        Profile::Remove { profile, no_check } => {
            let doing = format!("delete profile {profile}");
            let datastore = Datastore::connect(place).await?;
            let paths: &[&str] = if no_check { &[PROFILES] } else { &[PROFILES, HOSTS] };
            Ok(Answer::said(datastore.edit(&doing, paths, |snapshot| remove(snapshot, &profile, !no_check)).await?))
        }
        Profile::Show { detailed } => {
            let paths: &[&str] = if detailed { &[PROFILES, HOSTS] } else { &[PROFILES] };
            let snapshot = Datastore::connect(place).await?.load(paths).await?;
            Ok(if detailed { show_members(&snapshot) } else { show(&snapshot) })
        }
        Profile::Rule(RuleOf::Update) => update_rules(&subject()?, place).await,
        Profile::Rule(show) => {
            let profile = subject()?;
            let snapshot = Datastore::connect(place).await?.load(&[PROFILES]).await?;
            Ok(show_rules(&snapshot, &profile, show)?)
        }
        Profile::Tag(TagOf::Show) => {
            let profile = subject()?;
            let snapshot = Datastore::connect(place).await?.load(&[PROFILES]).await?;
            Ok(show_tags(&snapshot, &profile)?)
        }
    }
}

/// A key that is there as long as the profile is; `None`: there is no such profile.
pub(super) fn key_of(snapshot: &Snapshot, profile: &ProfileName) -> Option<Key> {
    if snapshot.rules.contains_key(profile) {
        Some(Key::ProfileRules(profile.clone()))
    } else {
        snapshot.tags.contains_key(profile).then(|| Key::ProfileTags(profile.clone()))
    }
}

fn not_found(profile: &ProfileName) -> Fault {
    Fault::Refusal(format!("Profile {profile} not found."))
}

/// Every profile: a name with rules, tags or both.
fn all(snapshot: &Snapshot) -> BTreeSet<&ProfileName> {
    snapshot.rules.keys().chain(snapshot.tags.keys()).collect()
}

/// The endpoints of all hosts that use a profile. One that cannot be read might, but nobody can say.
fn members<'s>(snapshot: &'s Snapshot, profile: &ProfileName) -> Vec<(&'s EndpointKey, &'s Record<Endpoint>)> {
    let uses =
        |record: &Record<Endpoint>| record.readable().is_some_and(|endpoint| endpoint.profiles.contains(profile));
    snapshot.endpoints.iter().filter(|(_, record)| uses(record)).collect()
}

fn add(snapshot: &Snapshot, profile: &ProfileName) -> Result<Edit<String>, Fault> {
    if key_of(snapshot, profile).is_some() {
        return Ok(Edit { when: Vec::new(), writes: Vec::new(), answer: format!("Profile {profile} already exists.") });
    }
    let (tags, rules) = (Key::ProfileTags(profile.clone()), Key::ProfileRules(profile.clone()));
    Ok(Edit {
        when: vec![When::Absent(tags.clone()), When::Absent(rules.clone())],
        writes: vec![
            Write::Put(tags, to_json(&default_tags(profile))?),
            Write::Put(rules, to_json(&default_rules(profile))?),
        ],
        answer: format!("Created profile {profile}"),
    })
}

fn remove(snapshot: &Snapshot, profile: &ProfileName, check: bool) -> Result<Edit<String>, Fault> {
    let tags = snapshot.tags.get(profile).map(|record| (Key::ProfileTags(profile.clone()), record.revision));
    let rules = snapshot.rules.get(profile).map(|record| (Key::ProfileRules(profile.clone()), record.revision));
    let keys: Vec<(Key, i64)> = tags.into_iter().chain(rules).collect();
    if keys.is_empty() {
        return Err(not_found(profile));
    }
    let users = members(snapshot, profile);
    if check && !users.is_empty() {
        let users: Vec<String> =
            users.iter().map(|(key, _)| format!("  endpoint {} of host {}", key.endpoint, key.host)).collect();
        return Err(Fault::Conflict(format!(
            "Cannot remove profile {profile} - profile in use by endpoint(s).\n{}\nUse the '--no-check' flag to remove the profile anyway.",
            users.join("\n")
        )));
    }
    let mut when: Vec<When> = keys.iter().map(|(key, revision)| When::At(key.clone(), *revision)).collect();
    if check {
        // An endpoint that begins to use it meanwhile must be seen.
        when.push(When::Quiet(HOSTS.to_owned(), snapshot.revision));
    }
    Ok(Edit {
        when,
        writes: keys.into_iter().map(|(key, _)| Write::Delete(key)).collect(),
        answer: format!("Deleted profile {profile}"),
    })
}

fn show(snapshot: &Snapshot) -> Answer {
    let mut table = Table::new(&["Name"]);
    let mut json = Vec::new();
    for profile in all(snapshot) {
        table.row([profile.to_string()]);
        json.push(json!({ "name": profile }));
    }
    Answer { text: format!("{}\n", table.render()), json: Value::Array(json) }
}

fn show_members(snapshot: &Snapshot) -> Answer {
    // In one walk: there may be thousands of profiles, and a hundred thousand endpoints.
    let mut members: BTreeMap<&ProfileName, Vec<(&EndpointKey, &Record<Endpoint>)>> = BTreeMap::new();
    for (key, record) in &snapshot.endpoints {
        let profiles: BTreeSet<&ProfileName> = record.readable().into_iter().flat_map(|one| &one.profiles).collect();
        for profile in profiles {
            members.entry(profile).or_default().push((key, record));
        }
    }
    let mut table = Table::new(&["Name", "Host", "Orchestrator ID", "Workload ID", "Endpoint ID", "State"]);
    let mut json = Vec::new();
    for profile in all(snapshot) {
        let members = members.remove(profile).unwrap_or_default();
        for (key, record) in &members {
            table.row([
                profile.to_string(),
                key.host.to_string(),
                key.orchestrator.to_string(),
                key.workload.to_string(),
                key.endpoint.to_string(),
                super::endpoint::state(record).to_owned(),
            ]);
        }
        if members.is_empty() {
            let none = || "None".to_owned();
            table.row([profile.to_string(), none(), none(), none(), none(), none()]);
        }
        let endpoints = members.iter().map(|(key, record)| {
            json!({
                "host": key.host,
                "orchestrator": key.orchestrator,
                "workload": key.workload,
                "endpoint": key.endpoint,
                "state": super::endpoint::state(record),
            })
        });
        json.push(json!({ "name": profile, "endpoints": endpoints.collect::<Vec<_>>() }));
    }
    Answer { text: format!("{}\n", table.render()), json: Value::Array(json) }
}

fn show_rules(snapshot: &Snapshot, profile: &ProfileName, form: RuleOf) -> Result<Answer, Fault> {
    key_of(snapshot, profile).ok_or_else(|| not_found(profile))?;
    // Half a profile, tags without rules, allows nothing.
    let rules = match snapshot.rules.get(profile).map(|record| &record.value) {
        Some(Ok(rules)) => rules.clone(),
        Some(Err(why)) => return Err(unreadable(&Key::ProfileRules(profile.clone()), why)),
        None => Rules { id: Some(profile.clone()), ..Rules::default() },
    };
    let json =
        serde_json::to_value(&rules).map_err(|error| Fault::World(format!("write the rules of {profile}: {error}")))?;
    let text = match form {
        RuleOf::Json => format!("{json:#}\n"),
        RuleOf::Show | RuleOf::Update => in_words(&rules),
    };
    Ok(Answer { text, json })
}

fn in_words(rules: &Rules) -> String {
    let mut lines = Vec::new();
    let lists: [(&str, &[Rule]); 2] = [("Inbound rules:", &rules.inbound), ("Outbound rules:", &rules.outbound)];
    for (title, list) in lists {
        lines.push(title.to_owned());
        lines.extend(list.iter().enumerate().map(|(index, rule)| format!(" {:>3} {rule}", index + 1)));
    }
    lines.join("\n")
}

fn unreadable(key: &Key, why: &str) -> Fault {
    Fault::World(format!("read {}: its record is not right: {why}", key.path()))
}

fn show_tags(snapshot: &Snapshot, profile: &ProfileName) -> Result<Answer, Fault> {
    key_of(snapshot, profile).ok_or_else(|| not_found(profile))?;
    let none = Vec::new();
    let tags: &Vec<TagName> = match snapshot.tags.get(profile).map(|record| &record.value) {
        Some(Ok(tags)) => tags,
        Some(Err(why)) => return Err(unreadable(&Key::ProfileTags(profile.clone()), why)),
        None => &none,
    };
    let text = tags.iter().map(TagName::as_str).collect::<Vec<_>>().join("\n");
    Ok(Answer { text, json: json!(tags) })
}

/// Replaces the rules by standard input.
///
/// The revision is taken before the input is read: `… rule json | edit | … rule update` then fails, instead of undoing
/// it, where somebody changed the rules while the edit was under way.
async fn update_rules(profile: &ProfileName, place: &Place<'_>) -> Result<Answer, Failure> {
    let datastore = Datastore::connect(place).await?;
    let snapshot = datastore.load(&[PROFILES]).await?;
    let present = key_of(&snapshot, profile).ok_or_else(|| not_found(profile))?;
    let input = read_input().await?;
    let rules = parse_rules(&input, profile)?;
    let key = Key::ProfileRules(profile.clone());
    let unchanged = match snapshot.rules.get(profile) {
        Some(record) => When::At(key.clone(), record.revision),
        None => When::Absent(key.clone()),
    };
    let edit = Edit {
        when: vec![When::Present(present), unchanged],
        writes: vec![Write::Put(key, to_json(&rules)?)],
        answer: format!("Successfully updated rules on profile {profile}"),
    };
    if !datastore.write(&format!("update the rules of profile {profile}"), &edit).await? {
        return Err(Failure::Fault(Fault::Conflict(format!(
            "update the rules of profile {profile}: somebody changed them at the same time, and nothing was written: look at them with `calicoctl profile {profile} rule show` and try again"
        ))));
    }
    Ok(Answer::said(edit.answer))
}

/// All of standard input. Read on a thread of its own, so that the connection to etcd stays alive while a person types.
async fn read_input() -> Result<Vec<u8>, Fault> {
    let read = tokio::task::spawn_blocking(|| {
        let mut input = Vec::new();
        std::io::stdin().lock().take(RULES_BYTES + 1).read_to_end(&mut input).map(|_| input)
    });
    let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| Fault::World(format!("read rules from standard input: {error}")))
}

/// Reads rules for a profile. Every mistake is reported, not only the first.
fn parse_rules(input: &[u8], profile: &ProfileName) -> Result<Rules, Fault> {
    let wrong = |why: String| Fault::Refusal(format!("read rules for profile {profile} from standard input:{why}"));
    if input.len() as u64 > RULES_BYTES {
        return Err(wrong(format!(" they are longer than {RULES_BYTES} bytes")));
    }
    let map: Map<String, Value> = serde_json::from_slice(input).map_err(|error| {
        wrong(format!(" {error}: it must be one JSON object with inbound_rules and outbound_rules"))
    })?;
    let mut mistakes = Vec::new();
    // Only the last of each would count, and whoever wrote both meant both.
    let repeated = json::document(input).map(|top| json::repeated(input, &top)).unwrap_or_default();
    mistakes.extend(repeated.iter().map(|key| format!("{key:?} stands twice in one object.")));
    if let Some(Value::String(id)) = map.get("id").filter(|id| id.as_str() != Some(profile.as_str())) {
        mistakes.push(format!("Rules JSON \"id\"={id} doesn't match profile name {profile}."));
    }
    if ["inbound_rules", "outbound_rules"].iter().all(|list| map.get(*list).is_none_or(Value::is_null)) {
        mistakes
            .push("There is neither inbound_rules nor outbound_rules; to allow nothing, give both as [].".to_owned());
    }
    match Rules::try_from(map) {
        // What nodes would close the profile for is better said before it is written.
        Ok(rules) => match Family::BOTH.into_iter().find_map(|family| too_many(family, &rules)) {
            None if mistakes.is_empty() => return Ok(Rules { id: Some(profile.clone()), ..rules }),
            why => mistakes.extend(why.map(|why| format!("The rules {why}."))),
        },
        Err(why) => mistakes.push(why),
    }
    Err(wrong(mistakes.iter().map(|mistake| format!("\n  {mistake}")).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    fn name(text: &str) -> ProfileName {
        text.parse().unwrap()
    }

    fn snapshot() -> Snapshot {
        from_json(
            r#"{
            "/calico/v1/policy/profile/used/tags": ["used", "more"],
            "/calico/v1/policy/profile/used/rules":
                {"inbound_rules": [{"src_tag": "WEB"}, {"protocol": "tcp", "dst_ports": [80, 443]}], "outbound_rules": [{}]},
            "/calico/v1/policy/profile/free/rules": {},
            "/calico/v1/policy/profile/half/tags": [],
            "/calico/v1/policy/profile/bad/rules": {"inbound_rules": [{"!src_net": "10.0.0.0/99"}]},
            "/calico/v1/host/h1/workload/docker/w1/endpoint/e1":
                {"state": "active", "name": "cali1", "profile_ids": ["used"]}
            }"#,
        )
    }

    #[test]
    fn a_new_profile_is_written_whole_and_an_old_one_not_at_all() {
        let edit = add(&snapshot(), &name("new")).unwrap();
        assert_eq!((edit.when.len(), edit.writes.len()), (2, 2));
        assert_eq!(edit.answer, "Created profile new");
        for there in ["used", "free", "half"] {
            let edit = add(&snapshot(), &name(there)).unwrap();
            assert!(edit.writes.is_empty());
            assert_eq!(edit.answer, format!("Profile {there} already exists."));
        }
    }

    #[test]
    fn a_profile_in_use_is_removed_only_without_the_check() {
        let error = remove(&snapshot(), &name("used"), true).unwrap_err().to_string();
        assert!(error.contains("endpoint e1 of host h1") && error.contains("--no-check"), "{error}");
        assert_eq!(remove(&snapshot(), &name("used"), false).unwrap().writes.len(), 2);
        assert_eq!(remove(&snapshot(), &name("free"), true).unwrap().writes.len(), 1);
        assert_eq!(remove(&snapshot(), &name("gone"), true).unwrap_err().to_string(), "Profile gone not found.");
    }

    #[test]
    fn rules_are_shown_as_the_original_did() {
        let answer = show_rules(&snapshot(), &name("used"), RuleOf::Show).unwrap();
        assert_eq!(
            answer.text,
            "Inbound rules:\n   1 allow from tag WEB\n   2 allow tcp to ports 80,443\nOutbound rules:\n   1 allow"
        );
        assert_eq!(
            show_rules(&snapshot(), &name("half"), RuleOf::Show).unwrap().text,
            "Inbound rules:\nOutbound rules:"
        );
        assert!(show_rules(&snapshot(), &name("gone"), RuleOf::Show).is_err());
        let error = show_rules(&snapshot(), &name("bad"), RuleOf::Json).unwrap_err().to_string();
        assert!(error.contains("/calico/v1/policy/profile/bad/rules") && error.contains("!src_net"), "{error}");
    }

    #[test]
    fn what_rule_json_prints_rule_update_reads() {
        let printed = show_rules(&snapshot(), &name("used"), RuleOf::Json).unwrap().text;
        let rules = parse_rules(printed.as_bytes(), &name("used")).unwrap();
        assert_eq!((rules.inbound.len(), rules.outbound.len()), (2, 1));
    }

    #[test]
    fn every_mistake_of_new_rules_is_reported_at_once() {
        let text = br#"{"id": "other", "inbound_rules": [{"action": "maybe"}, {}, {"dst_ports": [70000]}], "x": 1}"#;
        let twice = br#"{"inbound_rules": [{"action": "deny", "protocol": "tcp", "dst_ports": [22], "dst_ports": [23]}], "inbound_rules": []}"#;
        let error = parse_rules(twice, &name("web")).unwrap_err().to_string();
        assert!(
            error.contains("\"dst_ports\" stands twice") && error.contains("\"inbound_rules\" stands twice"),
            "{error}"
        );
        let error = parse_rules(text, &name("web")).unwrap_err().to_string();
        for part in ["\"id\"=other doesn't match profile name web", "inbound_rules 1", "inbound_rules 3", "\"x\""] {
            assert!(error.contains(part), "{error}");
        }
        for text in ["", "[]", "{} {}", "{\"inbound_rules\": 1}", "not json"] {
            assert!(parse_rules(text.as_bytes(), &name("web")).is_err(), "{text}");
        }
        let ports = |from: u16| (0..3000).map(|at| (from + 2 * at).to_string()).collect::<Vec<_>>().join(",");
        let (src, dst) = (ports(1), ports(20_000));
        let text =
            format!(r#"{{"inbound_rules": [{{"protocol": "tcp", "src_ports": [{src}], "dst_ports": [{dst}]}}]}}"#);
        let error = parse_rules(text.as_bytes(), &name("web")).unwrap_err().to_string();
        assert!(error.contains("The rules come to 40000 entries") && error.contains("at most 25000"), "{error}");
        assert_eq!(parse_rules(br#"{"inbound_rules":[]}"#, &name("web")).unwrap().id, Some(name("web")));
        // What holds no rules at all took away all that there were.
        for text in ["{}", r#"{"id":"web"}"#, r#"{"inbound_rules":null}"#] {
            let error = parse_rules(text.as_bytes(), &name("web")).unwrap_err().to_string();
            assert!(error.contains("neither inbound_rules nor outbound_rules"), "{error}");
        }
    }

    #[test]
    fn profiles_are_listed_with_and_without_their_members() {
        let answer = show(&snapshot());
        assert!(answer.text.starts_with("+------+\n| Name |\n+------+\n| bad  |\n| free |"), "{}", answer.text);
        let answer = show_members(&snapshot());
        assert_eq!(answer.json[3]["endpoints"][0]["endpoint"], "e1");
        assert!(answer.text.lines().any(|line| line.starts_with("| free | None |")), "{}", answer.text);
        assert_eq!(show(&Snapshot::default()).json, json!([]));
        assert_eq!(show_members(&Snapshot::default()).json, json!([]));
        assert_eq!(show_tags(&snapshot(), &name("used")).unwrap().text, "used\nmore");
        assert_eq!(show_tags(&snapshot(), &name("free")).unwrap().json, json!([]));
    }
}
