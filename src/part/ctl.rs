//! `calicoctl`: commands that change or show the datastore, or ask the node of this host.
//!
//! A command is read in two steps: [`words`] takes out the name that stands before a verb, clap reads the rest into
//! typed values. It then runs against its [`Place`], which is handed in, and gives back an [`Answer`] or a
//! [`Failure`]; only [`calicoctl_main`] prints, and only [`Failure::exit_code`] decides on an exit code. What a command
//! changes it decides in a pure function from the snapshot to an [`Edit`](datastore::Edit).

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::model::fault::Fault;

mod container;
mod datastore;
mod endpoint;
mod node;
mod place;
mod pool;
mod profile;
mod roll_call;
mod status;
mod table;
mod words;

use place::Place;

const ENVIRONMENT: &str = "\
Exit codes: 0 done; 1 not done, wrong usage included; 2 the command must be run as root;
3 done, but with --wait not on every host yet.

Environment:
  ETCD_ENDPOINTS     where etcd is: http://HOST:PORT, several separated by commas
  ETCD_AUTHORITY     the same as HOST:PORT, with ETCD_SCHEME (http or https); if neither is set, the
                     etcd of the node on this host, else http://127.0.0.1:2379
  ETCD_CA_CERT_FILE, ETCD_CERT_FILE, ETCD_KEY_FILE
                     for https: the authority that signed etcd's certificate, and a client certificate
  CALICO_RUN_DIR     the run folder of the node on this host (default /run/calico)
  HOSTNAME           this host's name in the datastore (default: the machine's, up to the first dot)";

/// Addresses and policy of containers: show and change them.
#[derive(Debug, Parser)]
#[command(name = "calicoctl", version, after_help = ENVIRONMENT)]
struct Cli {
    /// How to print the answer
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// When it is done, wait for so many seconds, or 10, until all hosts have taken it in
    #[arg(long, global = true, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "10", value_parser = roll_call::patience)]
    wait: Option<Duration>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// Text and tables, for people
    Table,
    /// One JSON value, for programs
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give containers addresses and profiles
    #[command(subcommand, override_usage = container::USAGE)]
    Container(container::Container),
    /// Make profiles and write their rules
    #[command(subcommand, override_usage = profile::USAGE)]
    Profile(profile::Profile),
    /// Show the endpoints of all hosts
    #[command(subcommand)]
    Endpoint(endpoint::Endpoint),
    /// Say which address ranges containers are given addresses from
    #[command(subcommand)]
    Pool(pool::Pool),
    /// List the nodes, and take out a host that is no more
    #[command(subcommand)]
    Node(node::Node),
    /// Show how the node of this host is
    Status,
    /// Print the version
    Version,
}

/// What a command has to say.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    /// For people, without a line end; empty where success needs no word.
    text: String,
    /// For programs.
    json: Value,
}

impl Answer {
    /// One message.
    fn said(text: String) -> Self {
        let json = json!({ "message": text });
        Answer { text, json }
    }
}

/// Why a command was not done.
#[derive(Debug)]
enum Failure {
    /// The words make no command; or they ask for help, which clap hands over the same way.
    Usage(Box<clap::Error>),
    NotRoot,
    /// It is done, and waited for; where it does not hold yet, and why.
    NotEverywhere(String),
    Fault(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Fault(fault)
    }
}

impl Failure {
    /// The words that make no command of a family, where clap has no objection of its own.
    fn usage(family: &str, text: &str) -> Failure {
        let mut cli = Cli::command();
        cli.build();
        let command = match cli.find_subcommand_mut(family) {
            Some(command) => command,
            None => &mut cli,
        };
        Failure::Usage(Box::new(command.error(clap::error::ErrorKind::MissingRequiredArgument, text)))
    }

    fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(error) => match error.kind() {
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => 0,
                _ => 1,
            },
            Failure::NotRoot => 2,
            Failure::NotEverywhere(_) => 3,
            Failure::Fault(_) => 1,
        }
    }
}

