//! Recreation: what the labels of a container say of whom it replaces.
//!
//! A container cannot be changed, so tools make a new one beside the old and remove that later. In between the new one
//! asks for an address that the old one holds. Nobody but the labels of the new one tells this from two containers
//! that want the same address, so they are read narrowly: a label that names the old one, or the same place in a compose project.
//!
//! Source of the labels: docker-compose 1.29 `compose/const.py`; compose 2 `pkg/api/labels.go`. The value of
//! [`COMPOSE_REPLACE`] is the old container's id in earlier versions of compose 2, and `<service>-<number>` in later ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::name::ContainerId;

const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const ONE_OFF: &str = "com.docker.compose.oneoff";
const COMPOSE_REPLACE: &str = "com.docker.compose.replace";

/// Ours, for tools that recreate containers without a label of their own: the name or id of the container that holds the
/// address.
pub(crate) const REPLACE: &str = "calico.replace";

/// How much of an id names a container, at the least: what Docker shows.
const SHORTEST_ID: usize = 12;

/// Those labels of a container that say something of its recreation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecreationLabels(BTreeMap<String, String>);

impl FromIterator<(String, String)> for RecreationLabels {
    /// Keeps what it needs of all labels of a container.
    fn from_iter<I: IntoIterator<Item = (String, String)>>(all: I) -> Self {
        let kept = [PROJECT, SERVICE, NUMBER, ONE_OFF, COMPOSE_REPLACE, REPLACE];
        RecreationLabels(all.into_iter().filter(|(name, _)| kept.contains(&name.as_str())).collect())
    }
}

/// A container as what may be replaced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Replaceable<'a> {
    pub(crate) id: &'a ContainerId,
    /// The names that it has and had.
    pub(crate) names: [&'a str; 2],
    pub(crate) labels: &'a RecreationLabels,
}

impl RecreationLabels {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Project, service and number of a container of a compose service; a one-off (`run`) has no such place.
    fn place(&self) -> Option<[&str; 3]> {
        let stays = self.get(ONE_OFF).is_some_and(|value| value.eq_ignore_ascii_case("false"));
        let place = [self.get(PROJECT)?, self.get(SERVICE)?, self.get(NUMBER)?];
        stays.then_some(place)
    }

    /// Whether a container with these labels says that it takes the place of that one.
    pub(crate) fn replace(&self, old: &Replaceable) -> bool {
        let is_named = |text: &str| old.names.contains(&text.trim_start_matches('/'));
        let is_id = |text: &str| text.len() >= SHORTEST_ID && old.id.as_str().starts_with(text);
        let same_project = self.get(PROJECT).is_some_and(|project| old.labels.get(PROJECT) == Some(project));
        self.get(REPLACE).is_some_and(|text| is_named(text) || is_id(text))
            || self.get(COMPOSE_REPLACE).is_some_and(|text| is_id(text) || same_project && is_named(text))
            || self.place().is_some_and(|place| old.labels.place() == Some(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn labels(text: &str) -> RecreationLabels {
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap();
            let name = if name == "calico" { REPLACE.to_owned() } else { format!("com.docker.compose.{name}") };
            (name, value.to_owned())
        };
        text.split_whitespace().map(pair).collect()
    }

    #[test]
    fn a_container_replaces_the_one_that_its_labels_designate_and_no_other() {
        let place = "project=p service=web container-number=1 oneoff=False";
        let old = labels(place);
        let id = ID.parse().unwrap();
        for (text, replaces) in [
            (place, true),
            ("project=p service=web container-number=2 oneoff=False", false),
            ("project=p service=db container-number=1 oneoff=False", false),
            ("project=q service=web container-number=1 oneoff=False", false),
            ("project=p service=web container-number=1 oneoff=True", false),
            ("project=p service=web container-number=1", false),
            ("project=p service=web oneoff=False", false),
            ("", false),
            // By id or by name.
            (&format!("replace={ID}"), true),
            (&format!("replace={}", &ID[..12]), true),
            (&format!("replace={}", &ID[..11]), false),
            ("replace=p_web_1 project=p", true),
            ("replace=p_web_1 project=q", false),
            ("replace=p_web_2 project=p", false),
            // Later versions of compose 2 name the service there.
            (&format!("replace=web-1 {place}"), true),
            ("calico=p_web_1", true),
            ("calico=/p_web_1", true),
            ("calico=before", true),
            (&format!("calico={ID}"), true),
            ("calico=p_web", false),
        ] {
            let old = Replaceable { id: &id, names: ["p_web_1", "before"], labels: &old };
            assert_eq!(labels(text).replace(&old), replaces, "{text}");
        }
        // Two one-offs of a service are not each other's.
        let one_off = labels("project=p service=web container-number=1 oneoff=True");
        assert!(!one_off.replace(&Replaceable { id: &id, names: ["", ""], labels: &one_off }));
        // Nor is nameless like nameless.
        let nothing = labels("calico= project=p");
        assert!(!nothing.replace(&Replaceable { id: &id, names: ["", ""], labels: &nothing }));
    }

    #[test]
    fn only_labels_of_recreation_are_kept() {
        let all = [("maintainer", "me"), (PROJECT, "p")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(RecreationLabels::from_iter(all), labels("project=p"));
    }
}
