//! The guard: an nft table that drops what no policy accepted, whatever happens to the iptables chains.
//!
//! It stands behind them (forward priority 10) and looks only at the accept mark. Its table has `flags owner`: the kernel
//! gives it to the netlink socket that made it, so `iptables -F` does not reach it and `nft flush ruleset` may not touch
//! it, and it goes away with the socket. The socket is that of an `nft -i` child whose input stays open; it dies with the
//! node. Without the guard, a flush of the ruleset would open every container to everybody.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;

use crate::edge::exec::{Running, Spawner, Start, run};
use crate::edge::ruleset;
use crate::model::fault::Fault;
use crate::model::name::INTERFACE_PREFIX;
use crate::plan::chain::ACCEPT_MARK;

/// The table's family and name.
pub(crate) const TABLE: [&str; 2] = ["inet", "calico-guard"];

/// How long nft may take to make the table.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked for, unless the kernel tells of a change before.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The table stands as long as this value is held.
#[derive(Debug)]
pub(crate) struct Guard {
    keeper: Running,
    /// Open, or nft would end.
    _input: ChildStdin,
}

/// How long the commands are given until they are sent again.
const SEND_EVERY: Duration = Duration::from_millis(500);

/// The commands that make the table, on one line, which the interactive nft makes one change of. Its rules bear the
/// owner's process id: the table of an owner that has just been killed is still there for a moment, and is not ours.
fn script(owner: u32) -> String {
    let [family, table] = TABLE;
    let mark = format!("{ACCEPT_MARK:#x}");
    let drop = |side: &str| {
        format!(
            "add rule {family} {table} forward {side} \"{INTERFACE_PREFIX}*\" meta mark & {mark} != {mark} counter drop comment \"owner {owner}\""
        )
    };
    [
        format!("add table {family} {table} {{ flags owner; }}"),
        format!("add chain {family} {table} forward {{ type filter hook forward priority 10; policy accept; }}"),
        drop("iifname"),
        drop("oifname") + "\n",
    ]
    .join("; ")
}

impl Guard {
    /// Makes the table and waits until the kernel shows it.
    pub(crate) async fn raise(spawner: &Spawner) -> Result<Self, Fault> {
        let start = Start { program: "nft".to_owned(), args: vec!["-i".to_owned()], input: true };
        let mut keeper = spawner.start(start).await?;
        let mut input =
            keeper.take_input().ok_or_else(|| Fault::World("raise the guard: nft has no input".to_owned()))?;
        let fault = |error: std::io::Error| Fault::World(format!("raise the guard: {error}"));
        let owner = keeper.pid().unwrap_or_default();
        let mut changes = ruleset::listen()?;
        let stands = async {
            loop {
                input.write_all(script(owner).as_bytes()).await.map_err(fault)?;
                input.flush().await.map_err(fault)?;
                let sent = tokio::time::Instant::now();
                while sent.elapsed() < SEND_EVERY {
                    // Whatever is told, or not: what counts is what stands.
                    let _ = tokio::time::timeout(LOOK_EVERY, changes.changed()).await;
                    if Guard::stands_by(owner).await {
                        return Ok(());
                    }
                }
            }
        };
        let stood = tokio::select! {
            stood = stands => stood,
            ended = keeper.wait() => Err(Fault::World(format!("raise the guard: {ended}"))),
            () = tokio::time::sleep(PATIENCE) => Err(Fault::World(format!(
                "raise the guard: table {} not there after {} s; does another node run here?",
                TABLE.join(" "),
                PATIENCE.as_secs()
            ))),
        };
        stood.map(|()| Guard { keeper, _input: input })
    }

    /// Whether the table of an owner is there, with both rules.
    async fn stands_by(owner: u32) -> bool {
        let [family, table] = TABLE;
        let listed = run("nft", &["list", "table", family, table], "").await;
        listed.is_ok_and(|listed| listed.matches(&format!("drop comment \"owner {owner}\"")).count() >= 2)
    }

    /// Whether a table of this name is there.
    async fn stands() -> bool {
        let [family, table] = TABLE;
        run("nft", &["list", "table", family, table], "").await.is_ok()
    }

    /// Waits until the table is lost, and answers how.
    ///
    /// # Cancel safety
    /// Safe.
    pub(crate) async fn fallen(&mut self) -> String {
        self.keeper.wait().await
    }
}

/// Removes a guard that nobody holds; one that is not there is no error. With `flags owner` there is none once its node
/// has ended.
pub(crate) async fn remove() -> Result<(), Fault> {
    let [family, table] = TABLE;
    if Guard::stands().await {
        run("nft", &["delete", "table", family, table], "").await.map(drop)?;
    }
    Ok(())
}
