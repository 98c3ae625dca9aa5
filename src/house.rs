//! Tests of the house itself: the floors of the crate documentation, read off the source.

use std::path::{Path, PathBuf};

/// A module's floor. `config` is read by `log` and `run` only, so it may look down everywhere.
fn floor(module: &str) -> usize {
    match module {
        "model" => 0,
        "plan" => 1,
        "edge" => 2,
        "part" => 3,
        "config" | "log" | "run" => 4,
        other => panic!("module {other} has no floor: give it one in the crate documentation and here"),
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file of a floor with its module's name and its text without tests.
fn files() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let mut files = Vec::new();
    for path in found {
        let inner = path.strip_prefix(&root).unwrap().to_owned();
        let first = inner.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let module = first.trim_end_matches(".rs").to_owned();
        if matches!(module.as_str(), "lib" | "bin" | "house" | "reference")
            || ["tests.rs", "golden.rs", "testnet.rs"].iter().any(|name| inner.ends_with(name))
        {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
        files.push((module, inner, code));
    }
    assert!(files.len() > 40, "only {} files were read", files.len());
    files
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"))
}

#[test]
fn no_module_uses_a_higher_floor() {
    for (module, path, text) in files() {
        for line in code_lines(&text) {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                if matches!(used.as_str(), "model" | "plan" | "edge" | "part" | "config" | "log" | "run") {
                    assert!(floor(&used) <= floor(&module), "{}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn words_and_decisions_touch_no_world() {
    let worldly = [
        "tokio",
        "std::fs",
        "std::env",
        "std::net::Tcp",
        "std::os",
        "SystemTime",
        "Instant::now",
        "std::process::",
        "nix::",
    ];
    for (module, path, text) in files() {
        if matches!(module.as_str(), "model" | "plan") {
            for line in code_lines(&text) {
                let found = worldly.iter().find(|word| line.contains(**word));
                assert!(found.is_none(), "{} names {found:?}: {line}", path.display());
            }
        }
    }
}

#[test]
fn children_are_started_in_one_file_only() {
    for (_, path, text) in files() {
        let starts = code_lines(&text).any(|line| line.contains("Command::new"));
        assert!(!starts || path == Path::new("edge/exec.rs"), "{}", path.display());
    }
}

#[test]
fn the_tests_that_the_table_of_transparency_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "proxy-tests"] {
        sources(&root.join(folder), &mut found);
    }
    let code: String = found.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let table = std::fs::read_to_string(root.join("docs/transparency.md")).unwrap();
    let named: Vec<&str> = table.split('`').filter_map(|word| word.rsplit_once("::")?.1.strip_suffix('…')).collect();
    assert!(named.len() > 40, "only {} are named", named.len());
    let absent: Vec<&&str> = named.iter().filter(|name| !code.contains(&format!("fn {name}"))).collect();
    assert!(absent.is_empty(), "{absent:?}");
}
