"""What a field may hold beyond its type: how long, how large, of which letters; and the types that check it.

The limits of a field are declared with its type, and msgspec does not know them: what it reads from the store, which
was checked when it came, it takes as it is. What comes from elsewhere is read by way of `checked`.
"""

from __future__ import annotations

import operator
from functools import reduce
from threading import RLock
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct, defstruct, field, structs

# msgspec crashes where two threads make it look at the same type first at once
making = RLock()
_made: dict[type[Struct], type[Struct]] = {}


class Limits(Struct, frozen=True):
    """The limits of a field, in `Annotated`; they mean what those of `msgspec.Meta` do."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    pattern: str | None = None
    min_length: int | None = None
    max_length: int | None = None

    def as_meta(self) -> Meta:
        """Return them as msgspec checks them."""
        return Meta(**{name: getattr(self, name) for name in self.__struct_fields__})


def checked(kind: Any) -> Any:
    """Return a type whose values have the same form, and which refuses what is over a limit, at any depth.

    A struct becomes another with the same name, fields and defaults, made once. It is there to be read with and to be
    described, not to be kept: its values have none of the methods.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        known = [part.as_meta() if isinstance(part, Limits) else part for part in kind.__metadata__]
        return Annotated[(checked(kind.__origin__), *known)]
    if origin in (Union, UnionType):
        return reduce(operator.or_, map(checked, parts))
    if origin is not None and origin is not Literal:
        return origin[tuple(part if part is ... else checked(part) for part in parts)]
    if isinstance(kind, type) and issubclass(kind, Struct):
        with making:
            # another thread sees only those that are whole
            return _made.get(kind) or _checked_struct(kind)
    return kind


def _checked_struct(kind: type[Struct]) -> type[Struct]:
    known, config = structs.fields(kind), kind.__struct_config__
    made = _made[kind] = defstruct(
        kind.__name__, [(part.name, "unfinished", _default(part)) for part in known], module=kind.__module__,
        namespace={"__doc__": kind.__doc__}, rename={part.name: part.encode_name for part in known}, kw_only=True,
        forbid_unknown_fields=config.forbid_unknown_fields, tag=config.tag, tag_field=config.tag_field,
        array_like=config.array_like,
    )  # fmt: skip
    # the types of its fields are put in now, when a struct that is part of itself finds what it has become; until then
    # nothing could be read with it
    made.__annotations__.update({part.name: checked(part.type) for part in known})
    return made


def _default(known: structs.FieldInfo) -> Any:
    if known.default_factory is not NODEFAULT:
        return field(default_factory=known.default_factory)
    return field() if known.required else field(default=known.default)
