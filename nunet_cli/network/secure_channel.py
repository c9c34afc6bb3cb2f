"""Secret Handshake (SHS1) and box stream, composed from NaCl primitives as published.

Dominic Tarr, "Designing a Secret Handshake: Authenticated Key Exchange as a Capability System" (2015); message layouts
as in the Scuttlebutt Protocol Guide. The client must know the server's key; the server learns the client's.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import nacl.bindings as sodium
import nacl.exceptions
import trio

from nunet_cli.errors import RejectedMessageError
from nunet_cli.network.addresses import Address
from nunet_cli.network.identity import Identity
from nunet_cli.network.links import Links, write_now

_ZERO_NONCE = bytes(24)
_GOODBYE = bytes(18)
MAX_PACKET = 4096
# A packet costs much the same however small it is: a frame may have a few small ones, and one more for so many bytes.
FEW_PACKETS, LEAST_PACKET = 16, 1024


class HandshakeError(RejectedMessageError):
    """The other side is not who it should be, or not of this network."""

    default_code = "handshake"


class ChannelClosedError(RejectedMessageError):
    """The channel ended, properly or not."""

    default_code = "channel_closed"


def network_identifier(name: str, secret: str = "") -> bytes:
    """Return the 32 bytes that only nodes of one network know: derived from its name and optional secret."""
    return hmac.digest(b"nunet-network-v1\n" + secret.encode(), name.encode(), "sha256")


def data_identifier(network: bytes) -> bytes:
    """Return the 32 bytes with which connections for data introduce themselves in a network."""
    return hmac.digest(network, b"nunet-data-v1\n", "sha256")


def _auth(key: bytes, message: bytes) -> bytes:
    # NaCl's crypto_auth: HMAC-SHA-512 truncated to 32 bytes
    return hmac.digest(key, message, "sha512")[:32]


def _hash(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


@dataclass(frozen=True)
class ChannelKeys:
    """What both sides have after the handshake; nonces are 24 bytes."""

    encrypt_key: bytes
    encrypt_nonce: bytes
    decrypt_key: bytes
    decrypt_nonce: bytes
    peer_key: bytes


class ClientHandshake:
    """The client's half, as pure functions of bytes: `hello` → `authenticate(reply)` → `finish(accept)`."""

    def __init__(self, network: bytes, identity_seed: bytes, server_key: bytes) -> None:
        self._network, self._server_key = network, server_key
        self._public, self._secret = sodium.crypto_sign_seed_keypair(identity_seed)
        self._eph_public, self._eph_secret = sodium.crypto_box_keypair()

    def hello(self) -> bytes:
        """Return the first message, 64 bytes."""
        return _auth(self._network, self._eph_public) + self._eph_public

    def authenticate(self, reply: bytes) -> bytes:
        """Check the server's hello (64 bytes) and return the third message, 112 bytes.

        Raises:
            HandshakeError: another network, or a malformed key.
        """
        self._server_eph = _check_hello(self._network, reply)
        try:
            server_curve = sodium.crypto_sign_ed25519_pk_to_curve25519(self._server_key)
            self._shared_ab = sodium.crypto_scalarmult(self._eph_secret, self._server_eph)
            self._shared_aB = sodium.crypto_scalarmult(self._eph_secret, server_curve)
        except (nacl.exceptions.CryptoError, ValueError) as error:
            raise HandshakeError(f"bad key from the server: {error}") from None
        self._proof = _sign(self._secret, self._network, self._server_key, _hash(self._shared_ab))
        key = _hash(self._network, self._shared_ab, self._shared_aB)
        return sodium.crypto_secretbox(self._proof + self._public, _ZERO_NONCE, key)

    def finish(self, accept: bytes) -> ChannelKeys:
        """Check the server's proof (80 bytes) and return the channel's keys.

        Raises:
            HandshakeError: the server does not have the key it should have.
        """
        secret = sodium.crypto_sign_ed25519_sk_to_curve25519(self._secret)
        try:
            shared_Ab = sodium.crypto_scalarmult(secret, self._server_eph)
            key = _hash(self._network, self._shared_ab, self._shared_aB, shared_Ab)
            proof = sodium.crypto_secretbox_open(accept, _ZERO_NONCE, key)
        except (nacl.exceptions.CryptoError, ValueError):
            raise HandshakeError("the server did not prove its key") from None
        _verify(self._server_key, proof, self._network, self._proof, self._public, _hash(self._shared_ab))
        master = _hash(key)
        return ChannelKeys(
            encrypt_key=_hash(master, self._server_key),
            encrypt_nonce=_auth(self._network, self._server_eph)[:24],
            decrypt_key=_hash(master, self._public),
            decrypt_nonce=_auth(self._network, self._eph_public)[:24],
            peer_key=self._server_key,
        )


