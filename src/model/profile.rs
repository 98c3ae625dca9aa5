//! Profiles: the rules and tags that endpoints are given by name.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::name::{ProfileName, TagName};
use super::rule::Rule;

/// A profile's rules in both directions, seen from the container. What no rule matches is dropped.
///
/// The JSON has `id`, `inbound_rules` and `outbound_rules`; the spellings `inbound` and `outbound` of the original's
/// documents are read too.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub(crate) struct Rules {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<ProfileName>,
    #[serde(rename = "inbound_rules")]
    pub(crate) inbound: Vec<Rule>,
    #[serde(rename = "outbound_rules")]
    pub(crate) outbound: Vec<Rule>,
}

impl TryFrom<Map<String, Value>> for Rules {
    type Error = String;
    /// Reports every rule that is wrong, not only the first.
    fn try_from(map: Map<String, Value>) -> Result<Self, String> {
        let mut rules = Rules::default();
        let mut errors = Vec::new();
        let mut lists: [Option<Vec<Rule>>; 2] = [None, None];
        for (key, value) in map {
            let list = match key.as_str() {
                "id" => {
                    match serde_json::from_value(value) {
                        Ok(id) => rules.id = id,
                        Err(error) => errors.push(format!("id: {error}")),
                    }
                    continue;
                }
                "inbound_rules" | "inbound" => &mut lists[0],
                "outbound_rules" | "outbound" => &mut lists[1],
                other => {
                    errors.push(format!("key {other:?} is not known: it must be id, inbound_rules or outbound_rules"));
                    continue;
                }
            };
            if value.is_null() {
                continue;
            }
            let Value::Array(items) = value else {
                errors.push(format!("{key} must be a list of rules"));
                continue;
            };
            if list.is_some() {
                errors.push(format!("{key} stands beside another spelling of the same list"));
                continue;
            }
            let mut read = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                match serde_json::from_value(item) {
                    Ok(rule) => read.push(rule),
                    Err(error) => errors.push(format!("{key} {}: {error}", index + 1)),
                }
            }
            *list = Some(read);
        }
        let [inbound, outbound] = lists;
        rules.inbound = inbound.unwrap_or_default();
        rules.outbound = outbound.unwrap_or_default();
        if errors.is_empty() { Ok(rules) } else { Err(errors.join("; ")) }
    }
}

/// The tags of a new profile: its own name.
pub(crate) fn default_tags(profile: &ProfileName) -> Vec<TagName> {
    // Every profile name is a tag name: the same characters, a shorter limit.
    profile.as_str().parse().into_iter().collect()
}

/// The rules of a new profile, as the seeds have them: members reach each other, and everything goes out.
pub(crate) fn default_rules(profile: &ProfileName) -> Rules {
    let mut inbound = Rule::default();
    inbound.is.src.tag = profile.as_str().parse().ok();
    Rules { id: Some(profile.clone()), inbound: vec![inbound], outbound: vec![Rule::default()] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_rules_are_the_seeds() {
        let rules = default_rules(&"PROF_A_B".parse().unwrap());
        assert_eq!(
            serde_json::to_string(&rules).unwrap(),
            r#"{"id":"PROF_A_B","inbound_rules":[{"action":"allow","src_tag":"PROF_A_B"}],"outbound_rules":[{"action":"allow"}]}"#
        );
    }

    #[test]
    fn older_spellings_are_read() {
        let rules: Rules = serde_json::from_str(r#"{"inbound":[{"src_ports":[80]}],"outbound":[{}]}"#).unwrap();
        assert_eq!((rules.inbound.len(), rules.outbound.len()), (1, 1));
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let text = r#"{"inbound_rules":[{"action":"x"},{},{"bad":1}],"other":2}"#;
        let error = serde_json::from_str::<Rules>(text).unwrap_err().to_string();
        for part in ["inbound_rules 1", "inbound_rules 3", "\"other\""] {
            assert!(error.contains(part), "{error}");
        }
    }
}
