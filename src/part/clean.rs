//! Cleaning: everything of ours goes from this host's kernel, and nothing else does.
//!
//! What is ours is told by what the node itself goes by: the prefixes of chains and sets, the number of our route
//! protocol, the group and prefix of our interfaces. Running it twice is running it once. No node may run meanwhile.

use std::path::Path;

use crate::edge::kernel_routes::KernelRoutes;
use crate::edge::links::Netlink;
use crate::edge::run_dir::Marks;
use crate::edge::{guard, ipsets, iptables};
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::diff::{self, Table};
use crate::plan::routes::{self, Routes};
use crate::plan::sets::{self, Sets};

/// # Errors
/// `World` with everything that could not be removed: the rest is gone.
pub(crate) async fn run(run_dir: &Path) -> Result<(), Fault> {
    let mut faults = Vec::new();
    let mut done = |result: Result<(), Fault>| {
        faults.extend(result.as_ref().err().map(ToString::to_string));
        result.is_ok()
    };
    // First of all, so that no container is wired any more by a hook that takes the policy for standing.
    let unmarked = done(remove_marks(run_dir));
    done(remove_routes().await);
    // Interfaces before chains: without them no packet goes where the chains would have stopped it. Where one may be left,
    // the chains stay too.
    if done(remove_links().await) && unmarked {
        for family in Family::BOTH {
            done(remove_chains(family).await);
        }
        for family in Family::BOTH {
            done(remove_sets(family).await);
        }
        done(guard::remove().await);
    }
    if faults.is_empty() { Ok(()) } else { Err(Fault::World(format!("clean this host: {}", faults.join("; ")))) }
}

fn remove_marks(run_dir: &Path) -> Result<(), Fault> {
    let marks = Marks::programmed(run_dir);
    marks.all().iter().try_for_each(|id| marks.clear(id))
}

async fn remove_links() -> Result<(), Fault> {
    let removed = Netlink::open()?.remove_ours().await?;
    tracing::info!(removed, "interfaces");
    Ok(())
}

async fn remove_routes() -> Result<(), Fault> {
    let kernel = KernelRoutes::open()?;
    for family in Family::BOTH {
        let steps = routes::steps(&Routes::new(), &kernel.observe(family).await?, |_| false);
        kernel.apply(&steps).await.into_iter().collect::<Result<(), Fault>>()?;
    }
    Ok(())
}

async fn remove_chains(family: Family) -> Result<(), Fault> {
    let seen = iptables::observe(family).await?;
    let nothing = Table::default();
    let steps = seen.iter().map(|(table, seen)| (*table, diff::steps(&nothing, seen, None))).collect();
    iptables::apply(family, &steps).await.map(drop)
}

async fn remove_sets(family: Family) -> Result<(), Fault> {
    let seen = ipsets::observe(family).await?;
    ipsets::apply(&sets::removals(&Sets::new(), &seen)).await
}
