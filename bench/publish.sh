#!/usr/bin/env bash
# Measures everything docs/benchmarks.md reports and writes it anew, with its plot. Takes about twenty minutes on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. bench/peers/environment.sh
need_peers llama-cpp-python torch matplotlib
fovea=build/program/bin/fovea
results=build/benchmarks
mkdir -p "$results"

"$fovea" info >"$results/info.txt"
"$fovea" bench --roofline --json >"$results/roofline.json"
"$fovea" bench --kernels --json >"$results/kernels.json"
"$environment/bin/python" bench/peers/attention.py --fovea "$fovea" --output "$results/attention.json"
bench/peers/beside_llama_cpp.sh --output "$results/runner.json"
"$environment/bin/python" bench/report.py "$results" docs
