"""The protocol of an executor, and what is the same for all of them: the scratch folder, its inputs and outputs."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from nunet_cli.errors import NunetError
from nunet_cli.executor.files import open_file, open_folder, remove_folder
from nunet_cli.jobs.spec import HERE, ExecutorSpec, is_safe_path
from nunet_cli.network.data.trees import unpack
from nunet_cli.records.capability import Resources
from nunet_cli.records.results import Usage
from nunet_cli.records.trees import TreeError

TERM_GRACE = 2.0
POLL_INTERVAL = 0.25
NODE_LABEL = "org.nunet.node"
Report = Callable[[str, int, int], None]


def _unheard(_what: str, _done: int, _total: int) -> None:
    """Report to nobody."""


class ExecutorError(NunetError):
    """The allocation could not be made or started; the provider's failure, not the job's."""

    exit_code = 1
    default_code = "executor_error"


@dataclass(frozen=True)
class Probe:
    """Whether an executor works here; `detail` says how, or why not."""

    available: bool
    detail: str


@dataclass
class Task:
    """One job as an executor sees it. `folder` is the scratch folder; sizes are bytes.

    `inputs` are the places of the input files in the working folder, not of those in input folders; `sandbox` is
    required unless it says otherwise; `restarts` says how often a service was started again, and with it that its logs
    go on. `report` is told what takes its time, with the bytes done and the total (0 when unknown); any thread may call
    it. `foreign` is a stranger's job.
    """

    allocation_id: str
    spec: ExecutorSpec
    resources: Resources
    max_duration: int
    max_log: int
    folder: Path
    inputs: tuple[str, ...] = ()
    sandbox: bool = True
    foreign: bool = True
    labels: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    report: Report = _unheard

    @property
    def work(self) -> Path:
        """The job's working folder."""
        return self.folder / "work"

    @property
    def kept_inputs(self) -> Path:
        """The inputs of a container, by their number; nothing of the job's can change them."""
        return self.folder / "inputs"

    @property
    def stdout(self) -> Path:
        """Where standard output is kept."""
        return self.folder / "stdout"

    @property
    def stderr(self) -> Path:
        """Where standard error is kept."""
        return self.folder / "stderr"


@dataclass(frozen=True)
class Exit:
    """How a job ended: its exit code, or the `reason` why it was ended (`out_of_memory`, `disk_full`, …).

    `ended_at` is when, where the executor knows that better than who waits: it may end while the node is away.
    """

    exit_code: int | None
    usage: Usage
    reason: str = ""
    ended_at: str = ""


class Executor(Protocol):
    """What runs jobs. A `handle` is what finds a started job again, also after a restart of the node."""

    type: str

    async def probe(self) -> Probe:
        """Say whether this executor works here."""

    async def refusal(self, image: str) -> str:
        """Say why an image cannot run here, or nothing; asked before a bid is made."""

    async def prepare(self, task: Task) -> None:
        """Make ready what the start needs, such as an image."""

    async def start(self, task: Task) -> str:
        """Start the job and return its handle."""

    async def attach(self, task: Task, handle: str) -> bool:
        """Find a job that an earlier run of the node started; False when it is gone."""

    async def wait(self, task: Task, handle: str) -> Exit:
        """Wait for the end of the job, keeping it inside its limits; a cancellation leaves it running."""

    async def usage(self, task: Task, handle: str) -> Usage:
        """Return what the job has used so far."""

    async def check(self, task: Task, handle: str, command: tuple[str, ...]) -> bool:
        """Run a command beside the job, and say whether it ended with 0; the caller sets the timeout."""

    async def stop(self, task: Task, handle: str) -> None:
        """End the job, politely and then not; once it returns, nothing of it runs."""

    async def cleanup(self, task: Task, handle: str) -> None:
        """Remove what the executor made for the job, the scratch folder not among it."""


@runtime_checkable
class SettingUp(Protocol):
    """An executor that can set up, before a job may start, what the job will run in."""

    async def set_up(self, task: Task) -> None:
        """Set it up as far as nothing of the job runs yet; `cleanup` takes it away where the job is not started."""


@runtime_checkable
class Lasting(Protocol):
    """An executor whose jobs go on without the node, and so can be left behind by one that was ended."""

    async def remove_left(self, node: str, is_owned: Callable[[str], bool]) -> list[str]:
        """End and remove the jobs of a node (its DID) whose allocation nobody owns; return their allocations."""


@dataclass(frozen=True)
class Given:
    """An input that is here: its place in the job's folder, and the content, of a file or of a folder."""

    place: str
    source: Path
    is_folder: bool = False


def make_scratch(task: Task, inputs: Sequence[Given]) -> None:
    """Make the scratch folder with the inputs in their places, afresh.

    A container gets input files mounted from a folder that it cannot write, over empty files in their places. What is
    in an input folder is the job's own copy, with its modes.

    Args:
        task: the job.
        inputs: what is put into it.

    Raises:
        ExecutorError: the places are none, two of them cannot be there together, or a folder is none.
    """
    if any(not is_safe_path(given.place) and not (given.is_folder and given.place == HERE) for given in inputs):
        raise ExecutorError("an input would leave the job's folder", code="bad_place")
    remove_folder(task.folder)
    task.work.mkdir(parents=True, mode=0o700)
    task.folder.chmod(0o700)
    task.stdout.touch()
    task.stderr.touch()
    task.kept_inputs.mkdir(mode=0o700)
    for number, given in enumerate(given for given in inputs if not given.is_folder):
        target = task.work / given.place
        with _job_made(given.place):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch(exist_ok=False)
        if task.spec.type == "docker":
            target = task.kept_inputs / str(number)
        shutil.copyfile(given.source, target)
        target.chmod(0o555)
    # after the files: the modes of what is in them may let nothing more in
    for given in inputs:
        if given.is_folder:
            _put_folder(task, given)
    if task.spec.type == "docker":
        workdir = PurePosixPath(task.spec.workdir)
        if workdir.is_absolute() or ".." in workdir.parts:
            raise ExecutorError(f"the working folder {task.spec.workdir!r} is not there", code="no_workdir")
        with _job_made(task.spec.workdir):
            # the engine would make it, and root's
            (task.work / workdir).mkdir(parents=True, exist_ok=True)


def _put_folder(task: Task, given: Given) -> None:
    target = task.work / given.place
    with _job_made(given.place):
        target.mkdir(parents=True, exist_ok=True)
        try:
            # nothing of the job's has run yet: the links that are there were all made inside
            root = open_folder(task.work, given.place)
        except OSError as error:
            raise ExecutorError(f"{given.place!r} cannot be a folder: {error.strerror}", code="bad_place") from None
        try:
            unpack(given.source, root)
        except TreeError as error:
            raise ExecutorError(f"the input {given.place!r}: {error.message}", code="bad_place") from None
        finally:
            os.close(root)


# what the file system says of names that the job chose; all else, as a full disk, is the provider's
_BAD_NAMES = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}


@contextlib.contextmanager
def _job_made(place: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _BAD_NAMES:
            raise
        text = f"{place!r} cannot be in the job's folder: {os.strerror(error.errno)}"
        raise ExecutorError(text, code="bad_place") from None


def open_output(task: Task, path: str) -> int | None:
    """Return a descriptor of an output that is a regular file inside the job's folder, or None.

    A symbolic link is never followed, neither at the end of the path nor on the way: the job made the links.
    """
    if not is_safe_path(path):
        return None
    try:
        if task.spec.type == "docker" and path in task.inputs:
            return open_file(task.kept_inputs, str(task.inputs.index(path)))
        return open_file(task.work, path)
    except OSError:
        return None
