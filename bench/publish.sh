#!/usr/bin/env bash
# Measures everything docs/benchmarks.md reports and writes it anew, with its plot. Takes about half an hour on two cores.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fovea=build/program/bin/fovea
environment=${FOVEA_PEERS:-build/peers}
results=build/benchmarks
mkdir -p "$results"

if [ ! -x "$environment/bin/python" ]; then
  python3 -m venv "$environment"
  CMAKE_ARGS=-DGGML_NATIVE=ON "$environment/bin/pip" install --quiet llama-cpp-python
fi
"$environment/bin/pip" install --quiet torch matplotlib

"$fovea" info >"$results/info.txt"
"$fovea" bench --roofline --json >"$results/roofline.json"
"$fovea" bench --kernels --json >"$results/kernels.json"
"$environment/bin/python" bench/peers/attention.py --fovea "$fovea" --output "$results/attention.json"
bench/peers/beside_llama_cpp.sh --output "$results/runner.json"
"$environment/bin/python" bench/report.py "$results" docs
