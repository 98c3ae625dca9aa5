#!/bin/sh
# The tests of a container's life with their full counts: soak.sh [FILTER...], one after another, in labs of their own. What they see is printed
# as tables for docs/benchmarks.md, all that they say is kept in target/soak.log.
set -eu
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "soak: must be root: it makes namespaces" >&2; exit 2; }

[ $# -gt 0 ] || set -- leaks:: storm:: first_instruction:: streams::
log=${CARGO_TARGET_DIR:-target}/soak.log
cargo test --locked --test proxy --no-run
failed=
began=$(date +%s)
CALICO_LAB_SOAK=1 cargo test --locked --test proxy -- --test-threads=1 --nocapture "$@" >"$log" 2>&1 || failed=1
# A table with an empty line before it; and what failed, with the seed by which it can be had again.
awk '/^\|/ { if (!table) print ""; print } { table = /^\|/ } /CALICO_LAB_SEED=|panicked at|^test result:/ { print }' "$log"
echo "soak: $((($(date +%s) - began) / 60)) minutes; all that was said is in $log"
[ -z "$failed" ] || { echo "soak: something failed" >&2; exit 1; }
