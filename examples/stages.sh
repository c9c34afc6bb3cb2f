#!/bin/sh
# Drives one job through its stages, one command each, reading nothing but JSON.
# Usage: stages.sh JOB.yaml OUTPUT_DIR    (set NUNET_HOME to the requester's folder)
set -eu

spec=${1:?usage: stages.sh JOB.yaml OUTPUT_DIR}
target=${2:?usage: stages.sh JOB.yaml OUTPUT_DIR}

# prints one field of the JSON document on standard input
field() {
    python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"
}

job=$(nunet job post "$spec" --output json | field id)
echo "posted $job" >&2
for stage in match request contract invoke settle; do
    state=$(nunet job "$stage" "$job" --output json | field state)
    echo "$stage: $state" >&2
done
nunet job result "$job" --output-dir "$target" --output json >/dev/null
nunet job show "$job" --output json | field message >&2
test "$(nunet job show "$job" --output json | field state)" = settled
echo "$job"
