//! What the README and the documents tell users to type is typed here, and must print what they say.

use crate::lab::Lab;

/// The commands of a section: its indented lines, without those that only set the shell up.
fn commands(readme: &str, from: &str, to: &str) -> String {
    let section = readme.split_once(from).and_then(|(_, rest)| rest.split_once(to)).expect("the section is there").0;
    let lines =
        section.lines().filter_map(|line| line.strip_prefix("    ")).filter(|line| !line.starts_with("export "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let script = commands(include_str!("../README.md"), "## By hand", "### Several hosts");
    for word in
        ["docker run", "docker exec", "docker inspect", "profile append", "rule update", "pool add", "calicoctl status"]
    {
        assert!(script.contains(word), "{word} is not in the README any more: {script}");
    }
    let scratch = h1.scratch();
    let out = h1.user_shell(&format!("set -ex; cd {}; {script}", scratch.display())).ok();
    for shown in ["1 packets received", "192.168.", "is running on host h1: ready"] {
        assert!(out.contains(shown), "{shown} is not in {out}");
    }
    let lone = h1.container("lone");
    let web = h1.container("web1");
    web.comes_to_reach(lone.ip());
    lab.assert_consistent();
    lab.remove_everything();
}

/// A command of `docs/calicoctl.md` and what it prints there.
fn documented() -> Vec<(String, String)> {
    let mut examples: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in include_str!("../docs/calicoctl.md").lines() {
        let Some(line) = line.strip_prefix("    ") else {
            // A blank line belongs to what is printed, if more of it follows.
            open = open && line.is_empty();
            continue;
        };
        if let Some(command) = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ ")) {
            examples.push((command.to_owned(), String::new()));
            open = true;
        } else if open && let Some((_, printed)) = examples.last_mut() {
            printed.push_str(line.trim_end());
            printed.push('\n');
        }
    }
    examples
}

/// What must be so before an example, as commands that need not succeed.
fn before(command: &str) -> &'static str {
    let rules =
        r#"echo '{"inbound_rules":[{"src_tag":"web"},{"protocol":"tcp","dst_ports":[80,443]}],"outbound_rules":[{}]}'"#;
    match command {
        "calicoctl container workload_A profile set PROF_A_B" => {
            "calicoctl container add workload_A 192.168.1.1; for p in PROF_A_B web db; do calicoctl profile add $p; done"
        }
        "calicoctl profile add PROF_A_B" => "calicoctl profile remove PROF_A_B; calicoctl profile remove db",
        "calicoctl node remove --hostname=h9 --remove-endpoints" => {
            "ETCDCTL_API=3 etcdctl --endpoints $ETCD_ENDPOINTS put /calico/v1/host/h9/bird_ip 172.25.0.9"
        }
        "calicoctl profile show" => "calicoctl profile add PROF_A_B",
        "calicoctl profile web rule show" => {
            Box::leak(format!("{rules} | calicoctl profile web rule update").into_boxed_str())
        }
        _ => "true",
    }
}

#[test]
fn the_documented_commands_of_calicoctl_print_what_is_documented() {
    let lab = Lab::running(1);
    let h1 = lab.host(1);
    let scratch = h1.scratch();
    let examples = documented();
    assert!(examples.len() > 20, "{} examples were found", examples.len());
    for (command, printed) in examples {
        let typed = command.replace("-tid ubuntu", "-tid busybox");
        let script = format!("cd {}; {{ {}; }} >/dev/null 2>&1; {typed}", scratch.display(), before(&command));
        let out = h1.user_shell(&script).ok();
        // Ids, MACs, times and this machine's sockets are nobody's to foretell.
        let fixed = !["status", "endpoint show", "node show", "--output json", "docker run"]
            .iter()
            .any(|word| command.contains(word));
        if fixed || command == "calicoctl endpoint show" {
            assert_eq!(out.trim_end(), printed.trim_end(), "{command}");
        } else {
            assert!(!out.is_empty(), "{command} prints nothing");
        }
    }
    h1.calicoctl("container remove workload_A").ok();
    lab.remove_everything();
}

/// The image could not be built: a program that it takes was kept from dockerd.
#[test]
fn dockerd_gets_all_that_the_image_is_made_of() {
    let lab = Lab::hosts(1);
    let h1 = lab.host(1);
    let copies: Vec<&str> = include_str!("../Dockerfile").lines().filter(|line| line.starts_with("COPY ")).collect();
    let sources = copies.iter().flat_map(|line| line.split(' ').skip(1)).filter(|word| !word.starts_with('/'));
    let sources: Vec<&str> = sources.collect();
    assert!(sources.contains(&"target/release/calico-runtime") && sources.contains(&"compose/host.sh"), "{sources:?}");
    // Stand-ins: what the programs do is shown elsewhere.
    let context = h1.scratch().join("context");
    for source in &sources {
        let path = context.join(source);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    std::fs::write(context.join("secret"), "").unwrap();
    std::fs::write(context.join(".dockerignore"), include_str!("../.dockerignore")).unwrap();
    std::fs::write(context.join("Dockerfile"), format!("FROM scratch\n{}\n", copies.join("\n"))).unwrap();
    h1.raw_docker(&format!("build -t image {}", context.display())).ok();
    std::fs::write(context.join("Dockerfile"), "FROM scratch\nCOPY secret /\n").unwrap();
    let refused = h1.raw_docker(&format!("build {}", context.display())).fails_with(1);
    assert!(refused.contains("secret"), "{refused}");
}