class ServerHandshake:
    """The server's half: `hello(first)` → `accept(proof)`, which also gives the client's key."""

    def __init__(self, network: bytes, identity_seed: bytes) -> None:
        self._network = network
        self._public, self._secret = sodium.crypto_sign_seed_keypair(identity_seed)
        self._eph_public, self._eph_secret = sodium.crypto_box_keypair()

    def hello(self, first: bytes) -> bytes:
        """Check the client's hello (64 bytes) and return the second message, 64 bytes.

        Raises:
            HandshakeError: another network, or a malformed key.
        """
        self._client_eph = _check_hello(self._network, first)
        return _auth(self._network, self._eph_public) + self._eph_public

    def accept(self, message: bytes) -> tuple[bytes, ChannelKeys]:
        """Check the client's proof (112 bytes); return the fourth message, 80 bytes, and the channel's keys.

        Raises:
            HandshakeError: the client did not prove its key, or does not know this server's.
        """
        secret = sodium.crypto_sign_ed25519_sk_to_curve25519(self._secret)
        try:
            shared_ab = sodium.crypto_scalarmult(self._eph_secret, self._client_eph)
            shared_aB = sodium.crypto_scalarmult(secret, self._client_eph)
            opened = sodium.crypto_secretbox_open(message, _ZERO_NONCE, _hash(self._network, shared_ab, shared_aB))
            proof, client_key = opened[:64], opened[64:]
            client_curve = sodium.crypto_sign_ed25519_pk_to_curve25519(client_key)
            shared_Ab = sodium.crypto_scalarmult(self._eph_secret, client_curve)
        except (nacl.exceptions.CryptoError, ValueError):
            raise HandshakeError("the client did not prove its key") from None
        _verify(client_key, proof, self._network, self._public, _hash(shared_ab))
        answer = _sign(self._secret, self._network, proof, client_key, _hash(shared_ab))
        key = _hash(self._network, shared_ab, shared_aB, shared_Ab)
        master = _hash(key)
        keys = ChannelKeys(
            encrypt_key=_hash(master, client_key),
            encrypt_nonce=_auth(self._network, self._client_eph)[:24],
            decrypt_key=_hash(master, self._public),
            decrypt_nonce=_auth(self._network, self._eph_public)[:24],
            peer_key=client_key,
        )
        return sodium.crypto_secretbox(answer, _ZERO_NONCE, key), keys


def _is_hello(network: bytes, message: bytes) -> bool:
    return len(message) == 64 and hmac.compare_digest(message[:32], _auth(network, message[32:]))


def _check_hello(network: bytes, message: bytes) -> bytes:
    if not _is_hello(network, message):
        raise HandshakeError("the other side is not of this network", hint="check network.name and network.secret")
    return message[32:]


def _sign(secret: bytes, *parts: bytes) -> bytes:
    return sodium.crypto_sign(b"".join(parts), secret)[:64]


def _verify(public: bytes, signature: bytes, *parts: bytes) -> None:
    try:
        sodium.crypto_sign_open(signature + b"".join(parts), public)
    except (nacl.exceptions.CryptoError, ValueError):
        raise HandshakeError("the other side did not prove its key") from None


