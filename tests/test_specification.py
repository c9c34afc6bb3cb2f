"""Each row of docs/specification.md points at code that is there and does something, and at a test that asserts."""

import ast
import re

import pytest

from tests.conftest import ROOT
from tests.specification import ROWS, definition

# every function, type and endpoint that the source texts name
NAMED = [
    "orchestrateJob",
    "jobRequest",
    "jobInvocation",
    "publishBidRequest",
    "compare",
    "acceptJob",
    "bid",
    "registerBid",
    "selectBestBid",
    "invokeAllocation",
    "Orchestrator",
    "postJob",
    "processJob",
    "Job",
    "JobLink",
    "Pod",
    "Allocation",
    "jobDescription",
    "defaultOrchestrationType",
    "defaultSearchTimeout",
    "availableResources",
    "availableCapability",
    "accept",
    "createBid",
    "registerComputeBid",
    "bidRequest",
    "capabilityComparison",
    "capabilityComparator",
    "computeProvidersIndex",
    "EligibleComputeProvidersIndex",
    "checkResourceLock",
    "queryPeer",
    "lockResources",
    "saveEvent",
    "declineJobRequest",
    "timeoutJobRequest",
    "declineJobEvent",
    "DeclineMessage",
    "TimeoutResponse",
    "checkPaymentInfo",
    "generateJobContract",
    "generateJobAgreement",
    "validateProvider",
    "checkKYC",
    "checkContract",
    "contract",
    "ID",
    "ErrorMessage",
    "sendInvocation",
    "createAllocation",
    "invocation",
    "allocationStartSuccess",
    "jobUpdate",
    "jobStatusUpdate",
    "result",
    "jobCompleted",
    "error",
    "verifyJob",
    "jobVerification",
    "jobVerificationResult",
    "message",
    "Node_interface",
    "Actor",
    "Mailbox",
    "Vertex_interface",
    "getAllocation",
    "checkAllocationStatus",
    "routeToAllocation",
    "benchmarkCapability",
    "setRegisteredCapability",
    "getRegisteredCapability",
    "setAvailableCapability",
    "getAvailableCapability",
    "lockCapability",
    "getLockedCapabilities",
    "setPreferences",
    "getPreferences",
    "getRegisteredBids",
    "startAllocation",
    "LocalDatabaseCollector",
    "registeredCapability",
    "lockedCapabilities",
    "preferences",
    "allocations",
    "jobIndex",
    "bidRequestsSentIndex",
    "bidRequestsReceivedIndex",
    "bidsSentIndex",
    "bidsReceivedIndex",
    "NodeID",
    "CID",
    "PeerID",
    "DID",
    "Capability",
]


def does_something(node: ast.AST) -> bool:
    """Say whether a function has more than a docstring, `pass` and `raise NotImplementedError`."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    for statement in node.body:
        if isinstance(statement, ast.Pass) or (
            isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        ):
            continue
        if isinstance(statement, ast.Raise) and "NotImplementedError" in ast.dump(statement):
            continue
        return True
    return False


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_each_row_points_at_code_and_at_a_test(row: list[str]) -> None:
    assert len(row) == 3
    assert all(row), f"a blank cell: {row}"
    seed, code, test = row
    assert seed
    assert does_something(definition(ROOT / "nunet_cli", code)), f"{code} is a stub"
    shown = definition(ROOT / "tests", test)
    asserted = [item for item in ast.walk(shown) if isinstance(item, ast.Assert)]
    calls = [item for item in ast.walk(shown) if isinstance(item, ast.Call)]
    checked = any("refused" in ast.dump(call.func) or "raises" in ast.dump(call.func) for call in calls)
    # a state machine asserts in the class that it is made from
    assert asserted or checked or isinstance(shown, ast.Assign), f"{test} asserts nothing"


def test_everything_that_the_texts_name_has_its_row() -> None:
    named = set(re.findall(r"\w+", " ".join(row[0] for row in ROWS)))
    assert [name for name in NAMED if name not in named] == []


def promises() -> list[tuple[str, list[str]]]:
    """Return what docs/security.md says was tried, with the tests that it names."""
    text = (ROOT / "docs" / "security.md").read_text().split("## What holds it")[1]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    return [(tried, re.findall(r"`([^`]+)`", tests)) for tried, tests in rows]


@pytest.mark.parametrize(("tried", "tests"), promises(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_promise_has_a_test(tried: str, tests: list[str]) -> None:
    assert tests, tried
    source = ""
    for name in tests:
        if name.endswith(".py"):
            source = (ROOT / "tests" / name).read_text()
        elif not name.startswith("python "):
            # the end or the middle of a test's name, the rest of it left out
            parts = [part for part in name.split("…") if part]
            assert re.search(r"def test_\w*" + r"\w*".join(map(re.escape, parts)), source), f"{name}: {tried}"
