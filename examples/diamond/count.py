"""Count the words of a file into counts.json."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

words = re.findall(r"[a-z']+", Path(sys.argv[1]).read_text(encoding="utf-8").lower())
Path("counts.json").write_text(json.dumps(Counter(words), sort_keys=True), encoding="utf-8")
print(f"{len(words)} words")
