//! Configuration of `calico-node`: flags, then environment, then defaults, read once into typed values.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::edge::etcd::{EtcdAddress, parse_authority, parse_endpoints};
use crate::model::bgp::AsNumber;
use crate::model::fault::Fault;
use crate::model::name::HostName;
use crate::part::runtime_entry::Site;

/// Calico for plain Docker: gives containers routed, policed addresses.
///
/// Runs the Docker API proxy, the policy agent and BIRD on this host. Ask for an address with
/// `DOCKER_HOST=tcp://localhost:2377 docker run -e CALICO_IP=auto -e CALICO_PROFILE=web ...`.
#[derive(Debug, Parser)]
#[command(name = "calico-node", version, max_term_width = 120)]
pub(crate) struct Flags {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// Where Docker clients connect: tcp://ADDR:PORT, tls://ADDR:PORT or unix:///PATH; repeat for more
    ///
    /// Whoever connects is root on this host, as at dockerd's own socket. So at an address that is not loopback it must
    /// be tls:// with --tlscert, --tlskey and --tlscacert. Sockets that systemd passes are listened at too. Where neither
    /// names any it is port 2377 of both loopback addresses, 127.0.0.1 and ::1.
    #[arg(long, env = "CALICO_LISTEN", value_delimiter = ',', value_name = "URL")]
    listen: Vec<String>,

    /// File with our certificate for tls:// and those between it and its authority (PEM); read again on SIGHUP
    #[arg(long, env = "CALICO_TLSCERT", value_name = "FILE")]
    pub(crate) tlscert: Option<PathBuf>,

    /// File with the key of that certificate (PEM)
    #[arg(long, env = "CALICO_TLSKEY", value_name = "FILE")]
    pub(crate) tlskey: Option<PathBuf>,

    /// File with authorities (PEM): at tls:// only who shows a certificate of theirs comes in (dockerd's --tlsverify)
    #[arg(long, env = "CALICO_TLSCACERT", value_name = "FILE")]
    pub(crate) tlscacert: Option<PathBuf>,

    /// A further name by which clients call us over TCP, as in DOCKER_HOST=tcp://NAME:2377; repeat for more
    #[arg(long, env = "CALICO_ALLOW_HOST", value_delimiter = ',', value_name = "NAME")]
    allow_host: Vec<String>,

    /// Listen at addresses that are not loopback without asking for certificates: who reaches them is root here
    #[arg(long, env = "CALICO_INSECURE_ROOT_FOR_ANYONE_WHO_CONNECTS", value_parser = BoolishValueParser::new())]
    pub(crate) insecure_root_for_anyone_who_connects: bool,

    /// The engine behind the proxy
    #[arg(long, env = "CALICO_DOCKER_HOST", default_value = "unix:///var/run/docker.sock", value_name = "URL")]
    pub(crate) docker_host: String,

    /// The configuration file of that engine, for install-runtime and uninstall-runtime
    #[arg(long, env = "CALICO_DOCKER_CONFIG", default_value = "/etc/docker/daemon.json", value_name = "FILE")]
    docker_config: PathBuf,

    /// The etcd cluster, http://host:port or https://host:port; without it a single etcd is run for this host
    #[arg(long, env = "ETCD_ENDPOINTS", value_delimiter = ',', value_name = "URL")]
    etcd_endpoints: Vec<String>,

    /// One member of the etcd cluster as host:port, where no endpoints are named
    #[arg(long, env = "ETCD_AUTHORITY", value_name = "HOST:PORT", hide = true)]
    etcd_authority: Option<String>,

    /// http or https, for that member
    #[arg(long, env = "ETCD_SCHEME", value_name = "SCHEME", hide = true)]
    etcd_scheme: Option<String>,

    /// File with the authority that signed etcd's certificate (PEM); https needs it
    #[arg(long, env = "ETCD_CA_CERT_FILE", value_name = "FILE")]
    etcd_cacert: Option<PathBuf>,

    /// File with our certificate for etcd (PEM)
    #[arg(long, env = "ETCD_CERT_FILE", value_name = "FILE")]
    etcd_cert: Option<PathBuf>,

    /// File with the key of our certificate for etcd (PEM)
    #[arg(long, env = "ETCD_KEY_FILE", value_name = "FILE")]
    etcd_key: Option<PathBuf>,

    /// The name of this host in the cluster [default: the machine's, up to the first dot]
    #[arg(long, env = "HOSTNAME", value_name = "NAME")]
    hostname: Option<String>,

    /// This host's IPv4 address, by which the other hosts reach it [default: detected]
    #[arg(long, env = "IP", value_name = "ADDR")]
    pub(crate) ip: Option<Ipv4Addr>,

    /// This host's IPv6 address, by which the other hosts reach it; without it containers' IPv6 does not leave the host by BGP
    #[arg(long, env = "IP6", value_name = "ADDR")]
    pub(crate) ip6: Option<Ipv6Addr>,

