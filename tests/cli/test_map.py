"""`nunet map` without a market: what is read, refused and printed, and `--local`, which runs everything here."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nunet_cli.cli.app import Root, app, to_front, typer
from nunet_cli.cli.map.counts import at_once
from nunet_cli.errors import UsageError
from tests.conftest import ROOT, nunet, wait_until
from tests.terminal import Terminal, needs_tmux


def run(*words: str, folder: Path, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
    return nunet("map", "--local", *words, home=folder / "home", cwd=folder, stdin=stdin, check=check)


def log_of(path: Path) -> list[list[str]]:
    """Return the lines of a job log without its heading, in the order of the items."""
    return sorted(line.split("\t") for line in path.read_text().splitlines()[1:])


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("map -k --home /a echo --home /b", "--home /a map -k echo --home /b"),
        ("map -kj4 --debug echo {} --debug", "--debug map -kj4 echo {} --debug"),
        ("map -j 4 --home=/a echo", "--home=/a map -j 4 echo"),
        ("map --return x --node n ::: --home /b", "--node n map --return x ::: --home /b"),
        ("--home /a map -- --home /b", "--home /a map -- --home /b"),
        ("--home /a map -k -- echo -- --home /b", "--home /a map -k -- echo -- --home /b"),
        ("map", "map"), ("map -j", "map -j"),
    ],
)  # fmt: skip
def test_the_words_of_the_command_are_left_alone(given: str, understood: str) -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, Root)
    args = given.split()
    assert to_front(args, root._end(args)) == understood.split()


def test_each_item_is_a_command_line(tmp_path: Path) -> None:
    for words, stdin, lines in (
        (["echo", "{.}", "-k", "--tag"], "a.b\n\nit's\n", ["echo a -k --tag", "echo '' -k --tag", "echo 'it'\"'\"'s' -k --tag"]),
        (["-0", "echo"], "a\nb\0c\0", ["echo 'a\nb'", "echo c"]), (["-d", ",", "echo"], "a,b", ["echo a", "echo b"]),
        (["-r", "echo"], " \n\nb\n", ["echo b"]), (["echo", ":::"], "", []), (["echo"], "", []),
        (["echo {1} {2}", ":::", "a", "b", ":::+", "1", "2", ":::", "x"], "", ["echo a 1", "echo b 2"]),
        (["--link", "echo", ":::", "a", "b", ":::", "1"], "", ["echo a 1", "echo b 1"]),
        (["-C", ",", "echo {2}"], "a, b\n", ["echo b"]), (["-a", "-", "echo", ":::", "x"], "a\nb\n", ["echo a x", "echo b x"]),
        (["-q", "echo", "$x"], "a\n", ["echo '$x' a"]), ([], "echo a | wc\n", ["echo a | wc"]),
        (["--", "-k"], "a\n", ["-k a"]),
    ):  # fmt: skip
        done = run("--dry-run", *words, folder=tmp_path, stdin=stdin)
        assert done.stdout == "".join(f"{line}\n" for line in lines), words
    (tmp_path / "items").write_text("1\n2")
    assert run("--dry-run", "echo", "::::", "items", folder=tmp_path).stdout == "echo 1\necho 2\n"
    assert not (tmp_path / "home").exists()


def test_what_is_wrong_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "bytes").write_bytes(b"a\n\xff\n")
    (tmp_path / "log").write_text("not a log\n")
    for words, message in (
        (["-X", "echo"], "-X of GNU parallel is not here\nhint: -n says"), (["-n", "0", "echo"], "-n"),
        (["--pipe", "wc"], "--pipe of GNU parallel"), (["-kS", "host", "echo"], "No such option"),
        (["--transfer", "touch ran", ":::", "a", "b"], "item 2 (b): there is no file b"),
        (["--transfer", "touch ran", ":::", str(tmp_path / "a")], "hint: it is below the folder that you are in: name it as a"),
        (["--transfer", "touch ran", ":::", "/etc/hostname"], "/etc/hostname is not below the folder"),
        (["--return", "a/./{}", "touch ran", ":::", "x"], "a is not a folder\nhint: nothing was asked for yet"),
        (["--return", "a/deep/*", "touch ran", ":::", "x"], "a is not a folder\nhint: nothing was asked for yet"),
        (["--transfer", "touch ran", ":::", "../a"], "item 1 (../a): ../a is not below"),
        (["--return", "same", "touch ran", ":::", "a", "b"], "the items 1 and 2 would both come back as same"),
        (["--return", "/x", "touch ran", ":::", "a"], "/x is not below the folder"),
        (["--return", "x/", "touch ran", ":::", "a"], "'x/' is not the name of a file"),
        (["--tf", "{1}", "--tf", "{1}", "touch ran", ":::", "a"], "two files would go to the same place"),
        (["--resume", "touch ran", ":::", "a"], "--resume and --resume-failed read a job log"),
        (["--joblog", "log", "--resume", "touch ran", ":::", "a"], "log:1: not a line of a job log"),
        (["--joblog", "no/log", "touch ran", ":::", "a"], "--joblog: no/log: No such file"),
        (["--halt", "often", "touch ran", ":::", "a"], "--halt: 'often'"), (["-a", "nothere", "touch ran"], "nothere: No such"),
        (["-a", "bytes", "touch ran"], "bytes: item 2 is not UTF-8 text"), (["-d", "ab", "x"], "--delimiter: 'ab'"),
        (["touch ran {%}", ":::", "a"], "there are no job slots"), (["--env", "NOT_THERE", "x", ":::", "a"], "'NOT_THERE'"),
        (["touch ran", ":::", "x" * 4100], "its command line has 4110 characters"),
        (["--image", "x", "touch ran", ":::", "a"], "it has no images"), (["--results", "a/b", "x", ":::", "a"], "--results"),
        (["-j", "x", "touch ran", ":::", "a"], "'x'\nhint: a number up to 1000, 0 for as many as may be, or +2, -1 or 50%"),
        (["-j", "1001", "touch ran", ":::", "a"], "--jobs: '1001'"), (["-j", "+x", "touch ran", ":::", "a"], "--jobs: '+x'"),
        (["--name", "x" * 91, "touch ran", ":::", "a"], "--name: at most 90 characters"),
        (["-i", "nothere", "touch ran", ":::", "a"], "--input: there is no file nothere"),
    ):  # fmt: skip
        done = run(*words, folder=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert message in done.stderr, words
    done = run("touch ran", folder=tmp_path, stdin="".join(f"{n}\n" for n in range(10_001)), check=False)
    assert (done.returncode, "over 10000 items" in done.stderr) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bytes", "log"]


def test_only_a_link_that_leads_out_is_not_sent(tmp_path: Path) -> None:
    """The first folder of a name may be one: somebody keeps the pictures elsewhere."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for name in (here / "in/a", here / ".env", elsewhere / "key", elsewhere / "deep/b"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text(name.name)
    for name, target in {
        "link": "in/a", "in/up": "../.env", "key": elsewhere / "key", "in/key": elsewhere / "key", "there": elsewhere,
        "in/there": elsewhere,
    }.items():  # fmt: skip
        (here / name).symlink_to(target)
    words = ["--transfer", "cat {}", ":::"]
    done = run("-k", *words, "link", "in/up", "there/key", "there/deep/b", folder=here)
    assert done.stdout == "a.envkeyb"
    for name in ("key", "in/key", "in/there/key", "in/there/deep"):
        refused = run(*words, name, folder=here, check=False)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert f"item 1 ({name}): {name} is a link that leads out of the folder" in refused.stderr


