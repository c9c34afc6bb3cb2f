"""Cut text.txt in two, between lines."""

from pathlib import Path

lines = Path("text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
middle = len(lines) // 2
Path("first.txt").write_text("".join(lines[:middle]), encoding="utf-8")
Path("second.txt").write_text("".join(lines[middle:]), encoding="utf-8")
print(f"{middle} lines and {len(lines) - middle} lines")
