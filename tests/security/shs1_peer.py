#!/usr/bin/env python3
"""One side of a Secret Handshake on standard input and output, as the language-independent suite `shs1-test` drives it.

Arguments: `server NETWORK SECRET_KEY PUBLIC_KEY` or `client NETWORK SERVER_PUBLIC_KEY`, all in hex.
"""

import sys

import nacl.utils

from nunet_cli.network.secure_channel import ChannelKeys, ClientHandshake, HandshakeError, ServerHandshake


def read(count: int) -> bytes:
    data = sys.stdin.buffer.read(count)
    if len(data) != count:
        raise HandshakeError("closed")
    return data


def write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def serve(network: bytes, secret: bytes) -> ChannelKeys:
    shake = ServerHandshake(network, secret[:32])
    write(shake.hello(read(64)))
    answer, keys = shake.accept(read(112))
    write(answer)
    return keys


def connect(network: bytes, server_key: bytes) -> ChannelKeys:
    shake = ClientHandshake(network, nacl.utils.random(32), server_key)
    write(shake.hello())
    write(shake.authenticate(read(64)))
    return shake.finish(read(80))


role, *rest = sys.argv[1:]
arguments = [bytes.fromhex(text) for text in rest]
try:
    keys = serve(arguments[0], arguments[1]) if role == "server" else connect(arguments[0], arguments[1])
except HandshakeError as error:
    sys.exit(f"refused: {error.message}")
write(keys.encrypt_key + keys.encrypt_nonce + keys.decrypt_key + keys.decrypt_nonce)
