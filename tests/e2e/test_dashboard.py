"""The page, in a real browser: what it shows, that it is live, that it is guarded, and that it can be read by all."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Processes, nunet, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(processes: Processes, tmp_path: Path) -> Iterator[tuple[Processes, str]]:
    """A requester that has had two jobs, and the address of its page."""
    home = processes.requester
    processes.start(home)

    def all_there() -> bool:
        peers = json.loads(nunet("peer", "list", "--output", "json", home=home).stdout)
        return sum(peer["connected"] for peer in peers) == 2

    wait_until(all_there, what="two peers")
    nunet("run", "--price", "1", "--name", "good-job", "--", "true", home=home, cwd=tmp_path)
    nunet("run", "--price", "0.01", "--name", "cheap-job", "--", "true", home=home, cwd=tmp_path, check=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "nunet_cli", "--home", str(home), "dashboard", "--no-open"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield processes, process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()


def browse(url: str, folder: Path, *options: str) -> str:
    """Return the document as the browser has it after some seconds, and see that nothing was logged."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=6000",
         f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom", url],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


def first_pixel(path: Path) -> bytes:
    """Return red, green and blue of the upper left corner of a PNG of 8 bits, which no filter changes."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        packed += data[at + 8 : at + 8 + size] if data[at + 4 : at + 8] == b"IDAT" else b""
        at += size + 12
    return zlib.decompress(packed)[1:4]


def get(url: str, **headers: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def test_the_data_is_for_who_has_the_address(page: tuple[Processes, str]) -> None:
    _, url = page
    base, token = url.split("#")
    code, text, headers = get(base)
    assert (code, "<title>nunet</title>" in text) == (200, True)
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not re.search(r"https?://(?!www\.w3\.org)", text + get(f"{base}app.js")[1] + get(f"{base}style.css")[1])
    assert get(f"{base}data")[0] == 401
    assert get(f"{base}data", Authorization="Bearer x")[0] == 401
    assert get(f"{base}data", Authorization=f"Bearer {token}", Host="evil.example")[0] == 401
    code, text, _ = get(f"{base}data", Authorization=f"Bearer {token}")
    assert (code, len(json.loads(text)["jobs"])) == (200, 2)
    for path in ("../dashboard.py", "%2e%2e/dashboard.py", "page/app.js", "identity.json"):
        assert get(base + path)[0] == 404


class Outline(HTMLParser):
    """What a screen reader goes by."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(page: tuple[Processes, str], tmp_path: Path) -> None:
    """What it shows, to all, in light and dark; and that it says when it is not live."""
    processes, url = page
    documents, shots = {}, {}
    for name, option in (("light", "1"), ("dark", "0")):
        path = tmp_path / f"{name}.png"
        options = (f"--blink-settings=preferredColorScheme={option}", f"--screenshot={path}")
        documents[name] = browse(url, tmp_path, *options)
        shots[name] = sum(first_pixel(path))
    assert shots["light"] > 2 * shots["dark"]
    check_what_is_shown(processes, documents["light"])
    check_that_all_can_read_it(documents["light"])
    wrong = browse(url[:-3] + "xxx", tmp_path)
    assert "not live: open the address that" in wrong
    processes.stop(processes.requester)
    gone = browse(url, tmp_path)
    assert "not live: the node at" in gone


def check_what_is_shown(processes: Processes, document: str) -> None:
    text = re.sub(r"<[^>]+>", " ", document)
    assert re.search(r"balance\s+99\.8 NTX\s+earned\s+0 NTX\s+spent\s+0\.2 NTX", text)
    assert re.search(r"good-job\s+settled\s+0\.2 NTX", text)
    assert re.search(r"cheap-job\s+expired", text)
    assert "price: 0.19 NTX above the limit" in text
    assert "Contract fulfilled, thank you for your business" in text
    assert ">live<" in document
    provider = json.loads(nunet("whoami", "--output", "json", home=processes.provider).stdout)["peer_id"]
    assert re.search(rf'aria-label="peer …{provider[-8:]}, provider, [\d.]+ ms"', document)


def check_that_all_can_read_it(document: str) -> None:
    outline = Outline()
    outline.feed(document)
    assert outline.all("html")[0]["lang"] == "en"
    assert len(outline.all("table")) == len(outline.all("caption")) >= 4
    assert all(cell.get("scope") == "col" for cell in outline.all("th"))
    sections = [section["aria-labelledby"] for section in outline.all("section")]
    assert set(sections) <= {heading.get("id") for heading in outline.all("h2")}
    # every peer in the graph can be reached by keyboard, and so can what scrolls
    assert sum(group.get("tabindex") == "0" and bool(group.get("aria-label")) for group in outline.all("g")) == 2
    assert all(part.get("aria-label") for part in outline.all("div") if part.get("tabindex") == "0")
    assert [part.get("aria-live") for part in outline.all("p") if part.get("role") == "status"] == ["polite"]
