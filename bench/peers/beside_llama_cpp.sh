#!/usr/bin/env bash
# Prefill and decode speed of the default model: Fovea beside llama.cpp (PyPI llama-cpp-python, built from source into a
# throw-away environment for this machine's instructions).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
environment=${FOVEA_PEERS:-build/peers}
model=${XDG_CACHE_HOME:-$HOME/.cache}/fovea/models/SmolLM2-135M-Instruct.Q4_1.gguf

if [ ! -x "$environment/bin/python" ]; then
  python3 -m venv "$environment"
  CMAKE_ARGS=-DGGML_NATIVE=ON "$environment/bin/pip" install --quiet llama-cpp-python
fi
exec "$environment/bin/python" bench/peers/beside_llama_cpp.py --fovea build/program/bin/fovea --model "$model" "$@"
