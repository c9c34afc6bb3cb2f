"""Floods: what costs its sender little must cost this node little."""

import struct
from pathlib import Path

import pytest
import trio

from nunet_cli.config import NetworkConfig
from nunet_cli.network.connection import PING, PONG
from nunet_cli.network.secure_channel import FEW_PACKETS, LEAST_PACKET
from nunet_cli.node.opening import open_node
from tests.conftest import config
from tests.security.test_hostile_peer import Hostile

RATE = 50
NO_FRAME = 99


@pytest.fixture
async def hostile(tmp_path: Path):  # type: ignore[no-untyped-def]
    network = NetworkConfig(listen="127.0.0.1:0", discovery=False, rate=RATE)
    async with open_node(tmp_path, config(network=network)) as node:
        yield await Hostile.connect(node)


async def test_what_is_over_the_rate_is_read_no_faster_than_it(hostile: Hostile) -> None:
    rejections, began = hostile.node.ctx.transport.rejections, trio.current_time()
    with trio.move_on_after(2):
        while True:
            # far more than that, as fast as it is taken
            await hostile.channel.send_frames(*[bytes([NO_FRAME])] * 500)
    passed = trio.current_time() - began
    # four seconds' worth is saved up; then one is too much for each that is not
    assert rejections["rate"] <= (passed + 1) * RATE
    assert rejections["unknown_frame"] <= (passed + 5) * RATE
    assert rejections["rate"] > 0


async def test_a_frame_in_many_small_packets_ends_the_connection(hostile: Hostile) -> None:
    length = 10 * LEAST_PACKET
    channel, data = hostile.channel, struct.pack(">I", length) + bytes([PING]) * length
    for at in range(FEW_PACKETS + 10):
        await channel.stream.send_all(channel._seal(data[at : at + 1]))
    await hostile.rejected("small_packets")


async def test_a_frame_in_a_few_pieces_is_taken(hostile: Hostile) -> None:
    channel, data = hostile.channel, struct.pack(">I", 9) + bytes([PING]) + b"in order"
    for at in range(len(data)):
        await channel.stream.send_all(channel._seal(data[at : at + 1]))
    while (await hostile.until(PONG))[1][:8] != b"in order":
        pass