class SecureChannel:
    """A box stream over a byte stream: whole messages in, whole messages out, in order, or an error.

    One task may send and one may receive at the same time.
    """

    def __init__(self, stream: trio.abc.Stream, keys: ChannelKeys, max_frame: int) -> None:
        self.stream, self._keys, self._max_frame = stream, keys, max_frame
        self._send_nonce = int.from_bytes(keys.encrypt_nonce, "big")
        self._receive_nonce = int.from_bytes(keys.decrypt_nonce, "big")
        self._raw = bytearray()
        self._plain = bytearray()
        # sealed, and not written yet: it goes before anything else
        self._unwritten = b""
        self.peer_key = keys.peer_key

    async def send_frames(self, *bodies: bytes) -> None:
        """Send frames in one go, each `u32 big-endian length · body`.

        Raises:
            ChannelClosedError: the other side is gone.
            RejectedMessageError: a body is over the limit; nothing is sent.
        """
        data = self._sealed(*bodies)
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise ChannelClosedError("the connection is closed") from None

    def send_now(self, body: bytes) -> bool:
        """Send a frame as far as the connection takes it at once; return whether nothing is left for `send_frames`.

        Only for who knows that no `send_frames` is under way.

        Raises:
            RejectedMessageError: the body is over the limit; nothing of it is sent.
        """
        data = self._sealed(body)
        self._unwritten = data[write_now(self.stream, data) :]
        return not self._unwritten

    def check(self, *bodies: bytes) -> None:
        """Check that frames may be sent.

        Raises:
            RejectedMessageError: a body is over the limit.
        """
        largest = max(map(len, bodies), default=0)
        if largest > self._max_frame:
            raise RejectedMessageError(f"a frame of {largest} bytes is over the limit", code="frame_too_large")

    def _sealed(self, *bodies: bytes) -> bytes:
        """Return what is still to be written, and frames after it."""
        # looked at before any is sealed: what is sealed and not sent would look like a cut to the other side
        self.check(*bodies)
        packets, self._unwritten = [self._unwritten], b""
        for body in bodies:
            data = struct.pack(">I", len(body)) + body
            packets += [self._seal(data[at : at + MAX_PACKET]) for at in range(0, len(data), MAX_PACKET)]
        return b"".join(packets)

    async def receive_frame(self) -> bytes:
        """Return the next frame's body.

        Raises:
            ChannelClosedError: the other side said goodbye, is gone, or the stream was tampered with; or it sends a
                frame that is too large, or in too many pieces.
        """
        packets = 0
        while len(self._plain) < 4:
            await self._receive_packet()
            packets += 1
        (length,) = struct.unpack(">I", self._plain[:4])
        if length > self._max_frame:
            raise ChannelClosedError(f"the peer announced a frame of {length} bytes", code="frame_too_large")
        while len(self._plain) < 4 + length:
            if packets >= FEW_PACKETS + length // LEAST_PACKET:
                raise ChannelClosedError("the peer sends a frame in too many pieces", code="small_packets")
            await self._receive_packet()
            packets += 1
        body = bytes(self._plain[4 : 4 + length])
        del self._plain[: 4 + length]
        return body

    async def goodbye(self) -> None:
        """Tell the other side that this is the end, so that a cut is told from a close."""
        left = self._sealed()
        header = sodium.crypto_secretbox(_GOODBYE, self._next_send_nonce(), self._keys.encrypt_key)
        try:
            await self.stream.send_all(left + header)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            pass

    def _seal(self, body: bytes) -> bytes:
        header_nonce, body_nonce = self._next_send_nonce(), self._next_send_nonce()
        sealed = sodium.crypto_secretbox(body, body_nonce, self._keys.encrypt_key)
        header = struct.pack(">H", len(body)) + sealed[:16]
        return sodium.crypto_secretbox(header, header_nonce, self._keys.encrypt_key) + sealed[16:]

    async def _receive_packet(self) -> None:
        header = self._open(await self._read(34))
        if header == _GOODBYE:
            raise ChannelClosedError("the peer closed the connection")
        (length,) = struct.unpack(">H", header[:2])
        if not 0 < length <= MAX_PACKET:
            raise ChannelClosedError("a malformed packet header", code="tampered")
        self._plain += self._open(header[2:] + await self._read(length))

    def _open(self, sealed: bytes) -> bytes:
        nonce = (self._receive_nonce % 2**192).to_bytes(24, "big")
        self._receive_nonce += 1
        try:
            return sodium.crypto_secretbox_open(sealed, nonce, self._keys.decrypt_key)
        except nacl.exceptions.CryptoError:
            raise ChannelClosedError("the stream was tampered with", code="tampered") from None

    def _next_send_nonce(self) -> bytes:
        nonce = (self._send_nonce % 2**192).to_bytes(24, "big")
        self._send_nonce += 1
        return nonce

    async def _read(self, count: int) -> bytes:
        while len(self._raw) < count:
            self._raw += await _receive_some(self.stream)
        data = bytes(self._raw[:count])
        del self._raw[:count]
        return data


async def _receive_some(stream: trio.abc.Stream) -> bytes:
    try:
        data = await stream.receive_some(65536)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        data = b""
    if not data:
        raise ChannelClosedError("the connection was cut")
    return bytes(data)


async def _read_exactly(stream: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        try:
            part = await stream.receive_some(count - len(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            part = b""
        if not part:
            raise HandshakeError("the other side closed during the handshake")
        data += part
    return data


async def offer_handshake(
    stream: trio.abc.Stream, network: bytes, identity: Identity, server_key: bytes
) -> ChannelKeys:
    """Do the client's handshake on a fresh stream; the caller sets the timeout.

    Raises:
        HandshakeError: the server is not who it should be.
    """
    shake = ClientHandshake(network, identity.seed, server_key)
    try:
        await stream.send_all(shake.hello())
        await stream.send_all(shake.authenticate(await _read_exactly(stream, 64)))
        return shake.finish(await _read_exactly(stream, 80))
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise HandshakeError("the server closed during the handshake") from None


async def dial(
    links: Links, address: Address, network: bytes, identity: Identity, server_key: bytes
) -> tuple[trio.abc.Stream, ChannelKeys]:
    """Open a stream to an address and do the client's handshake on it; the caller sets the timeout.

    Raises:
        OSError: nobody is there.
        HandshakeError: the server is not who it should be.
    """
    stream = await links.connect(*address)
    try:
        return stream, await offer_handshake(stream, network, identity, server_key)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


async def take_handshake(
    stream: trio.abc.Stream, networks: Sequence[bytes], identity: Identity
) -> tuple[bytes, ChannelKeys]:
    """Do the server's handshake on a fresh stream; the caller sets the timeout.

    Args:
        stream: a client that has just connected.
        networks: the identifiers that it may greet with: what they are says what the connection is for.
        identity: this node's key.

    Returns:
        The identifier that the client greeted with, and the keys.

    Raises:
        HandshakeError: the client is not of this network, or looked for another server.
    """
    try:
        hello = await _read_exactly(stream, 64)
        network = next((known for known in networks if _is_hello(known, hello)), networks[0])
        shake = ServerHandshake(network, identity.seed)
        await stream.send_all(shake.hello(hello))
        answer, keys = shake.accept(await _read_exactly(stream, 112))
        await stream.send_all(answer)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        raise HandshakeError("the client closed during the handshake") from None
    return network, keys
