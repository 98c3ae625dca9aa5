//! The hand on iptables: `iptables-save` to see, one `iptables-restore --noflush` to change.
//!
//! The tool, not nftables' netlink, because dockerd and people use the same tool on the same tables and either back end
//! (nft or legacy) then is theirs and ours alike. `-w` waits for the lock that they share.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::try_join_all;

use super::exec::{run, run_long};
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::chain::CHAIN_PREFIX;
use crate::plan::desired::base_table;
use crate::plan::diff::{ChainStep, FILTER, RAW, SeenTable, TABLES, parse, render};
use crate::plan::raw::desired_raw;
use crate::plan::settings::Settings;

/// What is there of ours, by table: each of those that we use in a family.
pub(crate) type Seen = BTreeMap<&'static str, SeenTable>;

/// The steps of one apply, by table.
pub(crate) type Steps = BTreeMap<&'static str, Vec<ChainStep>>;

/// How long the tool waits for the lock that all users of legacy iptables share: seconds. Then it fails, and is tried again.
const LOCK_WAIT_S: &str = "10";

fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn tool(family: Family, verb: &str) -> String {
    format!("{}-{verb}", program(family))
}

async fn save(family: Family, table: &[&str]) -> Result<BTreeMap<String, SeenTable>, Fault> {
    let saved = run_long(&tool(family, "save"), table).await?;
    check_shown(family, &saved)?;
    Ok(parse(&saved))
}

/// Refuses what the tool has written of tables that it does not show: it takes that for no failure, and such a table looks
/// like one with nothing in it. Source: iptables 1.8.9, iptables/xtables-save.c, `__do_output`; and seen.
fn check_shown(family: Family, saved: &str) -> Result<(), Fault> {
    let hidden = |line: &str| {
        let name = line.strip_prefix("# Table `")?.strip_suffix("' is incompatible, use 'nft' tool.")?;
        TABLES.contains(&name).then(|| name.to_owned())
    };
    let Some(table) = saved.lines().find_map(hidden) else { return Ok(()) };
    let kind = if family == Family::V4 { "ip" } else { "ip6" };
    Err(Fault::World(format!(
        "{} does not show its table {table}, since something was put there that only nft can: see nft list table {kind} {table}; \
         such rules must be in a table of their own",
        tool(family, "save")
    )))
}

/// Drops what the host would forward and nobody has asked for, as dockerd does when it is the one that switches forwarding on
/// (moby libnetwork/drivers/bridge/setup_ip_forwarding.go).
pub(crate) async fn close_forward(family: Family) -> Result<(), Fault> {
    run(program(family), &["-w", LOCK_WAIT_S, "-P", "FORWARD", "DROP"], "").await.map(drop)
}

/// The chains, entries and jumps that are ours.
///
/// Asks for all tables at once, which is one process. Where the tool fails so, as on a table of somebody else's that it
/// cannot show, it asks table by table.
pub(crate) async fn observe(family: Family) -> Result<Seen, Fault> {
    let mut seen = match save(family, &[]).await {
        Ok(seen) => seen,
        Err(_) => try_join_all(TABLES.map(async |table| save(family, &["-t", table]).await))
            .await?
            .into_iter()
            .flatten()
            .collect(),
    };
    Ok(TABLES.into_iter().map(|table| (table, seen.remove(table).unwrap_or_default())).collect())
}

/// Carries out all steps, of each table in one transaction. Answers how many tables that were.
///
/// # Errors
/// A table whose steps hold one that fails is as it was. Observe again. `Away`: no step has failed, the tool has; fewer steps
/// would fare no better.
pub(crate) async fn apply(family: Family, steps: &Steps) -> Result<usize, Fault> {
    let texts: Vec<String> =
        steps.iter().filter(|(_, steps)| !steps.is_empty()).map(|(table, steps)| render(table, steps)).collect();
    if texts.is_empty() {
        return Ok(0);
    }
    let ran = run(&tool(family, "restore"), &["--noflush", "-w", LOCK_WAIT_S], &texts.concat()).await;
    ran.map(|_| texts.len()).map_err(|fault| if is_locked(&fault) { Fault::Away(fault.to_string()) } else { fault })
}

/// Whether the tool did not get the lock: the exit code of that is the one of other things too. Source: iptables,
/// iptables/xshared.c, `xtables_lock`.
fn is_locked(fault: &Fault) -> bool {
    fault.to_string().contains("Another app is currently holding the xtables lock")
}

/// Whether a chain of a real Calico stands here, with which this software would fight over the same packets.
pub(crate) async fn rival(family: Family) -> Result<Option<String>, Fault> {
    let saved = run(&tool(family, "save"), &["-t", FILTER], "").await?;
    check_shown(family, &saved)?;
    let chains = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    Ok(chains.into_iter().find(|chain| matches!(*chain, "cali-FORWARD" | "felix-FORWARD")).map(str::to_owned))
}

