"""Images for the tests, made from busybox, and a registry on loopback to pull them from."""

import contextlib
import io
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port, wait_until

TOOLS = ("sh", "cat", "sort", "sha256sum", "tee", "sleep", "touch", "id", "dd", "wc", "ls", "echo", "test", "rm", "true",
         "false")  # fmt: skip
REGISTRY = """
version: 0.1
http: {addr: "127.0.0.1:PORT"}
storage: {filesystem: {rootdirectory: "FOLDER"}}
"""


def import_image(name: str, more: bytes = b"") -> None:
    """Give the Docker Engine an image with busybox, its tools, and `more` in a file; skip where there is no busybox."""
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
        if more:
            entry = tarfile.TarInfo("data")
            entry.size = len(more)
            tar.addfile(entry, io.BytesIO(more))
    subprocess.run(["docker", "import", "-", name], input=data.getvalue(), check=True, capture_output=True)


@contextlib.contextmanager
def busybox_image(name: str, more: bytes = b"") -> Iterator[str]:
    """Give the engine an image for the duration of the context."""
    import_image(name, more)
    try:
        yield name
    finally:
        subprocess.run(["docker", "rmi", "-f", name], check=False, capture_output=True)


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run a registry on loopback for the duration of the context; yield its address."""
    if shutil.which("docker-registry") is None:
        pytest.skip("needs docker-registry")
    port = free_port()
    settings = folder / "registry.yml"
    settings.write_text(REGISTRY.replace("PORT", str(port)).replace("FOLDER", str(folder / "images")))
    with subprocess.Popen(
        ["docker-registry", "serve", settings], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, what="the registry's answer")
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
