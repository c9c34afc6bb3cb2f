"""Ways to run many commands without a market, on this machine: xargs, Dask, and Slurm where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.market import wait_until

# runs `command` for item number $1 in a folder of its own, as a provider does; the exit code is the command's
ITEM = """#!/bin/sh
mkdir work-$1 && cd work-$1 && cp ../in/$1.txt in.txt || exit 9
( {command} )
code=$?
test $code = 0 && mv out.txt ../out/$1.txt
touch ../ended/$1
exit $code
"""
PATIENCE = 120.0
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")
CONFIGURATION = """
ClusterName=bench
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
NodeName={host} NodeAddr=127.0.0.1 CPUs={slots}
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
PartitionName=bench Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

# (folder with `in` and an empty `out`, items, slots, command) → seconds
Way = Callable[[Path, int, int, str], float]


def ways() -> dict[str, Way | str]:
    """Return each way by name, or why it cannot be had here."""
    lacks_slurm = [name for name in DAEMONS if shutil.which(name) is None]
    found: dict[str, Way | str] = {
        "xargs": xargs if shutil.which("xargs") else "there is no xargs",
        "Dask": dask if importlib.util.find_spec("distributed") else "pip install nunet-cli[bench]",
        "Slurm": slurm if not lacks_slurm else f"there is no {lacks_slurm[0]}: apt-get install slurm-wlm munge",
    }
    if not lacks_slurm and os.geteuid() != 0:
        found["Slurm"] = "its daemons want to be root"
    return found


def write_item(folder: Path, command: str) -> Path:
    """Write the script that runs an item."""
    (folder / "ended").mkdir()
    script = folder / "item.sh"
    script.write_text(ITEM.format(command=command))
    script.chmod(0o755)
    return script


def xargs(folder: Path, items: int, slots: int, command: str) -> float:
    """Run the items with `xargs -P`."""
    script, numbers = write_item(folder, command), "".join(f"{number}\n" for number in range(items))
    begin = time.perf_counter()
    # its exit code is 123 when an item failed
    subprocess.run(["xargs", "-P", str(slots), "-n", "1", script], input=numbers, text=True, cwd=folder, check=False,
                   timeout=PATIENCE)  # fmt: skip
    return time.perf_counter() - begin


def dask(folder: Path, items: int, slots: int, command: str) -> float:
    """Run the items as tasks of a Dask cluster that runs already."""
    import distributed

    script = write_item(folder, command)

    def one(number: int) -> int:
        return subprocess.run([str(script), str(number)], cwd=str(folder), check=False).returncode

    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=slots // 2, dashboard_address="127.0.0.1:0", host="127.0.0.1",
            local_directory=str(folder),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        client.gather(client.map(abs, range(slots)))
        begin = time.perf_counter()
        client.gather(client.map(one, range(items), pure=False))
        return time.perf_counter() - begin


def slurm(folder: Path, items: int, slots: int, command: str) -> float:
    """Run the items as an array of a Slurm cluster of this machine alone, which runs already."""
    write_item(folder, command)
    (folder / "array.sh").write_text("#!/bin/sh\nexec ./item.sh $SLURM_ARRAY_TASK_ID\n")
    with _slurm(slots) as env:
        command_line = [
            "sbatch", "--wait", "--quiet", f"--array=0-{items - 1}", "--ntasks=1", "--cpus-per-task=1",
            "--output=/dev/null", "array.sh",
        ]  # fmt: skip
        begin = time.time()
        subprocess.run(command_line, cwd=folder, env=env, check=False, timeout=PATIENCE)
        # `sbatch --wait` looks after ever longer pauses: it may be told of the end long after it
        return max(path.stat().st_mtime for path in (folder / "ended").iterdir()) - begin


@contextlib.contextmanager
def _slurm(slots: int) -> Iterator[dict[str, str]]:
    """Run Slurm's daemons for the duration of the context; the environment of its commands."""
    # its sockets are in its folder, and a socket's path is short
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name,
        contextlib.ExitStack() as stack,
    ):
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        configuration = folder / "slurm.conf"
        configuration.write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=folder,
                controller=_free_port(),
                node=_free_port(),
                slots=slots,
            )
        )
        env = {**os.environ, "SLURM_CONF": str(configuration)}

        def start(*command: str | Path) -> None:
            with (folder / f"{command[0]}.out").open("wb") as out:
                daemon = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            stack.callback(_end, daemon)

        start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
              f"--seed-file={folder}/munged.seed", "--num-threads=2")  # fmt: skip
        wait_until(lambda: (folder / "munge.socket").exists(), "munged")
        start("slurmctld", "-D", "-f", configuration)
        start("slurmd", "-D", "-f", configuration)

        def ready() -> bool:
            states = subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True, check=False)
            return states.stdout.split() == ["idle"]

        wait_until(ready, "Slurm's start")
        yield env


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
