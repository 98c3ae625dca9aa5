//! `calico-runtime`: the OCI runtime that has a container wired before its first instruction.

use std::process::ExitCode;

fn main() -> ExitCode {
    calico::calico_runtime_main(std::env::args_os().skip(1).collect())
}
