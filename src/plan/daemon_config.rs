//! dockerd's configuration file: the entry of our OCI runtime is put in and taken out, and every other byte stays.
//!
//! The file is the operator's, with an order, blanks and spellings of numbers that are theirs. So it is not parsed and
//! written anew: the entry is spliced in at an end, in the manner of what stands before it, and taking it out gives the
//! bytes back as they were. What dockerd would not read, or what can be read in two ways (a name that stands twice), is
//! refused and not guessed at.
//!
//! Source of the shape: `runtimes` in dockerd(8), "daemon configuration file".

use std::collections::BTreeSet;

use serde_json::Value;

use super::json::{self, Edit, Member, Span};
use super::runtime::RUNTIME;
use crate::model::endpoint::OciRuntime;
use crate::model::fault::Fault;

/// The member that holds the runtimes by name.
const RUNTIMES: &str = "runtimes";

/// The value of the entry, on one line.
fn text_of(runtime: &OciRuntime) -> Vec<u8> {
    let path = json::quote(&runtime.path);
    let args: Vec<Vec<u8>> = runtime.args.iter().map(|arg| json::quote(arg)).collect();
    [b"{\"path\": ", path.as_slice(), b", \"runtimeArgs\": [", args.join(&b", "[..]).as_slice(), b"]}"].concat()
}

/// The entry as an operator would write it.
pub(crate) fn entry(runtime: &OciRuntime) -> String {
    json::readable(&member(RUNTIME, &text_of(runtime)))
}

/// What installing comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Installed {
    /// The entry is there and says the same.
    Already,
    Changed {
        text: Vec<u8>,
        /// The entry of our name that was there, which said something else.
        replaced: Option<String>,
    },
}

/// What uninstalling comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Removed {
    /// The file without the entry, but with `runtimes`: dockerd 20.10 keeps the runtimes that it has when the file it
    /// reads again names none at all (moby `daemon/reload_unix.go`, `IsValueSet("runtimes")`).
    pub(crate) emptied: Vec<u8>,
    /// The file without a `runtimes` that is only there because of the entry.
    pub(crate) bare: Option<Vec<u8>>,
}

/// A file that is an object, with what concerns us.
struct File<'a> {
    text: &'a [u8],
    object: Span,
    members: Vec<Member>,
}

/// The member that holds the runtimes.
struct Runtimes {
    /// Which of the file's members it is.
    place: usize,
    object: Span,
    members: Vec<Member>,
}

/// Puts the entry of our runtime into the text of a file, which is empty if there is no file.
///
/// # Errors
/// `Refusal`: the text is nothing that dockerd reads in one way.
pub(crate) fn install(text: &[u8], runtime: &OciRuntime) -> Result<Installed, Fault> {
    let changed = |text, replaced| Ok(Installed::Changed { text, replaced });
    let inner = text_of(runtime);
    let Some(file) = File::read(text)? else {
        let lines: [&[u8]; 3] = [b"{\n  \"runtimes\": {\n    \"calico\": ", &inner, b"\n  }\n}\n"];
        return changed(lines.concat(), None);
    };
    let Some(runtimes) = file.runtimes()? else {
        let before = lead(text, &file.members);
        // On lines of its own if the others are, one step deeper than they.
        let step = before.iter().rposition(|byte| *byte == b'\n').map(|end| &before[end + 1..]);
        let (deeper, close) = match step {
            Some(step) => ([before, step].concat(), before),
            // With a blank, by which `uninstall` knows that the object is ours.
            None => (b" ".to_vec(), &b" "[..]),
        };
        let outer = [b"{", deeper.as_slice(), &member(RUNTIME, &inner), close, b"}"].concat();
        let edit = append(text, &file.object, &file.members, &member(RUNTIMES, &outer));
        return changed(json::splice(text, vec![edit]), None);
    };
    let Some(place) = runtimes.ours() else {
        let edit = append(text, &runtimes.object, &runtimes.members, &member(RUNTIME, &inner));
        return changed(json::splice(text, vec![edit]), None);
    };
    let old = &runtimes.members[place].value;
    let meant = serde_json::json!({ "path": runtime.path, "runtimeArgs": runtime.args });
    if serde_json::from_slice::<Value>(&text[old.clone()]).is_ok_and(|value| value == meant) {
        return Ok(Installed::Already);
    }
    let replaced = json::readable(&text[old.clone()]);
    changed(json::splice(text, vec![(old.clone(), inner)]), Some(replaced))
}

/// Takes the entry out of the text of a file. `None`: it is not in there.
///
/// # Errors
/// `Refusal`: the text is nothing that dockerd reads in one way, or dockerd would not read it without the entry.
pub(crate) fn uninstall(text: &[u8]) -> Result<Option<Removed>, Fault> {
    let Some(file) = File::read(text)? else { return Ok(None) };
    let Some(runtimes) = file.runtimes()? else { return Ok(None) };
    let Some(place) = runtimes.ours() else { return Ok(None) };
    if file.string("default-runtime").as_deref() == Some(RUNTIME) {
        return Err(Fault::Refusal(format!(
            "\"default-runtime\" is \"{RUNTIME}\", and dockerd would not start without that: remove it from the file first"
        )));
    }
    let emptied = json::splice(text, vec![remove(text, &runtimes.object, &runtimes.members, place)]);
    let is_alone = runtimes.members.len() == 1;
    let is_ours = is_alone && text.get(runtimes.object.start + 1).copied().is_some_and(json::is_space);
    let bare = is_ours.then(|| json::splice(text, vec![remove(text, &file.object, &file.members, runtimes.place)]));
    Ok(Some(Removed { emptied, bare }))
}

