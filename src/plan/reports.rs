//! Reports: what this host says of its endpoints, and what has to be written so that it stands in the datastore.

use std::collections::BTreeMap;

use crate::model::endpoint::Endpoint;
use crate::model::key::EndpointKey;
use crate::model::report::{Beside, EndpointReport, Health};
use crate::model::snapshot::Record;

use super::desired::endpoint_object;

/// Reports by endpoint.
pub(crate) type Reports = BTreeMap<EndpointKey, EndpointReport>;

/// What is known of this host's endpoints beside their records.
pub(crate) struct Known<'k> {
    /// Objects that are closed or missing, and why.
    pub(crate) faults: &'k BTreeMap<String, String>,
    /// By workload: why its wiring keeps failing.
    pub(crate) failing: &'k BTreeMap<String, String>,
    /// By workload: the networks of Docker's that it is on too.
    pub(crate) beside: &'k BTreeMap<String, Beside>,
    /// Whether all addresses of an endpoint are routed to it; `None`: its policy does not stand.
    pub(crate) routed: &'k dyn Fn(&EndpointKey) -> Option<bool>,
}

/// What is to be said of an endpoint.
pub(crate) fn desired_report(key: &EndpointKey, record: &Record<Endpoint>, known: &Known<'_>) -> EndpointReport {
    let beside = known.beside.get(key.workload.as_str()).map(|beside| beside.networks.clone());
    EndpointReport { beside, ..health(key, record, known) }
}

/// How an endpoint is. What is worst counts, of both families: the faults are those of both.
fn health(key: &EndpointKey, record: &Record<Endpoint>, known: &Known<'_>) -> EndpointReport {
    // Where nothing is wrong no names are made to look it up by.
    let fault = |object: &dyn Fn() -> String| (!known.faults.is_empty()).then(|| known.faults.get(&object())).flatten();
    if let Some(why) = fault(&|| endpoint_object(&key.endpoint)) {
        return EndpointReport::error(why);
    }
    let endpoint = match &record.value {
        Ok(endpoint) => endpoint,
        Err(why) => return EndpointReport::error(format!("its record cannot be read: {why}")),
    };
    if let Some(why) = known.failing.get(key.workload.as_str()) {
        return EndpointReport::error(why);
    }
    let closed = endpoint.profiles.iter().find_map(|profile| {
        let why = fault(&|| format!("profile {profile}"))?;
        Some(format!("profile {profile}: {why}"))
    });
    match closed {
        Some(why) => EndpointReport::error(why),
        None if endpoint.is_active() && (known.routed)(key) == Some(true) => EndpointReport::plain(Health::Up),
        None => EndpointReport::plain(Health::Down),
    }
}

