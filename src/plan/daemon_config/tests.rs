use proptest::prelude::*;
use serde_json::json;

use super::*;

fn ours() -> OciRuntime {
    let args = ["--run-dir", "/run/calico", "--state-dir", "/var/lib/calico"];
    OciRuntime { path: "/usr/local/bin/calico-runtime".to_owned(), args: args.map(str::to_owned).to_vec() }
}

fn value_of(runtime: &OciRuntime) -> Value {
    json!({ "path": runtime.path, "runtimeArgs": runtime.args })
}

const ENTRY: &str = r#""calico": {"path": "/usr/local/bin/calico-runtime", "runtimeArgs": ["--run-dir", "/run/calico", "--state-dir", "/var/lib/calico"]}"#;

fn installed(text: &str) -> String {
    match install(text.as_bytes(), &ours()) {
        Ok(Installed::Changed { text, replaced: None }) => String::from_utf8(text).unwrap(),
        other => panic!("{text}: {other:?}"),
    }
}

/// What is left at the end of an uninstall.
fn uninstalled(text: &str) -> String {
    let removed = uninstall(text.as_bytes()).unwrap().unwrap();
    String::from_utf8(removed.bare.unwrap_or(removed.emptied)).unwrap()
}

#[test]
fn the_entry_comes_in_the_manner_of_what_is_there() {
    for (text, want) in [
        ("{}", "{\"runtimes\": { ENTRY }}"),
        ("{}\n", "{\"runtimes\": { ENTRY }}\n"),
        ("{ }", "{\"runtimes\": { ENTRY } }"),
        (r#"{"a":1}"#, r#"{"a":1,"runtimes": { ENTRY }}"#),
        (r#"{ "a": 1, "b": 2 }"#, r#"{ "a": 1, "b": 2, "runtimes": { ENTRY } }"#),
        ("{\n  \"a\": 1\n}\n", "{\n  \"a\": 1,\n  \"runtimes\": {\n    ENTRY\n  }\n}\n"),
        ("{\r\n\t\"a\": 1\r\n}", "{\r\n\t\"a\": 1,\r\n\t\"runtimes\": {\r\n\t\tENTRY\r\n\t}\r\n}"),
        ("{\"runtimes\": {}}", "{\"runtimes\": {ENTRY}}"),
        ("{\"runtimes\": { }}", "{\"runtimes\": {ENTRY }}"),
        (
            "{\n  \"runtimes\": {\n    \"x\": {\"path\": \"y\"}\n  },\n  \"z\": 1\n}",
            "{\n  \"runtimes\": {\n    \"x\": {\"path\": \"y\"},\n    ENTRY\n  },\n  \"z\": 1\n}",
        ),
    ] {
        let found = installed(text);
        assert_eq!(found, want.replace("ENTRY", ENTRY));
        assert_eq!(install(found.as_bytes(), &ours()), Ok(Installed::Already), "{text}");
        assert_eq!(uninstalled(&found), text);
    }
}

#[test]
fn a_file_with_nothing_in_it_is_as_good_as_none() {
    for text in ["", " \n\t"] {
        let found = installed(text);
        assert_eq!(found, format!("{{\n  \"runtimes\": {{\n    {ENTRY}\n  }}\n}}\n"));
        assert_eq!(install(found.as_bytes(), &ours()), Ok(Installed::Already));
        assert_eq!(uninstalled(&found), "{}\n");
        assert_eq!(uninstall(text.as_bytes()), Ok(None));
    }
}

#[test]
fn an_entry_that_says_something_else_is_replaced_and_told() {
    let old = r#"{"path": "/opt/old", "runtimeArgs": []}"#;
    let text = format!(r#"{{"runtimes":{{"x":{{}} , "calico" : {old} ,"y":{{}}}},"a":1}}"#);
    let Ok(Installed::Changed { text, replaced }) = install(text.as_bytes(), &ours()) else { panic!() };
    assert_eq!(replaced.as_deref(), Some(old));
    let ours = ENTRY.strip_prefix("\"calico\": ").unwrap();
    assert_eq!(
        String::from_utf8(text).unwrap(),
        format!(r#"{{"runtimes":{{"x":{{}} , "calico" : {ours} ,"y":{{}}}},"a":1}}"#)
    );
}

#[test]
fn the_same_entry_in_another_spelling_is_left_alone() {
    let text = serde_json::to_string_pretty(&json!({ "runtimes": { "calico": value_of(&ours()) } })).unwrap();
    assert_eq!(install(text.as_bytes(), &ours()), Ok(Installed::Already));
}

#[test]
fn an_entry_is_taken_out_with_one_comma_wherever_it_stands() {
    for (text, want) in [
        (r#"{"runtimes": {"calico": {}, "x": 1}}"#, r#"{"runtimes": {"x": 1}}"#),
        (r#"{"runtimes": {"x": 1, "calico": {}, "y": 2}}"#, r#"{"runtimes": {"x": 1, "y": 2}}"#),
        (r#"{"runtimes": {"x": 1, "calico": {}}}"#, r#"{"runtimes": {"x": 1}}"#),
        (r#"{"runtimes": {"calico": {}}, "a": 1}"#, r#"{"runtimes": {}, "a": 1}"#),
        (r#"{"runtimes": { "calico": {} }, "a": 1}"#, r#"{"a": 1}"#),
        ("{\n  \"runtimes\": {\n    \"calico\": {}\n  },\n  \"a\": 1\n}", "{\n  \"a\": 1\n}"),
    ] {
        assert_eq!(uninstalled(text), want);
    }
    for text in ["{}", r#"{"runtimes": {}}"#, r#"{"runtimes": {"x": 1}}"#, r#"{"calico": {}}"#] {
        assert_eq!(uninstall(text.as_bytes()), Ok(None), "{text}");
    }
}

#[test]
fn the_file_that_dockerd_reads_first_names_runtimes_though_there_are_none() {
    let removed = uninstall(installed(r#"{"a":1}"#).as_bytes()).unwrap().unwrap();
    let emptied: Value = serde_json::from_slice(&removed.emptied).unwrap();
    assert_eq!(emptied, json!({ "a": 1, "runtimes": {} }));
    assert_eq!(removed.bare.as_deref(), Some(br#"{"a":1}"#.as_slice()));
}

#[test]
fn what_dockerd_does_not_read_in_one_way_is_refused_with_the_reason() {
    for (text, reason) in [
        ("{", "no JSON"),
        ("{'a': 1}", "no JSON"),
        ("// a comment\n{}", "no JSON"),
        ("[]", "it holds []"),
        ("null", "it holds null"),
        (r#"{"runtimes": null}"#, "is null"),
        (r#"{"runtimes": ["calico"]}"#, r#"is ["calico"]"#),
        (r#"{"runtimes": {}, "runtimes": {}}"#, "more than once"),
        (r#"{"runtimes": {"calico": {}, "\u0063alico": {}}}"#, "more than once"),
        (r#"{"Runtimes": {}}"#, r#"it must be "runtimes""#),
    ] {
        for result in [install(text.as_bytes(), &ours()).err(), uninstall(text.as_bytes()).err()] {
            let Some(Fault::Refusal(said)) = result else { panic!("{text} passed: {result:?}") };
            assert!(said.contains(reason), "{text}: {said}");
        }
    }
}

#[test]
fn dockerd_is_not_left_without_its_default_runtime() {
    let text = r#"{"default-runtime": "calico", "runtimes": {"calico": {"path": "/x"}}}"#;
    let Err(Fault::Refusal(said)) = uninstall(text.as_bytes()) else { panic!() };
    assert!(said.contains("default-runtime"), "{said}");
}

#[test]
fn the_pid_file_is_the_one_that_the_file_names() {
    assert_eq!(pidfile(br#"{"pidfile": "/run/d.pid"}"#).as_deref(), Some("/run/d.pid"));
    for text in ["", "{", "{}", r#"{"pidfile": 1}"#] {
        assert_eq!(pidfile(text.as_bytes()), None, "{text}");
    }
}

/// Text of a file as an operator may have it: members of any names but ours, in any layout, with runtimes or without.
fn file() -> impl Strategy<Value = String> {
    let blank = || "[ \n\t]{0,3}";
    let value = prop_oneof![
        Just("1.50".to_owned()),
        Just("null".to_owned()),
        Just(r#"["\u0041", { }]"#.to_owned()),
        Just(r#"{"calico":{"runtimes":{}}}"#.to_owned()),
    ];
    let members = |value: BoxedStrategy<String>| {
        let member = ("[a-f\u{e9}]{1,3}", blank(), blank(), blank(), value);
        proptest::collection::vec(member, 0..4)
    };
    let object = |parts: Vec<(String, String, String, String, String)>, end: String| {
        let members: Vec<String> = parts
            .into_iter()
            .map(|(key, before, between, after, value)| format!("{before}\"{key}\":{between}{value}{after}"))
            .collect();
        format!("{{{}{end}}}", members.join(","))
    };
    let runtimes = (members(value.clone().boxed()), blank()).prop_map(move |(parts, end)| object(parts, end));
    let runtimes = proptest::option::of((0..4_usize, blank(), runtimes));
    (members(value.boxed()), runtimes, blank(), blank(), blank()).prop_map(
        move |(mut parts, runtimes, start, end, tail)| {
            if let Some((place, before, text)) = runtimes {
                let member = ("runtimes".to_owned(), before, String::new(), String::new(), text);
                parts.insert(place.min(parts.len()), member);
            }
            format!("{start}{}{tail}", object(parts, end))
        },
    )
}

/// A runtime of any path and arguments.
fn runtimes() -> impl Strategy<Value = OciRuntime> {
    (".{0,12}", proptest::collection::vec(".{0,6}", 0..4)).prop_map(|(path, args)| OciRuntime { path, args })
}

proptest! {
    #[test]
    fn installing_changes_the_meaning_by_the_entry_and_uninstalling_gives_the_bytes_back(text in file(), entry in runtimes()) {
        let Installed::Changed { text: found, replaced } = install(text.as_bytes(), &entry).unwrap() else { panic!() };
        prop_assert_eq!(replaced, None);
        // Nothing of the file is lost: it is what comes before the entry, and what comes after it.
        let same = text.bytes().zip(&found).take_while(|(a, b)| a == *b).count();
        prop_assert!(found.ends_with(&text.as_bytes()[same..]));
        let mut want: Value = serde_json::from_str(&text).unwrap();
        want["runtimes"]["calico"] = value_of(&entry);
        prop_assert_eq!(&serde_json::from_slice::<Value>(&found).unwrap(), &want);

        prop_assert_eq!(install(&found, &entry).unwrap(), Installed::Already);

        let removed = uninstall(&found).unwrap().unwrap();
        want["runtimes"].as_object_mut().unwrap().shift_remove("calico");
        prop_assert_eq!(serde_json::from_slice::<Value>(&removed.emptied).unwrap(), want);
        prop_assert_eq!(String::from_utf8(removed.bare.unwrap_or(removed.emptied)).unwrap(), text);
    }

    #[test]
    fn another_entry_takes_the_place_of_the_first(text in file(), first in runtimes(), second in runtimes()) {
        let Installed::Changed { text: one, .. } = install(text.as_bytes(), &first).unwrap() else { panic!() };
        let Installed::Changed { text: direct, .. } = install(text.as_bytes(), &second).unwrap() else { panic!() };
        match install(&one, &second).unwrap() {
            Installed::Already => prop_assert_eq!(first, second),
            Installed::Changed { text, replaced } => {
                prop_assert!(replaced.is_some());
                prop_assert_eq!(text, direct);
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in r#"[\[\]{}",: \n]{0,8}("runtimes":)?[{]?("calico":)?[\[\]{}",:0-9 \n]{0,16}"#) {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            let _ = (install(bytes, &ours()), uninstall(bytes), pidfile(bytes));
        }
    }
}
