"""Replacement strings, against what GNU parallel prints for the same, and against a shell that reads the result."""

import os
import shlex
import subprocess
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nunet_cli.errors import UsageError
from nunet_cli.jobs.replacements import Command, Item, Template, folder_of

# parallel -k --dry-run echo {.} {/} {//} {/.} ::: …
AS_PARALLEL_HAS_IT = {
    "a.b/c.d": "a.b/c c.d a.b c", "x.": "x x. . x", ".bashrc": "'' .bashrc . ''", "/a": "/a a / a", "/a/": "/a/ '' / ''",
    "a/": "a/ '' . ''", "dir.x/": "dir.x/ '' . ''", "a//b.c": "a//b b.c a b", "..": ". .. . .", "a.tar.gz": "a.tar a.tar.gz . a.tar",
    "it's a.x": "'it'\"'\"'s a' 'it'\"'\"'s a.x' . 'it'\"'\"'s a'",
}  # fmt: skip


def item(*arguments: str, number: int = 1) -> Item:
    return Item(number, arguments)


@pytest.mark.parametrize("text", AS_PARALLEL_HAS_IT)
def test_the_parts_of_a_path_are_those_of_parallel(text: str) -> None:
    command = Command(["echo", "{.}", "{/}", "{//}", "{/.}"])
    assert command.line(item(text)) == f"echo {AS_PARALLEL_HAS_IT[text]}"


@pytest.mark.parametrize(
    ("words", "given_items", "line"),
    [
        (["echo"], ["a b"], "echo 'a b'"), (["echo", "{#}"], ["a"], "echo 7"), ([], ["echo a | wc"], "echo a | wc"),
        (["{}", "foo"], ["echo hi"], "echo hi foo"), (["{.}", "x"], ["echo hi.x"], "echo hi x"),
        ([" {1} y"], ["echo hi"], " 'echo hi' y"), (["{1} {2}"], ["a b", "c d"], "a b c d"),
        (["echo {.} a{}b {2} {-1} {3}"], ["a.x", "b.y"], "echo a b aa.x b.yb b.y b.y "),
        (["echo", "{2//}", "{1/.}"], ["a/b.c", "d/e"], "echo d b"), (["echo {}"], [""], "echo ''"),
        (["gzip -c {} | wc -c"], ["it's"], "gzip -c 'it'\"'\"'s' | wc -c"), (["awk", "{print}"], ["a"], "awk {print} a"),
        (["echo ${x} {..} {0} {a} {}"], ["b"], "echo ${x} {..} {0} {a} b"),
    ],
)  # fmt: skip
def test_a_command_line_is_that_of_parallel(words: list[str], given_items: list[str], line: str) -> None:
    assert Command(words).line(Item(7, tuple(given_items))) == line


def test_a_quoted_command_means_nothing_to_a_shell() -> None:
    assert Command(["echo", "a b", "$x;", "y{}"], quoted=True).line(item("p q")) == "echo 'a b' '$x;' 'yp q'"
    assert Command(["echo", "a b"], quoted=True).line(item("c d")) == "echo 'a b' 'c d'"


def test_several_arguments_are_put_in_together_or_spread() -> None:
    three = item("d/1.x", "2", "3 4")
    for words, together, spread in (
        (["echo", "pre{}post", "{.}"], "echo pred/1.x 2 '3 4'post d/1 2 '3 4'", "echo pred/1.xpost pre2post pre'3 4'post d/1 2 '3 4'"),
        (["echo {/}{}"], "echo 1.x 2 '3 4'd/1.x 2 '3 4'", "echo 1.xd/1.x 22 '3 4''3 4'"), (["echo {2}a"], "echo 2a", "echo 2a"),
        (["cat {} > {#}"], "cat d/1.x 2 '3 4' > 1", "cat d/1.x 2 '3 4' > 1"), (["echo"], "echo d/1.x 2 '3 4'", "echo d/1.x 2 '3 4'"),
    ):  # fmt: skip
        assert Command(words).line(three) == together
        assert Command(words, is_spread=True).line(three) == spread
    assert Command(["echo", "a {}"], quoted=True).line(three) == "echo 'a d/1.x' 'a 2' 'a 3 4'"
    assert Template("{/}.{1}").each(three) == ["1.x.d/1.x", "2.d/1.x", "3 4.d/1.x"]
    assert Template("{1}").each(three) == ["d/1.x"]


@pytest.mark.parametrize("text", ["echo {%}", "echo {= s/a/b/ =}", "{1}{=uq=}"])
def test_what_only_parallel_can_replace_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Command([text])
    # one sign of them alone is something else's
    assert Template("a {= b").fill(item("c")) == "a {= b"


PATHS = st.text(alphabet="ab./ '\"$\\*{}#-é\n", max_size=12)
STRINGS: dict[str, Callable[[str], str]] = {
    "{}": lambda path: path,
    "{.}": lambda path: path if "." not in path.rpartition("/")[2] else path.rpartition(".")[0],
    "{/}": os.path.basename,
    "{//}": folder_of,
    "{/.}": lambda path: path.rpartition("/")[2].rpartition(".")[0 if "." in path.rpartition("/")[2] else 2],
}


@given(st.lists(st.sampled_from([*STRINGS, "{#}", "text", "{x}", " "]), max_size=6), PATHS, st.integers(1, 10_000))
def test_a_template_is_filled_piece_by_piece(parts: list[str], path: str, number: int) -> None:
    """What is filled in is never looked at again, whatever stands in it."""
    wanted = "".join(
        STRINGS[part](path) if part in STRINGS else str(number) if part == "{#}" else part for part in parts
    )
    assert Template("".join(parts)).fill(Item(number, (path,))) == wanted


@given(st.lists(PATHS, min_size=1, max_size=3))
def test_a_shell_reads_each_argument_as_it_was(arguments: list[str]) -> None:
    assert shlex.split(Command(["echo", "{}"]).line(Item(1, tuple(arguments)))) == ["echo", *arguments]


def test_a_real_shell_reads_them_so_too() -> None:
    odd = ["it's", "$HOME", "a\nb", "*", "\\", '"', "é", "-n", "", "`id`"]
    line = Command(["printf", "%s\\\\0", "{}"]).line(Item(1, tuple(odd)))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.split("\0")[:-1] == odd


@given(PATHS.filter(lambda path: "\n" not in path))
def test_a_folder_is_what_dirname_says(path: str) -> None:
    """Without running it ten thousand times: POSIX says how it goes."""
    parts = path.rstrip("/").split("/")
    if not path.strip("/"):
        wanted = "/" if path else "."
    elif len(parts) == 1:
        wanted = "."
    else:
        wanted = "/".join(parts[:-1]).rstrip("/") or "/"
    assert folder_of(path) == wanted


@pytest.mark.parametrize("path", ["a", "a/b", "/a", "/", "//", "a//b", "a/b/", "./a", "../a/", "a/./b"])
def test_a_folder_is_what_the_real_dirname_says(path: str) -> None:
    done = subprocess.run(["dirname", "--", path], capture_output=True, text=True, check=True)
    assert folder_of(path) == done.stdout.removesuffix("\n").replace("//", "/")
