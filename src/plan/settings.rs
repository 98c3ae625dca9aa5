//! Settings: what operators say under `config/` in the datastore, for all hosts or for one, which wins.
//!
//! All of them take effect while the node runs. A value that is not understood is as if nothing was said, which for policy
//! means closed, and is a fault that names the setting.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::model::name::HostName;
use crate::model::rule::{Ports, Protocol};
use crate::model::snapshot::Snapshot;

use super::sets::MEMBERS_MOST;

/// What is never opened to containers, whatever is said: BGP, the Docker API, etcd and the metrics, where they are by default.
pub(crate) const OWN_PORTS: [u16; 5] = [179, 2377, 2379, 2380, 9091];

/// What happens to a packet that policy does not allow (`DropActionOverride`). Either is for finding a mistake, not for running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DropAction {
    /// It leaves a line in the kernel's log.
    pub(crate) log: bool,
    /// It passes: there is no policy.
    pub(crate) accept: bool,
}

/// What happens to a packet from a container to its host (`DefaultEndpointToHostAction`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ToHost {
    #[default]
    Drop,
    /// What the container's policy allows goes on to the host's own rules.
    Return,
    /// What the container's policy allows is accepted.
    Accept,
}

/// Something of the host that containers reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) protocol: Protocol,
    /// An ICMP has none.
    pub(crate) ports: Option<Ports>,
}

impl std::str::FromStr for Open {
    type Err = ();
    /// `udp:53`, `tcp:6000-6010`, `icmp`; none of our own ports.
    fn from_str(item: &str) -> Result<Self, ()> {
        if let "icmp" | "icmpv6" = item {
            return Ok(Open { protocol: item.parse().map_err(drop)?, ports: None });
        }
        let (protocol, ports) = item.split_once(':').ok_or(())?;
        let protocol = protocol.parse::<Protocol>().ok().filter(|protocol| protocol.has_ports()).ok_or(())?;
        let ports = ports.parse::<Ports>().map_err(drop)?;
        let own = |port: &u16| protocol == Protocol::TCP && (ports.first..=ports.last).contains(port);
        if OWN_PORTS.iter().any(own) { Err(()) } else { Ok(Open { protocol, ports: Some(ports) }) }
    }
}

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.protocol.fmt(f)?;
        self.ports.map_or(Ok(()), |ports| write!(f, ":{ports}"))
    }
}

/// How often a host says that its node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostReport {
    pub(crate) every: Duration,
    /// For how long what it says holds.
    pub(crate) ttl: Duration,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `DefaultEndpointToHostAction`.
    pub(crate) to_host: ToHost,
    /// `EndpointToHostPorts`: what of the host containers reach all the same.
    pub(crate) open: Vec<Open>,
    /// `DropActionOverride`.
    pub(crate) drop: DropAction,
    /// `MaxIpsetSize`.
    pub(crate) set_most: u32,
    /// `IptablesRefreshInterval`: how often the whole kernel state is looked at.
    pub(crate) refresh: Duration,
    /// `PeriodicResyncInterval`: how often the whole datastore is read; `None`: never.
    pub(crate) resync: Option<Duration>,
    /// `LogSeverityScreen`, as a level of the log.
    pub(crate) log: Option<&'static str>,
    /// `ReportingIntervalSecs` and `ReportingTTLSecs`; `None`: never.
    pub(crate) host_report: Option<HostReport>,
    /// `EndpointReportingEnabled` and `EndpointReportingDelaySecs`: how long news of endpoints are gathered; `None`: no
    /// endpoint is reported.
    pub(crate) endpoint_report: Option<Duration>,
    /// The settings that are not understood, or dangerous, and why.
    pub(crate) faults: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            to_host: ToHost::Drop,
            open: Vec::new(),
            drop: DropAction::default(),
            set_most: MEMBERS_MOST,
            refresh: Duration::from_mins(1),
            resync: Some(Duration::from_hours(1)),
            log: None,
            host_report: Some(HostReport { every: Duration::from_secs(30), ttl: Duration::from_secs(90) }),
            endpoint_report: Some(Duration::from_secs(1)),
            faults: BTreeMap::new(),
        }
    }
}

