"""What a machine offers stays what its owner said, until its owner says something else."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from nunet_cli import quantities
from nunet_cli.config_file import load
from nunet_cli.database.store import Store
from nunet_cli.errors import UsageError
from nunet_cli.node import onboarding
from nunet_cli.node.capability import CapabilityAccounting
from nunet_cli.node.monitor import Monitor
from nunet_cli.node.opening import open_node
from nunet_cli.records.bids import CapabilityComparator
from nunet_cli.records.capability import Speeds
from nunet_cli.records.offers import OFFERS, Benchmark, OnboardOptions
from tests.cli.test_wizard import at_a_terminal, works
from tests.conftest import config, nunet

SAID = (
    "--cpu", "0.2", "--memory", "256MiB", "--disk", "128MiB", "--gpu", "0", "--price", "0.3/h", "--max-duration", "2h",
    "--max-share", "0.5", "--locality", "country=SE", "--storage", "ssd=10MiB", "--port", "8080", "--bandwidth", "10Mbit",
    "--vpn", "--process", "sandboxed",
)  # fmt: skip


def offered(home: Path) -> dict[str, Any]:
    with Store(home, read_only=True) as store:
        accounting = CapabilityAccounting(store, Monitor(home))
        registered, price = accounting.get_registered_capability(), accounting.price()
    # what the wizard measures is another number each time
    registered = msgspec.structs.replace(registered, benchmark=Speeds())
    foreign = load(home / "config.toml").executor.process.foreign
    return {"registered": msgspec.to_builtins(registered), "price": msgspec.to_builtins(price), "foreign": foreign}


def onboard(home: Path, *options: str) -> str:
    return nunet("onboard", "--no-benchmark", *options, home=home).stderr


def test_onboarding_again_gives_away_no_more_than_was_offered_before(tmp_path: Path) -> None:
    onboard(tmp_path, *SAID)
    before = offered(tmp_path)
    assert before["registered"]["resources"]["cpu"]["cores"] == 0.2
    nunet("offboard", home=tmp_path)
    assert "for nothing" not in onboard(tmp_path)
    assert offered(tmp_path) == before
    onboard(tmp_path, "--cpu", "0.1")
    after = offered(tmp_path)
    assert after["registered"]["resources"]["cpu"]["cores"] == 0.1
    after["registered"]["resources"]["cpu"]["cores"] = 0.2
    assert after == before


def test_reset_goes_back_to_the_defaults_and_says_that_it_is_for_nothing(tmp_path: Path) -> None:
    onboard(tmp_path, *SAID)
    said = onboard(tmp_path, "--reset", "--memory", "300MiB")
    shown = offered(tmp_path)
    assert "for nothing" in said
    assert (shown["price"]["amount"], shown["foreign"], shown["registered"]["localities"]) == ("0", "off", ())
    assert shown["registered"]["resources"]["memory"] == 300 * 2**20
    assert shown["registered"]["resources"]["cpu"]["cores"] > 0.5


def test_a_machine_is_not_given_away_without_a_word(tmp_path: Path) -> None:
    said = onboard(tmp_path, "--cpu", "0.5", "--memory", "100MiB", "--disk", "100MiB")
    assert "offers 0.5 cores, 100 MiB of memory, 100 MiB of disk for nothing" in said
    assert "--price" in said
    assert "for nothing" not in onboard(tmp_path / "paid", "--cpu", "0.5", "--price", "0.1")


def test_a_price_that_was_set_as_a_preference_holds_when_the_machine_is_onboarded(tmp_path: Path) -> None:
    nunet("preferences", "set", "--price", "0.7", home=tmp_path)
    onboard(tmp_path, "--cpu", "0.5")
    assert offered(tmp_path)["price"]["amount"] == "0.7"


def test_at_a_terminal_the_former_offer_is_the_answer_that_is_suggested(tmp_path: Path) -> None:
    onboard(tmp_path, *SAID)
    before = offered(tmp_path)
    nunet("offboard", home=tmp_path)
    code, screen = at_a_terminal("onboard", home=tmp_path, answers=[("0.2 cores", ""), ("Start the node", "n")])
    assert (code, offered(tmp_path)) == (0, before), screen


async def test_a_home_that_kept_no_options_keeps_its_offer_all_the_same(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node:
        await node.onboard(OnboardOptions(cpu=0.2, memory="256MiB", disk="100MiB", price="0.3", vpn=True), None)
        await node.ctx.store.change(lambda t: t[OFFERS].remove("offer"))
        before = node.get_registered_capability()
        await node.onboard(OnboardOptions(), None)
        assert node.get_registered_capability() == before
        assert node.accounting.price().amount == "0.3"


async def test_a_machine_that_has_less_by_now_offers_less_instead_of_refusing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_node(tmp_path, config()) as node:
        await node.onboard(OnboardOptions(memory="256MiB"), None)
        machine = onboarding.probe_machine(tmp_path)
        monkeypatch.setattr(onboarding, "probe_machine", lambda home: structs.replace(machine, memory=100 * 2**20))
        await node.onboard(OnboardOptions(), None)
        assert node.get_registered_capability().resources.memory == 90 * 2**20


def test_a_person_is_asked_how_much_where_only_the_price_is_known(tmp_path: Path) -> None:
    nunet("preferences", "set", "--price", "0.7", home=tmp_path)
    answers = [
        ("in percent [50]", "20"), ("[0.7]", ""), ("Longest job", ""), ("Country code", ""),
        *([("Images that strangers may run", "")] if works("docker") else []), ("[Y/n]", "n"),
        *([("[Y/n]", "n")] if works("sandbox") else []),
    ]  # fmt: skip
    code, screen = at_a_terminal("onboard", home=tmp_path, answers=answers)
    assert (code, "Offer what was offered before" in screen) == (0, False), screen
    assert offered(tmp_path)["price"]["amount"] == "0.7"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--kyc=", "--kyc: '' is no file with a verifier's statement"),
        ("--kyc=acme-bank", "--kyc: 'acme-bank' is no file with a verifier's statement"),
        ("--kyc=/dev/null", "--kyc: /dev/null: no statement of a verifier"),
        ("--max-duration=999999999999h", "--max-duration: not accepted: expected `int` <= 1000000000"),
        ("--max-duration=", "--max-duration: not a duration: ''"),
        ("--cpu=nan", "--cpu: nan is not more than 0"),
        ("--cpu=0", "--cpu: 0 is not more than 0"),
        ("--memory=1", "--memory: '1' is too little for any job"),
        ("--disk=much", "--disk: not a size: 'much'"),
        ("--price=", "--price: not an amount of money: ''"),
        ("--price=1000000000000", "--price: '1000000000000' is too much"),
        ("--locality=country=a\tb", "--locality: not accepted: letters that cannot be shown"),
        ("--storage=ssd=0", "--storage: 'ssd=0' is no storage"),
        ("--storage=ssd=9999999TiB", "--storage: not accepted: expected `int` <="),
        ("--bandwidth=99999999Gbit", "--bandwidth: not accepted: expected `int` <="),
        ("--process=maybe", "--process: 'maybe': expected off, sandboxed or unsandboxed"),
        ("--process=", "--process: '': expected off, sandboxed or unsandboxed"),
    ],
)
def test_an_option_that_is_wrong_is_named_and_nothing_of_the_command_is_kept(
    option: str, message: str, tmp_path: Path
) -> None:
    done = nunet("onboard", "--no-benchmark", "--docker-image", "x:*", option, home=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert any(line.startswith(f"nunet: {message}") for line in lines), done.stderr
    assert len(lines) <= 3
    assert not (tmp_path / "store.db").exists()
    assert not (tmp_path / "config.toml").exists()


async def test_what_could_not_be_read_again_is_not_kept_whoever_asks(tmp_path: Path) -> None:
    async with open_node(tmp_path, config()) as node:
        await node.onboard(OnboardOptions(memory="256MiB"), None)
        before = node.get_registered_capability()
        for options in (OnboardOptions(kycs=("acme",)), OnboardOptions(max_duration="999999999999h")):
            with pytest.raises(UsageError):
                await node.onboard(options, None)
        with pytest.raises(UsageError):
            await node.accounting.set_preferences(CapabilityComparator(minimum_price=-1))
        assert node.get_registered_capability() == before
        assert node.accounting.get_preferences() == CapabilityComparator()


def statement(verifier: Path, subject: str, *options: str) -> str:
    """Have a node sign that it has verified another one; return the file's text."""
    return nunet("registry", "attest", subject, "--as", "acme-bank", *options, home=verifier).stdout


