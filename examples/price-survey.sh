#!/bin/sh
# Price survey: ask the network what a job would cost, cheapest first, and buy nothing.
# Usage: price-survey.sh JOB.yaml
set -eu

spec=${1:?usage: price-survey.sh JOB.yaml}
job=$(nunet job post "$spec" --quiet)
trap 'nunet job cancel "$job" >/dev/null 2>&1 || true' EXIT

# exit code 4 says that nobody can take it: the list shows why
nunet job match "$job" >/dev/null 2>&1 || [ $? -eq 4 ]
nunet bids list "$job" --sort price.amount --output jsonl |
    python3 -c '
import json, sys
for line in sys.stdin:
    bid = json.loads(line)
    price = bid["price"]
    if price is None:
        print("-\t-\t{}\t{}".format(bid["bidder"], "; ".join(bid["reasons"])))
    else:
        unit = "/" + price["time_unit"] if price["time_unit"] else ""
        print("{}\t{}{}\t{}\t{}".format(price["amount"], price["currency"], unit, bid["bidder"], bid["verdict"]))
'
