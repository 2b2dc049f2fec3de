#!/usr/bin/env bash
# The tests, in a virtual environment: the active one, else .venv of this checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
. examples/venv.sh
exec python -m pytest "$@"
