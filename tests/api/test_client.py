"""The client of the API against nodes that do not behave."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nunet_cli.api.client import ApiClient
from nunet_cli.errors import NodeError, NunetError

REFUSAL = b'{"detail": "not here", "code": "wrong_state", "exit_code": 2}'
ANSWER = b"HTTP/1.1 409 Conflict\r\ncontent-length: %d\r\n\r\n%s" % (len(REFUSAL), REFUSAL)


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[ApiClient]:
    """Serve one connection: read what the headers are, answer, and close with the rest unread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(64)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield ApiClient(path)
        finally:
            thread.join(20)


def test_a_refusal_is_read_though_the_body_was_not(tmp_path: Path) -> None:
    # more than fits into the socket: sending is cut off by the closing
    with answering(tmp_path / "node.sock", ANSWER) as client, pytest.raises(NunetError) as caught:
        client.post("/contracts/x/resolve", {"text": "x" * 4_000_000})
    assert (caught.value.message, caught.value.code) == ("not here", "wrong_state")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", b"nonsense\r\n"])
def test_a_node_that_breaks_off_has_gone(answer: bytes, tmp_path: Path) -> None:
    with answering(tmp_path / "node.sock", answer) as client, pytest.raises(NodeError) as caught:
        client.post("/stop")
    assert "does not answer" in caught.value.message
