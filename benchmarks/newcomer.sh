#!/usr/bin/env bash
# A newcomer's path, timed: a fresh clone, an empty virtual environment, an empty home; then the README's first command,
# read from the README itself, to the first settled job. Nothing else is typed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
now() { python3 -c 'import time; print(time.monotonic())'; }
say() { python3 -c 'import sys; print(f"{float(sys.argv[3]) - float(sys.argv[2]):6.1f} s  {sys.argv[1]}")' "$1" "$2" "$3"; }

git clone -q "$root" "$work/nunet"
cd "$work/nunet"
first=$(awk '/^```sh$/ { on = 1; next } /^```$/ { exit } on { print; exit }' README.md)
case "$first" in
    "pip install . && nunet job run "*" --local") ;;
    *) echo "the README's first command has changed: $first" >&2; exit 1 ;;
esac
python3 -m venv "$work/venv"
# shellcheck disable=SC1091
. "$work/venv/bin/activate"
export HOME=$work/home PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
unset NUNET_HOME XDG_DATA_HOME XDG_CONFIG_HOME
mkdir "$HOME"
begun=$(now)
sh -c "${first%% && *}" >"$work/install.log" 2>&1 || { tail -n 20 "$work/install.log"; exit 1; }
installed=$(now)
sh -c "${first#* && }" >"$work/run.log" 2>&1 || { cat "$work/run.log"; exit 1; }
settled=$(now)
state=$(nunet contract list --output json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["state"])')
[ "$state" = settled ] || { echo "the contract is $state" >&2; exit 1; }
say "installation: ${first%% && *}" "$begun" "$installed"
say "to the first settled job: ${first#* && }" "$installed" "$settled"
say "in all" "$begun" "$settled"
