"""Where a node says that it can be reached, and what `peer add` takes for an address."""

import json
from pathlib import Path

import pytest

from nunet_cli.errors import UsageError
from nunet_cli.network import addresses
from nunet_cli.network.discovery import local_addresses
from nunet_cli.network.identity import new_identity
from nunet_cli.node.opening import open_node
from tests.conftest import config, free_port, nunet


@pytest.mark.parametrize("address", ["0.0.0.0:9000", "[::]:9000", "[0:0::0]:9000", "0:9000", "127.0.0.1:0", "host:0"])
def test_an_address_that_nobody_can_dial_is_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        addresses.parse_peer(f"{new_identity().peer_id}@{address}")
    assert address in caught.value.message
    assert "nunet whoami" in caught.value.hint


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "node.example", "2001:db8::7"])
def test_what_is_printed_can_be_pasted(host: str) -> None:
    peer = new_identity()
    text = addresses.format_address(host, 9000)
    assert text.startswith("[") == (":" in host)
    assert addresses.parse_peer(f"{peer.peer_id}@{text}") == (peer.public_key, (host, 9000))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_node_on_all_interfaces_has_addresses_of_its_family_and_loopback_only_alone(host: str) -> None:
    found = local_addresses(host)
    assert found
    assert all((":" in address) == (":" in host) for address in found)
    assert len(found) == 1 or not any(address.startswith("127.") or address == "::1" for address in found)


async def test_a_node_that_listens_everywhere_is_described_by_addresses_to_dial(tmp_path: Path) -> None:
    settings = config()
    settings.network.listen = "0.0.0.0:0"
    async with open_node(tmp_path / "a", settings) as a, open_node(tmp_path / "b", config()) as b:
        assert "0.0.0.0" not in a.ctx.transport.describe()
        await b.add_peer(a.ctx.transport.describe())
        while not b.ctx.transport.connected():
            await b.ctx.transport.wait_change(1)


def test_a_node_that_does_not_run_has_an_address_only_where_its_port_is_fixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = nunet("whoami", home=tmp_path)
    assert "none until the node runs" in done.stdout
    assert "nunet node start" in done.stderr
    assert "nunet config set network.listen 0.0.0.0:9000" in done.stderr
    monkeypatch.setenv("NUNET_NETWORK_LISTEN", f"127.0.0.1:{(port := free_port())}")
    document = json.loads(nunet("whoami", "--output", "json", home=tmp_path).stdout)
    assert document["address"] == f"{document['peer_id']}@127.0.0.1:{port}"
    assert document["addresses"] == [document["address"]]