    /// This host's BGP autonomous system number [default: the cluster's]
    #[arg(long = "as", env = "AS", value_name = "NUMBER")]
    pub(crate) as_number: Option<AsNumber>,

    /// What must survive a reboot
    #[arg(long, env = "CALICO_STATE_DIR", default_value = "/var/lib/calico", value_name = "DIR")]
    pub(crate) state_dir: PathBuf,

    /// Sockets and what a reboot may empty
    #[arg(long, env = "CALICO_RUN_DIR", default_value = "/run/calico", value_name = "DIR")]
    pub(crate) run_dir: PathBuf,

    /// How routes reach the other hosts
    #[arg(long, env = "CALICO_NETWORKING_BACKEND", default_value = "bird")]
    bgp: Bgp,

    /// Where /metrics, /livez and /readyz are served
    #[arg(long, env = "CALICO_METRICS_LISTEN", default_value = "127.0.0.1:9091", value_name = "ADDR:PORT")]
    pub(crate) metrics_listen: String,

    /// How long a start waits for policy and route to be in the kernel, in seconds; with the OCI runtime ten at most
    #[arg(long, env = "CALICO_APPLY_TIMEOUT", default_value_t = 5.0, value_name = "SECONDS")]
    apply_timeout: f64,

    /// How long calls that are under way and then open streams may go on after SIGTERM, in seconds each; a further signal ends what is waited for
    #[arg(long, env = "CALICO_DRAIN_TIMEOUT", default_value_t = 10.0, value_name = "SECONDS")]
    drain_timeout: f64,

    /// Take the place of the node that runs here: no client is refused meanwhile, and its open streams go on to their end
    #[arg(long)]
    pub(crate) take_over: bool,

    /// Lines for people, or JSON for machines
    #[arg(long, env = "CALICO_LOG_FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,

