"""The forms of fields that records, documents and messages share: ids, names, times, texts, sizes."""

from __future__ import annotations

from typing import Annotated

from nunet_cli import quantities
from nunet_cli.records.limits import Limits

# what people are shown: no control characters, no line breaks, nothing that turns the direction of writing around
_SHOWN = r"[^\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
PLAIN = rf"^{_SHOWN}*(?!\n)$"
Name = Annotated[str, Limits(min_length=1, max_length=200, pattern=PLAIN)]
Size = Annotated[int, Limits(ge=0, le=2**60)]
Cores = Annotated[float, Limits(ge=0, le=65536)]
Few = Limits(max_length=64)
# ids are what `new_id` makes, content ids, and names of states and roles: nothing that could be a path or a command
Id = Annotated[str, Limits(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(?!\n)$")]
MaybeId = Annotated[str, Limits(max_length=120, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?(?!\n)$")]
Did = Annotated[str, Limits(min_length=10, max_length=120, pattern=r"^did:key:z[1-9A-HJ-NP-Za-km-z]+(?!\n)$")]
Time = Annotated[str, Limits(pattern=quantities.TIME_PATTERN)]
TimeOrNone = Annotated[str, Limits(pattern=rf"{quantities.TIME_PATTERN}|^$(?!\n)")]
Text = Annotated[str, Limits(max_length=4000)]
Many = Limits(max_length=1000)
