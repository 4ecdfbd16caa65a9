"""``Signer`` over any PKCS#11 token, named by an RFC 7512 URI (docs/key-stores.md).

    signer = Pkcs11Signer(parse("pkcs11:token=ironroot?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:hsm.pin"), home)
    signature = await signer.sign(Signable("ecc-issuing", public_key, "certificate", tbs))

The token is used by processes of their own (``ca.pkcs11_worker``), one call at a time in each; here they are started, given what was asked
for in the same turn of the loop, waited for no longer than a deadline, killed when they hang and started again when they end. The loop
never waits. A key is named by its label, or by a URI with ``object`` or ``id``.

What the caller may conclude: ``Unavailable`` means that nothing was signed, ``OutcomeUnknown`` that the token was asked and did not say.
What was asked and failed for a reason that may pass (a session, a device error, a process that died) is asked once more, in a new process.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog

from ca.hsm_link import RETRY_AFTER
from ca.model import Signable
from ca.pkcs11_process import Job, Process, stamp
from ca.pkcs11_uri import Pkcs11Uri, is_uri, parse
from ca.ports import Signer
from pkix.algorithms import KeyKind, PublicKey, load_public_key
from pkix.errors import Conflict, Fatal, IronrootError, Malformed, NotFound, OutcomeUnknown, Refused, Unavailable, Unsupported

GENERATE_DEADLINE = 60.0  # seconds; an RSA key takes its time
OPEN_DEADLINE = 15.0  # to load the library, find the token and log in
PROBE = 5.0
MAX_ITEMS, MAX_DATA = 16, 4 << 20  # of one frame: jobs, and octets of their data

_HANGS = "the HSM does not answer; it is asked again in a moment"
_NO_ANSWER = "the HSM was asked and did not answer in time"
_DIED = "the PKCS#11 library ended its process; it is started again in a moment"
_NOT_INSTALLED = "PKCS#11 needs the Python package python-pkcs11: install ironroot with its extra `pkcs11`"
_STOPPING = "this service is stopping"
_NO_SM2 = "the token does not sign as SM2 does: keep SM2 keys in the simulator, or in an HSM that has SM2"
log = structlog.get_logger("ca.signer")


class Pkcs11Signer(Signer):
    """See the module. Belongs to the event loop in which it is used.

    Args:
        uri: the token; its ``object`` and ``id`` do not matter here.
        home: where relative paths of the URI begin.
        processes: at most so many use the token at once; the second is started when the first is not enough.
        deadline: seconds for each call.
        probe: seconds until a token that was not there is looked for again.
    """

    def __init__(self, uri: Pkcs11Uri, home: Path, *, processes: int = 2, deadline: float = 5.0, probe: float = PROBE) -> None:
        self._uri, self._home = uri.store, home.absolute()
        self._processes, self._deadline, self._probe = processes, deadline, probe
        self._queue: deque[Job] = deque()
        self._workers: list[Process] = []
        self._opening: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._seen: dict[str, PublicKey] = {}
        self._trouble: Unavailable | None = None  # why there is no process; cleared by one that opens
        self._not_before = self._pause = 0.0
        self._refused: list[int] | None = None  # state of the PIN file that was refused; [] for none that can be read
        self._pumping = self._closed = False

    # The port

    async def generate(self, key: str, kind: KeyKind) -> PublicKey:
        _check_label(key)
        if kind is KeyKind.SM2 and not await self.can(kind):
            raise Unsupported(_NO_SM2)
        made = load_public_key(await self._ask("generate", key, GENERATE_DEADLINE, kind=str(kind)))
        self._seen[key] = made
        return made

    async def public_key(self, key: str) -> PublicKey:
        return self._compare(key, load_public_key(await self._ask("public_key", key)))

    async def sign(self, item: Signable) -> bytes:
        public_key = self._compare(item.key, item.public_key)
        self._check()
        data = public_key.signing_input(item.take())
        signature: bytes = await self._ask("sign", item.key, kind=str(public_key.kind), spki=public_key.spki, data=data)
        return signature

    async def destroy(self, key: str) -> None:
        await self._ask("destroy", key)
        self._seen.pop(key, None)

    async def ready(self) -> None:
        await self._ask("ready", None)

    async def close(self) -> None:
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
        self._give_up(Unavailable(_STOPPING))
        for worker in list(self._workers):
            self._discard(worker, kill=False)
        while self._tasks:
            await asyncio.wait(self._tasks)

    # Beyond the port

    async def can(self, kind: KeyKind) -> bool:
        """Whether the token makes keys of this kind and signs with them as X.509 needs it. Tried with a pair that is gone at once.

        To know the curve is not enough for SM2: some tokens sign ECDSA with it.
        """
        digest = bytes(range(32))
        try:
            spki, signature = await self._ask("trial", None, GENERATE_DEADLINE, kind=str(kind), data=digest)
        except Unsupported:
            return False
        made = load_public_key(spki)
        return made.kind is kind and (kind is not KeyKind.SM2 or bool(made.handle.verify_digest(signature, digest)))

    async def extractable(self, key: str, public_key: PublicKey) -> bool:
        """Whether the key may leave its token, wrapped."""
        return bool(await self._ask("extractable", key, spki=public_key.spki))

    async def transport(self) -> list[Any]:
        """Begins to receive a key (``ca.pkcs11_transport.begin``). The same process has to get ``receive``: ``processes`` is 1."""
        begun: list[Any] = await self._ask("transport", None, GENERATE_DEADLINE)
        return begun

    async def send(self, key: str, public_key: PublicKey, transport: list[Any]) -> list[Any]:
        """The key, wrapped for the token that began. Raises Refused where it may not leave its token."""
        wrapped: list[Any] = await self._ask("wrap", key, spki=public_key.spki, transport=transport)
        return wrapped

    async def receive(self, key: str, public_key: PublicKey, wrapped: list[Any]) -> None:
        """Makes what ``send`` gave a key of this token. Raises Conflict if there is one of that name."""
        _check_label(key)
        await self._ask("unwrap", key, spki=public_key.spki, wrapped=wrapped)

    # Jobs

    async def _ask(self, op: str, key: str | None, limit: float | None = None, **arguments: object) -> Any:
        """What a process answers, within the deadline."""
        self._check()
        label, identifier = (None, None) if key is None else _name(key)
        limit = max(self._deadline, limit or 0)
        job = Job({"op": op, "label": label, "id": identifier, **arguments}, limit, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._pump_soon()
        try:
            async with asyncio.timeout(limit):
                return await job.future
        except TimeoutError as error:
            if job.in_doubt:
                raise OutcomeUnknown(_NO_ANSWER, retry_after=RETRY_AFTER) from error
            raise Unavailable(_HANGS, retry_after=RETRY_AFTER) from error

    def _check(self) -> None:
        """Raises Unavailable at once while there is no process and no use in starting one. One caller at a time waits for a new try."""
        if self._closed:
            raise Unavailable(_STOPPING)
        if self._refused is not None and self._refused != self._pin_stamp():
            self._refused = self._trouble = None
        if self._trouble is None or self._workers:
            return
        if self._refused is not None or self._opening is not None or asyncio.get_running_loop().time() < self._not_before:
            raise Unavailable(str(self._trouble), retry_after=RETRY_AFTER)

    def _compare(self, key: str, found: PublicKey) -> PublicKey:
        """Raises Fatal unless ``found`` is the key that was seen under this reference before."""
        if self._seen.setdefault(key, found) != found:
            raise _swapped(key)
        return found

    def _pump_soon(self) -> None:
        if not self._pumping and not self._closed:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        """Gives what waits to who is free, and starts a process where that is not enough."""
        self._pumping = False
        self._queue = deque(job for job in self._queue if not job.future.done())  # the others' callers have gone
        for worker in [worker for worker in self._workers if not worker.busy]:
            if not worker.usable:
                self._discard(worker)
            elif self._queue:
                worker.busy = True
                self._spawn(self._exchange(worker, self._batch()))
        may_open = self._opening is None and len(self._workers) < self._processes
        if self._queue and may_open and (not self._workers or asyncio.get_running_loop().time() >= self._not_before):
            self._opening = self._spawn(self._open())

    def _batch(self) -> list[Job]:
        """A fair share of the queue, of jobs that may take equally long."""
        share = min(MAX_ITEMS, -(-len(self._queue) // len(self._workers)))
        batch = [self._queue.popleft()]
        size = batch[0].size
        while len(batch) < share and self._queue and self._queue[0].limit == batch[0].limit and size + self._queue[0].size <= MAX_DATA:
            batch.append(self._queue.popleft())
            size += batch[-1].size
        for job in batch:
            job.out = True
        return batch

    async def _exchange(self, worker: Process, batch: list[Job]) -> None:
        """One frame to one process, and what becomes of its jobs."""
        try:
            outcomes = await worker.do(batch, batch[0].limit)
        except TimeoutError:
            log.error("hsm.hangs", pid=worker.pid)
            self._discard(worker)
            outcomes = [{"error": "hangs", "text": _NO_ANSWER, "certain": False}] * len(batch)
            self._pause_after(Unavailable(_HANGS, retry_after=RETRY_AFTER), None)
        except OutcomeUnknown:
            log.error("hsm.process_died", pid=worker.pid)
            self._discard(worker)
            outcomes = [{"error": "device", "text": _DIED, "certain": False}] * len(batch)
        except IronrootError as error:
            outcomes = [error] * len(batch)
        worker.busy = False
        for job, outcome in reversed(list(zip(batch, outcomes, strict=True))):
            if isinstance(outcome, dict) and outcome.get("spent"):
                self._discard(worker)
                for idle in [other for other in self._workers if not other.busy]:
                    self._discard(idle)  # what broke this one's session broke theirs; a second try is for one that is new
            self._settle(job, outcome)
        self._pump_soon()

    def _settle(self, job: Job, outcome: Any) -> None:
        job.out = False
        if job.future.done():
            return  # its caller has gone
        if isinstance(outcome, IronrootError):
            job.future.set_exception(outcome)
        elif outcome is None:
            self._queue.appendleft(job)
        elif "ok" in outcome:
            job.future.set_result(outcome["ok"])
        else:
            job.doubt = job.doubt or not outcome["certain"]
            if outcome["error"] in ("device", "removed") and job.again and not self._closed:
                job.again = False
                self._queue.appendleft(job)
                return
            job.future.set_exception(self._error(outcome, job))

    def _error(self, outcome: dict[str, Any], job: Job | None) -> IronrootError:
        """What an outcome means to the callers of a ``Signer``; and what this one has to remember of it."""
        code, text = outcome["error"], f"the HSM cannot do this now: {outcome['text']}"
        match code:
            case "key_not_found":
                return NotFound(f"the HSM has no such key: {outcome['text']}")
            case "key_exists" | "ambiguous":
                return Conflict(f"the HSM refuses: {outcome['text']}")
            case "unsupported":
                return Unsupported(f"the HSM refuses: {outcome['text']}")
            case "not_extractable":
                return Refused(f"the HSM refuses: {outcome['text']}")
            case "swapped":
                return _swapped(str(job and job.arguments["label"]))
            case "pin_incorrect" | "pin_locked" | "pin_file":
                text = f"{outcome['text']}; the HSM PIN is not tried again until its file changes"
                log.error("hsm.pin_refused", code=code, file=self._uri.pin_source, text=outcome["text"])
                self._refused = self._pin_stamp()
                self._pause_after(Unavailable(text, retry_after=RETRY_AFTER), self._probe)
            case "removed" | "no_token" | "module":
                if self._trouble is None:
                    log.error("hsm.away", code=code, text=outcome["text"])
                self._pause_after(Unavailable(text, retry_after=RETRY_AFTER), self._probe)
        if job is not None and job.in_doubt:
            return OutcomeUnknown(f"the HSM was asked, and then: {outcome['text']}", retry_after=RETRY_AFTER)
        return Unavailable(text, retry_after=RETRY_AFTER)

    # Processes

    async def _open(self) -> None:
        """One more process, logged in; or the reason why there is none, to everybody who waits."""
        worker: Process | None = None
        trouble: IronrootError | None = None
        try:
            if find_spec("pkcs11") is None:
                raise Unavailable(_NOT_INSTALLED)
            worker = await Process.start(self._uri, self._home)
            job = Job({"op": "open", "uri": str(self._uri), "home": str(self._home)}, OPEN_DEADLINE)
            outcome = (await worker.do([job], OPEN_DEADLINE))[0]
            if outcome is None or "ok" not in outcome:
                trouble = self._error(outcome or {"error": "device", "text": _DIED}, None)
        except TimeoutError:
            trouble = Unavailable(_HANGS, retry_after=RETRY_AFTER)
        except OutcomeUnknown:
            trouble = Unavailable(_DIED, retry_after=RETRY_AFTER)
        except IronrootError as error:
            trouble = error
        except OSError as error:
            trouble = Unavailable(f"no process for the HSM can be started: {error.strerror}", retry_after=RETRY_AFTER)
        finally:
            self._opening = None
            if worker is not None:
                self._workers.append(worker)
            if worker is not None and (trouble is not None or self._closed):
                self._discard(worker)
        if trouble is None:
            self._trouble, self._pause, self._not_before = None, 0.0, 0.0
        else:
            if self._trouble is None or asyncio.get_running_loop().time() >= self._not_before:
                self._pause_after(trouble, None)
            if not self._workers:
                self._give_up(trouble)
        self._pump_soon()

    def _pause_after(self, trouble: IronrootError, seconds: float | None) -> None:
        """No new process for a while: ``seconds``, or 1, 2, 4, then those of ``probe``."""
        self._pause = min(2 * self._pause or 1.0, self._probe) if seconds is None else seconds
        self._not_before = asyncio.get_running_loop().time() + self._pause
        self._trouble = trouble if isinstance(trouble, Unavailable) else Unavailable(str(trouble))

    def _give_up(self, trouble: IronrootError) -> None:
        """Everybody who waits in the queue hears of it."""
        while self._queue:
            job = self._queue.popleft()
            if not job.future.done():
                job.future.set_exception((OutcomeUnknown if job.in_doubt else type(trouble))(str(trouble), retry_after=trouble.retry_after))

    def _discard(self, worker: Process, *, kill: bool = True) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            self._spawn(worker.end(kill=kill))

    def _pin_stamp(self) -> list[int]:
        return [] if self._uri.pin_source is None else stamp(self._home / self._uri.pin_source)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


@lru_cache(1024)
def _name(key: str) -> tuple[str | None, bytes | None]:
    """CKA_LABEL and CKA_ID of a key's reference. Raises Malformed for a URI that names no key."""
    if not is_uri(key):
        return key, None
    uri = parse(key)
    if uri.object is None and uri.id is None:
        raise Malformed("the URI names a token and no key on it; add object=… to it")
    return uri.object, uri.id


def _check_label(key: str) -> None:
    if _name(key)[0] is None:
        raise Malformed("a new key needs a label; add object=… to its URI")


def _swapped(key: str) -> Fatal:
    return Fatal(f"the HSM holds another key under {key!r} than this service knows; find out who changed it before signing goes on")
