//! Where things are, seen from a command: etcd, the node's run folder, the name of this host.
//!
//! Pure: environment and files come in as functions, so that every way of naming a place is a row of a test.

use std::io;
use std::path::{Path, PathBuf};

use crate::edge::etcd::{EtcdAddress, parse_authority, parse_endpoints};
use crate::edge::files::if_there;
use crate::model::fault::Fault;
use crate::model::name::HostName;

const DEFAULT_ETCD: &str = "http://127.0.0.1:2379";
const DEFAULT_RUN_DIR: &str = "/run/calico";
/// The file of the run folder that names the node's embedded etcd.
const ETCD_FILE: &str = "etcd-endpoint";

/// The surroundings of one command.
pub(crate) struct Place<'w> {
    /// The environment.
    pub(crate) var: &'w dyn Fn(&str) -> Option<String>,
    pub(crate) read: &'w dyn Fn(&Path) -> io::Result<String>,
    /// The machine's name, as `gethostname` has it.
    pub(crate) machine: String,
    /// Whether the command runs as root.
    pub(crate) root: bool,
}

/// Where etcd is, and who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EtcdPlace {
    pub(crate) address: EtcdAddress,
    pub(crate) source: String,
    /// Nobody has: it is where etcd listens unless told otherwise, and any etcd may be there.
    pub(crate) is_guessed: bool,
}

impl Place<'_> {
    /// A variable that is set to something: an empty one counts as unset, as in the original.
    fn set(&self, name: &str) -> Option<String> {
        (self.var)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.set("CALICO_RUN_DIR").map_or_else(|| PathBuf::from(DEFAULT_RUN_DIR), PathBuf::from)
    }

    /// This host's name in the datastore.
    pub(crate) fn host(&self) -> Result<HostName, Fault> {
        match self.set("HOSTNAME") {
            Some(name) => name.parse().map_err(|error| Fault::Refusal(format!("read HOSTNAME: {error}"))),
            None => HostName::from_machine(&self.machine).map_err(|error| {
                Fault::Refusal(format!("name this host after the machine: {error}; set HOSTNAME to its name"))
            }),
        }
    }

    pub(crate) fn etcd(&self) -> Result<EtcdPlace, Fault> {
        let (endpoints, source) = self.endpoints()?;
        let (endpoints, is_guessed) =
            endpoints.map_or_else(|| (vec![DEFAULT_ETCD.to_owned()], true), |named| (named, false));
        let mut address = EtcdAddress { endpoints, ca: None, identity: None };
        if address.endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            let (ca, identity) = self.certificates()?;
            address.ca = Some(ca);
            address.identity = identity;
        }
        Ok(EtcdPlace { address, source, is_guessed })
    }

    /// The endpoints of etcd, if somebody names any, and who does or why nobody does.
    fn endpoints(&self) -> Result<(Option<Vec<String>>, String), Fault> {
        if let Some(list) = self.set("ETCD_ENDPOINTS") {
            return Ok((Some(parse_endpoints("ETCD_ENDPOINTS", &list)?), "ETCD_ENDPOINTS".to_owned()));
        }
        if let Some(authority) = self.set("ETCD_AUTHORITY") {
            let endpoint = parse_authority(&authority, self.set("ETCD_SCHEME").as_deref())?;
            return Ok((Some(vec![endpoint]), "ETCD_AUTHORITY".to_owned()));
        }
        let file = self.run_dir().join(ETCD_FILE);
        let name = file.display().to_string();
        let fault =
            |error| Fault::World(format!("read {name} to find etcd: {error}; name etcd in ETCD_ENDPOINTS instead"));
        Ok(match if_there((self.read)(&file)).map_err(fault)? {
            Some(text) => (Some(parse_endpoints(&name, &text)?), name),
            None => (None, format!("the default, as there is no {name}")),
        })
    }

    /// The authority that signed etcd's certificate, and the client's certificate with its key if it has one.
    fn certificates(&self) -> Result<(String, Option<(String, String)>), Fault> {
        let file = |variable: &str| -> Result<Option<String>, Fault> {
            let Some(path) = self.set(variable) else { return Ok(None) };
            let text = (self.read)(Path::new(&path));
            text.map(Some).map_err(|error| Fault::World(format!("read {path}, named by {variable}: {error}")))
        };
        let ca = file("ETCD_CA_CERT_FILE")?.ok_or_else(|| {
            Fault::Refusal(
                "connect to etcd by https: ETCD_CA_CERT_FILE is not set: it must name the authority's certificate"
                    .to_owned(),
            )
        })?;
        match (file("ETCD_CERT_FILE")?, file("ETCD_KEY_FILE")?) {
            (Some(certificate), Some(key)) => Ok((ca, Some((certificate, key)))),
            (None, None) => Ok((ca, None)),
            (Some(_), None) => Err(half("ETCD_CERT_FILE", "ETCD_KEY_FILE")),
            (None, Some(_)) => Err(half("ETCD_KEY_FILE", "ETCD_CERT_FILE")),
        }
    }
}

