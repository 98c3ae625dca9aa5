//! Claims: who holds an address. The record of one address is the only lock that there is on it.
//!
//! An address may have a successor waiting beside its holder: a container that was made to take the holder's place. The
//! address stays the holder's until it passes over as a whole; at no time have both a right to it.

use serde::{Deserialize, Serialize};

use super::key::EndpointKey;
use super::name::{EndpointId, HostName, Orchestrator, WorkloadId};

/// How far a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClaimState {
    /// A create is under way; the key hangs on its node's lease and goes away with it.
    Pending,
    /// Held by the owner until its container is destroyed.
    Bound,
}

/// The holder of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) host: HostName,
    pub(crate) orchestrator: Orchestrator,
    /// The container id; absent while the claim is pending.
    pub(crate) workload: Option<WorkloadId>,
    pub(crate) endpoint: EndpointId,
    /// The container's name as far as is known here: a rename follows. Empty where Docker chose it.
    pub(crate) name: String,
    /// When the claim was made: RFC 3339, UTC, seconds.
    pub(crate) since: String,
}

/// The value of an assignment key. An empty value, as the original wrote it, is a claim of an unknown owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The version of this format: 1.
    pub(crate) v: u8,
    pub(crate) state: ClaimState,
    pub(crate) owner: Owner,
    /// The create request that made it: hex digits.
    pub(crate) request: String,
    /// Who takes the address over when the owner is destroyed, or when this one is started while the owner does not run.
    /// Boxed: a node holds the claims of all hosts, and hardly any has one.
    pub(crate) successor: Option<Box<Successor>>,
}

/// Who waits for an address, on the same host as its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Successor {
    /// The container id is absent while its create is under way.
    pub(crate) owner: Owner,
    /// The create request that made it.
    pub(crate) request: String,
}

/// A claim as the view has it, with the revision at which it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) revision: i64,
    pub(crate) claim: Claim,
}

/// What becomes of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: who leaves has no part in it.
    None,
    Free,
    /// This stands in its place; a pending one hangs on the node's lease.
    Becomes(Box<Claim>),
}

impl Change {
    fn becomes(claim: Claim) -> Self {
        Change::Becomes(Box::new(claim))
    }
}

impl Claim {
    /// The claim of an endpoint whose container has been there for long.
    pub(crate) fn bound_again(endpoint: &EndpointKey, name: &str, since: String) -> Claim {
        let owner = Owner {
            host: endpoint.host.clone(),
            orchestrator: endpoint.orchestrator.clone(),
            workload: Some(endpoint.workload.clone()),
            endpoint: endpoint.endpoint.clone(),
            name: name.to_owned(),
            since,
        };
        Claim { v: 1, state: ClaimState::Bound, owner, request: String::new(), successor: None }
    }

    /// The claim once its successor has the address; `None` if there is none.
    pub(crate) fn passed_over(&self) -> Option<Claim> {
        let Successor { owner, request } = *self.successor.clone()?;
        let state = if owner.workload.is_some() { ClaimState::Bound } else { ClaimState::Pending };
        Some(Claim { v: self.v, state, owner, request, successor: None })
    }

    /// What becomes of it when an endpoint goes away: its owner's place is the successor's, and a successor that goes
    /// leaves it with the owner.
    pub(crate) fn without(&self, endpoint: &EndpointKey) -> Change {
        if self.owner.is(endpoint) {
            return self.passed_over().map_or(Change::Free, Change::becomes);
        }
        self.without_successor(|successor| successor.owner.is(endpoint))
    }

    /// What becomes of it when a create comes to nothing before its container is known.
    pub(crate) fn without_request(&self, request: &str) -> Change {
        if self.owner.workload.is_none() && self.request == request {
            return self.passed_over().map_or(Change::Free, Change::becomes);
        }
        self.without_successor(|successor| successor.owner.workload.is_none() && successor.request == request)
    }

    fn without_successor(&self, goes: impl Fn(&Successor) -> bool) -> Change {
        if self.successor.as_deref().is_some_and(goes) {
            Change::becomes(Claim { successor: None, ..self.clone() })
        } else {
            Change::None
        }
    }

