"""Evidence bundles: whole, checked with no node, and a changed byte anywhere is found and named."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nunet_cli.errors import ContractError, DisputedError, NunetError
from nunet_cli.groups.orchestrate import orchestrate_job
from nunet_cli.records.bids import BIDS
from nunet_cli.records.books import LOG
from nunet_cli.records.contract_records import CONTRACTS
from nunet_cli.records.contracts import Proof, Receipt
from nunet_cli.records.identifiers import content_id
from nunet_cli.tokenomics import chain
from nunet_cli.tokenomics.evidence import export_bundle, read_bundle, report
from tests.conftest import Market

MarketOf = Callable[..., Any]


async def bundle_of(m: Market, command: str = "echo 5 > out", **fields: Any) -> tuple[bytes, str]:
    body = {
        "name": "sum", "executor": {"type": "process", "command": ["sh", "-c", command]}, "price": "1",
        "outputs": [{"path": "out"}], **fields,
    }  # fmt: skip
    job_id = await m.post(json.dumps(body))
    try:
        await orchestrate_job(m.requester.ctx, job_id)
    except DisputedError:
        pass
    record = m.requester.ctx.store[CONTRACTS].first("job_id", job_id)
    assert record is not None
    return export_bundle(record, m.requester.ctx.store[BIDS].get(record.bid_id)), job_id


async def test_a_bundle_verifies_with_its_outputs_and_no_node(market: MarketOf, tmp_path: Path) -> None:
    async with market() as m:
        data, job_id = await bundle_of(m)
    found = report(read_bundle(data, "bundle"))
    assert found.failed == []
    assert (found.job_id, found.outcome, found.paid) == (job_id, "settled", "0.25")
    (tmp_path / "out").write_text("5\n")
    for name in ("stdout", "stderr"):
        (tmp_path / name).write_text("")
    assert report(read_bundle(data, "bundle"), tmp_path).failed == []
    (tmp_path / "out").write_text("6\n")
    assert [check.name for check in report(read_bundle(data, "bundle"), tmp_path).failed] == ["output.out"]


async def test_a_changed_byte_anywhere_is_found_and_named(market: MarketOf) -> None:
    async with market() as m:
        data, _ = await bundle_of(m)
    chance = random.Random(7)
    places = sorted({*range(0, len(data), 41), *chance.sample(range(len(data)), 150)})
    for place in places:
        changed = bytes([data[place] ^ (1 << chance.randrange(7))])
        bad = data[:place] + changed + data[place + 1 :]
        try:
            failed = report(read_bundle(bad, "bundle")).failed
        except NunetError as error:
            assert error.message.startswith("bundle: ")
            continue
        assert failed, f"byte {place} was changed from {data[place : place + 1]!r} to {changed!r}"
        assert all(check.name and check.detail for check in failed)


async def test_a_document_of_another_contract_does_not_fit(market: MarketOf) -> None:
    async with market() as m:
        first, other = [json.loads((await bundle_of(m))[0]) for _ in range(2)]
    for name, failing in (
        ("proof", "proof.contract"), ("result", "result.result_names_contract"), ("verdict", "verdict.result"),
        ("receipt", "receipt.contract"), ("bid", "bid.terms"),
    ):  # fmt: skip
        mixed = msgspec.json.format(msgspec.json.encode({**first, name: other[name]}), indent=1) + b"\n"
        assert failing in [check.name for check in report(read_bundle(mixed, "bundle")).failed]


async def test_a_disputed_job_is_as_authentic_as_any(market: MarketOf) -> None:
    async with market() as m:
        data, _ = await bundle_of(m, "touch out", verify={"outputs_not_empty": True})
    found = report(read_bundle(data, "bundle"))
    assert (found.failed, found.outcome) == ([], "not settled")


async def test_the_head_of_the_log_is_in_each_proof_and_receipt(market: MarketOf) -> None:
    async with market() as m:
        data, _ = await bundle_of(m)
        bundle = read_bundle(data, "bundle")
        assert bundle.proof is not None
        assert bundle.receipt is not None
        rows = list(m.authority.ctx.store[LOG].all())
        heads = [row.hash for row in rows]
        assert heads.index(bundle.proof.read(Proof).log_head) < heads.index(bundle.receipt.read(Receipt).log_head)
        assert chain.check(rows) == len(rows)
        # an entry that was changed later is found, and so is one that is missing
        text = json.dumps({**json.loads(rows[1].entry), "kind": "deposit"}, sort_keys=True)
        changed = [rows[0], msgspec.structs.replace(rows[1], entry=text), *rows[2:]]
        with pytest.raises(ContractError, match="changed at entry 2"):
            chain.check(changed)
        with pytest.raises(ContractError, match="changed at entry 3"):
            chain.check(rows[:2] + rows[3:])


def test_what_is_no_bundle_is_said_so() -> None:
    for data in (b"", b"{}", b"[1]", b"\xff", json.dumps({"format": "nunet-evidence"}).encode()):
        with pytest.raises(NunetError, match=r"file\.json: not an evidence bundle"):
            read_bundle(data, "file.json")
    assert content_id(b"") != content_id(b"x")


def test_a_signature_has_one_form() -> None:
    """The last letter of its base64 has bits to spare: a bundle with another one is another bundle."""
    from nunet_cli.network.identity import new_identity
    from nunet_cli.records.documents import Signature, make_document

    signer = new_identity()
    document = make_document({"a": 1}).sign(signer, "provider")
    (entry,) = document.signatures
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = letters[letters.index(entry.signature[-3]) ^ 1]
    other = Signature(entry.did, entry.role, entry.signature[:-3] + last + "==")
    assert document.is_signed(signer.did, "provider")
    assert not type(document)(document.content, (other,)).is_signed(signer.did, "provider")
