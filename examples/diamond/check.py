"""Make sure that the counts are those of the whole text."""

import json
import re
from pathlib import Path

words = re.findall(r"[a-z']+", Path("text.txt").read_text(encoding="utf-8").lower())
counted = sum(json.loads(Path("counts.json").read_text(encoding="utf-8")).values())
if counted != len(words):
    raise SystemExit(f"{counted} words were counted, the text has {len(words)}")
Path("report.txt").write_text(f"all {counted} words are counted\n", encoding="utf-8")