    /// With the container that was made for an endpoint of it; `None` if the endpoint has no part in it.
    pub(crate) fn bound_to(&self, endpoint: &EndpointId, workload: &WorkloadId) -> Option<Claim> {
        let mut claim = self.clone();
        if claim.owner.endpoint == *endpoint {
            claim.state = ClaimState::Bound;
            claim.owner.workload = Some(workload.clone());
            return Some(claim);
        }
        let successor = claim.successor.as_mut().filter(|successor| successor.owner.endpoint == *endpoint)?;
        successor.owner.workload = Some(workload.clone());
        Some(claim)
    }

    /// With the names that its containers have now, as far as `name_of` knows them; `None` if it has them already. Where
    /// Docker chose a name there is none, and none comes.
    pub(crate) fn renamed<'n>(&self, name_of: impl Fn(&Owner) -> Option<&'n str>) -> Option<Claim> {
        let new_name = |owner: &Owner| {
            // A client may have put a slash before it, which Docker takes away.
            let known = owner.name.trim_start_matches('/');
            name_of(owner).filter(|name| !known.is_empty() && !name.is_empty() && known != *name)
        };
        self.owners().find_map(new_name)?;
        let mut claim = self.clone();
        let successor = claim.successor.as_mut().map(|successor| &mut successor.owner);
        for owner in [Some(&mut claim.owner), successor].into_iter().flatten() {
            if let Some(name) = new_name(owner) {
                name.clone_into(&mut owner.name);
            }
        }
        Some(claim)
    }

    /// Its owner, and who is to have it next.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &Owner> {
        [Some(&self.owner), self.successor.as_ref().map(|successor| &successor.owner)].into_iter().flatten()
    }

    /// The requests of creates that are under way for it.
    pub(crate) fn pending(&self) -> impl Iterator<Item = (&Owner, &str)> {
        let own = (&self.owner, self.request.as_str());
        let next = self.successor.as_ref().map(|successor| (&successor.owner, successor.request.as_str()));
        [Some(own), next].into_iter().flatten().filter(|(owner, _)| owner.workload.is_none())
    }

    /// Who holds it, in words for an error message.
    pub(crate) fn holder(&self) -> String {
        let holder = format!("{} on host {} since {}", self.owner.called(), self.owner.host, self.owner.since);
        match &self.successor {
            None => holder,
            Some(successor) => format!("{holder}, and {} is to have it next", successor.owner.called()),
        }
    }
}

impl Owner {
    /// Whether it is the container of an endpoint. Ids of endpoints alone do not tell: others may choose theirs freely.
    pub(crate) fn is(&self, endpoint: &EndpointKey) -> bool {
        self.endpoint == endpoint.endpoint
            && self.workload.as_ref() == Some(&endpoint.workload)
            && self.host == endpoint.host
            && self.orchestrator == endpoint.orchestrator
    }

    /// Where the endpoint is recorded; `None` while its container is not known.
    pub(crate) fn endpoint(&self) -> Option<EndpointKey> {
        let (host, orchestrator, endpoint) = (self.host.clone(), self.orchestrator.clone(), self.endpoint.clone());
        Some(EndpointKey { host, orchestrator, workload: self.workload.clone()?, endpoint })
    }