/// What is said of the settings of one host.
struct Said<'s> {
    snapshot: &'s Snapshot,
    host: &'s HostName,
    faults: BTreeMap<String, String>,
}

impl Said<'_> {
    /// A setting, read by `read`; what it cannot read is a fault and `default` holds.
    fn get<T>(&mut self, name: &str, default: T, read: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some(record) = self.snapshot.setting(self.host, name) else { return default };
        let read = match &record.value {
            Ok(text) if text.trim() == "none" => return default,
            Ok(text) => {
                read(text.trim()).map_err(|right| format!("value {:?} is not right: it must be {right}", text.trim()))
            }
            Err(why) => Err(why.clone()),
        };
        read.unwrap_or_else(|why| {
            self.blame(name, format!("{why}; it is as if it was not set"));
            default
        })
    }

    fn blame(&mut self, name: &str, why: String) {
        self.faults.insert(format!("setting {name}"), why);
    }
}

/// A number from `least` on, far below where clocks overflow.
fn number(text: &str, least: u32) -> Result<u32, String> {
    text.parse().ok().filter(|number| *number >= least).ok_or_else(|| format!("a whole number from {least}"))
}

fn seconds(text: &str, least: u32) -> Result<Duration, String> {
    number(text, least).map(|number| Duration::from_secs(number.into())).map_err(|right| format!("{right}, in seconds"))
}

fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "y" | "t" => Ok(true),
        "false" | "0" | "no" | "n" | "f" => Ok(false),
        _ => Err("true or false".to_owned()),
    }
}

fn level(text: &str) -> Result<Option<&'static str>, String> {
    Ok(Some(match text.to_ascii_lowercase().as_str() {
        "debug" => "debug",
        "info" => "info",
        "warning" | "warn" => "warn",
        "error" | "critical" => "error",
        _ => return Err("DEBUG, INFO, WARNING, ERROR or CRITICAL".to_owned()),
    }))
}

fn to_host(text: &str) -> Result<ToHost, String> {
    match text {
        "DROP" => Ok(ToHost::Drop),
        "RETURN" => Ok(ToHost::Return),
        "ACCEPT" => Ok(ToHost::Accept),
        _ => Err("DROP, RETURN or ACCEPT".to_owned()),
    }
}

fn drop_action(text: &str) -> Result<DropAction, String> {
    let (log, action) = text.strip_prefix("LOG-and-").map_or((false, text), |action| (true, action));
    match action {
        "DROP" => Ok(DropAction { log, accept: false }),
        "ACCEPT" => Ok(DropAction { log, accept: true }),
        _ => Err("DROP, ACCEPT, LOG-and-DROP or LOG-and-ACCEPT".to_owned()),
    }
}

/// `tcp:53,udp:53,udp:60000-61000,icmp`.
fn open(text: &str) -> Result<Vec<Open>, String> {
    let right =
        |()| format!("a list such as tcp:8080,udp:53,udp:6000-6010,icmp, without our own ports {OWN_PORTS:?} of tcp");
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items.map(|item| item.parse().map_err(right)).collect()
}

impl Settings {
    /// The settings of one host.
    pub(crate) fn of(snapshot: &Snapshot, host: &HostName) -> Self {
        let mut said = Said { snapshot, host, faults: BTreeMap::new() };
        let default = Settings::default();
        let every = said.get("ReportingIntervalSecs", Duration::from_secs(30), |text| seconds(text, 0));
        let ttl = said.get("ReportingTTLSecs", Duration::from_secs(90), |text| seconds(text, 1));
        let delay = said.get("EndpointReportingDelaySecs", Duration::from_secs(1), |text| seconds(text, 0));
        let reported = said.get("EndpointReportingEnabled", true, truth);
        let resync = said.get("PeriodicResyncInterval", Duration::from_hours(1), |text| seconds(text, 0));
        let mut settings = Settings {
            to_host: said.get("DefaultEndpointToHostAction", default.to_host, to_host),
            open: said.get("EndpointToHostPorts", Vec::new(), open),
            drop: said.get("DropActionOverride", default.drop, drop_action),
            set_most: said.get("MaxIpsetSize", default.set_most, |text| number(text, 1)),
            refresh: said.get("IptablesRefreshInterval", default.refresh, |text| seconds(text, 1)),
            resync: (!resync.is_zero()).then_some(resync),
            log: said.get("LogSeverityScreen", None, level),
            host_report: (!every.is_zero()).then_some(HostReport { every, ttl }),
            endpoint_report: reported.then_some(delay),
            faults: BTreeMap::new(),
        };
        if settings.drop.accept {
            let why =
                "!SECURITY DISABLED! What policy does not allow is accepted, to and from every container of this host";
            said.blame("DropActionOverride", why.to_owned());
        }
        settings.faults = said.faults;
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::snapshot::tests::from_json;

    fn settings(json: &str) -> Settings {
        Settings::of(&from_json(json), &"h1".parse().unwrap())
    }

    #[test]
    fn a_host_s_own_setting_wins_over_that_of_all() {
        let read = settings(
            r#"{"/calico/v1/config/IptablesRefreshInterval": "7", "/calico/v1/host/h1/config/IptablesRefreshInterval": " 5 ",
                "/calico/v1/host/h2/config/IptablesRefreshInterval": "9", "/calico/v1/config/MaxIpsetSize": "1000"}"#,
        );
        assert_eq!((read.refresh, read.set_most), (Duration::from_secs(5), 1000));
        assert_eq!(settings("{}"), Settings::default());
    }

