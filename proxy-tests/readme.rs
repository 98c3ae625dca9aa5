//! The README speaks to users, so what it tells them to type is typed here.

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
