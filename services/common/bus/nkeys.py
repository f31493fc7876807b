"""NATS' keys: Ed25519 seeds and public keys, as text with a prefix for their kind and a checksum.

Seeds are read and made by the package nkeys. It cannot verify by a public key alone, which is done here.
Next: :mod:`services.api.bus_auth.tokens`, which signs and verifies with them.
"""

import base64
import binascii
import os
from enum import IntEnum
from pathlib import Path

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

_RAW = 32


class KeyKind(IntEnum):
    """What a key identifies; its prefix."""

    ACCOUNT = nkeys.PREFIX_BYTE_ACCOUNT
    USER = nkeys.PREFIX_BYTE_USER
    SERVER = nkeys.PREFIX_BYTE_SERVER


class SigningKey:
    """A key pair.

    :ivar public: its public key.
    :ivar kind: what it identifies.
    """

    def __init__(self, seed: str) -> None:
        """Read a seed.

        :raises ValueError: the text is no seed of a known kind.
        """
        try:
            encoded = bytearray(seed.strip().encode("ascii"))
            prefix, _ = nkeys.decode_seed(encoded)
            self._pair = nkeys.from_seed(encoded)
            self.public: str = bytes(self._pair.public_key).decode()
            self.kind = KeyKind(prefix)
        except Exception as error:
            # The text of an error could quote the seed.
            raise ValueError("not a seed of NATS") from error

    def sign(self, data: bytes) -> bytes:
        """Return the signature of data."""
        return bytes(self._pair.sign(data))


def make_seed(kind: KeyKind) -> str:
    """Return a new seed."""
    return bytes(nkeys.encode_seed(os.urandom(_RAW), kind)).decode()


def write_seed(path: Path, kind: KeyKind = KeyKind.USER) -> None:
    """Write a new seed into a file that only its owner can read; never over another one.

    :raises OSError: the file exists, or cannot be made.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{make_seed(kind)}\n")


def read_public_key(seed: bytes) -> str:
    """Return the public key of a user's seed.

    :raises ValueError: it is not the seed of a user's key.
    """
    key = SigningKey(seed.decode(errors="replace"))
    if key.kind is not KeyKind.USER:
        raise ValueError("the nkey is not that of a user")
    return key.public


def decode_public(text: str, kind: KeyKind) -> bytes:
    """Return the bytes of a public key.

    :raises ValueError: the text is no public key of this kind.
    """
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except ValueError:
        raw = b""
    whole = len(raw) == 1 + _RAW + 2 and binascii.crc_hqx(raw[:-2], 0) == int.from_bytes(raw[-2:], "little")
    if not whole or raw[0] != kind:
        raise ValueError(f"not a public {kind.name.lower()} key of NATS")
    return raw[1:-2]


def is_signed_by(public: bytes, data: bytes, signature: bytes) -> bool:
    """Return whether a signature of data was made with the key of a public key."""
    try:
        VerifyKey(public).verify(data, signature)
    except (BadSignatureError, ValueError):
        return False
    return True
