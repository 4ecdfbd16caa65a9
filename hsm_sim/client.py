"""A small synchronous client of the native socket, for the command line, ``SdfDevice`` and tests.

    with Client(home / "native.sock") as hsm:
        hsm.call("login", pin=pin)                       # role="officer", partition="ironroot" by default
        signatures = hsm.call("sign_many", key="k", purpose="certificate", data=[digest, digest])

One request at a time; the class is not for several threads at once.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Self

import cbor2

from hsm_sim.errors import Code, Rejected
from hsm_sim.wire import MAX_FRAME
from pkix.errors import Unavailable


class Client:
    """One connection. ``timeout`` is for each call, in seconds; None waits for ever. ``socket`` is for who speaks the frames himself."""

    def __init__(self, path: Path, *, timeout: float | None = 30.0) -> None:
        """Raises Unavailable: nobody listens there, or he may not be reached."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self._next = 0
        try:
            self.socket.connect(str(path))
        except OSError as error:
            self.socket.close()
            raise Unavailable(f"no HSM answers at {path} ({error.strerror}); start it and try again") from error

    def call(self, op: str, **arguments: object) -> Any:
        """The answer's ``ok``.

        Raises:
            Rejected: the HSM's error code and sentence.
            Unavailable: the connection broke, or no answer came in time; whether the HSM did it is not known. The client is of no use then.
        """
        self._next += 1
        body = cbor2.dumps({"id": self._next, "op": op, **arguments})
        try:
            self.socket.sendall(len(body).to_bytes(4) + body)
            answer = self._receive()
        except (OSError, EOFError, cbor2.CBORDecodeError) as error:
            self.close()
            raise Unavailable("the HSM did not answer, so whether it was done is not known; look before you repeat it") from error
        if "error" in answer:
            raise Rejected(Code(answer["error"]), answer["text"])
        return answer["ok"]

    def _receive(self) -> dict[str, Any]:
        length = int.from_bytes(self._read(4))
        if length > MAX_FRAME:
            raise EOFError
        answer: dict[str, Any] = cbor2.loads(self._read(length))
        return answer

    def _read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            chunk = self.socket.recv(min(count - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return bytes(data)

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
