//! `calico-node`: the proxy, the agent and the supervisor of BIRD on one host.

use std::process::ExitCode;

fn main() -> ExitCode {
    calico::calico_node_main()
}
