"""Patterns of file names: what they find, and where they begin."""

import pytest

from nunet_cli.jobs.globs import MAX_STEPS, Pattern, is_glob, split_glob


def matches(pattern: str, path: str) -> bool:
    found = Pattern(split_glob(pattern)[1])
    places = found.start
    for name in path.split("/"):
        places = found.step(places, name)
    return found.is_done(places)


@pytest.mark.parametrize(
    ("pattern", "base", "parts"),
    [("*.csv", "", ("*.csv",)), ("in/*.csv", "in", ("*.csv",)), ("./in//a/*/x", "in/a", ("*", "x")),
     ("/data/[ab]", "/data", ("[ab]",)), ("/*.txt", "/", ("*.txt",)), ("a?b/c", "", ("a?b", "c")),
     ("in/**", "in", ("**",)), ("plain/name", "plain/name", ())],
)  # fmt: skip
def test_a_pattern_begins_in_the_last_folder_without_a_sign(pattern: str, base: str, parts: tuple[str, ...]) -> None:
    assert split_glob(pattern) == (base, parts)
    assert is_glob(pattern) == bool(parts)


@pytest.mark.parametrize(
    ("pattern", "path", "is_found"),
    [("*.csv", "a.csv", True), ("*.csv", "a.txt", False), ("*.csv", "b/a.csv", False), ("*", ".hidden", False),
     (".*", ".hidden", True), ("?.csv", "a.csv", True), ("?.csv", "ab.csv", False), ("[ab]", "b", True),
     ("[!ab]", "b", False), ("[[]x", "[x", True), ("**/*.csv", "a.csv", True), ("**/*.csv", "b/c/a.csv", True),
     ("**/*.csv", ".git/a.csv", False), ("*/x", "a/x", True), ("*/x", "a/b/x", False), ("**", "a/b", True),
     ("a*/**/z", "ab/z", True), ("a*/**/z", "ab/c/d/z", True), ("a*/**/z", "b/z", False),
     ("A*", "ab", False), ("*a*a*a*a*a*b", "a" * 200, False)],
)  # fmt: skip
def test_a_pattern_finds_what_a_shell_would(pattern: str, path: str, is_found: bool) -> None:
    assert matches(pattern, path) == is_found


ENTRIES = [("a", True), ("a/b.csv", False), ("c.d", True), ("c.d/e", True), ("c.d/e/f.txt", False), ("g.csv", False)]


@pytest.mark.parametrize(
    ("pattern", "stray"),
    [("**", None), ("*", None), ("*/*", "g.csv"), ("**/*.csv", "c.d/e/f.txt"), ("c*", "a"), ("?*/*", "g.csv"),
     ("[ag]*", "c.d"), ("**/**/*", None), ("*.*", "a"), ("**/*.*", None)],
)  # fmt: skip
def test_the_first_of_many_paths_that_a_pattern_does_not_find(pattern: str, stray: str | None) -> None:
    """A folder that is found is so as a whole, and one on the way to what may be found is none of them."""
    _, strays = Pattern(split_glob(pattern)[1]).sort_out(ENTRIES)
    assert next((path for path, _ in ENTRIES if path in strays), None) == stray


def test_the_comparisons_of_a_pattern_have_an_end() -> None:
    endless = (("a", True) for _ in range(MAX_STEPS))
    with pytest.raises(ValueError, match="comparisons"):
        Pattern(("**", "*", "*", "b")).sort_out(endless)
