#!/usr/bin/env bash
# Runs the tests that speak to the real binary through public client libraries.
# Usage: run.sh [pytest arguments]. INTERLOCK_BIN names another binary than the debug build.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=tests/clients
python=${PYTHON:-python3}
# Python and pytest as they come, whatever is set for somebody's other programs; cargo's target too,
# or the binary would lie elsewhere.
unset PYTHONPATH PYTHONHOME PYTEST_ADDOPTS PYTEST_PLUGINS CARGO_BUILD_TARGET
export PYTHONUTF8=1 PYTHONNOUSERSITE=1

# A virtual environment, made anew when its requirements change.
venv=$here/.venv
if ! cmp -s $here/requirements.txt $venv/installed; then
  echo "clients: installing $(tr '\n' ' ' <$here/requirements.txt)"
  "$python" -m venv --clear $venv || {
    echo "python's venv module is missing: apt-get install python3-venv (Debian)" >&2
    exit 1
  }
  $venv/bin/pip install --quiet --disable-pip-version-check -r $here/requirements.txt
  cp $here/requirements.txt $venv/installed
fi

# promtool checks a live scrape; it comes with Prometheus.
if ! command -v promtool >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "clients: installing promtool (Debian's prometheus package)"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends prometheus >/dev/null
  else
    echo "promtool is missing: apt-get install prometheus (Debian), brew install prometheus (macOS)" >&2
    exit 1
  fi
fi

if [ -z "${INTERLOCK_BIN:-}" ]; then
  cargo build --locked -p interlock-cli
  export INTERLOCK_BIN=$(realpath "${CARGO_TARGET_DIR:-${CARGO_BUILD_TARGET_DIR:-target}}")/debug/interlock
fi
exec $venv/bin/pytest -q $here "$@"
