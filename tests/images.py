"""Images for the tests, made from busybox: there is no registry to pull from."""

import contextlib
import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TOOLS = (
    "sh",
    "cat",
    "sort",
    "sha256sum",
    "tee",
    "sleep",
    "touch",
    "id",
    "dd",
    "wc",
    "ls",
    "echo",
    "test",
    "rm",
    "true",
    "false",
)


def import_image(name: str) -> None:
    """Give the Docker Engine an image with busybox and its tools; skip the test where there is no busybox."""
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        pytest.skip("needs busybox-static to make an image from")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for tool in TOOLS:
            link = tarfile.TarInfo(f"bin/{tool}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    subprocess.run(["docker", "import", "-", name], input=data.getvalue(), check=True, capture_output=True)


@contextlib.contextmanager
def busybox_image(name: str) -> Iterator[str]:
    """Give the engine an image for the duration of the context."""
    import_image(name)
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", "-f", name], check=False, capture_output=True)