    /// The container, in words for an error message.
    pub(crate) fn called(&self) -> String {
        match (&self.workload, self.name.is_empty()) {
            (Some(id), true) => format!("container {}", id.short()),
            (Some(id), false) => format!("container {} ({})", self.name, id.short()),
            (None, true) => "a container that is being created".to_owned(),
            (None, false) => format!("container {}, which is being created,", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(digit: &str, workload: bool) -> Owner {
        Owner {
            host: "h1".parse().unwrap(),
            orchestrator: Orchestrator::docker(),
            workload: workload.then(|| digit.repeat(64).parse().unwrap()),
            endpoint: digit.repeat(32).parse().unwrap(),
            name: format!("box{digit}"),
            since: "2026-01-31T12:00:00Z".to_owned(),
        }
    }

    fn key(digit: &str) -> EndpointKey {
        let Owner { host, orchestrator, workload, endpoint, .. } = owner(digit, true);
        EndpointKey { host, orchestrator, workload: workload.unwrap(), endpoint }
    }

    fn claim(workload: bool, successor: Option<bool>) -> Claim {
        Claim {
            v: 1,
            state: if workload { ClaimState::Bound } else { ClaimState::Pending },
            owner: owner("a", workload),
            request: "r1".to_owned(),
            successor: successor
                .map(|workload| Box::new(Successor { owner: owner("b", workload), request: "r2".to_owned() })),
        }
    }

    #[test]
    fn an_address_passes_over_to_its_successor_as_a_whole() {
        let (old, new) = (key("a"), key("b"));
        assert_eq!(claim(true, None).without(&old), Change::Free);
        assert_eq!(claim(true, None).without(&new), Change::None);
        let Change::Becomes(passed) = claim(true, Some(true)).without(&old) else { panic!("it is lost") };
        assert_eq!((passed.state, &passed.owner, &passed.request[..]), (ClaimState::Bound, &owner("b", true), "r2"));
        assert_eq!(passed.successor, None);
        assert_eq!(passed.without(&old), Change::None, "the old one's removal does not free it");
        // The create of the successor is still under way.
        let Change::Becomes(passed) = claim(true, Some(false)).without(&old) else { panic!("it is lost") };
        assert_eq!((passed.state, &passed.owner), (ClaimState::Pending, &owner("b", false)));
        // The successor goes first.
        assert_eq!(claim(true, Some(true)).without(&new), Change::becomes(claim(true, None)));
    }

    #[test]
    fn a_create_that_comes_to_nothing_leaves_no_more_than_was_there() {
        assert_eq!(claim(false, None).without_request("r1"), Change::Free);
        assert_eq!(claim(true, None).without_request("r1"), Change::None, "it came to something");
        assert_eq!(claim(true, Some(false)).without_request("r2"), Change::becomes(claim(true, None)));
        assert_eq!(claim(true, Some(true)).without_request("r2"), Change::None);
        let requests = |claim: Claim| claim.pending().map(|(_, request)| request.to_owned()).collect::<Vec<_>>();
        assert_eq!(requests(claim(true, Some(false))), ["r2"]);
        assert_eq!(requests(claim(false, None)), ["r1"]);
        assert!(requests(claim(true, Some(true))).is_empty());
    }

    #[test]
    fn a_claim_is_bound_where_its_endpoint_stands() {
        let new = owner("b", true);
        let workload = new.workload.clone().unwrap();
        assert_eq!(claim(true, Some(false)).bound_to(&new.endpoint, &workload), Some(claim(true, Some(true))));
        let passed = claim(true, Some(false)).passed_over().unwrap();
        assert_eq!(passed.bound_to(&new.endpoint, &workload), claim(true, Some(true)).passed_over());
        assert_eq!(claim(true, None).bound_to(&new.endpoint, &workload), None);
    }

    #[test]
    fn a_claim_has_the_names_that_its_containers_have_now() {
        let both = claim(true, Some(true));
        let named = |a: &'static str, b: &'static str| {
            let (a_id, b_id) = (owner("a", true).workload, owner("b", true).workload);
            move |owner: &Owner| {
                [(&a_id, a), (&b_id, b)].into_iter().find(|(id, _)| **id == owner.workload).map(|(_, name)| name)
            }
        };
        assert_eq!(both.renamed(|_| None), None);
        assert_eq!(both.renamed(named("boxa", "boxb")), None);
        let names = |claim: Option<Claim>| {
            claim.map(|claim| claim.owners().map(|owner| owner.name.clone()).collect::<Vec<_>>())
        };
        assert_eq!(names(both.renamed(named("old", "boxb"))), Some(vec!["old".to_owned(), "boxb".to_owned()]));
        assert_eq!(names(both.renamed(named("boxa", "new"))), Some(vec!["boxa".to_owned(), "new".to_owned()]));
        let mut slashed = claim(true, None);
        "/boxa".clone_into(&mut slashed.owner.name);
        assert_eq!(slashed.renamed(named("boxa", "")), None);
        slashed.owner.name.clear();
        assert_eq!(slashed.renamed(named("brave_hopper", "")), None, "Docker chose it");
    }

    #[test]
    fn the_holder_is_named_with_who_comes_next() {
        let text = claim(true, Some(true)).holder();
        assert!(text.contains("boxa (aaaaaaaaaaaa) on host h1") && text.contains("boxb (bbbbbbbbbbbb)"), "{text}");
    }
}
