//! The grammar that clap cannot say: the name of an object before the verb, `container web profile append …`.
//!
//! The name is taken out of the arguments first, so that clap sees `container profile append …`, and is handed over
//! beside them. The alternative, an external subcommand that is parsed by hand, would lose clap's help and messages for
//! all that follows the name.

use std::ffi::OsString;

/// The words that may follow a name, for each family of commands whose objects have names.
const FAMILIES: [(&str, &[&str]); 2] = [("container", &["profile", "endpoint"]), ("profile", &["rule", "tag"])];

/// The words that stand directly after a family. An object that is called like one of them stands after `--`.
const VERBS: [&str; 4] = ["add", "remove", "show", "help"];

/// What the user typed, with the object's name apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// For clap: the program's name first.
    pub(crate) arguments: Vec<OsString>,
    pub(crate) subject: Option<String>,
}

/// The next word from `from` on: options are passed over, with the value of the one that takes it apart.
fn next_word(words: &[&str], from: usize) -> Option<usize> {
    let mut index = from;
    loop {
        match *words.get(index)? {
            "--output" | "-o" => index += 2,
            "--" => return None,
            option if option.starts_with('-') => index += 1,
            _ => return Some(index),
        }
    }
}

/// Takes the name out where the words say `<family> <name> <what follows a name>`; anything else stays as it is, for
/// clap to judge.
pub(crate) fn split(arguments: Vec<OsString>) -> Line {
    let taken = {
        let texts: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
        let words: Vec<&str> = texts.iter().map(String::as_str).collect();
        find_subject(&words)
    };
    let Some((subject, escaped)) = taken else { return Line { arguments, subject: None } };
    let name = arguments[subject].to_string_lossy().into_owned();
    let dropped = |index: usize| index == subject || (escaped && index + 1 == subject);
    let arguments = arguments.into_iter().enumerate().filter(|(index, _)| !dropped(*index));
    Line { arguments: arguments.map(|(_, word)| word).collect(), subject: Some(name) }
}

/// Where the name stands, and whether a `--` stands before it.
fn find_subject(words: &[&str]) -> Option<(usize, bool)> {
    let family = next_word(words, 1)?;
    let (_, followers) = FAMILIES.iter().find(|(name, _)| *name == words[family])?;
    let escaped = words.get(family + 1) == Some(&"--");
    let subject =
        if escaped { Some(family + 2).filter(|at| *at < words.len())? } else { next_word(words, family + 1)? };
    let follower = next_word(words, subject + 1)?;
    let named = escaped || !VERBS.contains(&words[subject]);
    (named && followers.contains(&words[follower])).then_some((subject, escaped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> (String, Option<String>) {
        let line = split(std::iter::once("calicoctl").chain(text.split_whitespace()).map(OsString::from).collect());
        let words: Vec<String> =
            line.arguments.iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        (words.join(" "), line.subject)
    }

    #[test]
    fn a_name_before_the_verb_is_taken_out() {
        for (typed, left, subject) in [
            ("container web profile append a b", "container profile append a b", "web"),
            ("container web endpoint show", "container endpoint show", "web"),
            ("profile p rule json", "profile rule json", "p"),
            ("profile p tag show", "profile tag show", "p"),
            ("-o json container web endpoint show", "-o json container endpoint show", "web"),
            ("container --output json web endpoint show", "container --output json endpoint show", "web"),
            ("container web -ojson endpoint show", "container -ojson endpoint show", "web"),
            // An object that is called like what follows it.
            ("container profile profile set", "container profile set", "profile"),
            ("profile rule rule show", "profile rule show", "rule"),
            // An object that is called like a verb.
            ("container -- add profile set x", "container profile set x", "add"),
            ("profile -- -x rule show", "profile rule show", "-x"),
        ] {
            assert_eq!(line(typed), (left.to_owned(), Some(subject.to_owned())), "{typed}");
        }
    }

    #[test]
    fn what_names_no_object_before_its_verb_stays() {
        for typed in [
            "",
            "version",
            "container",
            "container web",
            "container --",
            "container add profile 192.168.1.1",
            "container add web auto",
            "container profile append web",
            "container help profile",
            "container ad web 1.2.3.4",
            "profile add rule",
            "profile show --detailed",
            "pool add profile rule",
            "endpoint show",
            "-o",
        ] {
            assert_eq!(line(typed), (typed.to_owned(), None), "{typed}");
        }
    }
}
