//! The datastore as an operator sees it: through etcdctl.

use std::collections::BTreeMap;

use serde_json::Value;

use super::command::Run;
use super::netns::Netns;

/// Where an etcd listens, and from where it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Etcd {
    pub(crate) space: Netns,
    pub(crate) endpoint: String,
}

/// One key's value and whether it goes away with a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value: String,
    pub(crate) leased: bool,
}

impl Entry {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.value).unwrap_or_else(|error| panic!("{error} in {:?}", self.value))
    }
}

impl Etcd {
    pub(crate) fn ctl(&self, args: &[&str]) -> Run {
        Run::new("nsenter")
            .arg(format!("--net={}", self.space.path()))
            .args(["etcdctl", "--endpoints", &self.endpoint])
            .args(args)
            .env("ETCDCTL_API", "3")
    }

    pub(crate) fn healthy(&self) -> bool {
        self.ctl(&["endpoint", "health"]).run().succeeded()
    }

    /// All keys below a prefix.
    pub(crate) fn entries(&self, prefix: &str) -> BTreeMap<String, Entry> {
        let printed = self.ctl(&["get", "--prefix", prefix, "-w", "json"]).run().ok();
        let answer: Value = serde_json::from_str(&printed).unwrap();
        let all = answer["kvs"].as_array().cloned().unwrap_or_default();
        all.iter()
            .map(|entry| {
                let value = unbase64(entry["value"].as_str().unwrap_or_default());
                let leased = entry["lease"].as_i64().unwrap_or(0) != 0;
                (unbase64(entry["key"].as_str().unwrap()), Entry { value, leased })
            })
            .collect()
    }

    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.entries(prefix).into_keys().collect()
    }

    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.entries(key).remove(key).map(|entry| entry.value)
    }

    #[track_caller]
    pub(crate) fn json(&self, key: &str) -> Value {
        let text = self.get(key).unwrap_or_else(|| panic!("nothing at {key}"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?} at {key}"))
    }

    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ctl(&["put", key, value]).run().ok();
    }
}

/// Text from base64 (RFC 4648), as etcdctl prints keys and values in JSON.
fn unbase64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter(|byte| *byte != b'=') {
        let value = DIGITS.iter().position(|known| *known == digit).expect("a digit of base64");
        held = held << 6 | u32::try_from(value).unwrap();
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(held >> bits & 0xff).unwrap());
        }
    }
    String::from_utf8(bytes).unwrap()
}
