"""A scenario: which faults the simulator shows, when, and to whom. One TOML file; the same seed gives the same faults.

seed = 7
[[fault]]
kind = "error"           # see KINDS
code = "device_error"
op = "sign"              # operations, keys, doors and partitions as shell patterns; all of them if left out
key = "ecc-*"
after = 10               # matching calls that go through first
every = 3                # then each third one
count = 2                # and no more than twice
probability = 0.5        # of those that are left
"""

from __future__ import annotations

import tomllib
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hsm_sim.errors import Code
from pkix.errors import Malformed

Kind = Literal[
    "latency",
    "error",
    "session-lost",
    "device-removed",
    "memory-full",
    "pin-locked",
    "rate-limit",
    "bit-flip",
    "wrong-key",
    "hang",
    "crash",
    "tamper",
    "clock-jump",
]
KINDS: dict[Kind, tuple[str, str]] = {
    "latency": ("ms", "waits ms milliseconds, or between ms[0] and ms[1], before it goes on"),
    "error": ("code", "answers with this error code"),
    "session-lost": ("", "closes the connection without an answer"),
    "device-removed": ("seconds", "is gone for that long: every call fails, the slot is empty; then it is back, and logged out"),
    "memory-full": ("", "has no room for a new object"),
    "pin-locked": ("", "says that the PIN is locked"),
    "rate-limit": ("per_second", "refuses what comes faster"),
    "bit-flip": ("", "returns the signature with one bit changed"),
    "wrong-key": ("other", "signs with the key of this other label"),
    "hang": ("", "does not answer until the scenario is cleared"),
    "crash": ("", "kills the process, as SIGKILL does"),
    "tamper": ("", "has been opened: zeroises its keys for good"),
    "clock-jump": ("seconds", "sets the device's clock forward, or back where negative"),
}
MAX_FAULTS = 100
Pattern = Annotated[str, Field(min_length=1, max_length=128)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Part):
    """One fault and the calls that it is for."""

    kind: Kind
    op: Pattern = "*"
    key: Pattern = "*"
    door: Pattern = "*"
    partition: Pattern = "*"
    after: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=1)] = 1
    count: Annotated[int, Field(ge=1)] | None = None
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    ms: Annotated[float, Field(ge=0, le=600_000)] | tuple[float, float] | None = None
    seconds: Annotated[float, Field(ge=-3.2e9, le=3.2e9)] | None = None
    per_second: Annotated[float, Field(gt=0)] | None = None
    code: Code | None = None
    other: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = KINDS[self.kind][0]
        for name in ("ms", "seconds", "per_second", "code", "other"):
            given = getattr(self, name) is not None
            if given != (name == needs):
                raise ValueError(f"a {self.kind} fault {'has no' if given else 'needs'} {name}")
        return self

    def matches(self, op: str, key: str, door: str, partition: str) -> bool:
        """Whether the fault is for such a call."""
        asked = ((op, self.op), (key, self.key), (door, self.door), (partition, self.partition))
        return all(pattern == "*" or fnmatchcase(value, pattern) for value, pattern in asked)


class Scenario(_Part):
    """The whole file."""

    seed: int = 0
    fault: Annotated[tuple[Fault, ...], Field(max_length=MAX_FAULTS)] = ()


def parse(text: str) -> Scenario:
    """The scenario in a TOML text. Raises Malformed naming what is wrong."""
    try:
        return read(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise Malformed(f"the scenario is not TOML: {error}") from None


def read(values: dict[str, Any]) -> Scenario:
    """The scenario in plain values. Raises Malformed naming what is wrong."""
    try:
        return Scenario(**values)
    except (ValidationError, TypeError) as error:
        problems = error.errors() if isinstance(error, ValidationError) else [{"loc": (), "msg": str(error)}]
        said = "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems)
        raise Malformed(f"the scenario is not valid: {said}") from None
