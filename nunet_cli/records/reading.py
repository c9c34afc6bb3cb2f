"""Reading what another node wrote: fields that this version does not know are left out, everything else is checked.

The types refuse unknown fields, which is right for what people write: a typing error is said with its name. Nodes are
of several versions, and a newer one may say more than an older one understands.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import TypeVar, cast

import msgspec
from msgspec import inspect

T = TypeVar("T")
_UNKNOWN = "unknown field"


def decode(data: bytes | str | msgspec.Raw, kind: type[T]) -> T:
    """Return JSON text as a struct; fields that it does not have are ignored, at any depth.

    What is read is never written again in place of the original: a signature stays over the text as it came.

    Raises:
        msgspec.MsgspecError: it is no JSON, or does not fit; the message names the field.
        RecursionError: it is nested too deeply.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        if _UNKNOWN not in str(error):
            raise
    text = data.encode() if isinstance(data, str) else bytes(data)
    return msgspec.json.decode(_known(text, _info(cast(Hashable, kind))), type=kind)


@cache
def _info(kind: Hashable) -> inspect.Type:
    return inspect.type_info(kind)


def _known(text: bytes, info: inspect.Type) -> bytes:
    """Return the text without the fields that its type does not have; every value that stays is as it was."""
    if isinstance(info, inspect.Metadata):
        return _known(text, info.type)
    if isinstance(info, inspect.UnionType):
        return _known_of_several(text, info)
    opening = text.lstrip()[:1]
    if opening == b"{" and isinstance(info, inspect.StructType):
        fields = {field.encode_name: field.type for field in info.fields}
        items = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()
        return _object({name: _known(bytes(value), fields[name]) for name, value in items if name in fields})
    if opening == b"{" and isinstance(info, inspect.DictType):
        items = msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()
        return _object({name: _known(bytes(value), info.value_type) for name, value in items})
    if opening == b"[" and isinstance(info, (inspect.ListType, inspect.VarTupleType)):
        return _array([_known(bytes(item), info.item_type) for item in _items(text)])
    if opening == b"[" and isinstance(info, inspect.TupleType):
        parts = _items(text)
        known = [_known(bytes(item), part) for item, part in zip(parts, info.item_types, strict=False)]
        return _array(known + [bytes(item) for item in parts[len(known) :]])
    return text


def _known_of_several(text: bytes, info: inspect.UnionType) -> bytes:
    # of the types that records have, at most one of a union is written as an object, and one as a list
    for part in info.types:
        known = _known(text, part)
        if known is not text:
            return known
    return text


def _items(text: bytes) -> list[msgspec.Raw]:
    return msgspec.json.decode(text, type=list[msgspec.Raw])


def _object(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(msgspec.json.encode(name) + b":" + value for name, value in fields.items()) + b"}"


def _array(items: list[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"
