"""The vault: the keys, in memory as usable handles, on disk as one sealed file each.

A key file is CBOR {v, attributes, nonce, sealed}: ``sealed`` is the PKCS#8 under AES-256-GCM with KEK, and the exact octets of
``attributes`` (label, kind, origin, created, public key) are its associated data, so none of them can be changed without the KEK. Its name
is made from the label, so that no label can name a path and no file can stand in for another.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import cbor2
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hsm_sim import files
from hsm_sim.wire import Code, Rejected
from pkix.algorithms import KeyKind
from pkix.errors import IronrootError, Malformed
from pkix.privatekey import PrivateKey, generate, load_private_key

_KEY_CONTEXT = b"ironroot hsm key 1 "

INPUT_LENGTH = {KeyKind.P_384: 48, KeyKind.ED25519: None, KeyKind.ML_DSA_65: None}  # octets of signing input; None: a message; else 32


@dataclass(frozen=True, slots=True)
class Key:
    """A key that can be used: its public attributes and, inside, the private one."""

    label: str
    kind: KeyKind
    created: str
    spki: bytes
    private: PrivateKey

    def attributes(self) -> dict[str, Any]:
        """What anybody who is logged in may know. Also what is sealed with the key."""
        return {"label": self.label, "kind": str(self.kind), "origin": "generated", "created": self.created, "public_key": self.spki}

    def sign(self, data: bytes) -> bytes:
        """The signature over ``data``, a signing input (a digest, or for Ed25519 and ML-DSA the message). Raises Rejected."""
        length = INPUT_LENGTH.get(self.kind, 32)
        if length is not None and len(data) != length:
            raise Rejected(Code.DATA_LEN_RANGE, f"a {self.kind} key signs {length} octets, not {len(data)}")
        try:
            return self.private.sign_input(data)
        except IronrootError as error:
            raise Rejected(Code.GENERAL_ERROR, str(error)) from error


class Vault:
    """All keys of an unlocked token. ``damaged`` maps file names to what is wrong with them; the other keys go on working."""

    def __init__(self, folder: Path, kek: bytes) -> None:
        """Opens every key file in ``folder``."""
        self._folder = folder
        self._kek = AESGCM(kek)
        self._being_made: set[str] = set()
        self._keys: dict[str, Key] = {}
        self.damaged: dict[str, str] = {}
        files.sweep(folder)
        for path in sorted(folder.glob("*.key")):
            try:
                key = self._open(path)
                self._keys[key.label] = key
            except Malformed as error:
                self.damaged[path.name] = str(error)

    def all_keys(self) -> list[Key]:
        return list(self._keys.values())

    def get(self, label: str) -> Key:
        """Raises Rejected: KEY_NOT_FOUND, KEY_DAMAGED."""
        key = self._keys.get(label)
        if key is None:
            if trouble := self.damaged.get(_file_name(label)):
                raise Rejected(Code.KEY_DAMAGED, f"the key {label} cannot be used: {trouble}")
            raise Rejected(Code.KEY_NOT_FOUND, f"there is no key {label}")
        return key

    async def generate(self, label: str, kind: KeyKind, now: datetime) -> Key:
        """A new key; when it returns, the key survives a power cut. Raises Rejected: KEY_EXISTS, STORAGE."""
        if label in self._keys or label in self._being_made or _file_name(label) in self.damaged:
            raise Rejected(Code.KEY_EXISTS, f"there is a key {label} already")
        self._being_made.add(label)
        try:
            key = await asyncio.to_thread(self._make, label, kind, now)
        finally:
            self._being_made.discard(label)
        self._keys[label] = key
        return key

    def _make(self, label: str, kind: KeyKind, now: datetime) -> Key:
        try:
            private = generate(kind)
        except IronrootError as error:
            raise Rejected(Code.MECHANISM_INVALID, str(error)) from error
        key = Key(label, kind, now.isoformat(timespec="seconds"), private.public_key.spki, private)
        attributes = cbor2.dumps(key.attributes(), canonical=True)
        nonce = secrets.token_bytes(12)
        sealed = self._kek.encrypt(nonce, private.to_der(), _KEY_CONTEXT + attributes)
        content = cbor2.dumps({"v": 1, "attributes": attributes, "nonce": nonce, "sealed": sealed})
        try:
            files.write(self._folder / _file_name(label), content)
        except OSError as error:
            raise Rejected(Code.STORAGE, f"the new key cannot be stored: {os.strerror(error.errno or 0)}") from error
        return key

    async def destroy(self, label: str) -> None:
        """Deletes a key for good. Raises Rejected: KEY_NOT_FOUND, KEY_DAMAGED, STORAGE."""
        self.get(label)
        try:
            await asyncio.to_thread(files.remove, self._folder / _file_name(label))
        except FileNotFoundError:
            pass  # two at once, or deleted by hand: gone is what was asked for
        except OSError as error:
            raise Rejected(Code.STORAGE, f"the key {label} cannot be deleted: {os.strerror(error.errno or 0)}") from error
        self._keys.pop(label, None)

    def _open(self, path: Path) -> Key:
        """Raises Malformed saying what is wrong with the file."""
        try:
            record = cbor2.loads(path.read_bytes())
            sealed_attributes, nonce, sealed = record["attributes"], record["nonce"], record["sealed"]
            pkcs8 = self._kek.decrypt(nonce, sealed, _KEY_CONTEXT + sealed_attributes)
            attributes = cbor2.loads(sealed_attributes)
            private = load_private_key(pkcs8)
            key = Key(attributes["label"], KeyKind(attributes["kind"]), attributes["created"], attributes["public_key"], private)
        except OSError as error:
            raise Malformed(f"its file cannot be read: {os.strerror(error.errno or 0)}") from error
        except InvalidTag as error:
            raise Malformed("its file or an attribute in it was changed, or belongs to another token; restore it from a backup") from error
        except (cbor2.CBORDecodeError, KeyError, TypeError, ValueError, IronrootError) as error:
            raise Malformed("its file is torn or not a key file; restore it from a backup") from error
        if _file_name(key.label) != path.name or private.public_key.spki != key.spki or private.kind != key.kind:
            raise Malformed("its file stands under another key's name; restore it from a backup")
        return key


def _file_name(label: str) -> str:
    return sha256(label.encode()).hexdigest()[:40] + ".key"
