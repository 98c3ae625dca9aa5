//! Runtimes: whether a container can have our OCI runtime, which wires it before its first instruction.
//!
//! Ours stands in front of the one that does the work: runc, or another of the kind that dockerd calls by its path. One
//! that containerd brings itself (a shim by its name) cannot be called that way, so a container that asks for such a one
//! keeps it, and is wired by the node.
//!
//! Limits: what makes a network stack of its own out of the namespace that it finds (Kata Containers, gVisor) sees nothing of
//! what comes there later; and gVisor, called by its path, takes the addresses off the interface, where ours are put back.

use std::collections::BTreeMap;
use std::path::Path;

use crate::model::endpoint::OciRuntime;

/// The name of our runtime (decided).
pub(crate) const RUNTIME: &str = "calico";

/// The runtime that ours stands in front of where no other was asked for.
pub(crate) const RUNC: &str = "runc";

/// The names under which dockerd knows it.
const RUNC_NAMES: [&str; 3] = [RUNC, "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"];

/// The runtimes that a dockerd knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Runtimes {
    /// What a container has that asks for none.
    pub(crate) default: String,
    /// By name. The path of one that containerd brings is empty or `runc`.
    pub(crate) known: BTreeMap<String, OciRuntime>,
}

/// How a container is to be wired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// By our runtime, in front of another than runc if one is named.
    Runtime(Option<OciRuntime>),
    /// By the node, and why.
    Node(String),
}

impl Runtimes {
    /// The same, but without an entry of ours that speaks to the node of another run folder.
    #[must_use]
    pub(crate) fn of_run_dir(mut self, run_dir: &Path) -> Self {
        let speaks_to_us = |runtime: &OciRuntime| {
            let mut pairs = runtime.args.iter().zip(runtime.args.iter().skip(1));
            pairs.any(|(flag, value)| flag == "--run-dir" && Path::new(value) == run_dir)
        };
        self.known.retain(|name, runtime| name != RUNTIME || speaks_to_us(runtime));
        self
    }

    /// Whether dockerd knows ours.
    pub(crate) fn has_ours(&self) -> bool {
        self.known.contains_key(RUNTIME)
    }

    /// The name that dockerd knows a runtime by.
    pub(crate) fn name_of(&self, runtime: &OciRuntime) -> Option<&str> {
        self.known.iter().find(|(_, known)| *known == runtime).map(|(name, _)| name.as_str())
    }

    /// How a container is wired that asks for a runtime, or for none with an empty name.
    pub(crate) fn choose(&self, asked: &str) -> Way {
        if !self.has_ours() {
            return Way::Node(format!("dockerd knows no runtime {RUNTIME}: calico-node install-runtime puts it there"));
        }
        let name = if asked.is_empty() { self.default.as_str() } else { asked };
        if name.is_empty() || name == RUNTIME || RUNC_NAMES.contains(&name) {
            return Way::Runtime(None);
        }
        match self.known.get(name).filter(|runtime| runtime.path.starts_with('/')) {
            Some(runtime) => Way::Runtime(Some(runtime.clone())),
            None => Way::Node(format!(
                "runtime {name} is none that {RUNTIME} can call by its path; one that makes a machine or a kernel of its own, as \
                 Kata Containers and gVisor do, does not see an interface that comes later"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtimes(default: &str, ours: bool) -> Runtimes {
        let runtime = |path: &str, args: &[&str]| OciRuntime {
            path: path.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        };
        let mut known = BTreeMap::from([
            ("runc".to_owned(), runtime("runc", &[])),
            ("io.containerd.runc.v2".to_owned(), runtime("runc", &[])),
            ("gpu".to_owned(), runtime("/usr/bin/gpu-runtime", &["--debug"])),
            ("kata".to_owned(), runtime("", &[])),
        ]);
        if ours {
            let args = ["--run-dir", "/run/calico", "--state-dir", "/var/lib/calico"];
            known.insert(RUNTIME.to_owned(), runtime("/usr/bin/calico-runtime", &args));
        }
        Runtimes { default: default.to_owned(), known }
    }

    #[test]
    fn ours_stands_in_front_of_what_was_asked_for() {
        let here = runtimes("runc", true);
        for plain in ["", "runc", "io.containerd.runc.v2", "calico"] {
            assert_eq!(here.choose(plain), Way::Runtime(None), "{plain}");
        }
        let gpu = Way::Runtime(Some(here.known["gpu"].clone()));
        assert_eq!(here.choose("gpu"), gpu);
        assert_eq!(runtimes("gpu", true).choose(""), gpu, "dockerd's default counts too");
        for other in ["kata", "no-such"] {
            assert!(matches!(here.choose(other), Way::Node(_)), "{other}");
        }
        assert!(matches!(runtimes("runc", false).choose(""), Way::Node(_)));
    }

    #[test]
    fn an_entry_that_speaks_to_another_node_is_none_of_ours() {
        assert!(runtimes("runc", true).of_run_dir(Path::new("/run/calico")).has_ours());
        assert!(!runtimes("runc", true).of_run_dir(Path::new("/run/other")).has_ours());
    }
}
