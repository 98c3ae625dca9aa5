//! Upkeep: kernel settings and interfaces, which no snapshot speaks of, looked at when the kernel tells of them and on a clock.

use super::{Agent, Plane, SIZES_EVERY};
use crate::edge::netconf::Touched;
use crate::edge::sysctl;
use crate::model::name::INTERFACE_PREFIX;
use crate::model::pool::Family;
use crate::plan::desired;
use crate::plan::sysctl::{FORWARD_IPV4, FORWARD_IPV6};
use crate::plan::wiring::HOST_LINK_LOCAL;

impl Agent {
    /// Finds interfaces that bear our prefix and belong to no endpoint: somebody has made or renamed them by hand. The base
    /// chains and the guard keep them dark; what is not ours is not ours to remove.
    pub(super) fn look_for_strangers(&mut self) {
        if self.known.is_none() {
            return;
        }
        match sysctl::interfaces() {
            Ok(names) => {
                let strange = |name: &String| {
                    let ours = |plane: &Plane| plane.desired.owner(name).is_some();
                    name.starts_with(INTERFACE_PREFIX) && !self.planes.iter().any(ours)
                };
                self.strangers = names.into_iter().filter(strange).collect();
                self.may_be_strange = false;
            }
            Err(fault) => tracing::warn!(%fault, "interfaces of nobody's are not looked for"),
        }
    }

    /// Puts right what settings of the whole host somebody has changed.
    pub(super) fn check_host(&self) {
        let forwarding = [Some(FORWARD_IPV4), (self.planes.len() > 1).then_some(FORWARD_IPV6)];
        for setting in forwarding.into_iter().flatten() {
            match sysctl::write(setting, "1") {
                Ok(true) => self.metrics.count_drift(&format!("sysctl {setting}")),
                Ok(false) => {}
                Err(fault) => tracing::warn!(%fault, "a kernel setting is not as it should be"),
            }
        }
    }

    /// The interfaces that are looked at now, whatever the kernel has told of them: each in its turn, as often as everything is
    /// looked at. All at once, thousands of them would keep everybody waiting.
    pub(super) fn next_in_turn(&mut self) -> Touched {
        let placed = self.planes.first().into_iter().flat_map(|plane| plane.desired.placed());
        let mut names: Vec<String> = placed.map(|(_, endpoint)| endpoint.interface.to_string()).collect();
        names.sort_unstable();
        let rounds = self.audit_every.as_secs() / SIZES_EVERY.as_secs();
        let turn = self.rota.next(&names, rounds, usize::MAX);
        Touched { interfaces: turn.into_iter().collect(), ..Touched::default() }
    }

    /// Puts right what somebody has changed of the settings, and of the IPv6 next hops, of those interfaces of containers
    /// that may have been touched.
    pub(super) async fn check_interfaces(&mut self, touched: Touched) {
        let ipv6 = self.planes.len() > 1;
        let placed = self.planes.first().into_iter().flat_map(|plane| plane.desired.placed());
        // Not only those that have their routes: one whose settings are wrong may have lost them by that.
        let looked_at = placed.filter(|(_, endpoint)| {
            (touched.everything || touched.interfaces.contains(endpoint.interface.as_str()))
                && endpoint.is_active()
                && sysctl::has_interface(&endpoint.interface)
        });
        let mut next_hops = None;
        for (key, endpoint) in looked_at {
            let (interface, ipv6) = (&endpoint.interface, ipv6 && endpoint.is_of(Family::V6));
            let mut mended = sysctl::apply_to_interface(interface, ipv6).map(|changed| {
                for setting in changed {
                    self.metrics.count_drift(&format!("sysctl {setting}"));
                }
            });
            let next_hops = next_hops.get_or_insert_with(|| sysctl::interfaces_with(HOST_LINK_LOCAL));
            // One that is down has none, and gets it when the link is mended.
            if ipv6 && !next_hops.contains(interface.as_str()) && self.routes.is_up(interface).await {
                self.metrics.count_drift(&format!("interface {interface} (its link-local address)"));
                mended = mended.and_then(|()| sysctl::restore_link_local(interface));
            }
            if let Err(fault) = mended {
                let object = desired::endpoint_object(&key.endpoint);
                tracing::warn!(object, %fault, "kernel settings of an interface are not as they should be");
            }
        }
    }
}
