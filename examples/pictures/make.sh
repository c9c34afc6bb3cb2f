#!/bin/sh
# Draw pictures to try things with: plain PPM, 16 by 12, each another colour that fades from left to right.
# Usage: make.sh [COUNT] [FOLDER]
set -eu

count=${1:-50}
folder=${2:-in}
mkdir -p "$folder"
for number in $(seq -w 1 "$count"); do
    awk -v number="$number" 'BEGIN {
        print "P3\n# picture " number "\n16 12\n255"
        for (y = 0; y < 12; y++)
            for (x = 0; x < 16; x++)
                print (number * 5) % 256, x * 17, (number * x + y) % 256
    }' >"$folder/$number.ppm"
done
