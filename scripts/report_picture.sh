#!/usr/bin/env bash
# Makes docs/report.png, the README's picture of a report: runs the demo and takes the page in a headless Chromium (Debian package
# chromium).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v chromium >/dev/null || { echo "report_picture.sh: chromium is missing" >&2; exit 1; }
./run demo
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,1420 --screenshot=docs/report.png \
  "file://$PWD/report.html"
