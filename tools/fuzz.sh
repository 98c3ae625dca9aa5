#!/bin/sh
# Fuzzes heads, framing, bodies and calls, each for so many seconds (20 unless said), two at once. An input that breaks a law is printed
# and kept in target/fuzz/artifacts; `tools/fuzz.sh 0 TARGET FILE` runs one input again.
#
# libFuzzer with the coverage that LLVM puts into the code; the sanitizers need a nightly compiler and would find little in code without
# `unsafe`. Seeds are in fuzz/corpus; what is found beyond them stays in target/fuzz/corpus and speeds up the next run.
set -eu
cd "$(dirname "$0")/.."

SECONDS_EACH=${1:-20}
ROOT=${CARGO_TARGET_DIR:-$PWD/target}/fuzz
HOST=$(rustc -vV | awk '/^host:/ { print $2 }')

# The flags of cargo-fuzz. They are for the target alone: build scripts are not to be linked with libFuzzer.
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
CARGO_TARGET_DIR=$ROOT cargo build --quiet --release --locked --manifest-path fuzz/Cargo.toml --target "$HOST" --bins
BIN=$ROOT/$HOST/release

if [ $# -gt 1 ]; then
    exec "$BIN/$2" "$3"
fi

run() {
    mkdir -p "$ROOT/corpus/$1" "$ROOT/artifacts"
    log=$ROOT/$1.log
    if "$BIN/$1" "$ROOT/corpus/$1" "fuzz/corpus/$1" -dict=fuzz/words.dict -max_total_time="$SECONDS_EACH" -max_len=4096 -timeout=10 \
        -rss_limit_mb=1024 -artifact_prefix="$ROOT/artifacts/$1-" >"$log" 2>&1; then
        echo "fuzz: $1: $(awk '/^Done/' "$log"), coverage $(awk '/ cov: / { c = $4 } END { print c }' "$log")"
    else
        echo "fuzz: $1 broke a law:"
        tail -n 40 "$log"
        for input in "$ROOT/artifacts/$1-"*; do
            echo "$input:"
            od -A d -c "$input" | head -n 60
        done
        return 1
    fi
}

rm -rf "$ROOT/artifacts"
failed=0
running=
for target in requests replies chunks bodies calls; do
    run "$target" &
    running="$running $!"
    # shellcheck disable=SC2086 # a list of numbers
    set -- $running
    if [ $# -ge 2 ]; then
        wait "$1" || failed=1
        running=$2
    fi
done
for pid in $running; do wait "$pid" || failed=1; done
exit "$failed"
