//! `calicoctl`: shows and changes what Calico does on plain Docker.

use std::process::ExitCode;

fn main() -> ExitCode {
    calico::calicoctl_main()
}