/// Why the firewall of a family is a mix: the kernel holds rules of the other back end than the one that `iptables` is, and
/// packets pass both. `None` if it is none, or if there is no tool to tell.
///
/// The other back end's tool is asked without a table's name: with one it would make the table.
pub(crate) async fn mix(family: Family) -> Result<Option<String>, Fault> {
    let program = program(family);
    let version = run(program, &["-V"], "").await?;
    let version = version.trim();
    let other = if version.contains("nf_tables") { "legacy" } else { "nft" };
    let Ok(saved) = run(&format!("{program}-{other}-save"), &[], "").await else { return Ok(None) };
    let rules = saved.lines().filter(|line| line.starts_with("-A ")).count();
    Ok((rules > 0).then(|| {
        format!(
            "{program} is {version}, and rules of {program}-{other} are in the kernel, which packets pass as well: {rules}; \
             remove them (see {program}-{other}-save), or make {program} the other one with update-alternatives --config {program}"
        )
    }))
}

/// What a rule may do that stands before a jump of ours: it lets no packet past. dockerd puts its first two chains on top of
/// whatever is there when it starts, and accepts nothing in them.
const LETS_NOTHING_PAST: [&str; 8] =
    ["DROP", "REJECT", "LOG", "NFLOG", "CT", "NOTRACK", "DOCKER-USER", "DOCKER-ISOLATION-STAGE-1"];

/// The rule, as the tool shows it, that stands before the first jump to a chain and may let packets past it; `Err`: there is
/// no such jump.
fn before_jump<'r>(rules: &'r str, chain: &str) -> Result<Option<&'r str>, ()> {
    let mut before = None;
    for rule in rules.lines().filter(|rule| rule.starts_with("-A ")) {
        let mut words = rule.split(' ').skip_while(|word| !matches!(*word, "-j" | "-g"));
        let Some(target) = words.nth(1) else { continue };
        if target == chain && words.next().is_none() {
            return Ok(before);
        }
        before = before.or_else(|| (!LETS_NOTHING_PAST.contains(&target)).then_some(rule));
    }
    Err(())
}

