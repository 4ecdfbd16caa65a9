"""The HSM's own record: every operation a line in a hash chain, durable before its answer leaves.

    audit = AuditLog(home, clock, algorithm="sha256", signer=AuditSigner(audit_key.sign, chain), on_failure=end)   # inside the running loop
    await audit.write(Event("generate", caller, key="k", mech="CKM_EC_KEY_PAIR_GEN", more={"counter": 7}))
    audit.write_soon(Event("login", caller, result="pin_incorrect"))
    verdict = verify(home)             # offline; needs no PIN, may run beside the process

    {"seq":7,"time":"…Z","boot":2,"op":"sign","door":"native","conn":3,"partition":"ironroot","role":"officer","key":"ecc-issuing",
     "mech":"CKM_ECDSA","purpose":"certificate","count":1,"inputs":["9f…"],"result":"ok","prev":"41…"}

What is asked for while one sync runs shares the next, whoever asked. Signatures with one key for one purpose of one caller share a line,
too; OCSP's (``summary``), and refusals that are written soon, are summed up by the second. The log may hold operations that nobody had an
answer to (a crash after the sync); it never lacks one that somebody had, but for what is summed up, of the last second.

Every 1,000 lines, every 60 s, at each start and at the end the device's audit key signs a line, and with it the chain before it. The newest
of these is also kept in ``audit.checkpoint``, so that a log that was cut off before it is known for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from hsm_sim import files
from hsm_sim.audit_verify import Flaw, Verdict, verify
from hsm_sim.chain import MAX_APPEND, Body, Chain, Head, Sign, SyncFailed, compact, lines_after, number, read_line
from hsm_sim.errors import Code, Rejected
from hsm_sim.roles import Caller
from hsm_sim.summary import Summary, stamp
from pkix.errors import Fatal

__all__ = ["AuditLog", "AuditSigner", "Event", "Flaw", "Head", "SyncFailed", "Verdict", "verify"]

LOG = "audit.log"
MARK = "audit.checkpoint"
SOON = 1.0  # seconds until what need not be waited for is written, if no other line takes it along
MAX_SOON = 1000  # different events that wait for that; more are only counted
MAX_GROUP = 1024  # signatures in one line
MAX_READ = 4 << 20  # octets of the lines that are read at once
CHECKPOINT_LINES, CHECKPOINT_SECONDS = 1000, 60.0
_REFUSED = "the HSM cannot write its audit log ({}), so nothing was done"

Done = Callable[[Rejected | None], None]  # hears None when the line is durable, else why it is not


@dataclass(frozen=True, slots=True)
class Event:
    """One operation. ``inputs`` (signing inputs) are written in hex up to 64 octets, by SHA-256 above; no secret may stand in any member.

    ``more`` are further members of the line (JSON values), under names that lines do not have already, such as {"counter": 7}.
    """

    op: str
    caller: Caller
    key: str = ""
    mech: str = ""
    purpose: str = ""
    inputs: Sequence[bytes] = ()
    result: str = "ok"
    more: Mapping[str, Any] = field(default_factory=dict)

    def members(self) -> str:
        """What the line says of it, as JSON without the braces."""
        more = compact(self.more)[1:-1]
        return f"{_who(self.op, self.caller, self.key, self.mech, self.purpose)}{_what(self.inputs, self.result)}{more and ','}{more}"


class AuditSigner(NamedTuple):
    """The device audit key (Ed25519, or SM2 when the hash is SM3): ``sign(message)`` and its certificates in DER, its own first."""

    sign: Sign
    chain: tuple[bytes, ...]


class _Entry:
    """A line that waits for its append: its members, or of signatures, to which more may come, their beginning; and who hears of it."""

    __slots__ = ("inputs", "listeners", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.inputs: list[bytes] = []
        self.listeners: list[Done] = []

    def members(self) -> str:
        return self.text + _what(self.inputs, "ok") if self.inputs else self.text


class AuditLog:
    """``home/audit.log`` and the thread that writes it. One writer at a time: the caller holds the home's lock.

    Attributes:
        head: last durable line.  boot: number of this start (1, 2, …).
        limit: force-audit: at most so many lines that nobody acknowledged, or None (off).  acknowledged: number of the last one that was.
            Both are set by the device from hsm.db at start and when the auditor changes them; here they are only obeyed.
    """

    def __init__(
        self,
        home: Path,
        clock: Callable[[], datetime],
        *,
        algorithm: str = "sha256",
        signer: AuditSigner | None = None,
        on_failure: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        """Opens or makes the log, cuts a torn last line off, and writes the line of this start with ``write_soon``.

        Raises OSError, Fatal (a log that is damaged and not just torn, or shorter than its last checkpoint).
        """
        self._loop = asyncio.get_running_loop()
        self._home, self._clock, self._on_failure = home, clock, on_failure
        self._chain = Chain(home / LOG, algorithm)
        self._not_cut_off()
        self.boot = self._chain.last.get("boot", 0) + 1
        self.limit: int | None = None
        self.acknowledged = 0
        self._sign = signer.sign if signer else None
        self._opening = f'"version":1,"hash":"{algorithm}","chain":{compact([octets.hex() for octets in signer.chain] if signer else [])}'
        self._waiting: list[_Entry] = []
        self._groups: dict[tuple[Caller, str, str, str, str, int], _Entry] = {}  # of _waiting: signatures that more can join
        self._soon: dict[str, int] = {}
        self._unnamed = 0
        self._summaries: dict[str, Summary] = {}
        self._owed: list[Body] = [Body(f'"op":"start",{self._opening}', checkpoint=True)]
        self._refusal: Rejected | None = None  # the disk did not take what was summed up: until it has, OCSP is refused like all others
        self._append: asyncio.Future[Exception | None] | None = None
        self._scheduled = self._ticked = False
        self._timer: asyncio.TimerHandle | None = None
        self._signed, self._signed_at = self.head.seq, self._loop.time()
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # an executor would cost a signature's time for each job
        self._thread = Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()
        self._in_a_while()

    def _not_cut_off(self) -> None:
        try:
            mark = read_line((self._home / MARK).read_bytes().rstrip(b"\n"))
        except FileNotFoundError:
            return
        if mark is not None and mark["seq"] > self.head.seq:
            raise Fatal(
                f"{self._home / LOG} ends with line {self.head.seq}, but line {mark['seq']} was written: restore it from a backup; if it "
                f"is lost, put {self._home / MARK} aside, and say so to whoever reads the log"
            )

    @property
    def head(self) -> Head:
        return self._chain.head

    # What happened

    async def write(self, event: Event) -> None:
        """Returns when the event is durable. Raises Rejected(STORAGE): it is not, and the operation must not be answered as done."""
        durable: asyncio.Future[None] = self._loop.create_future()

        def done(refusal: Rejected | None) -> None:
            if durable.done():
                return  # whoever waited has gone
            if refusal is None:
                durable.set_result(None)
            else:
                durable.set_exception(refusal)

        entry = _Entry(event.members())
        entry.listeners.append(done)
        self._enter(entry)
        await durable

    def write_soon(self, event: Event) -> None:
        """Durable within a second, or with the next ``write``. Equal events are counted and share a line."""
        members = event.members()
        if members in self._soon or len(self._soon) < MAX_SOON:
            self._soon[members] = self._soon.get(members, 0) + 1
        else:
            self._unnamed += 1
        self._in_a_while()

    def signed(self, caller: Caller, key: str, mech: str, purpose: str, inputs: Sequence[bytes], done: Done) -> None:
        """Signatures that were made over ``inputs`` (at most ``MAX_GROUP``) and leave when ``done`` hears None."""
        group = (caller, key, mech, purpose, caller.role, caller.session)
        entry = self._groups.get(group)
        if entry is None or len(entry.inputs) + len(inputs) > MAX_GROUP:
            entry = self._groups[group] = _Entry(_who("sign", caller, key, mech, purpose))
            self._enter(entry)
        entry.inputs += inputs
        entry.listeners.append(done)

    def sum_up(self, caller: Caller, key: str, inputs: Sequence[bytes]) -> Rejected | None:
        """OCSP signatures that were made; they leave at once, unless the answer is a refusal."""
        if self._refusal is not None:
            return self._refusal
        now = self._clock()
        summary = self._summaries.get(caller.partition)
        if summary is None:
            summary = self._summaries[caller.partition] = Summary(caller.partition, now)
        summary.add(key, inputs, now)
        self._in_a_while()
        return None

    def permit(self) -> None:
        """Raises Rejected(LOG_FULL) when force-audit is on and nobody reads: before every use of a key, never before login or reading."""
        if self.limit is not None and self.head.seq - self.acknowledged >= self.limit:
            raise Rejected(
                Code.LOG_FULL,
                f"{self.head.seq - self.acknowledged} lines of the audit log are not acknowledged and {self.limit} may be: the auditor has "
                "to read and acknowledge them before keys are used again",
            )

    # Reading it

    def read(self, after: int, limit: int = 1000) -> list[str]:
        """Up to ``limit`` durable lines with numbers above ``after``, as they stand in the files (blocking I/O: call in a thread).

        Fewer if they are long (``MAX_READ``), so that the answer is one that a door can give; at least one, if there is one.

        Raises OSError, Rejected(STORAGE).
        """
        last, found, size = self.head.seq, list[str](), 0
        try:
            for line in lines_after(self._home / LOG, after):
                size += len(line)
                if len(found) == limit or number(line) > last or (found and size > MAX_READ):
                    break
                found.append(line.decode("ascii"))
        except ValueError as error:
            raise Rejected(Code.STORAGE, "the audit log is damaged; `ironroot hsm audit verify` names the place") from error
        return found

    # The appends

    def _enter(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        if self._append is None and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._start)

    def _in_a_while(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(SOON, self._tick)

    def _tick(self) -> None:
        self._timer, self._ticked = None, True
        self._start()

    def _start(self) -> None:
        """Starts the next append with all that is due, summed up things first, unless one is running: then that one's end does it."""
        self._scheduled = False
        if self._append is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._ticked = None, False
        self._owe()
        owed, self._owed = self._owed, []
        bodies, entries = list(owed), self._take()
        bodies += [Body(members) for members, _ in entries]
        if not bodies:
            return
        rotate = self._chain.full
        if (rotate or self._chain.empty) and not bodies[0].members.endswith(self._opening):
            bodies.insert(0, Body(f'"op":"continue",{self._opening}', checkpoint=True))
        if self._sign and not bodies[-1].checkpoint and self._checkpoint_due(len(bodies)):
            bodies.append(Body('"op":"checkpoint"', checkpoint=True))
        lines, head = self._chain.lines(bodies, stamp(self._clock()), self.boot, self._sign)
        mark = next((line for line, body in zip(lines[::-1], bodies[::-1], strict=True) if body.checkpoint and self._sign), None)
        listeners = [entry.listeners for _, entry in entries]

        def job() -> None:
            error = self._commit(rotate, lines, head, mark)
            self._loop.call_soon_threadsafe(self._settle, owed, listeners, mark, error)

        self._append = self._loop.create_future()
        self._jobs.put(job)

    def _owe(self) -> None:
        """Puts into words what is summed up; on a full disk only so much."""
        if len(self._owed) > MAX_SOON:
            return
        counted = [members if count == 1 else f'{members},"times":{count}' for members, count in self._soon.items()]
        if self._unnamed:
            counted.append(f'"op":"others","times":{self._unnamed}')
        self._owed += [Body(compact(summary.members())[1:-1]) for summary in self._summaries.values()] + [
            Body(members) for members in counted
        ]
        self._soon, self._unnamed, self._summaries = {}, 0, {}

    def _take(self) -> list[tuple[str, _Entry]]:
        """The entries of this append, in words; as many as an append may have."""
        taken, size = list[tuple[str, _Entry]](), 0
        for entry in self._waiting:
            if size > MAX_APPEND:
                break
            taken.append((entry.members(), entry))
            size += len(taken[-1][0])
        self._waiting = self._waiting[len(taken) :]
        self._groups = {}
        return taken

    def _checkpoint_due(self, more: int) -> bool:
        unsigned = self.head.seq + more - self._signed
        return unsigned >= CHECKPOINT_LINES or self._loop.time() - self._signed_at >= CHECKPOINT_SECONDS

    def _work(self) -> None:
        """The audit thread."""
        while (job := self._jobs.get()) is not None:
            job()

    def _commit(self, rotate: bool, lines: list[bytes], head: Head, mark: bytes | None) -> Exception | None:
        """In the audit thread: appends, and returns what went wrong."""
        try:
            if rotate:
                self._chain.rotate()
            self._chain.append(lines, head)
        except (OSError, SyncFailed) as error:
            return error
        if mark is not None:
            with contextlib.suppress(OSError):  # an older mark is true as well
                files.write(self._home / MARK, mark + b"\n")
        return None

    def _settle(self, owed: list[Body], listeners: list[list[Done]], mark: bytes | None, error: Exception | None) -> None:
        """The lines are durable, or not: only in the first case do their answers leave."""
        refusal = None
        if error is None:
            if mark is not None:
                self._signed, self._signed_at = number(mark), self._loop.time()
        else:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "its disk failed"
            refusal = Rejected(Code.STORAGE, _REFUSED.format(reason))
            self._owed = owed + self._owed
        append, self._append, self._refusal = self._append, None, refusal if owed else None
        if append is not None:
            append.set_result(error)
        if isinstance(error, SyncFailed):
            self._on_failure(error)
        for group in listeners:
            for done in group:
                done(refusal)
        if self._waiting or self._ticked:
            self._start()
        elif self._owed or self._soon or self._unnamed or self._summaries:
            self._in_a_while()

    async def close(self) -> None:
        """Writes what is due and a last checkpoint. Raises OSError, SyncFailed."""
        try:
            while self._append is not None or self._waiting:
                self._start()
                if self._append is not None:
                    await self._append
            self._owe()
            if self._sign:
                self._owed.append(Body('"op":"stop"', checkpoint=True))
            self._start()
            if self._append is not None and (error := await self._append) is not None:
                raise error
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._jobs.put(None)
            self._thread.join()
            self._chain.close()


def _who(op: str, caller: Caller, key: str, mech: str, purpose: str) -> str:
    """The members that say who did what with which key."""
    session = f',"session":{caller.session}' if caller.session else ""
    said = f'"op":{_text(op)},"door":{_text(caller.door)},"conn":{caller.connection}{session},"partition":{_text(caller.partition)}'
    said += f',"role":"{caller.role}"'
    return said + "".join(f',"{name}":{_text(value)}' for name, value in (("key", key), ("mech", mech), ("purpose", purpose)) if value)


def _what(inputs: Sequence[bytes], result: str) -> str:
    """The members that say over what, and how it ended."""
    if not inputs:
        return f',"result":{_text(result)}'
    if max(map(len, inputs)) > 64:
        listed = '","'.join(data.hex() if len(data) <= 64 else f"sha256:{sha256(data).hexdigest()}" for data in inputs)
    else:
        listed = '","'.join(map(bytes.hex, inputs))
    return f',"count":{len(inputs)},"inputs":["{listed}"],"result":{_text(result)}'


_text = json.encoder.encode_basestring_ascii
