"""Man pages of sections 5 and 7, made from the documents: the same text for people in a terminal.

Needs `mistune`, which only whoever makes the pages has to have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nunet_cli import RELEASE_DATE, __version__
from nunet_cli.cli.page_text import escape

DOCUMENTS = {
    "nunet-job-spec.5": ("job-specification.md", "the specification of a nunet job", ("nunet-job(1)", "nunet(1)")),
    "nunet-config.5": ("configuration.md", "the configuration of a nunet node", ("nunet-config(1)", "nunet(1)")),
    "nunet-protocol.7": ("protocol.md", "what nunet nodes say to each other", ("nunet(1)",)),
}
Tokens = list[dict[str, Any]]


def document_pages(docs: Path) -> dict[str, str]:
    """Return each page by file name.

    Args:
        docs: the folder of the documents.
    """
    import mistune

    parse = mistune.create_markdown(renderer=None, plugins=["table"])
    found = {}
    for page, (name, brief, others) in DOCUMENTS.items():
        tokens: Any = parse((docs / name).read_text(encoding="utf-8"))
        title, section = page.rsplit(".", 1)
        out = [f'.TH {escape(title.upper())} {section} "{RELEASE_DATE}" "nunet {__version__}" "nunet manual"']
        out += [".SH NAME", f"{escape(title)} \\- {escape(brief)}"]
        out += _blocks(tokens)
        references = (f".BR {escape(other[:-3])} ({other[-2]})" for other in others)
        out += [".SH SEE ALSO", " ,\n".join(references)]
        found[page] = "\n".join(out) + "\n"
    return found


def _blocks(tokens: Tokens) -> list[str]:
    out: list[str] = []
    described = False
    for token in tokens:
        kind = token["type"]
        if kind == "heading":
            level = token["attrs"]["level"]
            if level > 1:
                out.append(f".{'SH' if level == 2 else 'SS'} {_text(token['children']).upper()}")
                described = True
        elif kind == "blank_line":
            continue
        else:
            if not described:
                out.append(".SH DESCRIPTION")
                described = True
            block = _block(token)
            # a heading begins a paragraph by itself
            out += block[1:] if block[0] == ".PP" and out[-1].startswith((".SH", ".SS")) else block
    return out


def _block(token: dict[str, Any]) -> list[str]:
    kind = token["type"]
    if kind in ("paragraph", "block_text"):
        return [".PP", _text(token["children"])]
    if kind == "block_code":
        lines = token["raw"].rstrip("\n").splitlines()
        return [".PP", ".RS 4", ".nf", *(escape(line) or "\\&" for line in lines), ".fi", ".RE"]
    if kind == "list":
        out = []
        for item in token["children"]:
            first, *rest = item["children"]
            out += [".IP \\(bu 2", _text(first["children"])]
            for inner in rest:
                out += _block(inner)
        return out
    if kind == "table":
        return _table(token)
    raise ValueError(f"no man page for {kind}")


def _table(token: dict[str, Any]) -> list[str]:
    """Return a table as a list of terms: the first column, and what the others say of it."""
    head, body = token["children"]
    names = [_text(cell["children"]) for cell in head["children"]]
    out = []
    for row in body["children"]:
        cells = dict(zip(names, (_text(cell["children"]) for cell in row["children"]), strict=True))
        term = cells.pop(names[0])
        said = [text for name, text in cells.items() if text and name != "default"]
        said += [f"(default: {cells['default']})"] if cells.get("default") else []
        out += [".TP", term if term.startswith("\\f") else f"\\fB{term}\\fR", " ".join(said) or "\\&"]
    return out


def _text(tokens: Tokens) -> str:
    out = []
    for token in tokens:
        kind = token["type"]
        if kind == "text":
            out.append(_plain(token["raw"]))
        elif kind in ("softbreak", "linebreak"):
            out.append(" ")
        elif kind == "codespan":
            out.append(f"\\fB{_plain(token['raw'])}\\fR")
        elif kind in ("strong", "emphasis"):
            out.append(f"\\f{'B' if kind == 'strong' else 'I'}{_text(token['children'])}\\fR")
        elif kind == "link":
            out.append(_text(token["children"]))
        else:
            raise ValueError(f"no man page for {kind}")
    text = "".join(out)
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _plain(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("→", "\\(->").replace("…", "...")
