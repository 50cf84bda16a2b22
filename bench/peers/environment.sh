# Sourced: sets `environment` to a throw-away Python environment with the packages asked for. llama.cpp is built from source, for this
# machine's instructions.
environment=${FOVEA_PEERS:-build/peers}
[ -x "$environment/bin/python" ] || python3 -m venv "$environment"
need_peers() {
  local package
  for package in "$@"; do
    "$environment/bin/pip" show --quiet "$package" 2>/dev/null ||
      CMAKE_ARGS=-DGGML_NATIVE=ON "$environment/bin/pip" install --quiet "$package"
  done
}
