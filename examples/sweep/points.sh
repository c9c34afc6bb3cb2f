#!/bin/sh
# Write the points of the sweep: points.csv, a line for each, and an input file for each in the folder `in`.
# Every fortieth input has been cut off by whatever wrote it.
# Usage: points.sh [COUNT]
set -eu

count=${1:-200}
mkdir -p in
echo "point,drag,seconds" >points.csv
for point in $(seq "$count"); do
    echo "$point,0.$((point % 9 + 1)),$((point % 4 + 1))" >>points.csv
    echo "mass=$((point % 5 + 1))" >"in/$point.txt"
    echo "height=$((point * 10))" >>"in/$point.txt"
    if [ $((point % 40)) = 7 ]; then
        echo "height=$((point * 10))" >"in/$point.txt"
    fi
done