/// Runs the command line of this process: the whole of the binary `calicoctl`.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the environment enters calicoctl here and nowhere else")]
pub fn calicoctl_main() -> ExitCode {
    let machine = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
    let place = Place {
        var: &|name| std::env::var(name).ok(),
        read: &|path| std::fs::read_to_string(path),
        // A machine without a readable name has none: the command that needs it says so.
        machine: machine.unwrap_or_default(),
        root: nix::unistd::geteuid().is_root(),
    };
    let line = words::split(std::env::args_os().collect());
    match run(line, &place) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Reads the words, does what they say, prints the answer, and waits if they say so.
fn run(line: words::Line, place: &Place<'_>) -> Result<(), Failure> {
    let cli = Cli::try_parse_from(line.arguments).map_err(|error| Failure::Usage(Box::new(error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::World(format!("start the runtime: {error}")))?;
    let objects = roll_call::objects(&cli.command, line.subject.as_deref());
    let answer = runtime.block_on(dispatch(cli.command, line.subject, place))?;
    print(&match cli.output {
        Output::Table if answer.text.is_empty() => String::new(),
        Output::Table => format!("{}\n", answer.text),
        Output::Json => format!("{:#}\n", answer.json),
    })?;
    cli.wait.map_or(Ok(()), |patience| runtime.block_on(roll_call::everywhere(objects, patience, place)))
}

async fn dispatch(command: Command, subject: Option<String>, place: &Place<'_>) -> Result<Answer, Failure> {
    match command {
        Command::Container(command) => container::run(command, subject, place).await,
        Command::Profile(command) => profile::run(command, subject, place).await,
        Command::Endpoint(command) => endpoint::run(command, place).await,
        Command::Pool(command) => pool::run(command, place).await,
        Command::Node(command) => node::run(command, place).await,
        Command::Status => status::run(place).await,
        Command::Version => {
            let version = env!("CARGO_PKG_VERSION");
            Ok(Answer { text: version.to_owned(), json: json!({ "version": version }) })
        }
    }
}

/// Prints an answer.
fn print(text: &str) -> Result<(), Fault> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `calicoctl … | head` has read what it wanted.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Fault::World(format!("print the answer: {error}"))),
        _ => Ok(()),
    }
}

/// Tells people something of several lines, of which nothing but line ends goes to their terminal as it is.
fn say(text: &str) -> std::io::Result<()> {
    let lines: Vec<String> = text.lines().map(table::printable).collect();
    writeln!(std::io::stderr(), "{}", lines.join("\n"))
}

/// Tells people why. A failure to do even that has nobody left to be told.
fn report(failure: &Failure) {
    let _ = match failure {
        Failure::Usage(error) => error.print(),
        Failure::NotRoot => writeln!(std::io::stderr(), "This command must be run as root."),
        Failure::NotEverywhere(text) => say(text),
        Failure::Fault(fault) => say(&fault.to_string()),
    };
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parse(text: &str) -> (Result<Cli, clap::Error>, Option<String>) {
        let words = std::iter::once("calicoctl").chain(text.split_whitespace()).map(OsString::from);
        let line = words::split(words.collect());
        (Cli::try_parse_from(line.arguments), line.subject)
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_of_the_original_is_read() {
        for text in [
            "container add web 192.168.1.1",
            "container add web 192.168.0.0/16 --interface=eth2",
            "container add web ipv4",
            "container remove web",
            "container web profile append a b",
            "container web profile remove a",
            "container web profile set",
            "container web endpoint show",
            "profile add p",
            "profile remove p --no-check",
            "profile show --detailed",
            "profile p rule show",
            "profile p rule json",
            "profile p rule update",
            "profile p tag show",
            "endpoint show --host=h --orchestrator=docker --workload=w --endpoint=e --detailed",
            "pool add 10.0.0.0/8 10.1.2.3 fd00::/8 --nat-outgoing",
            "pool remove 10.0.0.0/8 --force",
            "pool show --ipv4",
            "pool show --ipv6 --output json",
            "status -o json",
            "version",
            "profile p rule update --wait",
            "profile --wait=3 p rule update",
            "container web profile set a --wait=0",
        ] {
            let (cli, _) = parse(text);
            assert!(cli.is_ok(), "{text}: {}", cli.unwrap_err());
        }
    }

    #[test]
    fn wrong_usage_exits_1_and_help_0() {
        for (text, code) in [
            ("", 1),
            ("bogus", 1),
            ("container", 1),
            ("container web", 1),
            ("container add web", 1),
            ("container add web 1.2.3", 1),
            ("container add web auto --interface=0123456789abcdef", 1),
            ("profile add a/b", 1),
            ("pool add 127.a.0.1", 1),
            ("pool add", 1),
            ("profile add p --wait=3s", 1),
            ("profile add p --wait=-1", 1),
            ("pool show --ipv4 --ipv6", 1),
            ("--help", 0),
            ("container --help", 0),
            ("container web profile append --help", 0),
            ("--version", 0),
        ] {
            let (cli, _) = parse(text);
            assert_eq!(Failure::Usage(Box::new(cli.unwrap_err())).exit_code(), code, "{text}");
        }
    }

    #[test]
    fn only_a_missing_root_exits_2_and_only_a_host_that_is_behind_3() {
        assert_eq!(Failure::NotRoot.exit_code(), 2);
        assert_eq!(Failure::NotEverywhere(String::new()).exit_code(), 3);
        for fault in [Fault::Refusal, Fault::Conflict, Fault::Away, Fault::DockerAway, Fault::World] {
            assert_eq!(Failure::Fault(fault(String::new())).exit_code(), 1);
        }
    }
}
