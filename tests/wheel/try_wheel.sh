#!/usr/bin/env bash
# The wheel as users get it: built, installed alone into an empty environment, tried away from the clone.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/env"
"$work/env/bin/pip" wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work" .
"$work/env/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt "$work"/segpipe-*.whl
cp tests/wheel/try_wheel.py "$work/"
cd "$work"
env -u PYTHONPATH "$work/env/bin/python" try_wheel.py "$work"/segpipe-*.whl "$work/env/bin/segpipe"
