"""What items are read from: the command line, files, and standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from nunet_cli.cli.output import note
from nunet_cli.errors import UsageError
from nunet_cli.jobs.sources import Source

# the words that sources stand behind: what follows are names of files, and it is linked to the source before
MARKS = {":::": (False, False), ":::+": (False, True), "::::": (True, False), "::::+": (True, True)}
STDIN = "-"
_AT_ONCE = 1 << 16
_ESCAPES = {"\\n": b"\n", "\\t": b"\t", "\\0": b"\0", "\\r": b"\r"}


class Reader:
    """Reads items that end with a delimiter.

    Args:
        delimiter: one character, or an escape such as `\\t`.
        skip_blank: leave out those that have nothing but white space.

    Raises:
        UsageError: another delimiter.
    """

    def __init__(self, delimiter: str = "\\n", *, skip_blank: bool = False) -> None:
        self._end = _ESCAPES.get(delimiter, delimiter.encode())
        self._skip_blank = skip_blank
        if len(self._end) != 1:
            raise UsageError(f"--delimiter: {delimiter!r}", hint="one character, or one of \\n, \\t, \\r and \\0")

    def read(self, name: str) -> Iterator[str]:
        """Yield the items of a file, `-` for standard input, as they come.

        Raises:
            UsageError: it cannot be read, or has something else than text in it.
        """
        if name == STDIN:
            if sys.stdin.isatty():
                note("nunet: items are read from the terminal, one a line; Ctrl-D ends them")
            yield from self._texts(sys.stdin.buffer, "standard input")
            return
        try:
            with Path(name).open("rb") as file:
                yield from self._texts(file, name)
        except OSError as error:
            raise UsageError(f"{name}: {error.strerror}") from None

    def _texts(self, stream: IO[bytes], name: str) -> Iterator[str]:
        for number, item in enumerate(self._pieces(stream), 1):
            try:
                text = item.decode()
            except UnicodeDecodeError:
                raise UsageError(f"{name}: item {number} is not UTF-8 text: {item[:60]!r}") from None
            if "\0" in text:
                raise UsageError(f"{name}: item {number} has a zero byte in it", hint="for items that end with one: -0")
            if text.strip() or not self._skip_blank:
                yield text

    def _pieces(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Yield what stands between delimiters; after the last one nothing is no item."""
        rest = b""
        # what is there now, not a whole buffer: items may come slowly
        read = getattr(stream, "read1", stream.read)
        while data := read(_AT_ONCE):
            *whole, rest = (rest + data).split(self._end)
            yield from whole
        if rest:
            yield rest


class Typed(NamedTuple):
    """What was typed after the options: the command's words, and the items' sources."""

    command: list[str]
    sources: list[Source]


def typed(words: Sequence[str], files: Sequence[str], reader: Reader) -> Typed:
    """Return the command and the sources that stand behind it, those of `--arg-file` before them.

    Where nothing says where items come from, it is standard input.

    Args:
        words: what was typed.
        files: those of `--arg-file`.
        reader: reads them.
    """
    at = next((place for place, word in enumerate(words) if word in MARKS), len(words))
    sources = [Source(reader.read(name)) for name in files]
    rest = list(words[at:])
    while rest:
        are_files, is_linked = MARKS[rest.pop(0)]
        end = next((place for place, word in enumerate(rest) if word in MARKS), len(rest))
        values, rest = rest[:end], rest[end:]
        if are_files:
            sources += [Source(reader.read(name), is_linked) for name in values]
        else:
            sources.append(Source(values, is_linked))
    return Typed(list(words[:at]), sources or [Source(reader.read(STDIN))])
