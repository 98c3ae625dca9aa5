//! Upkeep: kernel settings and interfaces, which no snapshot speaks of, looked at on a clock.

use super::{Agent, Plane};
use crate::edge::sysctl;
use crate::model::name::INTERFACE_PREFIX;
use crate::model::pool::Family;
use crate::plan::desired;
use crate::plan::sysctl::{FORWARD_IPV6, HOST};
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
        let forwarding = (self.planes.len() > 1).then_some((FORWARD_IPV6, "1"));
        for (setting, value) in HOST.into_iter().chain(forwarding) {
            match sysctl::write(setting, value) {
                Ok(true) => self.tell_of_setting(setting),
                Ok(false) => {}
                Err(fault) => tracing::warn!(%fault, "a kernel setting is not as it should be"),
            }
        }
    }

    fn tell_of_setting(&self, setting: &str) {
        let object = format!("sysctl {setting}");
        self.metrics.count_drift(&object);
        tracing::warn!(object, "drift: it was changed by somebody else and is put right");
    }

    /// Puts right what settings of containers' interfaces somebody has changed.
    pub(super) fn check_interfaces(&mut self) {
        let ipv6 = self.planes.len() > 1;
        let next_hops = sysctl::interfaces_with(HOST_LINK_LOCAL);
        let placed = self.planes.first().into_iter().flat_map(|plane| plane.desired.placed());
        // Not only those that have their routes: one whose settings are wrong may have lost them by that.
        let wired = placed.filter(|(_, endpoint)| endpoint.is_active() && sysctl::has_interface(&endpoint.interface));
        let faults: Vec<(String, String)> = wired
            .filter_map(|(key, endpoint)| {
                let (interface, ipv6) = (&endpoint.interface, ipv6 && endpoint.is_of(Family::V6));
                let mended = sysctl::apply_to_interface(interface, ipv6).and_then(|changed| {
                    for setting in &changed {
                        self.tell_of_setting(setting);
                    }
                    if ipv6 && !next_hops.contains(interface.as_str()) {
                        self.metrics.count_drift("interface");
                        tracing::warn!(%interface, "drift: its link-local address was taken away and is put back");
                        return sysctl::restore_link_local(interface);
                    }
                    Ok(())
                });
                Some((desired::endpoint_object(&key.endpoint), mended.err()?.to_string()))
            })
            .collect();
        for (object, why) in faults {
            tracing::warn!(object, why, "kernel settings of an interface are not as they should be");
        }
    }
}
