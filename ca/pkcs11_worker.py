"""A process that uses one PKCS#11 token, one call at a time, for ``ca.signer_pkcs11``: ``python -m ca.pkcs11_worker``, a socket as stdin.

    → {"id": 1, "op": "do", "jobs": [{"op": "open", "uri": "pkcs11:…", "home": "/…"}]}        u32 length | CBOR
    ← {"id": 1, "ok": [{"ok": None}]}

A process of its own because vendors' libraries crash, hang, and take neither threads nor forks, and because the PIN is then known to no
process that talks to a network.

Each job has an outcome: ``{"ok": …}``; ``{"error": code, "text": …, "certain": …, "spent": …}``; or None where it was not begun: after
``BUDGET`` seconds in a frame the rest goes back, so that an answer is late only if one call hangs. ``certain``: the token was asked for
nothing that it may have done. ``spent``: this process is of no more use. A session that is lost is opened again here, once; the key is
then looked for and compared anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any, NoReturn

import cbor2
import pkcs11

from ca import pkcs11_transport
from ca.pkcs11_token import Failure, Token
from ca.pkcs11_uri import parse
from pkix.errors import Unsupported

BUDGET = 0.5
Job = dict[str, Any]

_LOST = (
    pkcs11.SessionClosed,
    pkcs11.SessionHandleInvalid,
    pkcs11.UserNotLoggedIn,
    pkcs11.KeyHandleInvalid,
    pkcs11.ObjectHandleInvalid,
    pkcs11.OperationActive,
    pkcs11.OperationNotInitialized,
)
_GONE = (pkcs11.DeviceRemoved, pkcs11.TokenNotPresent, pkcs11.TokenNotRecognised, pkcs11.SlotIDInvalid)
_BROKEN = (
    pkcs11.DeviceError,
    pkcs11.DeviceMemory,
    pkcs11.FunctionFailed,
    pkcs11.GeneralError,
    pkcs11.HostMemory,
    pkcs11.SessionCount,
)
_REFUSALS = ("0x1b)", "0x68)")  # CKR_ACTION_PROHIBITED, CKR_KEY_FUNCTION_NOT_PERMITTED: python-pkcs11 has no classes for them
_PIN = (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange, pkcs11.PinExpired, pkcs11.UserPinNotInitialized)


class Worker:
    """Does jobs on a token. The first one opens it."""

    def __init__(self) -> None:
        self._token: Token | None = None
        self._transport: Any = None  # the private half of a transport pair, while a key moves here

    def frame(self, jobs: list[Job]) -> list[Job | None]:
        """The outcomes of a frame's jobs, in order."""
        until = time.monotonic() + BUDGET
        outcomes: list[Job | None] = []
        for job in jobs:
            late = outcomes and time.monotonic() > until
            outcomes.append(None if late or (outcomes and _is_spent(outcomes[-1])) else self.perform(job))
        return outcomes

    def perform(self, job: Job) -> Job:
        """One job's outcome."""
        try:
            try:
                return {"ok": self._do(job)}
            except _LOST:
                if self._token is None:
                    raise
                self._token.reopen()
                return {"ok": self._do(job)}
        except Failure as failure:
            return {"error": failure.code, "text": str(failure), "certain": self._certain, "spent": failure.spent}
        except Unsupported as error:
            return {"error": "unsupported", "text": str(error), "certain": True, "spent": False}
        except pkcs11.PKCS11Error as error:
            return _meaning(error, certain=self._certain)

    @property
    def _certain(self) -> bool:
        return self._token is None or not self._token.asked

    def _do(self, job: Job) -> Any:
        if job["op"] == "open":
            self._token = Token(parse(job["uri"]), Path(job["home"]))
            return None
        token = self._token
        if token is None:
            raise Failure("device", "the token was not opened", spent=True)
        token.asked = False
        name = (job.get("label"), job.get("id"))
        match job["op"]:
            case "ready":
                return token.check()
            case "public_key":
                return token.public_key(*name)
            case "sign":
                return token.sign(*name, job["kind"], job["spki"], job["data"])
            case "generate":
                return token.generate(job["label"], job["id"], job["kind"])
            case "trial":
                return token.trial(job["kind"], job["data"])
            case "destroy":
                return token.destroy(*name)
            case "extractable":
                return pkcs11_transport.extractable(token.key(*name, job["spki"]))
            case "transport":
                self._transport, numbers = pkcs11_transport.begin(token)
                return numbers
            case "wrap":
                return pkcs11_transport.wrap(token, token.key(*name, job["spki"]), job["transport"])
            case "unwrap" if self._transport is not None:
                return pkcs11_transport.unwrap(token, self._transport, job["wrapped"], job["spki"], job["label"], job["id"])
            case other:
                raise Failure("device", f"a job {other!r} that cannot be done", spent=True)


def _is_spent(outcome: Job | None) -> bool:
    return outcome is None or bool(outcome.get("spent"))


def _meaning(error: pkcs11.PKCS11Error, *, certain: bool) -> Job:
    """The outcome for an error of the token's. One without a class of its own (a vendor's) may mean anything: the process ends with it."""
    said = f"the token answered {type(error).__name__}" + (f" ({error})" if str(error) else "")
    match error:
        case pkcs11.PinLocked():
            code, text = "pin_locked", "the PIN is locked after too many wrong ones; the token's security officer has to unlock it"
        case _ if isinstance(error, _PIN):
            code, text = "pin_incorrect", f"the PIN is wrong ({type(error).__name__})"
        case _ if isinstance(error, _GONE):
            code, text = "removed", "the token is not there"
        case _ if isinstance(error, _LOST):  # found out before anything was done, unless the session was closed meanwhile
            code, text, certain = "device", said, certain or not isinstance(error, pkcs11.SessionClosed)
        case _ if isinstance(error, _BROKEN) or (type(error) is pkcs11.PKCS11Error and not said.endswith(_REFUSALS)):
            code, text = "device", said
        case _:
            return {"error": "rejected", "text": said, "certain": True, "spent": False}
    return {"error": code, "text": text, "certain": certain, "spent": True}


def serve(connection: socket.socket) -> None:
    """Answers frames until the other side closes."""
    worker, stream = Worker(), connection.makefile("rb")
    while len(header := stream.read(4)) == 4:
        request = cbor2.loads(stream.read(int.from_bytes(header)))
        answer = cbor2.dumps({"id": request["id"], "ok": worker.frame(request["jobs"])})
        connection.sendall(len(answer).to_bytes(4) + answer)


def main() -> NoReturn:
    """The process: until its parent closes the socket, or ends. It knows the PIN: no core dump, and no other process looks into it."""
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also out of a call that hangs
    libc.prctl(4, 0)  # PR_SET_DUMPABLE
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    with contextlib.suppress(ConnectionError):
        serve(connection)
    os._exit(0)  # finalizers of libraries may hang


if __name__ == "__main__":
    main()
