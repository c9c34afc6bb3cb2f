"""What evaluating a CEL expression can cost at most, found without evaluating it.

An expression may come from a stranger, the library knows no limit of steps and holds Python's lock while it runs: so
what could take long is refused beforehand. A step is a token that is looked at once; a comprehension looks at its body
once for each element, and each inside another as often as both together. What a comprehension goes over must be a list
that is written or named, so that its length is known. Lists and maps that are written hold plain values, and so do the
results of `map`, as others could be made to grow inside of each other, and are copied for each element. The pattern of
`matches` is short and plain, as it is compiled each time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# a step takes some 6 µs at the worst: equality of all that is known of two machines
MAX_STEPS = 5000
MAX_COMPREHENSIONS = 2
MAX_DEPTH = 40
# the longest list that any capability has; for what is only known when it is evaluated
LONGEST = 256
EQUALITY_STEPS = 6
MATCHES_STEPS = 300
COPIED = 16  # elements of a growing result that are copied in the time of a step
MAX_PATTERN = 60

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\n]*)
    |(?P<string>'(?:[^'\\\n\r]|\\.)*'|"(?:[^"\\\n\r]|\\.)*")
    |(?P<number>0[xX][0-9a-fA-F]+u?|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?u?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{}])""",
    re.VERBOSE,
)
_PLAIN = re.compile(r"[^\\{}]*")
_CLOSING = {")": "(", "]": "[", "}": "{"}
_COMPARES = ("==", "!=", "in")
_VALUES = ("-", ",", ":", "true", "false", "null")
# what collects nothing, and what collects elements as they are; everything else collects what is worked out
_DECIDING = ("all", "exists", "exists_one", "existsOne")
_JUDGING = (*_DECIDING, "filter")


