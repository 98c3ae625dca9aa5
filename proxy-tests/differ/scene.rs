//! Scenes: what is done and what is compared, as text.
//!
//! A scene is some lines up to a blank one, and is played once for each way to dockerd. `- METHOD TARGET [BODY]` is done
//! at dockerd's own socket and has to succeed, `-through …` at the node's, `-? …` may fail, `-id …` also makes the reply's
//! `Id` be `$id` from then on. `> …` goes the way that is tried and is compared; `>up …` asks for an upgrade; of `>~ …` the lists have no order
//! at dockerd itself. A body is JSON, or the name of one of the [`Things`]. `#` begins a comment.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::wire::{Then, Way, exchange};
use crate::lab::host::Host;

/// Bodies by name, and names by what they stand for.
pub(crate) struct Things {
    bodies: BTreeMap<&'static str, Vec<u8>>,
    words: BTreeMap<String, String>,
}

impl Things {
    pub(crate) fn new(bodies: impl IntoIterator<Item = (&'static str, Vec<u8>)>) -> Self {
        Things { bodies: bodies.into_iter().collect(), words: BTreeMap::new() }
    }

    /// `$word` stands for this text from now on.
    pub(crate) fn set(&mut self, word: &str, text: &str) {
        self.words.insert(format!("${word}"), text.to_owned());
    }

    fn filled(&self, line: &str) -> String {
        // The longest first: one word may begin another.
        self.words.iter().rev().fold(line.to_owned(), |line, (word, text)| line.replace(word.as_str(), text))
    }

    /// A line as a request. What follows the method and the target is the body.
    pub(crate) fn request(&self, line: &str, upgrade: bool) -> Vec<u8> {
        let line = self.filled(line);
        let mut parts = line.splitn(3, ' ');
        let (method, target, body) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or_default());
        let (kind, body) = match self.bodies.get(body) {
            Some(bytes) => ("application/x-tar", bytes.as_slice()),
            None => ("application/json", body.as_bytes()),
        };
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: differ\r\n");
        if upgrade {
            head.push_str("Connection: Upgrade\r\nUpgrade: tcp\r\n");
        }
        if !body.is_empty() {
            write!(head, "Content-Type: {kind}\r\n").unwrap();
        }
        if !body.is_empty() || !matches!(method, "GET" | "HEAD") {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        head.push_str("\r\n");
        [head.as_bytes(), body].concat()
    }
}

/// The scenes of a text, comments left out.
pub(crate) fn scenes(text: &str) -> Vec<Vec<&str>> {
    let mut scenes = vec![Vec::new()];
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            scenes.push(Vec::new());
        } else if let Some(scene) = scenes.last_mut() {
            scene.push(line);
        }
    }
    scenes.retain(|scene: &Vec<&str>| !scene.is_empty());
    scenes
}

/// Something that was compared: its line, what must be equal, and all that came back.
pub(crate) struct Shown {
    pub(crate) line: String,
    pub(crate) compared: String,
    pub(crate) whole: String,
}

/// Plays a scene.
#[track_caller]
pub(crate) fn play(host: &Host, way: Way, scene: &[&str], things: &mut Things) -> Vec<Shown> {
    let mut shown = Vec::new();
    for line in scene {
        let (mark, call) = line.split_once(' ').unwrap_or_else(|| panic!("no line of a scene: {line}"));
        let request = things.request(call, mark == ">up");
        let heads = [request.starts_with(b"HEAD ")];
        if mark.starts_with('>') {
            let exchange = exchange(host, way, &request, &heads, Then::Ping(1));
            shown.push(Shown {
                line: call.to_owned(),
                compared: exchange.compared(mark == ">~"),
                whole: exchange.to_string(),
            });
            continue;
        }
        let way = if mark == "-through" { Way::Unix } else { Way::Raw };
        let reply = exchange(host, way, &request, &heads, Then::Ping(1));
        let status = reply.status();
        assert!(mark == "-?" || (200..400).contains(&status), "{call} of the scene {scene:?}: {reply}");
        if mark == "-id" {
            let text = String::from_utf8_lossy(&reply.bytes).into_owned();
            let (_, id) = text.split_once("\"Id\":\"").unwrap_or_else(|| panic!("no id in {text}"));
            things.set("id", id.split('"').next().unwrap());
        }
    }
    shown
}
