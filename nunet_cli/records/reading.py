"""Reading what comes from elsewhere: from another node, a person, a file. Here every limit of every field is checked.

A value is read twice, first as the type that has the limits, which takes most of the time, and then as the struct
itself: what the store gives back is read as that alone. Whatever this module returns is within its limits; nothing
else reads what is foreign (see records/limits.py).

The types refuse unknown fields, which is right for what people write: a typing error is said with its name. Nodes are
of several versions, and a newer one may say more than an older one understands: `decode` leaves out what is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache, lru_cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from nunet_cli.records.limits import checked, making

T = TypeVar("T")
Text = bytes | str | msgspec.Raw
_UNKNOWN = "unknown field"
# a megabyte or two, where all are as long as a contract
MOST_REMEMBERED, LARGEST_REMEMBERED = 256, 16 * 1024


def decode(data: Text, kind: type[T]) -> T:
    """Return JSON text of another node as a struct; fields that it does not have are ignored, at any depth.

    What is read is never written again in place of the original: a signature stays over the text as it came.

    Raises:
        msgspec.MsgspecError: it is no JSON, or does not fit; the message names the field.
        RecursionError: it is nested too deeply.
    """
    try:
        return decode_exactly(data, kind)
    except msgspec.ValidationError as error:
        if _UNKNOWN not in str(error):
            raise
    text = data.encode() if isinstance(data, str) else bytes(data)
    return decode_exactly(_known(text, _info(cast(Hashable, kind))), kind)


def decode_exactly(data: Text, kind: type[T]) -> T:
    """Return JSON text as a struct; a field that it does not have is refused where its type says so.

    Raises:
        msgspec.MsgspecError: it is no JSON, or does not fit; the message names the field.
        RecursionError: it is nested too deeply.
    """
    check, read = _decoders(cast(Hashable, kind))
    check(data)
    made: T = read(data)
    return made


def decode_again(data: Text, kind: type[T], *, exactly: bool = False) -> T:
    """Return JSON text as a frozen struct; for what is read at every stage, such as a contract, and decoded once.

    Args:
        data: the text, by which the struct is remembered for a while.
        kind: the struct.
        exactly: refuse a field that it does not have, as `decode_exactly` does.

    Raises:
        msgspec.MsgspecError: it is no JSON, or does not fit; the message names the field.
        RecursionError: it is nested too deeply.
    """
    read = decode_exactly if exactly else decode
    if len(data) > LARGEST_REMEMBERED:
        return read(data, kind)
    made: T = _remembered(read, data if isinstance(data, str) else bytes(data), cast(Hashable, kind))
    return made


@lru_cache(maxsize=MOST_REMEMBERED)
def _remembered(read: Callable[[Text, Any], Any], data: bytes | str, kind: Hashable) -> Any:
    return read(data, kind)


def convert(value: Any, kind: type[T]) -> T:
    """Return plain dicts, lists and texts as a struct; a field that it does not have is refused.

    Raises:
        msgspec.ValidationError: it does not fit; the message names the field.
    """
    # both types are looked at under the lock
    _decoders(cast(Hashable, kind))
    msgspec.convert(value, _checked(cast(Hashable, kind)))
    return msgspec.convert(value, kind)


def as_read(value: T) -> T:
    """Return a struct that was made here as another node reads it.

    Raises:
        msgspec.MsgspecError: it would be refused; the message names the field.
    """
    return decode_exactly(msgspec.json.encode(value), type(value))


def plain_decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Return what reads JSON text as a struct without its limits: for the store, whose rows were checked as they came.

    It raises msgspec.MsgspecError where the text is no JSON, or of another form.
    """
    with making:
        return msgspec.json.Decoder(kind).decode


@cache
def _decoders(kind: Hashable) -> tuple[Callable[[Text], Any], Callable[[Text], Any]]:
    with making:
        return msgspec.json.Decoder(_checked(kind)).decode, msgspec.json.Decoder(cast(type[Any], kind)).decode


@cache
def _checked(kind: Hashable) -> Any:
    return checked(kind)


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
