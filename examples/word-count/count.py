"""Counts the words of a text: `count.py TEXT COUNTS.json`."""

import collections
import json
import pathlib
import re
import sys

source, target = map(pathlib.Path, sys.argv[1:])
words = re.findall(r"[a-z']+", source.read_text(encoding="utf-8").lower())
counts = collections.Counter(words)
ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
target.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
print(f"{len(words)} words, {len(counts)} different; the most frequent is {next(iter(ordered))!r}")
