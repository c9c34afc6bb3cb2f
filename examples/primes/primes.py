"""Writes all primes up to N, one per line: `primes.py N FILE` (sieve of Eratosthenes)."""

import pathlib
import sys

limit, target = int(sys.argv[1]), pathlib.Path(sys.argv[2])
sieve = bytearray([1]) * (limit + 1)
sieve[:2] = b"\0\0"[: limit + 1]
for number in range(2, int(limit**0.5) + 1):
    if sieve[number]:
        sieve[number * number :: number] = bytes(len(range(number * number, limit + 1, number)))
primes = [number for number in range(limit + 1) if sieve[number]]
target.write_text("".join(f"{prime}\n" for prime in primes), encoding="ascii")
print(f"{len(primes)} primes up to {limit}")
