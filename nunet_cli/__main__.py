"""The entry point: runs the command line and turns every error into one clear message and the right exit code."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run `nunet`."""
    from nunet_cli.cli.state import importing, register_completion
    from nunet_cli.errors import EXIT_INTERRUPTED, NunetError

    with importing():
        from nunet_cli.cli.app import app
    if "_NUNET_COMPLETE" in os.environ:
        register_completion()
    try:
        app(prog_name="nunet")
    except NunetError as error:
        if os.environ.get("NUNET_DEBUG"):
            raise
        from nunet_cli.cli.output import report

        report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\nnunet: interrupted\n")
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # the reader of our output has gone, as in `nunet job list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