def test_a_statement_goes_from_the_verifier_to_the_offer_and_stays_in_it(tmp_path: Path) -> None:
    bank, home, path = tmp_path / "bank", tmp_path / "home", tmp_path / "statement.json"
    did = nunet("whoami", "--output", "json", home=home).stdout
    path.write_text(statement(bank, json.loads(did)["did"]))
    assert "until" in nunet("onboard", "--no-benchmark", "--kyc", str(path), home=home).stdout
    before = offered(home)["registered"]["kycs"]
    path.unlink()
    # the file is needed once
    assert "acme-bank" not in onboard(home, "--price", "0.3")
    assert offered(home)["registered"]["kycs"] == before
    onboard(home, "--reset")
    assert offered(home)["registered"]["kycs"] == ()
    path.write_text(statement(bank, json.loads(nunet("whoami", "--output", "json", home=bank).stdout)["did"]))
    for text, message in (
        (path.read_text(), "is about another node"),
        (statement(bank, json.loads(did)["did"]).replace("acme-bank", "acme-shop"), "is not signed by that key"),
    ):
        path.write_text(text)
        done = nunet("onboard", "--no-benchmark", "--kyc", str(path), home=home, check=False)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert offered(home)["registered"]["kycs"] == ()


def test_a_home_of_version_0_1_with_a_bare_name_opens_and_says_once_that_it_counts_for_nothing(tmp_path: Path) -> None:
    onboard(tmp_path, "--memory", "256MiB")
    connection = sqlite3.connect(tmp_path / "store.db")
    for row, place in (("registered", "$.capability.kycs"), ("offers", "$.options.kycs")):
        connection.execute(f"UPDATE {row} SET doc = json_set(CAST(doc AS TEXT), ?, json_array('acme'))", (place,))
    connection.commit()
    connection.close()
    assert offered(tmp_path)["registered"]["kycs"] == ("acme",)
    assert "counts for nothing" in nunet("capability", "show", home=tmp_path).stdout
    assert "'acme': a name alone counts for nothing" in nunet("doctor", home=tmp_path, check=False).stdout
    assert "'acme': a name alone counts for nothing" in onboard(tmp_path)
    assert offered(tmp_path)["registered"]["kycs"] == ()
    assert offered(tmp_path)["registered"]["resources"]["memory"] == 256 * 2**20
    assert "counts for nothing" not in onboard(tmp_path)
    assert "counts for nothing" not in nunet("doctor", home=tmp_path, check=False).stdout


def test_a_home_with_an_offer_that_cannot_be_read_says_so_and_takes_a_new_one(tmp_path: Path) -> None:
    onboard(tmp_path, "--memory", "256MiB")
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("UPDATE registered SET doc = json_set(CAST(doc AS TEXT), '$.capability.kycs[0]', '')")  # fmt: skip
    connection.commit()
    connection.close()
    done = nunet("capability", "show", home=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("nunet: what this machine offers cannot be read: ")
    assert "nunet onboard --reset" in done.stderr
    onboard(tmp_path, "--reset", "--memory", "300MiB")
    assert offered(tmp_path)["registered"]["kycs"] == ()


async def test_what_was_measured_stays_where_nothing_is_measured_again(tmp_path: Path) -> None:
    measured = Benchmark(1.0, 2.0, 3.0, quantities.utc_now())
    async with open_node(tmp_path, config()) as node:
        await node.onboard(OnboardOptions(), measured)
        await node.onboard(OnboardOptions(memory="256MiB"), None)
        assert node.accounting.benchmark() == measured
