"""The scheduler process: CRLs, OCSP signers, the TLS certificate, recovery, audit checkpoints.

Any number of machines may run one: each task is done by whoever holds its lease in the database. A task that fails is logged and tried
again at its next turn; it never ends the process.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from ca.audit import checkpoint_message
from ca.model import Signable
from ca.ports import STALE
from ironroot.log import configure
from ironroot.settings import Settings
from ironroot.setup import ensure_crl, ensure_responder, ensure_tls, for_each_authority
from ironroot.validator.publish import ensure_trust_list
from ironroot.wire import Installation, installation
from pkix.errors import Fatal, IronrootError, NotFound

log = structlog.get_logger("scheduler")

_CHECKPOINT_ENTRIES = 1000


@dataclass(frozen=True, slots=True)
class Task:
    """Something done every ``seconds``: by one machine, under the lease of its name, or ``everywhere``."""

    name: str
    seconds: int
    work: Callable[[Installation], Awaitable[None]]
    everywhere: bool = False


async def crls(here: Installation) -> None:
    """A new CRL where something was revoked, and before the old one is half over."""
    await for_each_authority(here, ensure_crl)


async def certificates(here: Installation) -> None:
    """Renews OCSP signers when a third of their life is left."""
    await here.reload_authorities()
    await for_each_authority(here, ensure_responder)


async def recovery(here: Installation) -> None:
    """Finishes intents that nobody works on any more."""
    now = here.clock.now()
    finished = await here.issuer.recover(now - timedelta(seconds=STALE), now)
    if finished:
        log.warning("recovered", intents=finished)


async def checkpoint(here: Installation) -> None:
    """Signs the head of the audit chain once a thousand entries have come since the last time."""
    head = await here.store.audit_head()
    done = await here.store.checkpoints()
    if head is not None and head.seq - (done[-1][0] if done else 0) >= _CHECKPOINT_ENTRIES:
        await sign_checkpoint(here)


async def sign_checkpoint(here: Installation) -> int:
    """Signs the head of the audit chain with the key of the first root now; returns its number. Raises NotFound: nothing to sign."""
    head = await here.store.audit_head()
    if head is None or not here.authorities:
        raise NotFound("There is nothing in the audit log yet.")
    root = next(iter(here.authorities.values()))
    message = checkpoint_message(head.seq, head.digest)
    public_key = root.certificate.public_key
    signature = await here.signer.sign(Signable(root.key, public_key, "audit", message))
    public_key.verify(signature, message)
    await here.store.add_checkpoint(head.seq, head.digest, root.id, signature, here.clock.now())
    return head.seq


TASKS = (
    Task("crls", 1, crls),
    Task("recovery", 5, recovery),
    Task("certificates", 60, certificates),
    Task("tls", 60, ensure_tls, everywhere=True),
    Task("checkpoint", 60, checkpoint),
    Task("trust-list", 600, ensure_trust_list),
)


def run(home: Path) -> None:
    """The process: until SIGTERM."""
    configure()
    asyncio.run(_run(Settings.load(home)))


async def _run(settings: Settings) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with installation(settings) as here:
        turns = [asyncio.create_task(_turns(task, here, stopped)) for task in TASKS]
        ended = asyncio.create_task(stopped.wait())
        await asyncio.wait([ended, *turns], return_when=asyncio.FIRST_COMPLETED)
        stopped.set()
        await asyncio.gather(*turns)


async def _turns(task: Task, here: Installation, stopped: asyncio.Event) -> None:
    holder = f"{socket.gethostname()}/{os.getpid()}"
    while not stopped.is_set():
        try:
            if task.everywhere or await here.store.lease(task.name, holder, 3 * task.seconds + 5, here.clock.now()):
                await task.work(here)
        except Fatal:
            raise
        except IronrootError as error:
            log.error("task_failed", task=task.name, code=error.code, error=str(error))
        except OSError as error:  # of a file that we write; the database's and the sockets' are ours by now
            log.error("task_failed", task=task.name, code="os", error=error.strerror)
        try:
            await asyncio.wait_for(stopped.wait(), task.seconds)
        except TimeoutError:
            continue