    /// error, warn, info, debug, trace, or levels of targets, as in info,calico=debug; unset: what LogSeverityScreen in the datastore says, or info
    #[arg(long, env = "CALICO_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub(crate) enum Command {
    /// Remove everything of ours from this host's kernel, and nothing else
    Clean,
    /// Make the OCI runtime calico known to dockerd, which goes on running
    ///
    /// Containers that are made through this node from then on have their network before their first instruction. The
    /// program is calico-runtime, beside this one.
    InstallRuntime,
    /// Take the OCI runtime calico away from dockerd, which goes on running
    UninstallRuntime {
        /// Even if there are containers that cannot start without it
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bgp {
    Bird,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// The proxy's doors where none are named. Without IPv6 on the machine the second one is no loss.
const DEFAULT_LISTEN: [&str; 2] = ["tcp://127.0.0.1:2377", "tcp://[::1]:2377"];

/// What a certificate is called in PEM.
const CERTIFICATE: &str = "CERTIFICATE";

/// A variable of the environment that is no setting of ours.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment beside clap")]
pub(crate) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The items of a list. A variable that is set to nothing says as little as one that is not set.
fn said(items: &[String]) -> Vec<String> {
    items.iter().map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
}

/// The flags' command without the variables that are set to nothing: they say as little as those that are not set.
fn without_empty(command: clap::Command, is_empty: impl Fn(&str) -> bool) -> clap::Command {
    command.mut_args(|flag| match flag.get_env().and_then(std::ffi::OsStr::to_str).map(&is_empty) {
        Some(true) => flag.env(None::<&'static str>),
        _ => flag,
    })
}

impl Flags {
    /// Reads this process's arguments and environment.
    ///
    /// # Errors
    /// What clap has to say of them; help and version too.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let is_empty = |name: &str| variable(name).is_some_and(|value| value.is_empty());
        let mut command = without_empty(Flags::command(), is_empty);
        let read = command.try_get_matches_from_mut(std::env::args_os());
        Flags::from_arg_matches(&read?).map_err(|error| error.format(&mut command))
    }

    /// Where to listen, and whether that place may be missing: the defaults stand where neither the operator nor systemd
    /// names any.
    pub(crate) fn listeners(&self, passed: bool) -> Vec<(String, bool)> {
        let named = said(&self.listen);
        if named.is_empty() && !passed {
            return DEFAULT_LISTEN.map(|text| (text.to_owned(), text.contains("[::1]"))).to_vec();
        }
        named.into_iter().map(|text| (text, false)).collect()
    }

    /// How much the log is to say, if that was said.
    pub(crate) fn log_level(&self) -> Option<&str> {
        self.log_level.as_deref().map(str::trim).filter(|level| !level.is_empty())
    }

    /// By which names clients may call us.
    pub(crate) fn names(&self) -> Vec<String> {
        said(&self.allow_host)
    }

    /// Where the engine is that is to know our runtime.
    pub(crate) fn site(&self) -> Result<Site, Fault> {
        let fault = |cause: String| Fault::World(format!("find the folder of this program: {cause}"));
        let program = std::env::current_exe().map_err(|error| fault(error.to_string()))?;
        let folder = program.parent().ok_or_else(|| fault(format!("{} is in none", program.display())))?;
        Ok(Site {
            config: self.docker_config.clone(),
            engine: self.docker_host.parse()?,
            programs: folder.to_owned(),
            run_dir: self.run_dir.clone(),
            state_dir: self.state_dir.clone(),
        })
    }

    pub(crate) fn runs_bird(&self) -> bool {
        self.bgp == Bgp::Bird
    }

    pub(crate) fn apply_timeout(&self) -> Result<Duration, Fault> {
        seconds("--apply-timeout", self.apply_timeout)
    }

    pub(crate) fn drain_timeout(&self) -> Result<Duration, Fault> {
        seconds("--drain-timeout", self.drain_timeout)
    }

    pub(crate) fn host(&self) -> Result<HostName, Fault> {
        let named = self.hostname.as_deref().map(str::trim).filter(|name| !name.is_empty());
        let name = match named {
            Some(name) => name.parse(),
            None => {
                let name = nix::unistd::gethostname()
                    .map_err(|error| Fault::World(format!("ask the machine for its name: {error}")))?;
                HostName::from_machine(&name.to_string_lossy())
            }
        };
        name.map_err(|error| Fault::Refusal(error.to_string()))
    }

    /// The etcd that is named; `None`: the embedded one.
    pub(crate) fn etcd(&self) -> Result<Option<EtcdAddress>, Fault> {
        let said_of =
            |text: &Option<String>| text.iter().map(|text| text.trim().to_owned()).find(|text| !text.is_empty());
        let endpoints = match (said(&self.etcd_endpoints), said_of(&self.etcd_authority)) {
            (named, _) if !named.is_empty() => parse_endpoints("--etcd-endpoints", &named.join(","))?,
            (_, Some(authority)) => vec![parse_authority(&authority, said_of(&self.etcd_scheme).as_deref())?],
            (_, None) => return Ok(None),
        };
        let read = |path: &PathBuf, what: &str| {
            let wrong = |cause: &str| Fault::Refusal(format!("read {}: {cause}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|error| wrong(&error.to_string()))?;
            // Where there is none, the client would go on without.
            let is_there = text.contains(&format!("{what}-----"));
            if is_there { Ok(text) } else { Err(wrong(&format!("it holds no {what} in PEM"))) }
        };
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(cert), Some(key)) => Some((read(cert, CERTIFICATE)?, read(key, "PRIVATE KEY")?)),
            (None, None) => None,
            _ => return Err(Fault::Refusal("--etcd-cert and --etcd-key go together: give both or neither".to_owned())),
        };
        Ok(Some(EtcdAddress {
            endpoints,
            ca: self.etcd_cacert.as_ref().map(|path| read(path, CERTIFICATE)).transpose()?,
            identity,
        }))
    }
}

fn seconds(flag: &str, value: f64) -> Result<Duration, Fault> {
    Duration::try_from_secs_f64(value).map_err(|error| Fault::Refusal(format!("read {flag} {value}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(args: &[&str]) -> Flags {
        Flags::parse_from([&["calico-node"], args].concat())
    }

    #[test]
    fn etcd_is_named_by_endpoints_before_an_authority() {
        let endpoints = |args: &[&str]| flags(args).etcd().unwrap().map(|etcd| etcd.endpoints);
        assert_eq!(endpoints(&["--etcd-endpoints=http://a:1,http://b:2"]).unwrap(), ["http://a:1", "http://b:2"]);
        assert_eq!(endpoints(&["--etcd-authority=a:1"]).unwrap(), ["http://a:1"]);
        assert_eq!(endpoints(&["--etcd-authority=a:1", "--etcd-scheme=https"]).unwrap(), ["https://a:1"]);
        // A variable that is set to nothing says nothing.
        assert_eq!(endpoints(&["--etcd-endpoints=", "--etcd-authority=a:1"]).unwrap(), ["http://a:1"]);
        assert_eq!(endpoints(&["--etcd-endpoints=", "--etcd-authority="]), None);
        assert!(flags(&["--etcd-endpoints=a:1"]).etcd().is_err());
        assert!(flags(&["--etcd-endpoints=http://a"]).etcd().is_err());
        assert!(flags(&["--etcd-endpoints=http://a:1,https://b:1"]).etcd().is_err());
        assert!(flags(&["--etcd-endpoints=https://a:1", "--etcd-cert=/x"]).etcd().is_err());
    }

    #[test]
    fn the_host_is_named_up_to_the_first_dot() {
        assert_eq!(flags(&["--hostname=web1.example.org"]).host().map(String::from), Ok("web1.example.org".to_owned()));
        let machine = flags(&[]).host();
        assert_eq!(flags(&["--hostname="]).host(), machine);
        assert!(flags(&["--hostname=a/b"]).host().is_err());
    }
}
