"""Run by the process executor as a script of its own: sets limits on itself, then becomes the sandbox or the command.

Its one argument is a descriptor of its options, as `marshal` writes them; nothing of the job is on its command line, in
its environment or in its working folder. Only the last step, `become`, knows the job's environment, and only where
there is no sandbox. Every job begins with this program: of the library it imports only what is quick.

    groups          files of control groups to join
    limits          {name of a resource limit: value}
    cpus            how many processors, at most; 0 where a control group shares them out
    parent          the process whose end is this one's, too
    user            the user to become, or null
    stage           {name: path}: folders that are put below /tmp, seen by this process alone, for that user to reach
    keep            [descriptor, …]: become 3, 4, …
    enter           descriptor of a process whose namespaces are joined, or null
    processes       how many processes and threads the user may have in those namespaces; 0 for no limit
    folder          [path, below]: the working folder; of the job's making is what is below, where no link is followed
    command         what to become
    environment     its environment
"""

import ctypes
import fcntl
import marshal
import os
import resource
import sys

# `json` and `signal` would take as long to import as Python takes to start
SIGKILL = 9
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
# user, PID, network, mount, IPC, UTS and control group
ALL_NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x20000 | 0x8000000 | 0x4000000 | 0x2000000
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Do what the options say, in their order; exit 127 when the command is not there, 126 when it cannot be run."""
    with os.fdopen(int(sys.argv[1]), "rb") as file:
        options = marshal.load(file)
    # opened with the rights of now, joined when this program, which is larger than many a job, is about to go
    groups = [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in options["groups"]]
    set_limits(options["limits"])
    if options["cpus"] and hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[-options["cpus"] :])
    if options["stage"]:
        put_on_stage(options["stage"])
    if options["user"] is not None:
        os.setgroups([])
        os.setresgid(*[options["user"]] * 3)
        os.setresuid(*[options["user"]] * 3)
    follow_parent(options["parent"])
    for group in groups:
        os.write(group, b"0")
    if options["enter"] is not None:
        enter(options["enter"], options["processes"])
    else:
        os.chdir(options["folder"][0])
        step_into(options["folder"][1])
    move(options["keep"])
    become(options["command"], options["environment"])


def check(result: int, what: str) -> None:
    """Raise what the last call of the C library left."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def set_limits(limits: dict[str, int]) -> None:
    """Set soft and hard limits, as far as the own ones allow."""
    for name, value in limits.items():
        number = getattr(resource, name, None)
        if number is not None:
            hard = resource.getrlimit(number)[1]
            wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (wanted, wanted))


def put_on_stage(stage: dict[str, str]) -> None:
    """Show folders below /tmp, in a mount namespace of this process's own."""
    check(LIBC.unshare(CLONE_NEWNS), "unshare")
    check(LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount /")
    # opened first: they may stand below /tmp themselves
    found = {name: os.open(path, FOLDER) for name, path in stage.items()}
    check(LIBC.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, b"mode=755,size=64k"), "mount /tmp")
    for name, descriptor in found.items():
        source, target = f"/proc/self/fd/{descriptor}".encode(), f"/tmp/{name}".encode()
        check(LIBC.mkdir(target, 0o755), f"mkdir {name}")
        check(LIBC.mount(source, target, None, MS_BIND | MS_REC, None), f"mount {name}")
        os.close(descriptor)


def follow_parent(parent: int) -> None:
    """End when the parent does; it may have ended already."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        sys.exit(125)


def enter(descriptor: int, processes: int) -> None:
    """Go on as a process beside the job, in its sandbox; this one waits for it and ends as it does."""
    LIBC.prctl(PR_SET_DUMPABLE, 0)
    check(LIBC.setns(descriptor, ALL_NAMESPACES), "setns")
    os.close(descriptor)
    if processes:
        set_limits({"RLIMIT_NPROC": processes})
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(min(255, abs(os.waitstatus_to_exitcode(status))))
    LIBC.prctl(PR_SET_PDEATHSIG, SIGKILL)
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.chdir("/job")


def step_into(below: str) -> None:
    """Go to a folder below this one, following no link."""
    for part in below.split("/"):
        if part not in ("", "."):
            descriptor = os.open(part, FOLDER)
            os.fchdir(descriptor)
            os.close(descriptor)


def move(descriptors: list[int]) -> None:
    """Give descriptors the numbers from 3 on."""
    copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3 + len(descriptors)) for descriptor in descriptors]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    for number, copy in enumerate(copies, 3):
        os.dup2(copy, number, inheritable=True)


def become(command: list[str], environment: dict[str, str]) -> None:
    """Run the command, sought in its own environment's PATH, in place of this process."""
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError:
        sys.stderr.write(f"{command[0]}: command not found\n")
        sys.exit(127)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(126)


if __name__ == "__main__":
    main()
