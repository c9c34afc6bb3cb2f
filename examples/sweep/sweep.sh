#!/bin/sh
# Run a simulation for each point of a sweep, look at what failed, mend its input, and run that again; print all results.
# Usage, in a folder of its own: sweep.sh [COUNT]      (needs a running node: nunet node start)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cp "$here/simulate.awk" "$here/batch.yaml" .
"$here/points.sh" "${1:-200}"

# All points. The exit code is 1 when some failed; what the others found is in results/point-N/ by then.
id=$(nunet job post batch.yaml)
if ! nunet job run --job "$id" --output-dir results >run.out; then

    # What failed, and why: first at a glance, then what each has to say.
    nunet job explain "$id"
    for job in $(nunet job list --in "$id" --filter state=failed --quiet); do
        nunet job logs --stderr "$job"
    done

    # Some inputs have lost their first line. Put it back, and run again what failed, with the inputs as they are now.
    for input in $(grep -L '^mass=' in/*.txt); do
        point=$(basename "$input" .txt)
        echo "mass=$((point % 5 + 1))" >>"$input"
    done
    nunet job retry "$id" --spec batch.yaml --output-dir results >>run.out
fi

# One table: the points, and what was found for each.
echo "point,drag,seconds,height"
tail -n +2 points.csv | while IFS= read -r line; do
    echo "$line,$(cat "results/point-${line%%,*}/height")"
done
