"""What is wrong with the items of a batch: the first problems together, and how many more there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from nunet_cli.errors import UsageError

# so many are said
MOST = 10


class Problems:
    """Collects errors that do not keep the rest from being looked at.

    Args:
        once: leave out what was said of another item in the same words.
    """

    def __init__(self, *, once: bool = False) -> None:
        self._once = once
        self._found: list[UsageError] = []
        self._said: set[str] = set()
        self._more = 0

    def add(self, error: UsageError) -> None:
        """Note an error."""
        if self._once and error.message in self._said:
            return
        self._said.add(error.message)
        if len(self._found) < MOST:
            self._found.append(error)
        else:
            self._more += 1

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Note the error that is raised within."""
        try:
            yield
        except UsageError as error:
            self.add(error)

    def check(self) -> None:
        """Do nothing where there was no error.

        Raises:
            UsageError: the first one; with the others in `details["also"]`, and the number of those left out in
                `details["more"]`.
        """
        if not self._found:
            return
        first, *others = self._found
        also = [{"message": error.message, "path": error.details.get("path", "")} for error in others]
        details = {**first.details, **({"also": also, "more": self._more} if also else {})}
        raise UsageError(first.message, code=first.code, hint=first.hint, details=details)


def in_lines(messages: Sequence[str], more: int) -> str:
    """Return messages as one text, a line for each, and how many more there are."""
    return "\n".join([*messages, *([f"and {more} more"] if more else [])])
