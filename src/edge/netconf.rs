//! Netconf: the kernel's word that network settings, or IPv6 addresses, have changed.
//!
//! The kernel tells of few settings: `forwarding` of both families, `rp_filter` and `proxy_arp` (linux net/ipv4/devinet.c,
//! `devinet_conf_proc` and `devinet_sysctl_forward`; net/ipv6/addrconf.c, `addrconf_fixup_forwarding`). That IPv6 was
//! switched off or on at an interface shows by the addresses that go or come with it. Whoever needs another setting to
//! stay as it is must look by himself. The messages say what the value is now, but they may be late: they are taken as a
//! reason to look, and nothing but the interface is read of them.

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_indextoname;

use super::multicast::{Multicast, Told, messages, number};
use crate::model::fault::Fault;

/// `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV4_NETCONF`, `RTNLGRP_IPV6_NETCONF`: linux/rtnetlink.h.
const GROUPS: [u32; 3] = [9, 24, 25];

/// `RTM_NEWADDR`, `RTM_DELADDR`, `RTM_NEWNETCONF`: linux/rtnetlink.h.
const NEW_ADDRESS: u16 = 20;
const DEL_ADDRESS: u16 = 21;
const NEW_NETCONF: u16 = 80;

/// Where `struct ifaddrmsg` has the interface's index (linux/if_addr.h).
const ADDRESS_INDEX: usize = 4;

/// `struct netconfmsg` is one byte, filled up to four; attributes follow, each with its length and type before its value.
/// The first is always `NETCONFA_IFINDEX` (linux/netconf.h; `inet_netconf_fill_devconf`, `inet6_netconf_fill_devconf`), of
/// which there is none for all interfaces, or for those to come: -1 and -2.
const NETCONF_INDEX: usize = 8;

/// What to look at.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Touched {
    /// The names of interfaces.
    pub(crate) interfaces: BTreeSet<String>,
    /// More happened than the kernel could tell.
    pub(crate) everything: bool,
}

/// See the module.
pub(crate) struct SettingEvents {
    told: Multicast,
}

fn fault(error: &std::io::Error) -> Fault {
    Fault::World(format!("listen to the kernel's network settings: {error}"))
}

/// Listens. The listener is there before this returns: nothing that happens after it is missed.
pub(crate) fn listen() -> Result<SettingEvents, Fault> {
    let told = Multicast::join(NETLINK_ROUTE, &GROUPS).map_err(|error| fault(&error))?;
    Ok(SettingEvents { told })
}

impl SettingEvents {
    /// Waits until something has changed. Settings of the whole host are not named: they are few.
    ///
    /// # Cancel safety
    /// No change is lost.
    pub(crate) async fn next(&mut self, touched: &mut Touched) -> Result<(), Fault> {
        touched.add(&self.told.next().await.map_err(|error| fault(&error))?);
        Ok(())
    }

    /// Takes what has changed by now.
    pub(crate) fn take(&mut self, touched: &mut Touched) {
        std::iter::from_fn(|| self.told.take().ok()).for_each(|told| touched.add(&told));
    }
}

impl Touched {
    fn add(&mut self, told: &Told) {
        match told {
            Told::Datagram(datagram) => self.interfaces.extend(messages(datagram).filter_map(interface)),
            Told::Overrun => self.everything = true,
        }
    }
}

/// The name of the interface that a message is about; `None` if it is about none, or about one that is gone.
fn interface((kind, body): (u16, &[u8])) -> Option<String> {
    let at = match kind {
        NEW_ADDRESS | DEL_ADDRESS => ADDRESS_INDEX,
        NEW_NETCONF => NETCONF_INDEX,
        _ => return None,
    };
    let index = u32::try_from(i32::from_ne_bytes(number(body, at)?)).ok()?;
    if_indextoname(index).ok()?.into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::testnet::{in_own_network, sh};

    /// What has been told so far.
    async fn told(events: &mut SettingEvents) -> Touched {
        let mut touched = Touched::default();
        let soon = std::time::Duration::from_millis(200);
        while matches!(tokio::time::timeout(soon, events.next(&mut touched)).await, Ok(Ok(()))) {}
        touched
    }

    /// What the documentation says of settings that are put right at once, and of those that are not, is what the kernel does.
    #[test]
    fn the_kernel_tells_of_these_settings_and_of_no_others() {
        in_own_network(|| async {
            // Addresses are there at once, and change no more.
            sh("sysctl -qw net.ipv6.conf.default.accept_dad=0").await;
            sh("ip link add cali1 type veth peer name far; ip link set far up; ip link set cali1 up").await;
            sh("until ip -6 address show dev cali1 scope link -tentative | grep -q inet6; do sleep 0.01; done").await;
            let mut events = listen().unwrap();
            told(&mut events).await;
            let whole = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
            let of = |setting: &str| format!("net/{setting}").replace('*', "cali1");
            let telling = [
                "ipv4/conf/*/rp_filter",
                "ipv4/conf/*/proxy_arp",
                "ipv4/conf/*/forwarding",
                "ipv6/conf/*/forwarding",
                "ipv6/conf/*/disable_ipv6",
            ];
            let silent = [
                "ipv4/neigh/*/proxy_delay",
                "ipv4/conf/*/accept_source_route",
                "ipv4/conf/*/accept_redirects",
                "ipv4/conf/*/route_localnet",
                "ipv6/conf/*/accept_ra",
                "ipv6/conf/*/accept_redirects",
                "ipv6/conf/*/autoconf",
                "ipv6/conf/*/addr_gen_mode",
                "ipv6/conf/*/accept_dad",
            ];
            let all = telling.into_iter().map(|one| (of(one), true)).chain(silent.map(|one| (of(one), false)));
            for (setting, tells) in all.chain(whole.map(|one| (one.to_owned(), true))) {
                sh(&format!("cd /proc/sys; echo $(($(cat {setting}) == 0)) >{setting}")).await;
                assert_eq!(told(&mut events).await.interfaces.contains("cali1"), tells, "{setting}");
                sh(&format!("cd /proc/sys; echo $(($(cat {setting}) == 0)) >{setting}")).await;
                told(&mut events).await;
            }
        });
    }

    #[test]
    fn an_address_that_goes_is_told_with_its_interface() {
        in_own_network(|| async {
            sh("ip link add cali1 type veth peer name far; ip link set cali1 up").await;
            sh("ip -6 address add fe80::1/64 dev cali1 nodad").await;
            let mut events = listen().unwrap();
            sh("ip -6 address flush dev cali1").await;
            assert_eq!(told(&mut events).await, Touched { interfaces: ["cali1".to_owned()].into(), everything: false });
        });
    }
}
