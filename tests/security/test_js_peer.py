"""Our handshake and box stream against a second implementation: `secret-handshake` and `pull-box-stream` (npm)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import trio

from nunet_cli.network.identity import Identity
from nunet_cli.network.secure_channel import SecureChannel, network_identifier, offer_handshake, take_handshake

SCRIPT = Path(__file__).with_name("js_peer.js")
MODULES = Path(os.environ.get("NUNET_NODE_MODULES", "node_modules"))
NETWORK = network_identifier("test")
OURS, THEIRS = Identity(b"\1" * 32, "ours"), Identity(b"\2" * 32, "theirs")

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(
        shutil.which("node") is None or not (MODULES / "secret-handshake").exists(),
        reason="needs Node.js and the npm packages secret-handshake and pull-box-stream (NUNET_NODE_MODULES)",
    ),
]


class Frameless(SecureChannel):
    """The box stream alone: whole pieces, without our frames around them."""

    async def send_piece(self, data: bytes) -> None:
        await self.stream.send_all(self._seal(data))

    async def receive_piece(self) -> bytes:
        await self._receive_packet()
        data = bytes(self._plain)
        self._plain.clear()
        return data


@pytest.mark.parametrize("role", ["server", "client"])
async def test_the_javascript_implementation_understands_us_and_we_it(role: str) -> None:
    arguments = [role, NETWORK.hex(), THEIRS.seed.hex(), *([OURS.public_key.hex()] if role == "client" else [])]
    process = await trio.lowlevel.open_process(
        ["node", str(SCRIPT), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(MODULES.absolute())},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stream = trio.StapledStream(process.stdin, process.stdout)
    try:
        with trio.fail_after(20):
            if role == "server":
                keys = await offer_handshake(stream, NETWORK, OURS, THEIRS.public_key)
            else:
                _, keys = await take_handshake(stream, [NETWORK], OURS)
            channel = Frameless(stream, keys, 2**20)
            assert channel.peer_key == THEIRS.public_key
            for text in (b"hello", b"a" * 4096, b"again"):
                await channel.send_piece(text)
                back = b""
                while len(back) < len(text):
                    back += await channel.receive_piece()
                assert back == text.upper()
    finally:
        process.kill()
        await process.wait()
