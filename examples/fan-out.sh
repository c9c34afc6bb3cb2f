#!/bin/sh
# Fan out: count the primes of many ranges, each range a job; wait for all of them; collect and add up.
# Usage: fan-out.sh [JOBS] [FOLDER]      (needs a running node: nunet node start)
set -eu

count=${1:-20}
folder=${2:-fan-out}
size=2000
mkdir -p "$folder"

ids=""
i=0
while [ "$i" -lt "$count" ]; do
    id=$(
        nunet job run --detach --quiet - <<EOF
name: primes-$i
executor:
  type: process
  command: [python3, -c, "print(sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(max(2, $((i * size))), $(((i + 1) * size)))))"]
resources: {cpu: 0.2, memory: 64MiB, disk: 16MiB}
price: 1 NTX
time: {max_duration: 1m, deadline: 10m}
EOF
    )
    ids="$ids $id"
    i=$((i + 1))
done

# one line for each as it ends; the exit code says whether all of them were settled
# shellcheck disable=SC2086
nunet job wait $ids --timeout 10m >&2

total=0
for id in $ids; do
    found=$(nunet job logs "$id" | tee "$folder/$id.txt")
    total=$((total + found))
done
echo "$total primes below $((count * size)), counted by $count jobs; what each found is in $folder"
