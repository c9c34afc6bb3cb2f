"""The items of a batch that are in files, or are files: read here, beside the specification, and sent with it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from nunet_cli.errors import UsageError
from nunet_cli.jobs.globs import Pattern, is_glob, split_glob
from nunet_cli.jobs.items import MAX_ITEMS, MAX_TEXT, Row, read_items, rows_of_paths


class ItemFiles:
    """Reads what a specification names as the items of its batches; `sent` is what a node gets of it, by that name.

    Args:
        folder: what names are relative to: that of the specification.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, list[Row]] = {}

    @property
    def sent(self) -> dict[str, list[dict[str, str]]]:
        """The values of the items, by the name that the specification has for them."""
        return {name: [row.values for row in rows] for name, rows in self._rows.items()}

    def load(self, name: str) -> list[Row]:
        """Return the items of a file, or one for each file that a pattern finds, by name; each is read once.

        Raises:
            UsageError: there is none, or it cannot be read; with its line.
        """
        if name not in self._rows:
            path = self._folder / Path(name).expanduser()
            self._rows[name] = self._found(name) if is_glob(name) and not path.exists() else _read(path, name)
        return self._rows[name]

    def _found(self, pattern: str) -> list[Row]:
        base, parts = split_glob(pattern)
        if base.startswith("~"):
            # in a name that was found it would be a folder that is called like that
            base = str(Path(base).expanduser())
        root, wanted = self._folder / base, Pattern(parts)

        def fits(path: Path) -> bool:
            places = wanted.start
            for name in path.relative_to(root).parts:
                places = wanted.step(places, name)
            return wanted.is_done(places) and path.is_file()

        paths = islice(filter(fits, root.glob("/".join(parts))), MAX_ITEMS + 1)
        found = [f"{base.rstrip('/')}/{rest}" if base else rest for rest in (str(p.relative_to(root)) for p in paths)]
        if not found:
            raise UsageError(f"no file matches {pattern}", hint="patterns are relative to the specification")
        if len(found) > MAX_ITEMS:
            raise UsageError(f"{pattern} matches over {MAX_ITEMS} files")
        return rows_of_paths(sorted(found))


def _read(path: Path, name: str) -> list[Row]:
    try:
        if path.stat().st_size > 4 * MAX_TEXT:
            raise UsageError(f"{name}: a file of items may have at most {MAX_TEXT} characters")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{name}:{line}: not text in UTF-8", hint="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(f"{name}: {error.strerror}", hint="names are relative to the specification") from None
    return read_items(text, name)
