#!/bin/sh
# Make every picture of the folder `in` gray, each somewhere on the market, into the folder `out`; print how bright it is.
# Once more, it runs what failed, and what is new. Options are those of `nunet map`: try `gray.sh --local` first.
# Usage, in a folder that has in/*.ppm: gray.sh [OPTION…]      (without --local it needs a running node: nunet node start)
set -eu

here=$(cd "$(dirname "$0")" && pwd)
ls in/*.ppm |
    nunet map -k --transfer --return 'out/./{/.}.pgm' --input "$here/gray.awk" --joblog gray.log --resume-failed \
        --price 0.5 --cpu 0.2 --memory 64MiB --disk 16MiB --timeout 1m "$@" -- awk -v 'out={/.}.pgm' -f gray.awk {}
