"""Add up the counts of several files into counts.json."""

import json
import sys
from collections import Counter
from pathlib import Path

total: Counter[str] = Counter()
for name in sys.argv[1:]:
    total.update(json.loads(Path(name).read_text(encoding="utf-8")))
Path("counts.json").write_text(json.dumps(total, sort_keys=True), encoding="utf-8")
print(f"{len(total)} different words")
