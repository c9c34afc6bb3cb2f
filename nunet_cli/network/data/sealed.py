"""What travels on a data connection: records sealed by libsodium's secretstream, opened and sealed in worker threads.

After the handshake each side sends the stream's header, 24 bytes, and then records: `u32 big-endian length · sealed`. A
record is a word, a short text with the tag `push`, or a chunk of data with the tag `message`. How many chunks follow a
word, and how long each is, both sides know from it: there are no small ones that would cost more than they bring.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import BinaryIO

import nacl.bindings as sodium
import nacl.exceptions
import trio

from nunet_cli.network.secure_channel import ChannelClosedError, ChannelKeys
from nunet_cli.threads import in_thread

CHUNK = 64 * 1024
MAX_WORD = 1024
# what is read, sealed or opened in one visit of a worker thread: changing threads costs as much as some 64 KiB do
BATCH = 1024 * 1024
# what is handed to the system at once, and the seconds it may take: who reads more slowly gives the place back
SLICE, SLICE_TIMEOUT = 256 * 1024, 30.0
_HEADER = sodium.crypto_secretstream_xchacha20poly1305_HEADERBYTES
_MORE = sodium.crypto_secretstream_xchacha20poly1305_ABYTES
_DATA = sodium.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE
_WORD = sodium.crypto_secretstream_xchacha20poly1305_TAG_PUSH
_LENGTH = struct.Struct(">I")
_PREFIX = b"nunet-data-v1\n"


class SealedStream:
    """Words and data over a byte stream after a handshake, in order, or an error.

    One task may send and one may receive at the same time. Who cancels either in the midst closes the stream.

    Args:
        stream: fresh from the handshake.
        keys: what came of it; only the two keys are used.
        limiter: of the worker threads.
    """

    def __init__(self, stream: trio.abc.Stream, keys: ChannelKeys, limiter: trio.CapacityLimiter) -> None:
        self._stream, self._limiter, self.peer_key = stream, limiter, keys.peer_key
        self._push = sodium.crypto_secretstream_xchacha20poly1305_state()
        # sent before what is sent first
        self._header = sodium.crypto_secretstream_xchacha20poly1305_init_push(self._push, _key(keys.encrypt_key))
        self._pull = sodium.crypto_secretstream_xchacha20poly1305_state()
        self._pull_key = _key(keys.decrypt_key)
        self._is_begun = False
        self._raw = bytearray()
        self._out: bytearray | None = None

    async def send_word(self, text: bytes) -> None:
        """Send a short text.

        Raises:
            ChannelClosedError: the other side is gone, or takes nothing.
        """
        await self._write(self._seal(text, _WORD))

    async def send_file(self, file: BinaryIO, count: int) -> None:
        """Send so many bytes of a file, from where it stands on.

        Raises:
            ChannelClosedError: the other side is gone, or takes too little; or the file has fewer bytes.
        """
        while count:
            part = min(count, BATCH)
            await self._write(await in_thread(self._seal_some, file, part, limiter=self._limiter))
            count -= part

    async def receive_word(self) -> bytes:
        """Return the next short text.

        Raises:
            ChannelClosedError: the other side is gone, sends something else, or the stream was tampered with.
        """
        (length,) = _LENGTH.unpack(await self._read(_LENGTH.size))
        if not _MORE <= length <= MAX_WORD + _MORE:
            raise ChannelClosedError(f"the peer announced a word of {length} bytes", code="malformed")
        return self._open(await self._read(length), _WORD)

    async def receive_data(
        self, count: int, take: Callable[[bytes], object], heard: Callable[[int], None], taken: Callable[[int], None]
    ) -> None:
        """Receive so many bytes.

        Args:
            count: how many.
            take: called in a worker thread with each chunk, in order.
            heard: called with the number of raw bytes, as soon as some came.
            taken: called with the number of bytes that `take` has got since the last time.

        Raises:
            ChannelClosedError: the other side is gone, sends something else, or the stream was tampered with.
        """
        while count:
            while len(self._raw) < min(count, CHUNK) + _MORE + _LENGTH.size:
                heard(await self._receive_some())
            done = await in_thread(self._open_some, count, take, limiter=self._limiter)
            count -= done
            taken(done)

    def _seal_some(self, file: BinaryIO, count: int) -> memoryview:
        """Seal so many bytes of a file; return them in a buffer that is used again: new pages cost a third of all."""
        out = self._out = self._out or bytearray(BATCH // CHUNK * (CHUNK + _MORE + _LENGTH.size))
        end = 0
        for at in range(0, count, CHUNK):
            chunk = file.read(size := min(CHUNK, count - at))
            if len(chunk) != size:
                raise ChannelClosedError("the file has become shorter")
            sealed = self._seal(chunk, _DATA)
            out[end : end + len(sealed)] = sealed
            end += len(sealed)
        return memoryview(out)[:end]

    def _open_some(self, count: int, take: Callable[[bytes], object]) -> int:
        """Open the chunks that are here whole, at most so many bytes; return how many that were."""
        at = done = 0
        try:
            while done < count:
                length = min(CHUNK, count - done) + _MORE
                end = at + _LENGTH.size + length
                if len(self._raw) < end:
                    break
                if _LENGTH.unpack_from(self._raw, at)[0] != length:
                    raise ChannelClosedError("the peer sends a chunk of another size", code="malformed")
                take(self._open(bytes(memoryview(self._raw)[at + _LENGTH.size : end]), _DATA))
                at, done = end, done + length - _MORE
            return done
        finally:
            del self._raw[:at]

    def _seal(self, body: bytes, tag: int) -> bytes:
        sealed = sodium.crypto_secretstream_xchacha20poly1305_push(self._push, body, None, tag)
        return _LENGTH.pack(len(sealed)) + sealed

    def _open(self, sealed: bytes, tag: int) -> bytes:
        try:
            body, its_tag = sodium.crypto_secretstream_xchacha20poly1305_pull(self._pull, sealed)
        except (nacl.exceptions.CryptoError, RuntimeError):
            raise ChannelClosedError("the stream was tampered with", code="tampered") from None
        if its_tag != tag:
            raise ChannelClosedError("the peer sends something else than it should", code="malformed")
        return body

    async def _write(self, data: bytes | memoryview) -> None:
        header, self._header = self._header, b""
        try:
            for view in (memoryview(header), memoryview(data)):
                for at in range(0, len(view), SLICE):
                    with trio.fail_after(SLICE_TIMEOUT):
                        await self._stream.send_all(view[at : at + SLICE])
        except trio.TooSlowError:
            raise ChannelClosedError("the peer takes too little") from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ChannelClosedError("the connection is closed") from None

    async def _read(self, count: int) -> bytes:
        while len(self._raw) < count:
            await self._receive_some()
        data = bytes(self._raw[:count])
        del self._raw[:count]
        return data

    async def _receive_some(self) -> int:
        """Receive what there is, the header apart; return how many bytes came."""
        try:
            data = await self._stream.receive_some(BATCH)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            raise ChannelClosedError("the connection was cut")
        self._raw += data
        if not self._is_begun and len(self._raw) >= _HEADER:
            header = bytes(self._raw[:_HEADER])
            del self._raw[:_HEADER]
            sodium.crypto_secretstream_xchacha20poly1305_init_pull(self._pull, header, self._pull_key)
            self._is_begun = True
        return len(data)


def _key(key: bytes) -> bytes:
    return hashlib.sha256(_PREFIX + key).digest()