class TooMuch(Exception):  # not an error of anybody's: a reason
    """Why an expression is refused: `position` is the offset of the character at which it is too much."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position, self.reason = position, reason


@dataclass(frozen=True)
class Cost:
    """How many steps an expression takes at most, and the names that its comprehensions give to elements."""

    steps: int
    variables: frozenset[str]


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    position: int


@dataclass(frozen=True)
class _Loop:
    """A comprehension: the indexes of its dot and parentheses, the name of its element, how many there can be."""

    dot: int
    opening: int
    closing: int
    variable: str
    size: int


def cost(text: str, names: Mapping[str, Any]) -> Cost:
    """Return what an expression costs at most with these values.

    Raises:
        TooMuch: more than `MAX_STEPS`, or nobody can say.
    """
    reader = _Reader(text, names)
    return Cost(reader.steps(), frozenset(loop.variable for loop in reader.loops))


class _Reader:
    def __init__(self, text: str, names: Mapping[str, Any]) -> None:
        self._names = names
        self._tokens = _split(text)
        self._partner = self._pair()
        self.loops: list[_Loop] = []

    def steps(self) -> int:
        self._check_literals()
        self._find_loops()
        total = sum(self._times(index) * self._weight(index) for index in range(len(self._tokens)))
        for loop in self.loops:
            name = self._tokens[loop.dot + 1]
            copied = 0 if name.text in _DECIDING else loop.size // COPIED
            total += self._times(loop.dot) * loop.size * (1 + copied)
            if total > MAX_STEPS:
                raise TooMuch(name.position, f"it may take {total} steps, at most {MAX_STEPS} are allowed")
            if name.text not in _JUDGING:
                self._check_collecting(loop)
        if total > MAX_STEPS:
            raise TooMuch(0, f"it may take {total} steps, at most {MAX_STEPS} are allowed")
        return total

    def _find_loops(self) -> None:
        tokens = self._tokens
        for dot in range(len(tokens) - 4):
            # whatever gives a name to elements does it as its first argument; functions have values there
            shape = [tokens[dot + place].text for place in (0, 2, 4)]
            if shape != [".", "(", ","] or tokens[dot + 1].kind != "name" or tokens[dot + 3].kind != "name":
                continue
            if len(self.loops) == MAX_COMPREHENSIONS:
                what = f"it has too many comprehensions, at most {MAX_COMPREHENSIONS} are allowed"
                raise TooMuch(tokens[dot + 1].position, what)
            size = self._size(dot - 1, dot)
            self.loops.append(_Loop(dot, dot + 2, self._partner[dot + 2], tokens[dot + 3].text, size))

    def _times(self, index: int) -> int:
        """Return how often a token is looked at."""
        times = 1
        for loop in self.loops:
            if loop.opening < index < loop.closing:
                times *= loop.size
        return times

    def _weight(self, index: int) -> int:
        token = self._tokens[index]
        if token.kind != "string" and token.text in _COMPARES:
            return EQUALITY_STEPS
        if token.text == "matches" and index + 1 < len(self._tokens) and self._tokens[index + 1].text == "(":
            self._check_pattern(index)
            return MATCHES_STEPS
        return 1

    def _check_pattern(self, index: int) -> None:
        closing = self._partner[index + 1]
        pattern, before = self._tokens[closing - 1], self._tokens[closing - 2]
        if pattern.kind != "string" or before.text not in ("(", ","):
            raise TooMuch(self._tokens[index].position, "the pattern of matches must be a plain text")
        if len(pattern.text) > MAX_PATTERN or not _PLAIN.fullmatch(pattern.text) or not pattern.text.isascii():
            what = f"the pattern of matches must be plain: {MAX_PATTERN} characters at most, no backslash and no braces"
            raise TooMuch(pattern.position, what)

    def _check_collecting(self, loop: _Loop) -> None:
        """Refuse a `map` whose results are lists or maps."""
        what = "the results of map may be plain values only"
        for index in range(loop.opening + 3, loop.closing):
            token, before = self._tokens[index], self._tokens[index - 1]
            if token.kind == "sign" and token.text in "[{" and self._is_literal(index):
                raise TooMuch(token.position, what)
            if any(inner.dot == index and self._tokens[index + 1].text not in _DECIDING for inner in self.loops):
                raise TooMuch(token.position, what)
            if token.kind == "name" and before.text != "." and self._is_aggregate(index):
                raise TooMuch(token.position, what)

    def _is_aggregate(self, index: int) -> bool:
        """Say whether a name, with the fields that follow, is a list or a map."""
        name = self._tokens[index].text
        if name not in self._names or any(loop.variable == name for loop in self.loops):
            return False
        value: Any = self._names[name]
        while isinstance(value, Mapping) and self._tokens[index + 1].text == ".":
            index += 2
            value = value.get(self._tokens[index].text)
        return isinstance(value, (list, tuple, Mapping))

    def _pair(self) -> dict[int, int]:
        """Return the partner of each bracket."""
        pairs: dict[int, int] = {}
        waiting: list[int] = []
        for index, token in enumerate(self._tokens):
            if token.kind != "sign":
                continue
            if token.text in "([{":
                waiting.append(index)
                if len(waiting) > MAX_DEPTH:
                    raise TooMuch(token.position, "it is nested too deeply")
            elif token.text in _CLOSING:
                if not waiting or self._tokens[waiting[-1]].text != _CLOSING[token.text]:
                    raise TooMuch(token.position, f"there is no opening bracket for this {token.text!r}")
                pairs[index] = waiting.pop()
                pairs[pairs[index]] = index
        if waiting:
            raise TooMuch(self._tokens[waiting[-1]].position, "this bracket is not closed")
        return pairs

    def _is_literal(self, opening: int) -> bool:
        """Say whether a bracket begins a list or map that is written, and not an index."""
        if self._tokens[opening].text == "{" or not opening:
            return True
        before = self._tokens[opening - 1]
        is_value = before.kind in ("name", "string") or before.text in (")", "]", "}")
        return not is_value or before.text == "in"

    def _check_literals(self) -> None:
        for opening, closing in self._partner.items():
            if closing < opening or self._tokens[opening].text == "(" or not self._is_literal(opening):
                continue
            for token in self._tokens[opening + 1 : closing]:
                if token.kind not in ("string", "number") and token.text not in _VALUES:
                    raise TooMuch(token.position, "lists and maps that are written may hold plain values only")

    def _size(self, end: int, dot: int) -> int:
        """Return how many elements the value can have that ends with a token; at least 1."""
        token = self._tokens[end] if end >= 0 else None
        if token is not None and token.kind == "sign" and token.text in ("]", "}"):
            opening = self._partner[end]
            if not self._is_literal(opening):
                return LONGEST
            return sum(inner.text == "," for inner in self._tokens[opening + 1 : end]) + 1
        for loop in self.loops:
            if loop.closing == end:
                return loop.size
        if token is not None and token.kind == "name":
            return self._named(end)
        what = "what a comprehension goes over must be a list that is named or written"
        raise TooMuch(self._tokens[dot + 1].position, what)

    def _named(self, end: int) -> int:
        path = [self._tokens[end].text]
        while end >= 2 and self._tokens[end - 1].text == "." and self._tokens[end - 2].kind == "name":
            end -= 2
            path.insert(0, self._tokens[end].text)
        value: Any = self._names
        if any(loop.variable == path[0] for loop in self.loops) or (end and self._tokens[end - 1].text == "."):
            return LONGEST
        for part in path:
            if not isinstance(value, Mapping) or part not in value:
                return LONGEST
            value = value[part]
        return max(1, len(value)) if isinstance(value, (list, tuple, Mapping)) else LONGEST


def _split(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            raise TooMuch(position, f"unexpected character {text[position]!r}")
        kind = str(found.lastgroup)
        is_joined = bool(tokens) and tokens[-1].position + len(tokens[-1].text) == position
        if kind == "string" and is_joined and tokens[-1].kind in ("name", "string", "number"):
            # a prefix makes another kind of text, in which other characters end it; so do three quotes
            raise TooMuch(position, "only plain texts in single or double quotes are allowed")
        if kind != "space":
            tokens.append(_Token(kind, found[0], position))
        position = found.end()
    return tokens
