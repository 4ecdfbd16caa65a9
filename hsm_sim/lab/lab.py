"""The engine of the laboratory: counts the calls that each fault of a scenario is for, and makes those fail that it says.

    lab = Lab(zeroise=device.zeroise, log=write)
    lab.load(scenario.parse(text))
    await lab.before("sign", "ecc-issuing", caller)     # waits, raises Rejected or SessionLost, or kills the process
    signature = lab.after("sign", "ecc-issuing", caller, signature)

With nothing loaded it does nothing. Each fault that is shown is told to ``log`` first, so that the audit log says what was staged.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import NamedTuple

from hsm_sim.errors import Code, Rejected
from hsm_sim.lab.scenario import Fault, Scenario


class SessionLost(Exception):
    """The door closes this connection and answers nothing."""


class Call(NamedTuple):
    """What a fault is matched against."""

    op: str
    key: str
    door: str
    partition: str


@dataclass(slots=True)
class _Running:
    """One fault of the loaded scenario: calls that matched, times that it was shown, and the moment of its next permitted call."""

    fault: Fault
    matched: int = 0
    shown: int = 0
    free_at: float = 0.0


_AFTER = ("bit-flip",)
_SUBSTITUTE = ("wrong-key",)
_ADDS = ("generate", "generate_secret", "create", "copy", "unwrap", "derive")  # operations that need room


class Lab:
    """The faults of one device.

    Args:
        zeroise: what a tamper does to the device.
        log: writes one audit line, given the kind of fault and the call; returns once it is durable.
    """

    def __init__(self, *, zeroise: Callable[[], Awaitable[None]], log: Callable[[str, Call], Awaitable[None]]) -> None:
        self._zeroise, self._log = zeroise, log
        self._running: list[_Running] = []
        self._random = Random(0)  # noqa: S311 - repeatable faults, not secrets
        self._released = asyncio.Event()
        self._back_at = 0.0
        self._offset = timedelta()
        self._owed: set[asyncio.Task[None]] = set()

    def load(self, scenario: Scenario) -> None:
        """Replaces what is loaded; what hangs goes on."""
        self.clear()
        self._random = Random(scenario.seed)  # noqa: S311
        self._running = [_Running(fault) for fault in scenario.fault]

    def clear(self) -> None:
        """Ends all faults: what hangs goes on, a removed device is back, the clock is right."""
        self._running, self._back_at, self._offset = [], 0.0, timedelta()
        self._released.set()
        self._released = asyncio.Event()

    def status(self) -> list[dict[str, object]]:
        """Each fault as loaded, with the calls it ``matched`` and how often it was ``shown``."""
        return [
            {**running.fault.model_dump(exclude_none=True, exclude_defaults=True), "matched": running.matched, "shown": running.shown}
            for running in self._running
        ]

    @property
    def present(self) -> bool:
        """Whether the device is there; False after it was removed and until it is back."""
        return asyncio.get_running_loop().time() >= self._back_at

    def now(self, true: datetime) -> datetime:
        """The device's idea of the time."""
        return true + self._offset

    def substitute(self, call: Call) -> str | None:
        """The label of the key that signs in place of the one asked for, if a fault says so."""
        for running in self._due(call, _SUBSTITUTE):
            self._log_soon(running.fault, call)
            return running.fault.other
        return None

    async def before(self, call: Call) -> None:
        """Shows the faults that this call is due. Raises Rejected, SessionLost."""
        if not self.present:
            raise Rejected(Code.DEVICE_REMOVED, "the device was removed (a fault on purpose)")
        for running in self._due(call, None):
            await self._log(running.fault.kind, call)
            await self._show(running, call)

    def after(self, call: Call, signature: bytes) -> bytes:
        """The signature as it leaves the device."""
        for running in self._due(call, _AFTER):
            self._log_soon(running.fault, call)
            place = self._random.randrange(8 * len(signature))
            changed = bytearray(signature)
            changed[place // 8] ^= 1 << place % 8
            signature = bytes(changed)
        return signature

    async def close(self) -> None:
        """Waits for the log lines that are under way."""
        self.clear()
        await asyncio.gather(*self._owed)

    def _due(self, call: Call, kinds: tuple[str, ...] | None) -> list[_Running]:
        """The faults that this call has to suffer; counts the call for each that it matches. None: all kinds but those shown elsewhere."""
        due = []
        for running in self._running:
            fault = running.fault
            if (fault.kind not in _AFTER + _SUBSTITUTE) if kinds is None else (fault.kind in kinds):
                if not fault.matches(*call) or not self._applies(running, call):
                    continue
                running.matched += 1
                past = running.matched - fault.after
                if past > 0 and past % fault.every == 0 and (fault.count is None or running.shown < fault.count):
                    if fault.probability < 1 and self._random.random() >= fault.probability:
                        continue
                    running.shown += 1
                    due.append(running)
        return due

    def _applies(self, running: _Running, call: Call) -> bool:
        """Kinds that are about one sort of call leave the others alone; a limit is about calls that come too fast."""
        match running.fault.kind:
            case "memory-full":
                return call.op in _ADDS
            case "pin-locked":
                return call.op == "login"
            case "rate-limit":
                now = asyncio.get_running_loop().time()
                if now >= running.free_at:
                    running.free_at = now + 1 / (running.fault.per_second or 1)
                    return False
                return True
            case _:
                return True

    async def _show(self, running: _Running, call: Call) -> None:
        fault = running.fault
        match fault.kind:
            case "latency":
                await asyncio.sleep(self._wait(fault) / 1000)
            case "error":
                raise Rejected(fault.code or Code.GENERAL_ERROR, f"{call.op} failed (a fault on purpose)")
            case "session-lost":
                raise SessionLost
            case "device-removed":
                self._back_at = asyncio.get_running_loop().time() + abs(fault.seconds or 0)
                raise Rejected(Code.DEVICE_REMOVED, "the device was removed (a fault on purpose)")
            case "memory-full":
                raise Rejected(Code.DEVICE_MEMORY, "there is no room for another object (a fault on purpose)")
            case "pin-locked":
                raise Rejected(Code.PIN_LOCKED, "the PIN is locked (a fault on purpose)")
            case "rate-limit":
                raise Rejected(Code.RATE_LIMITED, "too many calls in this second (a fault on purpose); try again")
            case "hang":
                await self._released.wait()
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "tamper":
                await self._zeroise()
                raise Rejected(Code.TAMPERED, "the device was opened and has zeroised its keys (a fault on purpose)")
            case "clock-jump":
                self._offset += timedelta(seconds=fault.seconds or 0)

    def _wait(self, fault: Fault) -> float:
        return self._random.uniform(*fault.ms) if isinstance(fault.ms, tuple) else fault.ms or 0.0

    def _log_soon(self, fault: Fault, call: Call) -> None:
        async def write() -> None:
            await self._log(fault.kind, call)

        task = asyncio.get_running_loop().create_task(write())
        self._owed.add(task)
        task.add_done_callback(self._owed.discard)
