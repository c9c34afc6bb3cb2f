"""The API's description (OpenAPI 3.1), and the schema of what the command line prints, both from the same types."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from nunet_cli import SCHEMA_VERSION, __version__
from nunet_cli.api import care, contracts, events, jobs, metrics, resources, schemas
from nunet_cli.api.common import TOTAL, Endpoint
from nunet_cli.jobs.spec import JobSpec
from nunet_cli.node.doctor import Finding
from nunet_cli.records.limits import checked
from nunet_cli.records.messages import StatementEntry

OUTPUT_ID = f"urn:nunet:schema:output:{SCHEMA_VERSION}"
ENDPOINTS = (
    *jobs.ENDPOINTS, *events.ENDPOINTS, *contracts.ENDPOINTS, *resources.ENDPOINTS, *care.ENDPOINTS,
    *metrics.ENDPOINTS,
)  # fmt: skip
# what `--output json` of a command prints; a list is one document with all of them, with jsonl one a line
COMMANDS: dict[str, Any] = {
    "job post": schemas.Job, "job run": (schemas.JobDetail, schemas.Job),
    "job retry": (schemas.JobDetail, schemas.JobAgain), "job match": schemas.Job,
    "job request": schemas.Job,
    "job contract": schemas.Job, "job invoke": schemas.Job, "job settle": schemas.Job, "job cancel": schemas.Job,
    "job list": list[schemas.Job], "job show": schemas.JobDetail, "job events": list[schemas.Event],
    "job result": (schemas.JobResult, schemas.Outputs), "job explain": schemas.Explanation,
    "job wait": schemas.JobDetail, "onboard": schemas.CapabilityOverview, "offboard": schemas.CapabilityOverview,
    "bids list": list[schemas.Bid], "bids show": schemas.Bid, "contract list": list[schemas.Contract],
    "contract show": schemas.ContractDetail, "contract dispute": schemas.DisputeDocument,
    "contract resolve": schemas.ReceiptDocument, "allocation list": list[schemas.Allocation],
    "allocation show": schemas.Allocation, "capability show": schemas.CapabilityOverview,
    "preferences show": schemas.Preferences, "preferences set": schemas.Preferences, "peer list": list[schemas.Peer],
    "peer show": schemas.PeerDetail, "peer add": schemas.Peer, "peer remove": schemas.Peer, "peer ping": schemas.Ping,
    "topic list": list[schemas.Topic], "topic subscribe": schemas.Topic, "topic unsubscribe": schemas.Topic,
    "account balance": schemas.Account, "registry list": list[schemas.RegistryEntry],
    "registry contracts": list[schemas.RecordedContract],
    "registry completions": list[schemas.Completion],
    "registry approve": schemas.RegistryEntry, "registry revoke": schemas.RegistryEntry,
    "registry attest": schemas.KycDocument, "registry audit": schemas.Books,
    "account history": list[StatementEntry], "account deposit": schemas.Balance,
    "gc": schemas.Collected, "node backup": schemas.BackedUp,
    "doctor": list[Finding], "version": schemas.Version, "contract verify": schemas.VerifiedBundle,
    "job validate": JobSpec, "job import": schemas.Imported, "demo": schemas.DemoReport, "top": schemas.Look,
    "config get": dict[str, Any], "config list": dict[str, Any], "capability benchmark": schemas.Measured,
    "node status": (schemas.Status, schemas.NotRunning), "node indices": schemas.Indices,
    "status": schemas.Status, "whoami": schemas.WhoAmI,
}  # fmt: skip


async def openapi(request: Request) -> Response:
    """Return the API's description."""
    return JSONResponse(description())


def description() -> dict[str, Any]:
    """Return the OpenAPI document."""
    types = {endpoint.answer for endpoint in ENDPOINTS} | {endpoint.body for endpoint in ENDPOINTS} | {schemas.Problem}
    found, components = _schemas([kind for kind in types if kind is not None], "#/components/schemas/{name}")
    paths: dict[str, Any] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, found)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "nunet", "version": __version__, "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "The control API of a node: on the socket node.sock in its home, or over TCP with a token.",
        },
        "security": [{"token": []}], "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {"Problem": {
                "description": "What went wrong.",
                "content": {"application/problem+json": {"schema": found[schemas.Problem]}},
            }},
        },
    }  # fmt: skip


def output_schema() -> dict[str, Any]:
    """Return the JSON Schema of what `--output json` prints; `commands` has that of each command."""
    kinds = {kind: kind if isinstance(kind, tuple) else (kind,) for kind in COMMANDS.values()}
    found, definitions = _schemas(list({part for parts in kinds.values() for part in parts}), "#/$defs/{name}")

    def schema_of(kind: Any) -> dict[str, Any]:
        forms = [found[part] for part in kinds[kind]]
        return dict(forms[0]) if len(forms) == 1 else {"anyOf": forms}

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": OUTPUT_ID, "title": "nunet output",
        "description": f"What nunet {__version__} prints with --output json, by command; `schema` is its version.",
        "commands": {name: schema_of(kind) for name, kind in sorted(COMMANDS.items())}, "$defs": definitions,
    }  # fmt: skip


def _schemas(types: list[Any], template: str) -> tuple[dict[Any, Any], dict[str, Any]]:
    """Return type → schema, and the definitions that those refer to."""
    types = sorted(types, key=str)
    found, definitions = msgspec.json.schema_components(map(checked, types), ref_template=template)
    return dict(zip(types, found, strict=True)), dict(sorted(definitions.items()))


def _operation(endpoint: Endpoint, found: dict[Any, Any]) -> dict[str, Any]:
    lines = (endpoint.handler.__doc__ or "").strip().splitlines()
    content = {endpoint.media: {"schema": found[endpoint.answer]} if endpoint.answer is not None else {}}
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__, "summary": lines[0],
        "responses": {
            str(endpoint.status): {"description": "What was asked for.", "content": content},
            "default": {"$ref": "#/components/responses/Problem"},
        },
    }  # fmt: skip
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", endpoint.path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
        for name, what in endpoint.query.items()
    ]
    if parameters:
        operation["parameters"] = parameters
    if "limit" in endpoint.query:
        operation["responses"][str(endpoint.status)]["headers"] = {
            TOTAL: {"description": "How many there are in all.", "schema": {"type": "integer"}},
            "Link": {
                "description": "Where the next page is, if there is one (RFC 8288).",
                "schema": {"type": "string"},
            },
        }
    if endpoint.body is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": found[endpoint.body]}}}
    return operation
