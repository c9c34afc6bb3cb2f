"""Sizes, durations, times and money: what people write, and the integers that the code keeps.

Sizes are integers in bytes, durations are seconds, time is UTC RFC 3339, money is integer micro-NTX inside and a
decimal string on the wire; it is never a float.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from nunet_cli.errors import UsageError
from nunet_cli.world import world

MICRO = 1_000_000
CURRENCY = "NTX"
MAX_AMOUNT_MICRO = 10**18

_SIZES = {"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12}
_SIZES |= {"tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_DURATIONS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
TIME_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}

# the one form of a time on the wire, `2026-01-31T12:00:00.000Z`: so a day that does not exist, another zone or another
# precision is refused, and two times compare as texts in the order in which they are
_DAY = (
    r"2[0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_LEAP_DAY = r"(?:2[0-9](?:0[48]|[2468][048]|[13579][26])|2[048]00)-02-29"
TIME_PATTERN = rf"^(?:{_DAY}|{_LEAP_DAY})T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{{3}}Z$(?!\n)"


def parse_size(text: str | int) -> int:
    """Return bytes for `4GiB`, `512 MB` or a plain count of bytes.

    Raises:
        UsageError: not a size, or negative.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise UsageError(f"a size cannot be negative: {text}")
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    if match is None or match[2].lower() not in _SIZES:
        raise UsageError(f"not a size: {text!r}", hint="write for example 512MiB, 4GiB or 2000000")
    return int(Decimal(match[1]) * _SIZES[match[2].lower()])


def format_size(count: int) -> str:
    """Return bytes as people write them, in binary units: `4 GiB`."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def format_cores(count: float) -> str:
    """Return a number of cores as people write it: `1 core`, `0.5 cores`."""
    return f"{count:g} core" + ("" if count == 1 else "s")


_BANDWIDTHS = {"": 1, "bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def parse_bandwidth(text: str | int) -> int:
    """Return bits a second for `100Mbit`, `1 Gbit/s` or a plain count.

    Raises:
        UsageError: not a bandwidth.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)(?:/s)?\s*", str(text))
    if match is None or match[2].lower() not in _BANDWIDTHS:
        raise UsageError(f"not a bandwidth: {text!r}", hint="write for example 100Mbit or 1Gbit/s")
    return int(Decimal(match[1]) * _BANDWIDTHS[match[2].lower()])


def format_bandwidth(bits: float) -> str:
    """Return bits a second as people write them: `100 Mbit/s`."""
    for unit, factor in (("Gbit", 10**9), ("Mbit", 10**6), ("kbit", 10**3)):
        if bits >= factor:
            return f"{bits / factor:g} {unit}/s"
    return f"{bits:g} bit/s"


def parse_speed(text: str | int) -> int:
    """Return bytes a second for `400MB/s`, `2 GiB/s` or a plain count.

    Raises:
        UsageError: not a speed.
    """
    try:
        return parse_size(str(text).strip().removesuffix("/s") if isinstance(text, str) else text)
    except UsageError as error:
        if not isinstance(text, int):
            raise UsageError(f"not a speed: {text!r}", hint="write for example 400MB/s or 2GiB/s") from None
        raise error


def format_speed(count: float) -> str:
    """Return bytes a second as people write them, in decimal units: `412.5 MB/s`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{round(count / factor, 1):g} {unit}/s"
    return f"{count:g} B/s"


def parse_duration(text: str | int | float) -> int:
    """Return whole seconds for `90m`, `1h30m`, `45s` or a plain count of seconds; at least 1.

    Raises:
        UsageError: not a duration, or shorter than a second.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = Decimal(str(text))
    else:
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(text).strip().lower())
        rebuilt = re.sub(r"\s+", "", str(text).lower())
        if not parts or "".join(a + b for a, b in parts) != rebuilt or any(u not in _DURATIONS for _, u in parts):
            raise UsageError(f"not a duration: {text!r}", hint="write for example 90s, 15m, 2h or 1h30m")
        seconds = sum((Decimal(amount) * _DURATIONS[unit] for amount, unit in parts), Decimal(0))
    if seconds < 1:
        raise UsageError(f"a duration must be at least one second: {text!r}")
    return int(seconds)


def format_duration(seconds: float) -> str:
    """Return seconds as people write them: `1h30m`, `45s`, `0.4s`."""
    if seconds < 10 and seconds != int(seconds):
        return f"{seconds:.1f}s"
    whole = int(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, whole = divmod(whole, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2]) or "0s"


def now() -> datetime:
    """Return the wall-clock time in UTC."""
    return world().now()


def format_time(when: datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds, the form that documents and JSON carry."""
    if when.tzinfo is not UTC:
        when = when.astimezone(UTC)
    # without its zone, which is `+00:00`
    return f"{when.isoformat(timespec='milliseconds')[:-6]}Z"


def parse_time(text: str) -> datetime:
    """Return the UTC time for an RFC 3339 text.

    Raises:
        UsageError: not a time, or one without a zone.
    """
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            raise UsageError(f"a time needs a zone: {text!r}", hint="add Z for UTC")
        return when.astimezone(UTC)
    except (ValueError, OverflowError):
        # the first and the last hours of the calendar cannot be told in another zone
        raise UsageError(f"not a time: {text!r}", hint="write RFC 3339, for example 2030-01-31T12:00:00Z") from None


def utc_now() -> str:
    """Return the present time as documents carry it."""
    return format_time(now())


def parse_amount(text: str | int) -> int:
    """Return micro-NTX for a decimal amount such as `1.5`, `1.5 NTX` or `2`.

    Raises:
        UsageError: not an amount, negative, or finer than a micro-NTX.
    """
    plain = re.sub(rf"\s*{CURRENCY}\s*$", "", str(text).strip(), flags=re.IGNORECASE)
    try:
        value = Decimal(plain)
    except InvalidOperation:
        raise UsageError(f"not an amount of money: {text!r}", hint="write for example 1.5 or '1.5 NTX'") from None
    if not value.is_finite() or value < 0:
        raise UsageError(f"an amount of money must be zero or more: {text!r}")
    micro = value * MICRO
    if micro > MAX_AMOUNT_MICRO:
        raise UsageError(f"an amount of money is too large: {text!r}")
    if micro != micro.to_integral_value():
        raise UsageError(f"an amount is finer than a millionth: {text!r}", hint="use at most six decimals")
    return int(micro)


def format_amount(micro: int) -> str:
    """Return the shortest decimal string for micro-NTX: `1500000` is `1.5`."""
    sign, micro = ("-", -micro) if micro < 0 else ("", micro)
    whole, part = divmod(micro, MICRO)
    return f"{sign}{whole}" + (f".{part:06d}".rstrip("0") if part else "")


def parse_price(text: str | int) -> tuple[int, str]:
    """Return `(micro_ntx, time_unit)` for `1.5 NTX` (per result, unit empty) or `1.5 NTX/h` (per time unit).

    Raises:
        UsageError: not an amount, or an unknown time unit.
    """
    amount, slash, unit = str(text).partition("/")
    unit = unit.strip().lower()
    if slash and unit not in TIME_UNITS:
        raise UsageError(f"unknown time unit in price: {text!r}", hint=f"use one of {', '.join(TIME_UNITS)}")
    return parse_amount(amount), unit
