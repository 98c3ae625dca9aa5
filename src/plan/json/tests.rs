use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn whole(text: &str) -> Span {
    document(text.as_bytes()).unwrap()
}

#[test]
fn keys_match_as_go_matches_them() {
    for (key, field) in [
        ("HostConfig", "HostConfig"),
        ("hostconfig", "HostConfig"),
        ("HOSTCONFIG", "HostConfig"),
        ("ho\u{17f}tConfig", "HostConfig"),
        ("Networ\u{212a}Mode", "NetworkMode"),
    ] {
        assert!(is_same_key(key, field), "{key}");
    }
    for (key, field) in [("HostConfig ", "HostConfig"), ("Env\u{0}", "Env"), ("Énv", "Env"), ("", "Env")] {
        assert!(!is_same_key(key, field), "{key}");
    }
}

#[test]
fn members_are_found_with_decoded_keys() {
    let text = r#" { "a" : 1 , "\u0062\n" :[ ],"c":{"d":null}, "a":"x" } tail"#;
    let span = whole(text);
    let found = members(text.as_bytes(), &span).unwrap();
    let read: Vec<(&str, &str)> = found.iter().map(|m| (m.key.as_str(), &text[m.value.clone()])).collect();
    assert_eq!(read, [("a", "1"), ("b\n", "[ ]"), ("c", r#"{"d":null}"#), ("a", "\"x\"")]);
}

#[test]
fn strings_are_decoded_as_go_decodes_them() {
    for (text, want) in [
        (r#""a\"\\\/\b\f\n\r\t""#, "a\"\\/\u{8}\u{c}\n\r\t"),
        (r#""\u0043ALICO""#, "CALICO"),
        (r#""\ud83d\ude00""#, "😀"),
        (r#""\ud83dx""#, "\u{fffd}x"),
        (r#""\ude00""#, "\u{fffd}"),
        (r#""\ud83d\u0041""#, "\u{fffd}A"),
    ] {
        assert_eq!(string(text.as_bytes(), &whole(text)).unwrap(), want, "{text}");
    }
    assert_eq!(string(b"\"a\xff\"", &(0..4)).unwrap(), "a\u{fffd}");
    assert_eq!(document(b"\"a\xff\" x"), Some(0..4));
}

#[test]
fn what_go_does_not_read_is_no_document() {
    for bad in [
        "",
        " ",
        "{",
        "{]",
        "[1,]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{\"a\":1,}",
        "01x{",
        "-",
        "1.",
        "1e",
        ".5",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"a\nb\"",
        "nul",
        "tru",
        "'a'",
        "\"",
        "+1",
    ] {
        // A number may be followed by anything: the document ends before it.
        assert!(document(bad.as_bytes()).is_none() || bad == "01x{", "{bad:?}");
    }
    assert!(document("[".repeat(DEEPEST + 1).as_bytes()).is_none());
    let deep = format!("{}{}", "[".repeat(DEEPEST), "]".repeat(DEEPEST));
    assert_eq!(document(deep.as_bytes()), Some(0..deep.len()));
}

#[test]
fn a_member_is_replaced_or_put_at_the_end() {
    for (text, want) in [
        (r#"{"A":1,"B":2}"#, r#"{"A":1,"B":9}"#),
        (r#"{"A":1,"B":2,"b":3}"#, r#"{"A":1,"B":9,"b":3}"#),
        (r#"{ "A": 1 }"#, r#"{ "A": 1,"B":9 }"#),
        ("{ }", "{\"B\":9 }"),
        ("{}", "{\"B\":9}"),
    ] {
        let span = whole(text);
        let found = members(text.as_bytes(), &span).unwrap();
        let edit = set_member(text.as_bytes(), &span, &found, "B", b"9".to_vec());
        assert_eq!(String::from_utf8(splice(text.as_bytes(), vec![edit])).unwrap(), want);
    }
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 2.0)),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 48, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::vec((".{0,6}", inner), 0..6)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn every_document_is_read_whole(value in json(), pretty: bool) {
        let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
        prop_assert_eq!(document(text.as_bytes()), Some(0..text.len()));
        if let Value::Object(map) = &value {
            let found = members(text.as_bytes(), &(0..text.len())).unwrap();
            prop_assert_eq!(found.len(), map.len());
            for member in found {
                let part: Value = serde_json::from_str(&text[member.value]).unwrap();
                prop_assert_eq!(&part, &map[&member.key]);
            }
        }
    }

    #[test]
    fn an_edit_changes_only_the_edited_path(value in json(), key in "[a-c]{1,2}", pretty: bool) {
        let mut value = Value::Object([("x".to_owned(), value)].into_iter().collect());
        let text = if pretty { serde_json::to_string_pretty(&value).unwrap() } else { value.to_string() };
        let span = whole(&text);
        let found = members(text.as_bytes(), &span).unwrap();
        let edited = splice(text.as_bytes(), vec![set_member(text.as_bytes(), &span, &found, &key, b"7".to_vec())]);
        value[&key] = Value::from(7);
        prop_assert_eq!(serde_json::from_slice::<Value>(&edited).unwrap(), value);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in r#"[\[\]{}",:0-9eE.\\utrn \-]{0,48}"#) {
        for bytes in [bytes.as_slice(), text.as_bytes()] {
            if let Some(span) = document(bytes) {
                let _ = (members(bytes, &span), elements(bytes, &span), string(bytes, &span));
                // serde_json is stricter on invalid UTF-8 and lone surrogates only.
                if let Ok(text) = std::str::from_utf8(&bytes[span]) && !text.contains("\\u") && !text.contains(['e', 'E']) {
                    prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(), "{}", text);
                }
            }
        }
    }
}
