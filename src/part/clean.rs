//! Cleaning: everything of ours goes from this host's kernel, and nothing else does.
//!
//! What is ours is told by what the node itself goes by: the prefixes of chains and sets, the number of our route
//! protocol, the group and prefix of our interfaces. Running it twice is running it once. No node may run meanwhile.

use crate::edge::kernel_routes::KernelRoutes;
use crate::edge::links::Netlink;
use crate::edge::{guard, ipsets, iptables};
use crate::model::fault::Fault;
use crate::model::pool::Family;
use crate::plan::diff::{self, Table};
use crate::plan::routes::{self, Routes};
use crate::plan::sets::{self, Sets};

/// # Errors
/// `World` with everything that could not be removed: the rest is gone.
pub(crate) async fn run() -> Result<(), Fault> {
    // Interfaces first: without them no packet goes where the chains would have stopped it.
    let mut faults = Vec::new();
    let mut done = |result: Result<(), Fault>| faults.extend(result.err().map(|fault| fault.to_string()));
    done(remove_links().await);
    done(remove_routes().await);
    for family in Family::BOTH {
        done(remove_chains(family).await);
    }
    for family in Family::BOTH {
        done(remove_sets(family).await);
    }
    done(guard::remove().await);
    if faults.is_empty() { Ok(()) } else { Err(Fault::World(format!("clean this host: {}", faults.join("; ")))) }
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
