#!/bin/sh
# Nightly: run a job, keep what it gave under the day's date, and only the last ones. Made for cron: it is silent unless
# something is wrong, and then says what and ends with the exit code of the job.
# Usage: nightly.sh JOB.yaml FOLDER [KEEP]
set -eu

spec=${1:?usage: nightly.sh JOB.yaml FOLDER [KEEP]}
folder=${2:?usage: nightly.sh JOB.yaml FOLDER [KEEP]}
keep=${3:-7}
today="$folder/$(date -u +%Y-%m-%d)"
mkdir -p "$folder"
log=$(mktemp)
trap 'rm -f "$log"' EXIT

code=0
nunet job run "$spec" --output-dir "$today" >"$log" 2>&1 || code=$?
if [ "$code" -ne 0 ]; then
    cat "$log"
    exit "$code"
fi

# names are dates: the oldest come first
find "$folder" -mindepth 1 -maxdepth 1 -type d -name '????-??-??' | sort | head -n "-$keep" |
    while IFS= read -r old; do rm -r "$old"; done
