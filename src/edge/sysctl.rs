//! Kernel settings under `/proc/sys`, of the network namespace of the calling thread.
//!
//! The calls are synchronous: procfs does not wait for anything.

use std::fs;

use crate::model::fault::Fault;
use crate::model::name::IfName;
use crate::plan::sysctl::{FORWARD_IPV6, IPV6_INTERFACES, for_interface, hears_routers, inside, must_go_on_hearing};

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

/// Makes the host forward IPv6, and lets its own interfaces hear routers as they did. Where it forwards already, nothing is
/// touched: who hears routers then is somebody's decision.
pub(crate) fn forward_ipv6() -> Result<(), Fault> {
    if read(FORWARD_IPV6)? == "1" {
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