def test_that_a_file_was_not_sent_is_said(tmp_path: Path) -> None:
    (tmp_path / "a b").touch()
    hint = "hint: items are files here, and nothing is sent unasked: --transfer"
    for words, items, is_hinted in (
        (["cat {}"], ["x", "a b"], True), (["cat {}"], ["x", "y"], False), (["exit {#}"], ["/etc/hostname"], False),
        (["--transfer", "cat {}; exit 1"], ["a b"], False), (["-n", "2", "cat {}"], ["x", "a b"], True),
    ):  # fmt: skip
        done = run(*words, ":::", *items, folder=tmp_path, check=False)
        assert (done.returncode, hint in done.stderr) == (1, is_hinted), (words, done.stderr)
    done = run("--joblog", "log", "cat {}", ":::", "a b", folder=tmp_path, check=False)
    assert done.stderr.endswith(f"{hint}; run them again: add --resume-failed, with the same items and --joblog log\n")


def test_output_is_whole_and_in_order(tmp_path: Path) -> None:
    script = "sleep 0.{}; printf 'a {}\\nb {}'; echo warning {} >&2"
    done = run("-k", "-j", "3", script, ":::", "3", "0", "1", folder=tmp_path)
    assert (done.stdout, done.stderr) == (
        "a 3\nb 3a 0\nb 0a 1\nb 1", "warning 3\nwarning 0\nwarning 1\n",
    )  # fmt: skip
    done = run("-k", "--tag", "printf 'a\\n\\nb'", ":::", "x y", ":::", "z", folder=tmp_path)
    assert done.stdout == "x y z\ta\nx y z\t\nx y z\tb"
    done = run("-k", "--tagstring", "<{/}>", "-t", "echo", ":::", "a/b", folder=tmp_path)
    assert (done.stdout, done.stderr) == ("<b>\ta/b\n", "echo a/b\n")
    done = run("--results", "kept", "echo {}; echo e >&2", ":::", "a/b", "..", folder=tmp_path)
    assert done.stdout == ""
    kept = {str(path.relative_to(tmp_path / "kept")): path.read_text() for path in (tmp_path / "kept").rglob("std*")}
    assert kept == {
        r"1/a\_b/stdout": "a/b\n", r"1/a\_b/stderr": "e\n", r"1/\.\./stdout": "..\n", r"1/\.\./stderr": "e\n",
    }  # fmt: skip
    assert (tmp_path / "kept/1/a\\_b/seq").read_text() == "1"