/// The file in which dockerd writes its process id, if its configuration names one.
pub(crate) fn pidfile(text: &[u8]) -> Option<String> {
    File::read(text).ok()??.string("pidfile")
}

/// The runtimes that a file names; `None`: it says nothing of runtimes, and dockerd keeps those that it has.
pub(crate) fn named(text: &[u8]) -> Option<BTreeSet<String>> {
    let runtimes = File::read(text).ok()??.runtimes().ok()??;
    Some(runtimes.members.into_iter().map(|member| member.key).collect())
}

impl<'a> File<'a> {
    /// `None`: there is nothing in it.
    fn read(text: &'a [u8]) -> Result<Option<Self>, Fault> {
        if text.iter().copied().all(json::is_space) {
            return Ok(None);
        }
        let object = json::document(text).ok_or_else(|| {
            let error = serde_json::from_slice::<serde::de::IgnoredAny>(text).err();
            let error = error.map_or_else(|| "it is nested too deeply".to_owned(), |error| error.to_string());
            Fault::Refusal(format!("it is no JSON, which dockerd needs: {error}"))
        })?;
        let members = json::members(text, &object).ok_or_else(|| {
            let found = beginning(&text[object.clone()]);
            Fault::Refusal(format!("it holds {found}, where dockerd needs an object, as {{}} is"))
        })?;
        Ok(Some(File { text, object, members }))
    }

    fn runtimes(&self) -> Result<Option<Runtimes>, Fault> {
        // dockerd takes its options by their exact names, though Go would not.
        if let Some(other) = self.members.iter().find(|member| member.is(RUNTIMES) && member.key != RUNTIMES) {
            return Err(Fault::Refusal(format!(
                "it has {:?}, which dockerd does not know: it must be {RUNTIMES:?}",
                other.key
            )));
        }
        let Some(place) = only(&self.members, RUNTIMES)? else { return Ok(None) };
        let object = self.members[place].value.clone();
        let members = json::members(self.text, &object).ok_or_else(|| {
            let found = beginning(&self.text[object.clone()]);
            Fault::Refusal(format!("{RUNTIMES:?} is {found}, where dockerd needs an object: correct it or remove it"))
        })?;
        only(&members, RUNTIME).map_err(|fault| fault.during(&format!("{RUNTIMES:?}")))?;
        Ok(Some(Runtimes { place, object, members }))
    }

    fn string(&self, name: &str) -> Option<String> {
        let found = self.members.iter().rev().find(|member| member.key == name)?;
        json::string(self.text, &found.value)
    }
}

impl Runtimes {
    /// Which of the runtimes is ours.
    fn ours(&self) -> Option<usize> {
        self.members.iter().position(|member| member.key == RUNTIME)
    }
}

/// Which member has a name that may stand once.
fn only(members: &[Member], name: &str) -> Result<Option<usize>, Fault> {
    let mut found = members.iter().enumerate().filter(|(_, member)| member.key == name).map(|(place, _)| place);
    let first = found.next();
    match found.next() {
        None => Ok(first),
        Some(_) => Err(Fault::Refusal(format!("it names {name:?} more than once: leave one of them"))),
    }
}

fn member(name: &str, value: &[u8]) -> Vec<u8> {
    [&json::quote(name), b": ".as_slice(), value].concat()
}

/// What stands between the last member and the comma or brace before it.
fn lead<'a>(text: &'a [u8], members: &[Member]) -> &'a [u8] {
    let Some(last) = members.last() else { return &[] };
    let blanks = text[..last.start].iter().rev().take_while(|byte| json::is_space(**byte)).count();
    &text[last.start - blanks..last.start]
}

/// The edit that puts a member at the end of an object, led in as the one before it.
fn append(text: &[u8], object: &Span, members: &[Member], new: &[u8]) -> Edit {
    match members.last() {
        None => (object.start + 1..object.start + 1, new.to_vec()),
        Some(last) => (last.value.end..last.value.end, [b",", lead(text, members), new].concat()),
    }
}

/// The edit that takes a member out with one of the commas beside it; what [`append`] put in goes to the byte.
fn remove(text: &[u8], object: &Span, members: &[Member], place: usize) -> Edit {
    let Member { start, value, .. } = &members[place];
    let span = match (place.checked_sub(1).and_then(|before| members.get(before)), members.get(place + 1)) {
        (Some(before), _) => before.value.end..value.end,
        (None, Some(after)) => *start..after.start,
        // Into an empty object it was put without blanks, and those behind it were there before.
        (None, None) if text.get(object.start + 1) == Some(&b'"') => *start..value.end,
        (None, None) => object.start + 1..object.end - 1,
    };
    (span, Vec::new())
}

/// The first of a value, for a message.
fn beginning(value: &[u8]) -> String {
    json::readable(value).chars().take(40).collect()
}

#[cfg(test)]
mod tests;
