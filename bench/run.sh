#!/usr/bin/env bash
# Speed of the operators on this machine, each row beside the machine's own ceilings; `--peers` adds llama.cpp on the default model.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fovea=build/program/bin/fovea

peers=false
[ "${1:-}" = --peers ] && { peers=true; shift; }

echo "== prompts: 9 query and 3 kv heads of 64 channels, causal"
"$fovea" bench --roofline flash-attention minference sparse-transformer-strided sparse-transformer-fixed duo-attention \
  --length 2k,8k --heads 9/3 --dim 64 --causal "$@"
echo "== one decoded token over a long cache"
"$fovea" bench flash-attention quest --queries 1 --length 8k,32k --heads 9/3 --dim 64 --causal "$@"
echo "== training"
"$fovea" bench flash-attention-backward memory-efficient-attention-backward --length 2k --heads 9/3 --dim 64 --causal "$@"
echo "== the kernels"
"$fovea" bench --kernels
if $peers; then
  echo "== the model runner beside llama.cpp, same file, same threads, alternating"
  bench/peers/beside_llama_cpp.sh
fi