/// Checks that packets still come to our chains, and what is forwarded to them first: the policy in them is of use only then.
///
/// # Errors
/// `World`, naming the chain whose jump is not there, or the rule that stands before it.
pub(crate) async fn has_jumps(family: Family) -> Result<(), Fault> {
    let program = program(family);
    let (filter, raw) = (base_table(family, &Settings::default()), desired_raw(family, &BTreeSet::new()));
    for (table, kernel) in
        filter.jumps.keys().map(|kernel| (FILTER, kernel)).chain(raw.jumps.keys().map(|kernel| (RAW, kernel)))
    {
        let rules = run(program, &["-w", "-t", table, "-S", kernel], "").await?;
        let chain = format!("{CHAIN_PREFIX}{kernel}");
        let checked = format!("check chain {kernel} of {program}'s table {table}");
        match before_jump(&rules, &chain) {
            // What containers reach of their host is for the host's own rules too, of which tools put some on top all the time.
            Ok(Some(rule)) if *kernel == "FORWARD" => {
                return Err(Fault::World(format!(
                    "{checked}: {rule} stands before what leads to {chain}, and may let packets past policy"
                )));
            }
            Ok(_) => {}
            Err(()) => return Err(Fault::World(format!("{checked}: nothing in it leads to {chain}"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;

    use super::*;
    use crate::edge::testnet::{in_own_network, sh};

    /// A network that dockerd makes is accepted on top of all; a container that was started then, without a node, was open to it.
    #[test]
    fn a_rule_that_may_accept_before_our_jump_is_found_and_those_of_docker_that_accept_nothing_are_not() {
        let ours = "-A FORWARD -j calico-FORWARD";
        let found =
            |rules: &[&str]| before_jump(&rules.join("\n"), "calico-FORWARD").map(|rule| rule.map(str::to_owned));
        let accepts = "-A FORWARD -i br-x ! -o br-x -j ACCEPT";
        for (rules, wanted) in [
            (vec!["-P FORWARD DROP", ours, accepts], Ok(None)),
            (
                vec!["-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-ISOLATION-STAGE-1", "-A FORWARD -i x", ours],
                Ok(None),
            ),
            (vec!["-A FORWARD -i x -j REJECT --reject-with icmp-port-unreachable", ours], Ok(None)),
            (vec![accepts, ours], Ok(Some(accepts.to_owned()))),
            (vec!["-A FORWARD -j DOCKER-FORWARD", ours], Ok(Some("-A FORWARD -j DOCKER-FORWARD".to_owned()))),
            (vec!["-A FORWARD -g theirs", ours], Ok(Some("-A FORWARD -g theirs".to_owned()))),
            (vec!["-P FORWARD ACCEPT", accepts], Err(())),
        ] {
            assert_eq!(found(&rules), wanted, "{rules:?}");
        }
    }
    use crate::model::snapshot::News;
    use crate::plan::desired::Desired;
    use crate::plan::desired::tests::{datastore, host, read};
    use crate::plan::diff::{NAT, steps};

    /// It was taken for one with nothing in it: every look wrote all chains again, and one more jump each time.
    #[test]
    fn a_table_that_the_tool_does_not_show_is_not_taken_for_empty() {
        in_own_network(|| async {
            sh("iptables -N calico-x; iptables -A FORWARD -j calico-x").await;
            assert_eq!(observe(Family::V4).await.unwrap()[FILTER].chains.len(), 1);
            sh("nft add rule ip filter FORWARD ct state established accept").await;
            let told = observe(Family::V4).await.unwrap_err().to_string();
            assert!(told.contains("nft list table ip filter"), "{told}");
            assert!(rival(Family::V4).await.is_err());
            sh("nft flush chain ip filter FORWARD; iptables -A FORWARD -j calico-x").await;
            assert_eq!(observe(Family::V4).await.unwrap()[FILTER].jumps.len(), 1);
        });
    }

    #[test]
    fn a_lock_that_somebody_holds_is_told_from_steps_that_fail() {
        in_own_network(|| async {
            let folder = tempfile::tempdir().unwrap();
            let lock = folder.path().join("lock").display().to_string();
            let _held =
                nix::fcntl::Flock::lock(std::fs::File::create(&lock).unwrap(), nix::fcntl::FlockArg::LockExclusive)
                    .unwrap();
            let restore = async |tool: &str, text: &str| {
                let line = format!("XTABLES_LOCKFILE={lock} exec iptables-{tool}-restore --noflush -w 1");
                run("sh", &["-c", &line], text).await.unwrap_err()
            };
            let locked = restore("legacy", "*filter\n:mine - [0:0]\nCOMMIT\n").await;
            assert!(is_locked(&locked), "{locked}");
            let wrong = restore("nft", "*filter\n-A INPUT -j MASQUERADE\nCOMMIT\n").await;
            assert!(!is_locked(&wrong) && wrong.to_string().contains("INPUT"), "{wrong}");
        });
    }

    #[test]
    fn whatever_the_rules_are_the_tool_takes_them_and_shows_them_again() {
        in_own_network(|| async {
            let mut runner = TestRunner::deterministic();
            for family in Family::BOTH {
                let (prefix, inet) = if family == Family::V4 { (4, "inet") } else { (6, "inet6") };
                for tag in ["t-t0", "t-t1", "t-none", "pools", "masq"] {
                    sh(&format!("ipset create calico{prefix}-{tag} hash:net family {inet}")).await;
                }
                for _ in 0..40 {
                    let datastore = datastore().new_tree(&mut runner).unwrap().current();
                    let mut desired = Desired::new(host(), family);
                    desired.update(&read(&datastore), &News::All);
                    let wanted = |seen: &Seen| {
                        Steps::from([
                            (FILTER, steps(&desired.filter, &seen[FILTER], None)),
                            (NAT, steps(&desired.nat, &seen[NAT], None)),
                        ])
                    };
                    apply(family, &wanted(&observe(family).await.unwrap())).await.unwrap();
                    let left = wanted(&observe(family).await.unwrap());
                    // Not a single entry looks edited, in whatever way the tool shows it.
                    assert!(left.values().all(Vec::is_empty), "{left:?}\n{datastore:?}");
                }
            }
        });
    }

    #[test]
    fn rules_of_the_other_back_end_make_a_mix_and_its_empty_tables_do_not() {
        in_own_network(|| async {
            sh("iptables -A FORWARD -j ACCEPT").await;
            assert_eq!(mix(Family::V4).await, Ok(None));
            sh("iptables-legacy -t filter -L >/dev/null").await;
            assert_eq!(mix(Family::V4).await, Ok(None));
            sh("iptables-legacy -A FORWARD -s 10.0.0.1 -j ACCEPT").await;
            let why = mix(Family::V4).await.unwrap().unwrap();
            assert!(
                why.contains("rules of iptables-legacy") && why.contains("well: 1;") && why.contains("nf_tables"),
                "{why}"
            );
            assert_eq!(mix(Family::V6).await, Ok(None));
        });
    }
}