def test_a_command_has_what_was_sent_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("in/a.txt", "in/b.txt", "common"):
        (tmp_path / name).write_text(f"{name}\n")
    done = run("-k", "--trc", "{.}.out", "-i", "common:data/common", "-e", "LETTER=q", "--return", "made/./*.list",
               "ls -R > {/.}.list; cat {} data/common > {.}.out; echo $LETTER$PARALLEL_SEQ$SECRET", ":::", "in/a.txt", "in/b.txt",
               folder=tmp_path)  # fmt: skip
    assert done.stdout == "q1\nq2\n"
    assert (tmp_path / "in/a.out").read_text() == "in/a.txt\ncommon\n"
    assert (tmp_path / "in/b.out").read_text() == "in/b.txt\ncommon\n"
    listed = (tmp_path / "made/b.list").read_text()
    assert "b.txt" in listed and "a.txt" not in listed
    failed = run("--return", "{}.out", "echo here", ":::", "x", folder=tmp_path, check=False)
    assert (failed.returncode, failed.stdout) == (1, "here x\n")
    assert "item 1 (x): the command did not write x.out" in failed.stderr
    # a name with the signs of a pattern means itself
    (tmp_path / "c[1].txt").write_text("c\n")
    run("--transfer", "--return", "{.}.*", "cp {} {.}.out", ":::", "c[1].txt", folder=tmp_path)
    assert (tmp_path / "c[1].out").read_text() == "c\n"


def test_what_failed_is_logged_and_run_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["--joblog", "log", "-k", "-j1"]
    done = run(*words, "echo {}; test {} != b", ":::", "a", "b", "c", folder=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "a\nb\nc\n")
    assert "item 2 (b): the command exited with 1\nnunet: 1 of 3 items failed\nhint: run them again" in done.stderr
    lines = log_of(log)
    assert [[line[0], line[1], *line[6:]] for line in lines] == [
        ["1", ":", "0", "0", "echo a; test a != b"], ["2", ":", "1", "0", "echo b; test b != b"],
        ["3", ":", "0", "0", "echo c; test c != b"],
    ]  # fmt: skip
    assert all(re.fullmatch(r"\d+\.\d{3}", line[2]) and re.fullmatch(r" *\d+\.\d{3}", line[3]) for line in lines)
    done = run(*words, "--resume", "echo {}; test {} != b", ":::", "a", "b", "c", "d", folder=tmp_path)
    assert (done.stdout, done.stderr) == ("d\n", "")
    done = run(*words, "--resume-failed", "echo again {}", ":::", "a", "b", "c", "d", folder=tmp_path)
    assert done.stdout == "again b\n"
    assert done.stderr == "nunet: in the job log item 1 is another command: echo a; test a != b\n"
    other = run(*words, "--resume", "touch {}", ":::", "a", "b", "c", folder=tmp_path)
    # the items that are left out were another command, too; the last line of each counts
    assert other.stderr == "nunet: in the job log item 1 is another command: echo a; test a != b\n"
    assert run(*words, "--resume-failed", "echo", ":::", "a", "b", "c", "d", folder=tmp_path).stdout == ""
    assert len(log_of(log)) == 5
    run(*words, "echo", ":::", "a", folder=tmp_path)
    assert len(log_of(log)) == 1
    signalled = run("--joblog", "log", "kill -9 $$; echo {}", ":::", "a", folder=tmp_path, check=False)
    assert (signalled.returncode, log_of(log)[0][6:8]) == (1, ["0", "9"])