    #[test]
    fn every_setting_is_read() {
        let read = settings(
            r#"{"/calico/v1/config/DefaultEndpointToHostAction": "RETURN", "/calico/v1/config/DropActionOverride": "LOG-and-DROP",
                "/calico/v1/config/EndpointToHostPorts": "udp:53, tcp:8000-8010,icmp", "/calico/v1/config/PeriodicResyncInterval": "0",
                "/calico/v1/config/LogSeverityScreen": "WARNING", "/calico/v1/config/ReportingIntervalSecs": "0",
                "/calico/v1/config/EndpointReportingEnabled": "No", "/calico/v1/config/Unknown": "x"}"#,
        );
        let open = |protocol, first, last| Open { protocol, ports: Some(Ports { first, last }) };
        assert_eq!(read.to_host, ToHost::Return);
        assert_eq!(read.drop, DropAction { log: true, accept: false });
        assert_eq!(
            read.open,
            [
                open(Protocol::UDP, 53, 53),
                open(Protocol::TCP, 8000, 8010),
                Open { protocol: Protocol::ICMP, ports: None }
            ]
        );
        for item in read.open {
            assert_eq!(item.to_string().parse(), Ok(item));
        }
        assert_eq!((read.resync, read.log, read.host_report, read.endpoint_report), (None, Some("warn"), None, None));
        assert_eq!(read.faults, BTreeMap::new());
    }

    #[test]
    fn a_value_that_is_not_understood_is_a_fault_and_counts_as_none() {
        for (name, value) in [
            ("DefaultEndpointToHostAction", "PERMIT"),
            ("DropActionOverride", "accept"),
            ("EndpointToHostPorts", "tcp:53,udp"),
            ("EndpointToHostPorts", "tcp:2000-3000"),
            ("EndpointToHostPorts", "tcp:179"),
            ("EndpointToHostPorts", "icmp:8"),
            ("MaxIpsetSize", "0"),
            ("IptablesRefreshInterval", "0"),
            ("IptablesRefreshInterval", "-1"),
            ("PeriodicResyncInterval", "1h"),
            ("LogSeverityScreen", "loud"),
            ("ReportingIntervalSecs", "x"),
            ("ReportingTTLSecs", "0"),
            ("EndpointReportingEnabled", "maybe"),
            ("EndpointReportingDelaySecs", ""),
        ] {
            let read = settings(&serde_json::json!({format!("/calico/v1/config/{name}"): value}).to_string());
            assert_eq!(read.faults.keys().collect::<Vec<_>>(), [&format!("setting {name}")], "{value}");
            assert_eq!(Settings { faults: BTreeMap::new(), ..read }, Settings::default(), "{name} {value}");
        }
    }

    #[test]
    fn policy_that_is_switched_off_is_a_fault() {
        let read = settings(r#"{"/calico/v1/config/DropActionOverride": "ACCEPT"}"#);
        assert!(read.drop.accept);
        assert!(read.faults["setting DropActionOverride"].contains("!SECURITY DISABLED!"));
    }
}
