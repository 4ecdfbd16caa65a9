"""Asking a validator on this machine (``ironroot validator serve``) over its Unix socket.

    client = Client("/var/lib/ironroot-validator/validator.sock")      # one for the life of the program
    verdict = await client.ask(chain, purpose="tls-client", names=("device:ecc-devices/plc-7",))
    verdict.good, verdict.code, verdict.sentence("zh")

Requests that are under way at the same time share the connection. It is made when it is needed and again after it was lost. The protocol is
one JSON object a line (docs/validator.md).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from pkix.errors import Malformed, Unavailable
from validate.model import Language, Purpose

_LIMIT = 4 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the validator says. ``document`` is all of it, as JSON has it."""

    document: Mapping[str, Any]

    @property
    def good(self) -> bool:
        return self.document["good"] is True

    @property
    def code(self) -> str:
        """``good``, or the stable name of what is wrong."""
        return str(self.document["code"])

    def sentence(self, language: Language = "en") -> str:
        """One sentence for a person."""
        return str(self.document["reason_zh" if language == "zh" else "reason"])


class Client:
    """See the module. Belongs to the event loop in which it is used.

    Args:
        path: of the socket.  timeout: seconds for each request.
    """

    def __init__(self, path: str | Path, *, timeout: float = 5.0) -> None:
        self._path, self._timeout = os.fspath(path), timeout
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()

    async def ask(
        self,
        chain: Sequence[bytes],
        *,
        purpose: Purpose = "any",
        names: Sequence[str] = (),
        staples: Sequence[bytes] = (),
        explain: bool = False,
    ) -> Verdict:
        """The verdict on ``chain`` (DER, the end entity first).

        Raises:
            Unavailable: the validator is not there, or does not answer in time. That is no verdict: refuse the peer.
            Malformed: it does not take the request; the text says why.
        """
        number = next(self._numbers)
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._timeout):
                writer = await self._connected()
                self._waiting[number] = future
                writer.write(_line(number, chain, purpose, names, staples, explain))
                await writer.drain()
                return _verdict(await future)
        except TimeoutError:
            raise Unavailable(f"the validator did not answer within {self._timeout:g} s") from None
        except OSError as error:
            raise Unavailable(f"the validator cannot be reached: {error.strerror or type(error).__name__}") from None
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Ends the connection."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._opening:
            if self._writer is None or self._writer.is_closing():
                reader, self._writer = await asyncio.open_unix_connection(self._path, limit=_LIMIT)
                self._reading = asyncio.get_running_loop().create_task(self._read(reader, self._writer))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hands out answers until the connection ends; then nobody waits for it any more."""
        try:
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.get(answer.get("id"))
                if future is not None and not future.done():
                    future.set_result(answer)
        except (OSError, ValueError):
            pass  # as good as closed
        finally:
            writer.close()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(ConnectionResetError())


def ask(
    path: str | Path,
    chain: Sequence[bytes],
    *,
    purpose: Purpose = "any",
    names: Sequence[str] = (),
    staples: Sequence[bytes] = (),
    explain: bool = False,
    timeout: float = 5.0,
) -> Verdict:
    """``Client.ask`` for code that runs no event loop; a connection for each call. Raises as that."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(os.fspath(path))
            connection.sendall(_line(1, chain, purpose, names, staples, explain))
            with connection.makefile("rb") as stream:
                line = stream.readline(_LIMIT)
    except OSError as error:
        raise Unavailable(f"the validator cannot be asked: {error.strerror or 'no answer in time'}") from None
    try:
        return _verdict(json.loads(line))
    except ValueError:
        raise Unavailable("the validator ended the connection without an answer") from None


def _line(number: int, chain: Sequence[bytes], purpose: str, names: Sequence[str], staples: Sequence[bytes], explain: bool) -> bytes:
    first, *rest = (base64.b64encode(der).decode() for der in chain)
    said: dict[str, object] = {"id": number, "certificate": first, "purpose": purpose}
    optional: dict[str, object] = {
        "chain": rest,
        "names": list(names),
        "staples": [base64.b64encode(staple).decode() for staple in staples],
        "explain": explain,
    }
    return json.dumps(said | {name: value for name, value in optional.items() if value}).encode() + b"\n"


def _verdict(answer: Mapping[str, Any]) -> Verdict:
    if "verdict" in answer:
        return Verdict(answer["verdict"])
    problem = answer["problem"]
    error = Unavailable if problem["status"] >= 500 else Malformed
    raise error("; ".join([problem["detail"], *(f"{e['pointer']}: {e['detail']}" for e in problem.get("errors", ()))]))
