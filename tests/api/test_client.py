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


def test_events_come_whole_however_they_are_cut(tmp_path: Path) -> None:
    sent = b'data: {"n": 1}\n\n: still here\n\ndata: {"text": "\xc3\xa9"}\n\n'
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(sent[at : at + 7]), sent[at : at + 7]) for at in range(0, len(sent), 7))
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks
    with answering(tmp_path / "node.sock", answer + b"0\r\n\r\n") as client:
        assert list(client.events("/events")) == [{"n": 1}, {"text": "é"}]
    (tmp_path / "node.sock").unlink()
    # the end is missing: what came is given, and then it has gone
    with answering(tmp_path / "node.sock", answer) as client:
        events = client.events("/events")
        assert [next(events), next(events)] == [{"n": 1}, {"text": "é"}]
        with pytest.raises(NodeError, match="does not answer"):
            next(events)


@pytest.mark.parametrize(
    "where", ["http://", "http://127.0.0.1:no", "http://[::1", "http://127.0.0.1:99999", "http://ü..x"]
)
def test_a_place_that_cannot_be_one_does_not_answer(where: str) -> None:
    client = ApiClient(where, "token")
    assert not client.answers()
    with pytest.raises(NodeError, match="does not answer"):
        client.get("/whoami")
