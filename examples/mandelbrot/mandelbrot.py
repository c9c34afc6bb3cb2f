"""Writes the Mandelbrot set as a PNG: `mandelbrot.py WIDTH HEIGHT FILE`."""

import pathlib
import struct
import sys
import zlib

STEPS = 80


def steps(point: complex) -> int:
    z = 0j
    for step in range(STEPS):
        z = z * z + point
        if abs(z) > 2:
            return step
    return STEPS


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


width, height, target = int(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
rows = bytearray()
for y in range(height):
    rows.append(0)
    for x in range(width):
        count = steps(complex(-2.2 + 3.2 * x / width, -1.2 + 2.4 * y / height))
        shade = 0 if count == STEPS else 255 - count * 255 // STEPS
        rows += bytes((shade, shade // 2 + 60 if count < STEPS else 0, 255 - shade if count < STEPS else 0))
header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
target.write_bytes(
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(rows), 9)) + chunk(b"IEND", b"")
)
print(f"{width}x{height} pixels")
