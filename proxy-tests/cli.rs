//! The matrix of the command line: what `docker` prints on both streams and how it ends, straight at dockerd and through
//! the node.
//!
//! Three hosts have the same history: on one the commands go straight to dockerd, on the others through the node's unix
//! socket and through port 2377, all at the same time. So everything is compared, names, addresses and sizes included,
//! but for ids, times, process ids and the lab's folders.
//!
//! A command of the matrix is a line of `cli/*.txt`. `< TEXT |` before it is what it reads, `tty |` gives it a terminal,
//! `@NAME |` makes a file of the host's scratch folder its input, `sh |` has a shell run the rest, in which `docker` goes the
//! way that is tried and `$S` is the scratch folder. `unix |`: not over TCP. `~ |`: its lines have no order. Lines that begin with `-` only have to
//! succeed.

use std::fmt::Write;
use std::path::Path;

use crate::differ::normal::{digest, normalised};
use crate::differ::wire::first_difference;
use crate::lab::Lab;
use crate::lab::command::{Ran, Run};
use crate::lab::host::{Host, words};

type Way = fn(&Host, &[&str]) -> Run;

const WAYS: [(&str, Way); 3] = [
    ("dockerd", |host, args| host.raw_docker_run(args)),
    ("the node's socket", |host, args| host.docker_run(args)),
    ("port 2377", |host, args| host.docker_over_tcp(args)),
];

/// The command of a line.
fn command(host: &Host, way: Way, line: &str) -> Run {
    if let Some(rest) = line.strip_prefix("unix | ") {
        let is_raw = std::ptr::fn_addr_eq(way, WAYS[0].1);
        return command(host, if is_raw { way } else { WAYS[1].1 }, rest);
    }
    if let Some(rest) = line.strip_prefix("tty | ") {
        return Run::new("script").args(["-qec", &command(host, way, rest).line(), "/dev/null"]);
    }
    let scratch = host.scratch().display().to_string();
    if let Some(script) = line.strip_prefix("sh | ") {
        let docker = way(host, &[]).line();
        let script = format!("S={scratch}; docker() {{ {docker} \"$@\"; }}\n{script}");
        return host.command("bash").args(["-c", &script]);
    }
    if let Some((name, rest)) = line.strip_prefix('@').and_then(|rest| rest.split_once(" | ")) {
        return command(host, way, rest).input(std::fs::read(Path::new(&scratch).join(name)).unwrap());
    }
    if let Some((input, rest)) = line.strip_prefix("< ").and_then(|rest| rest.split_once(" | ")) {
        return command(host, way, rest).input(input.replace("\\n", "\n"));
    }
    let line = line.replace("$S", &scratch);
    way(host, &words(&line))
}

/// What must be the same each way.
fn compared(host: &Host, ran: &Ran, sorts: bool) -> String {
    let text = |bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return format!("{} bytes, digest {:x}", bytes.len(), digest(bytes));
        };
        let folder = host.scratch().parent().unwrap().display().to_string();
        let text = text.replace(&folder, "<host>");
        // The docker client's own word on how far it had come when the answer was there.
        let unfinished = ["Can't add file", "Can't close tar writer"];
        let raced = |line: &&str| line.contains("closed pipe") && unfinished.iter().any(|word| line.contains(word));
        let mut lines: Vec<&str> = text.split('\n').filter(|line| !raced(line)).collect();
        if sorts {
            lines.sort_unstable();
        }
        // The width of a column is that of what is in it.
        let words = lines.into_iter().map(|line| line.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>());
        normalised(&words.map(|words| words.join(" ")).collect::<Vec<_>>().join("\n"))
    };
    format!("exit code {:?}\nstdout: {}\nstderr: {}", ran.code, text(&ran.stdout), text(&ran.stderr))
}

/// Plays the lines on each host its own way, and compares what was said.
#[track_caller]
fn compare(lab: &Lab, text: &str, at_least: usize) {
    // Beside a container of ours everything is looked at that is done with others.
    for host in lab.all_hosts() {
        host.docker("create --name ours -e CALICO_IP=auto busybox sleep 1000").ok();
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let said: Vec<Vec<(String, String)>> = std::thread::scope(|scope| {
        let players: Vec<_> = WAYS
            .iter()
            .zip(lab.all_hosts())
            .map(|((_, way), host)| {
                let lines = &lines;
                scope.spawn(move || {
                    let play = |line: &&str| {
                        if let Some(line) = line.strip_prefix("- ") {
                            command(host, *way, line).run().ok();
                            return (String::new(), String::new());
                        }
                        let (sorts, line) = line.strip_prefix("~ | ").map_or((false, *line), |line| (true, line));
                        let ran = command(host, *way, line).run();
                        (compared(host, &ran, sorts), ran.to_string())
                    };
                    lines.iter().map(play).collect()
                })
            })
            .collect();
        players.into_iter().map(|player| player.join().unwrap()).collect()
    });
    let (mut differences, mut count) = (String::new(), 0);
    for (number, line) in lines.iter().enumerate() {
        let (raw, raw_whole) = &said[0][number];
        for ((name, _), player) in WAYS.iter().zip(&said).skip(1) {
            let (other, whole) = &player[number];
            if other != raw {
                count += 1;
                let difference = first_difference(raw, other);
                let cut = |text: &str| text.chars().take(3_000).collect::<String>();
                writeln!(
                    differences,
                    "==== {line}\n{difference}\n---- dockerd\n{}\n---- {name}\n{}",
                    cut(raw_whole),
                    cut(whole)
                )
                .unwrap();
            }
        }
    }
    assert!(count == 0, "{count} comparisons differ\n{differences}");
    let compared = lines.iter().filter(|line| !line.starts_with("- ")).count();
    assert!(compared >= at_least, "only {compared} commands were compared");
}

#[test]
fn containers_run_and_end_on_the_command_line_as_without_us() {
    let lab = Lab::bridged_hosts(3);
    lab.start_nodes();
    compare(&lab, include_str!("cli/run.txt"), 60);
    lab.assert_consistent();
}

#[test]
fn everything_else_on_the_command_line_is_as_without_us() {
    let lab = Lab::bridged_hosts(3);
    lab.start_nodes();
    compare(&lab, include_str!("cli/rest.txt"), 100);
    lab.assert_consistent();
}