fn half(set: &str, unset: &str) -> Fault {
    Fault::Refusal(format!("connect to etcd by https: {set} is set without {unset}: both or neither must be"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<T>(vars: &[(&str, &str)], files: &[(&str, &str)], test: impl FnOnce(&Place<'_>) -> T) -> T {
        let look = |list: &[(&str, &str)], wanted: &str| {
            list.iter().find(|(name, _)| *name == wanted).map(|(_, value)| (*value).to_owned())
        };
        test(&Place {
            var: &|name| look(vars, name),
            read: &|path| look(files, path.to_str().unwrap()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)),
            machine: "h1.example.org".to_owned(),
            root: false,
        })
    }

    fn endpoints(vars: &[(&str, &str)], files: &[(&str, &str)]) -> Vec<String> {
        with(vars, files, |place| place.etcd().unwrap().address.endpoints)
    }

    #[test]
    fn etcd_is_where_the_first_of_four_places_says() {
        let file = [("/run/calico/etcd-endpoint", "http://127.0.0.1:2381\n")];
        let list = ("ETCD_ENDPOINTS", "http://a:1, http://b:2/");
        let authority = ("ETCD_AUTHORITY", "c:3");
        assert_eq!(endpoints(&[list, authority], &file), ["http://a:1", "http://b:2"]);
        assert_eq!(endpoints(&[authority], &file), ["http://c:3"]);
        assert_eq!(endpoints(&[("ETCD_ENDPOINTS", "")], &file), ["http://127.0.0.1:2381"]);
        assert_eq!(endpoints(&[], &[]), ["http://127.0.0.1:2379"]);
        let moved = [("/tmp/r/etcd-endpoint", "http://[::1]:2382")];
        assert_eq!(endpoints(&[("CALICO_RUN_DIR", "/tmp/r")], &moved), ["http://[::1]:2382"]);
        let is_guessed = |vars: &[_], files: &[_]| with(vars, files, |place| place.etcd().unwrap().is_guessed);
        assert!(
            is_guessed(&[], &[])
                && !is_guessed(&[list], &[])
                && !is_guessed(&[authority], &[])
                && !is_guessed(&[], &file)
        );
    }

    #[test]
    fn an_address_that_is_none_is_refused_with_its_source() {
        for (variable, value) in [
            ("ETCD_ENDPOINTS", "a:1"),
            ("ETCD_ENDPOINTS", "ftp://a:1"),
            ("ETCD_ENDPOINTS", "http://a"),
            ("ETCD_ENDPOINTS", "http://a:0"),
            ("ETCD_ENDPOINTS", "http://::1:2379"),
            ("ETCD_ENDPOINTS", "http://a:1,https://b:2"),
            ("ETCD_ENDPOINTS", "http://a:1,"),
            ("ETCD_AUTHORITY", "http://a:1"),
            ("ETCD_AUTHORITY", "a"),
        ] {
            let error = with(&[(variable, value)], &[], |place| place.etcd().unwrap_err().to_string());
            assert!(error.contains(variable) && error.contains("must"), "{value}: {error}");
        }
        let scheme = [("ETCD_AUTHORITY", "a:1"), ("ETCD_SCHEME", "gopher")];
        assert!(with(&scheme, &[], |place| place.etcd().is_err()));
    }

    #[test]
    fn https_takes_an_authority_and_a_whole_identity_or_none() {
        let files = [("/ca", "CA"), ("/cert", "CERT"), ("/key", "KEY")];
        let base = [("ETCD_AUTHORITY", "a:1"), ("ETCD_SCHEME", "https")];
        let ca = ("ETCD_CA_CERT_FILE", "/ca");
        let cert = ("ETCD_CERT_FILE", "/cert");
        let key = ("ETCD_KEY_FILE", "/key");
        let of = |more: &[(&str, &str)]| with(&[&base, more].concat(), &files, |place| place.etcd());
        assert_eq!(of(&[ca]).unwrap().address.ca.as_deref(), Some("CA"));
        let identity = of(&[ca, cert, key]).unwrap().address.identity;
        assert_eq!(identity, Some(("CERT".to_owned(), "KEY".to_owned())));
        for (more, part) in [
            (&[][..], "ETCD_CA_CERT_FILE"),
            (&[ca, cert], "ETCD_KEY_FILE"),
            (&[ca, key], "ETCD_CERT_FILE"),
            (&[("ETCD_CA_CERT_FILE", "/gone")], "/gone"),
        ] {
            assert!(of(more).unwrap_err().to_string().contains(part), "{part}");
        }
    }

    #[test]
    fn a_host_is_named_by_its_machine_unless_the_environment_says_otherwise() {
        assert_eq!(with(&[], &[], |place| place.host()).unwrap().as_str(), "h1");
        assert_eq!(with(&[("HOSTNAME", "h.2")], &[], |place| place.host()).unwrap().as_str(), "h.2");
        assert!(with(&[("HOSTNAME", "a/b")], &[], |place| place.host()).is_err());
    }
}
