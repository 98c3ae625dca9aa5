//! Kernel settings under `/proc/sys`, of the network namespace of the calling thread.
//!
//! The calls are synchronous: procfs does not wait for anything.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv6Addr;

use crate::model::fault::Fault;
use crate::model::name::IfName;
use crate::plan::sysctl::{
    FORWARD_IPV6, IPV6_INTERFACES, for_interface, hears_routers, inside, link_local_of, must_go_on_hearing,
};

fn file(setting: &str) -> String {
    format!("/proc/sys/{setting}")
}

/// The value of a setting, such as `net/ipv4/ip_forward`. The name has slashes, since interfaces' names may have dots.
pub(crate) fn read(setting: &str) -> Result<String, Fault> {
    let path = file(setting);
    let text = fs::read_to_string(&path).map_err(|error| Fault::World(format!("read {path}: {error}")))?;
    Ok(text.trim().to_owned())
}

/// Sets a value; answers whether it was another. Nothing is written where it is there already, so that a read-only /proc
/// with right values is no error.
pub(crate) fn write(setting: &str, value: &str) -> Result<bool, Fault> {
    if read(setting)? == value {
        return Ok(false);
    }
    let path = file(setting);
    fs::write(&path, value).map_err(|error| Fault::World(format!("write {value} to {path}: {error}")))?;
    Ok(true)
}

/// Whether a setting is there at all. A kernel without IPv6 has none of its settings.
fn is_there(setting: &str) -> bool {
    fs::exists(file(setting)).unwrap_or(true)
}

/// The names of all interfaces.
pub(crate) fn interfaces() -> Result<Vec<String>, Fault> {
    let folder = file("net/ipv4/conf");
    let fault = |error: std::io::Error| Fault::World(format!("read {folder}: {error}"));
    let entries = fs::read_dir(&folder).map_err(fault)?.collect::<Result<Vec<_>, _>>().map_err(fault)?;
    Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

pub(crate) fn forwards_ipv6() -> Result<bool, Fault> {
    Ok(read(FORWARD_IPV6)? == "1")
}

/// Makes the host forward IPv6, and lets its own interfaces hear routers as they did. Where it forwards already, nothing is
/// touched: who hears routers then is somebody's decision.
pub(crate) fn forward_ipv6() -> Result<(), Fault> {
    if forwards_ipv6()? {
        return Ok(());
    }
    let folder = file(IPV6_INTERFACES);
    let fault = |error: std::io::Error| Fault::World(format!("read {folder}: {error}"));
    for entry in fs::read_dir(&folder).map_err(fault)? {
        let Ok(interface) = entry.map_err(fault)?.file_name().into_string() else { continue };
        let setting = hears_routers(&interface);
        // An interface may go away meanwhile.
        if read(&setting).is_ok_and(|accept_ra| must_go_on_hearing(&interface, &accept_ra)) {
            write(&setting, "2")?;
        }
    }
    write(FORWARD_IPV6, "1").map(drop)
}

/// Makes the settings of the host's side of a container's link true, which has IPv6 or has not. Answers those that were not.
///
/// # Errors
/// All that could not be set, in one message.
pub(crate) fn apply_to_interface(name: &IfName, ipv6: bool) -> Result<Vec<String>, Fault> {
    let settings = for_interface(name, ipv6).into_iter();
    write_all(settings.filter(|(setting, _)| ipv6 || !setting.starts_with("net/ipv6/") || is_there(setting)))
}

/// Whether there is an interface.
pub(crate) fn has_interface(name: &IfName) -> bool {
    is_there(&format!("net/ipv4/conf/{name}"))
}

/// The interfaces that have an IPv6 address. Source of the columns: linux net/ipv6/addrconf.c, `if6_seq_show`.
pub(crate) fn interfaces_with(address: Ipv6Addr) -> BTreeSet<String> {
    let digits: String = address.octets().iter().map(|byte| format!("{byte:02x}")).collect();
    let table = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    let lines = table.lines().filter(|line| line.starts_with(&digits));
    lines.filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
}

/// Gives an interface that is up the link-local address again that somebody has taken away: the kernel makes it when it is
/// told anew how.
pub(crate) fn restore_link_local(name: &IfName) -> Result<(), Fault> {
    let setting = link_local_of(name);
    write(&setting, "1")?;
    write(&setting, "0").map(drop)
}

/// Makes the settings of the container's side of a link with IPv6 true. To be called inside the container's namespace.
///
/// # Errors
/// All that could not be set, in one message.
pub(crate) fn apply_inside(name: &IfName) -> Result<(), Fault> {
    write_all(inside(name).into_iter()).map(drop)
}

fn write_all(settings: impl Iterator<Item = (String, &'static str)>) -> Result<Vec<String>, Fault> {
    let (mut changed, mut faults) = (Vec::new(), Vec::new());
    for (setting, value) in settings {
        match write(&setting, value) {
            Ok(true) => changed.push(setting),
            Ok(false) => {}
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    if faults.is_empty() { Ok(changed) } else { Err(Fault::World(faults.join("; "))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::testnet::{in_own_network, sh};
    use crate::plan::wiring::HOST_LINK_LOCAL;

    #[test]
    fn a_next_hop_that_somebody_took_away_comes_back_and_nothing_else_changes() {
        in_own_network(|| async {
            let name: IfName = "cali1".parse().unwrap();
            assert!(!has_interface(&name));
            sh("ip link add cali1 address ee:ee:ee:ee:ee:ee type veth peer name far; ip link set far up").await;
            assert!(has_interface(&name));
            apply_to_interface(&name, true).unwrap();
            sh("ip link set cali1 up; ip -6 route add fd00::1/128 dev cali1 proto 97").await;
            let has = || interfaces_with(HOST_LINK_LOCAL) == ["cali1".to_owned()].into();
            let begun = std::time::Instant::now();
            while !has() {
                assert!(begun.elapsed().as_secs() < 5, "the kernel does not make it by itself");
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            sh("ip -6 address flush dev cali1").await;
            assert!(!has());
            restore_link_local(&name).unwrap();
            assert!(has());
            assert!(sh("ip -6 route show fd00::1").await.contains("cali1"));
            assert_eq!(read("net/ipv6/conf/cali1/addr_gen_mode").unwrap(), "0");
        });
    }
}