/// The reports that have to be written, and those to be taken away, at most so many. What is wanted comes in the order of
/// its keys: this is asked with every change of any endpoint, so it is one walk that copies nothing but what differs.
pub(crate) fn changes<'k>(
    wanted: impl Iterator<Item = (&'k EndpointKey, EndpointReport)>,
    there: &Reports,
    most: usize,
) -> Vec<(EndpointKey, Option<EndpointReport>)> {
    let mut there = there.iter().peekable();
    let mut changes = Vec::new();
    for (key, report) in wanted {
        while let Some((gone, _)) = there.next_if(|(known, _)| *known < key) {
            changes.push((gone.clone(), None));
        }
        if there.next_if(|(known, _)| *known == key).is_none_or(|(_, said)| *said != report) {
            changes.push((key.clone(), Some(report)));
        }
        if changes.len() >= most {
            break;
        }
    }
    if changes.len() < most {
        changes.extend(there.map(|(gone, _)| (gone.clone(), None)));
    }
    changes.truncate(most);
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    fn reports(faults: &[(&str, &str)], failing: &[(&str, &str)], routed: &[&str]) -> Vec<String> {
        reports_beside(faults, failing, routed, &BTreeMap::new())
    }

    fn reports_beside(
        faults: &[(&str, &str)],
        failing: &[(&str, &str)],
        routed: &[&str],
        beside: &BTreeMap<String, Beside>,
    ) -> Vec<String> {
        let snapshot = from_json(
            r#"{
            "/calico/v1/host/h1/workload/docker/w1/endpoint/e1": {"state": "active", "name": "calie1", "profile_ids": ["a", "b"]},
            "/calico/v1/host/h1/workload/docker/w2/endpoint/e2": {"state": "inactive", "name": "calie2"},
            "/calico/v1/host/h1/workload/docker/w3/endpoint/e3": {"state": "what", "name": "calie3"}
            }"#,
        );
        let map = |list: &[(&str, &str)]| list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let (faults, failing) = (map(faults), map(failing));
        let routed = |key: &EndpointKey| Some(routed.contains(&key.endpoint.as_str()));
        let known = Known { faults: &faults, failing: &failing, beside, routed: &routed };
        let reports = snapshot.endpoints.iter().map(|(key, record)| desired_report(key, record, &known));
        reports.map(|report| serde_json::to_string(&report).unwrap()).collect()
    }

    #[test]
    fn an_endpoint_is_up_when_all_of_it_stands_and_down_while_its_container_does_not_run() {
        let said = reports(&[], &[], &["e1", "e2"]);
        assert_eq!(said[..2], [r#"{"status":"up"}"#, r#"{"status":"down"}"#]);
        assert!(said[2].starts_with(r#"{"status":"error","reason":"its record cannot be read"#), "{}", said[2]);
        assert_eq!(reports(&[], &[], &[])[0], r#"{"status":"down"}"#);
    }

    #[test]
    fn what_closes_an_endpoint_is_its_error_with_the_reason() {
        let error = |reason: &str| format!(r#"{{"status":"error","reason":"{reason}"}}"#);
        assert_eq!(reports(&[("e1", "no route")], &[], &["e1"])[0], error("no route"));
        assert_eq!(reports(&[("profile b", "it is closed")], &[], &["e1"])[0], error("profile b: it is closed"));
        assert_eq!(reports(&[("profile x", "it is closed")], &[], &["e1"])[0], r#"{"status":"up"}"#);
        assert_eq!(reports(&[], &[("w2", "no veth")], &["e1"])[1], error("no veth"));
    }

    #[test]
    fn a_way_out_beside_ours_is_told_of_whatever_else_is_to_be_said() {
        let beside = |id: &str| {
            let beside = Beside { container: "ann".to_owned(), networks: "bridge, dmz".to_owned() };
            BTreeMap::from([(id.to_owned(), beside)])
        };
        let said = reports_beside(&[], &[], &["e1"], &beside("w1"));
        assert_eq!(said[0], r#"{"status":"up","beside":"bridge, dmz"}"#);
        assert_eq!(said[1], r#"{"status":"down"}"#);
        let said = reports_beside(&[("e1", "no route")], &[], &["e1"], &beside("w1"));
        assert_eq!(said[0], r#"{"status":"error","reason":"no route","beside":"bridge, dmz"}"#);
    }

    #[test]
    fn only_what_differs_is_written_and_what_is_of_nobody_goes() {
        let key = |id: &str| EndpointKey {
            host: "h1".parse().unwrap(),
            orchestrator: "docker".parse().unwrap(),
            workload: "w".parse().unwrap(),
            endpoint: id.parse().unwrap(),
        };
        let (up, down) = (EndpointReport::plain(Health::Up), EndpointReport::plain(Health::Down));
        let of = |list: &[(&str, &EndpointReport)]| -> Reports {
            list.iter().map(|(id, report)| (key(id), (*report).clone())).collect()
        };
        let wanted = of(&[("b", &up), ("c", &up), ("d", &up)]);
        let there = of(&[("a", &down), ("b", &up), ("c", &down), ("e", &down), ("f", &up)]);
        let all = [("a", None), ("c", Some(&up)), ("d", Some(&up)), ("e", None), ("f", None)];
        let all = all.map(|(id, report)| (key(id), report.cloned()));
        let next = |wanted: &Reports, there: &Reports, most| {
            changes(wanted.iter().map(|(key, report)| (key, report.clone())), there, most)
        };
        for most in 0..=6 {
            assert_eq!(next(&wanted, &there, most), all[..most.min(5)], "{most}");
        }
        assert_eq!(next(&wanted, &wanted, 1), []);
        assert_eq!(next(&Reports::new(), &wanted, 9).len(), 3);
    }
}
