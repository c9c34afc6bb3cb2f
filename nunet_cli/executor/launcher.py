"""Run by the process executor as a script of its own: sets limits on itself, then becomes the job's command.

Arguments: a JSON object `{"limits": {name: value}, "cpus": count, "die_with_parent": bool}`, then the command.
"""

import ctypes
import json
import os
import resource
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Set the limits and become the command; exit 127 when it is not there, 126 when it cannot be run."""
    options, command = json.loads(sys.argv[1]), sys.argv[2:]
    if options["die_with_parent"] and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name, value in options["limits"].items():
        number = getattr(resource, name, None)
        if number is not None:
            hard = resource.getrlimit(number)[1]
            wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (wanted, wanted))
    if hasattr(os, "sched_setaffinity"):
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[-max(1, options["cpus"]) :])
    try:
        os.execvp(command[0], command)  # becoming the job is the purpose
    except FileNotFoundError:
        sys.stderr.write(f"{command[0]}: command not found\n")
        sys.exit(127)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.exit(126)


if __name__ == "__main__":
    main()
