#!/usr/bin/env bash
# Prefill and decode speed of the default model: Fovea beside llama.cpp (PyPI llama-cpp-python).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. bench/peers/environment.sh
need_peers llama-cpp-python
model=${XDG_CACHE_HOME:-$HOME/.cache}/fovea/models/SmolLM2-135M-Instruct.Q4_1.gguf
exec "$environment/bin/python" bench/peers/beside_llama_cpp.py --fovea build/program/bin/fovea --model "$model" "$@"