def test_retries_and_time_limits(tmp_path: Path) -> None:
    tries = tmp_path / "tries"
    done = run("--retries", "3", f"echo {{}} >> {tries}; exit 4", ":::", "a", folder=tmp_path, check=False)
    assert (done.returncode, tries.read_text()) == (1, "a\na\na\n")
    done = run("--timeout", "1", "--joblog", "log", "sleep 60; echo {}", ":::", "a", folder=tmp_path, check=False)
    assert "item 1 (a): it ran for over 1 s" in done.stderr
    assert log_of(tmp_path / "log")[0][6] == "-1"


def test_it_stops_when_it_was_told(tmp_path: Path) -> None:
    script = "echo {}; exit {}"
    for halt, stdout, code in (
        ("soon,fail=1", "0\n3\n", 1),
        ("now,success=1", "0\n", 0),
        ("soon,done=67%", "0\n3\n0\n", 1),
    ):
        words = ["-j1", "-k", "--joblog", "log", "--halt", halt, script, ":::", "0", "3", "0", "4"]
        done = run(*words, folder=tmp_path, check=False)
        assert done.stdout == stdout, halt
        assert done.returncode == code, done.stderr
    done = run("-j2", "--halt", "now,fail=1", "test {} = a && sleep 60; exit 3", ":::", "a", "b", "c", "d", folder=tmp_path,
               check=False)  # fmt: skip
    assert done.returncode == 1
    assert "did not run" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_all_of_it(tmp_path: Path, number: signal.Signals, code: int) -> None:
    started = [
        sys.executable,
        "-m",
        "nunet_cli",
        "--home",
        tmp_path / "home",
        "map",
        "--local",
        "-j2",
        "--joblog",
        "log",
    ]
    with subprocess.Popen(
        [*started, f"echo $$ > {tmp_path}/{{}}.pid; test {{}} = a || exec sleep 60", ":::", "a", "b", "c", "d"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        running = [tmp_path / "b.pid", tmp_path / "c.pid"]
        wait_until(lambda: all(path.exists() and path.read_text() for path in running), what="both run")
        wait_until(lambda: len(log_of(tmp_path / "log")) == 1, what="the first one is logged")
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, "interrupted: 1 done, 0 failed, 3 called off" in err) == (code, True), err
    for path in running:
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    assert [line[0] for line in log_of(tmp_path / "log")] == ["1"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), ("3", 3), ("0", 1000), ("+1", 5), ("-1", 3), ("-9", 1), ("50%", 2), ("150%", 6), ("1%", 1), ("+9999", 1000)],
)  # fmt: skip
def test_so_many_at_once_by_the_cores_of_this_machine(text: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert at_once(text, local=True) == count
    if text.isdigit() or not text:
        assert at_once(text, local=False) == count
    else:
        with pytest.raises(UsageError, match=re.escape(f"--jobs: '{text}' is counted from the cores of one machine")):
            at_once(text, local=False)


def test_as_many_as_may_be_are_all(tmp_path: Path) -> None:
    """Each of them waits for all others."""
    script = f"touch {tmp_path}/{{}}; until test $(ls {tmp_path} | grep -c x) = 6; do sleep 0.05; done"
    done = run("-j0", "--timeout", "30", "-t", script, ":::", *(f"x{n}" for n in range(6)), folder=tmp_path)
    assert done.stderr.count("touch ") == 6


def test_how_far_it_is_is_told_by_tenths_where_there_is_no_terminal(tmp_path: Path) -> None:
    done = run("--bar", "-j1", "true {}", ":::", *map(str, range(20)), folder=tmp_path)
    lines = done.stderr.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(" 10%  2 of 20 done, 0 failed") and lines[-1].startswith("100%  20 of 20 done")


@needs_tmux
def test_a_terminal_has_a_bar_and_whole_lines(tmp_path: Path) -> None:
    with Terminal(tmp_path, columns=120) as terminal:
        terminal.type(
            f"nunet map --local -j1 --bar 'until test -e {tmp_path}/{{}}; do sleep 0.05; done; echo {{}} is there' ::: a b"
        )
        terminal.wait_for("  0%  0 of 2 done, 0 failed, ? left")
        (tmp_path / "a").touch()
        terminal.wait_for("██████████░░░░░░░░░░  50%  1 of 2 done, 0 failed, ")
        (tmp_path / "b").touch()
        # the bar leaves nothing behind
        terminal.wait_until(lambda screen: screen.rstrip().endswith("a is there\nb is there\n$"))
