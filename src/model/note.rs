//! Note: what is needed to finish a create that a node did not live to see the end of.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::endpoint::Requested;
use super::name::ProfileName;
use super::recreation::RecreationLabels;
use super::wish::{AddressWish, Wish};

/// How long a note waits for its container: dockerd may finish a create whose node is gone.
const WAIT: Duration = Duration::from_mins(2);

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) request: String,
    /// Seconds since 1970 at which the create was about to be forwarded.
    pub(crate) since_s: u64,
    /// Seconds since 1970 at which dockerd broke off the connection that it was to answer on. It does that when it ends, so
    /// what it does not list after that it does not make either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_s: Option<u64>,
    pub(crate) name: String,
    /// What `CALICO_IP` said, and what came of it.
    pub(crate) wished: Vec<AddressWish>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) profiles: Vec<ProfileName>,
    pub(crate) requested: Requested,
    #[serde(default)]
    pub(crate) labels: RecreationLabels,
}

impl Note {
    /// Whether a container's environment holds the wish of this create.
    pub(crate) fn is_of(&self, env: &[String]) -> bool {
        let profiles = env.iter().find_map(|entry| entry.strip_prefix("CALICO_PROFILE="));
        let wishes = env.iter().filter_map(|entry| entry.strip_prefix("CALICO_IP="));
        let mut wishes = wishes.filter_map(|text| Wish::parse(text, profiles).ok());
        wishes.any(|wish| wish.addresses == self.wished && (self.profiles.is_empty() || wish.profiles == self.profiles))
    }

    /// Whether it has waited for long enough, by a clock of seconds since 1970.
    pub(crate) fn is_overdue(&self, now_s: u64) -> bool {
        now_s > self.since_s + WAIT.as_secs()
    }

    /// Whether the container of another create can fit this note.
    pub(crate) fn may_be_taken_for(&self, other: &Note) -> bool {
        self.name.is_empty() || self.name.trim_start_matches('/') == other.name.trim_start_matches('/')
    }

    /// Whether a container can be the one that this create was to make, by its name and the second since 1970 in which it
    /// was made. dockerd's clock is ours.
    pub(crate) fn fits(&self, name: &str, created_s: i64) -> bool {
        let since = i64::try_from(self.since_s).unwrap_or(i64::MAX);
        created_s + 1 >= since && self.names(name)
    }

    /// Whether a container of a name can be the one.
    pub(crate) fn names(&self, container: &str) -> bool {
        self.name.is_empty() || self.name.trim_start_matches('/') == container
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn of_name(name: &str) -> Note {
        Note {
            request: "r".to_owned(),
            since_s: 1000,
            ended_s: None,
            name: name.to_owned(),
            wished: Vec::new(),
            addresses: Vec::new(),
            profiles: Vec::new(),
            requested: Requested::default(),
            labels: RecreationLabels::default(),
        }
    }

    #[test]
    fn a_note_waits_while_a_create_is_under_way_whose_container_it_would_fit() {
        for (left, under_way, waits) in
            [("ann", "ann", true), ("/ann", "ann", true), ("ann", "bob", false), ("ann", "", false), ("", "ann", true)]
        {
            assert_eq!(of_name(left).may_be_taken_for(&of_name(under_way)), waits, "{left:?} {under_way:?}");
        }
    }

    #[test]
    fn a_note_fits_only_a_later_container_with_its_very_wish() {
        let address = "10.0.0.1".parse().unwrap();
        let note = Note { wished: vec![AddressWish::Exactly(address)], addresses: vec![address], ..of_name("") };
        assert!(note.fits("x", 1000) && !note.fits("x", 998));
        let env = |text: &str| vec!["A=b".to_owned(), text.to_owned()];
        assert!(note.is_of(&env("CALICO_IP=10.0.0.1")));
        for other in ["CALICO_IP=auto", "CALICO_IP=10.0.0.2", "CALICO_IP", "XCALICO_IP=10.0.0.1"] {
            assert!(!note.is_of(&env(other)), "{other}");
        }
        // Of two unnamed creates that were cut off, each was finished with the other's profiles.
        let with = ["CALICO_PROFILE=web".to_owned(), "CALICO_IP=10.0.0.1".to_owned()];
        assert!(note.is_of(&with), "it may be the image that brings it");
        assert!(!Note { profiles: vec!["db".parse().unwrap()], ..note.clone() }.is_of(&with));
        assert!(Note { profiles: vec!["web".parse().unwrap()], ..note }.is_of(&with));
    }
}
