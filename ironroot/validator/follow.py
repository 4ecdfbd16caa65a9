"""Following trust lists: each has a folder ``HOME/lists/NAME`` with its terms and the newest list that was accepted.

    await follow(settings.lists, "plant-a", Terms("http://pki.plant/trust/list.p7m", pin), now=now)     # `ironroot trust follow`
    for list in followed(settings.lists):                                                               # the service, now and then
        await refresh(list, now)

A crash between fetching and storing loses nothing: the list is fetched again. What is stored was accepted, so its signer is the pin.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ironroot.files import write_atomically
from pkix.errors import Conflict, IronrootError, Malformed, NotFound, Unavailable
from validate.model import FAMILIES, Family, Purpose
from validate.trust_limits import Limits, narrow
from validate.trustlist import MAX_LIST, Received, accept, read

_TIMEOUT = aiohttp.ClientTimeout(total=10)
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")


class Terms(BaseModel):
    """On which terms a list is followed. ``pin``: SHA-256 of the key that signs it, in hex. The rest: ``validate.trust_limits.Limits``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern="^https?://[^ ]+$")
    pin: str = Field(pattern="^[0-9a-f]{64}$")
    permitted: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    families: frozenset[Family] = FAMILIES
    purposes: frozenset[Purpose] = frozenset()
    path_length: int | None = Field(None, ge=0)

    @property
    def limits(self) -> Limits:
        """Raises Malformed: a name among them that is none."""
        return Limits(self.permitted, self.excluded, self.families, self.purposes, self.path_length)


@dataclass
class Followed:
    """One list that is followed: ``held`` is the newest that was accepted, ``problem`` why there is no newer one, ``tag`` its ETag."""

    folder: Path
    terms: Terms
    held: Received | None = None
    problem: str = ""
    tag: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        return self.folder.name


def terms(**values: Any) -> Terms:
    """``Terms`` from what a person wrote. Raises Malformed."""
    try:
        made = Terms(**values)
    except ValidationError as error:
        raise Malformed("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None
    made.limits  # noqa: B018 - raises for names that are none
    return made


def followed(lists: Path) -> list[Followed]:
    """All lists that are followed, as they are on disk. Raises Malformed: somebody changed a file."""
    return [_load(folder) for folder in sorted(lists.glob("*")) if (folder / "terms.json").exists()]


def _load(folder: Path) -> Followed:
    try:
        found = Followed(folder, terms(**json.loads((folder / "terms.json").read_text())))
        stored = folder / "list.p7m"
        found.held = read(stored.read_bytes()) if stored.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise Malformed(f"{folder}: {error}") from None
    except IronrootError as error:
        raise Malformed(f"{folder}: {error}") from None
    return found


async def follow(lists: Path, name: str | None, on: Terms, *, now: datetime) -> Followed:
    """Fetches a list for the first time and keeps it with its terms, under ``name``, or as it calls itself.

    Raises:
        Malformed: ``name`` is no name for a folder.
        Conflict: one of that name is followed already.
        Unavailable: it cannot be fetched.
        Refused, NotValid: as ``validate.trustlist.accept`` and ``narrow``.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise Malformed(f"{name!r} is no name for a list; write lower-case letters, digits, dots and hyphens")
    found = Followed(lists, on)
    await _update(found, now)
    assert found.held is not None  # noqa: S101 - _update raises where there is none
    found.folder = lists / (name or found.held.list.name)
    if (found.folder / "terms.json").exists():
        raise Conflict(f"A list is followed as {found.name} already; end that first: ironroot trust unfollow {found.name}")
    found.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(found.folder / "list.p7m", found.held.raw)
    # The terms come last: without them the folder is no list that is followed.
    write_atomically(found.folder / "terms.json", on.model_dump_json(indent=1).encode())
    return found


def unfollow(lists: Path, name: str) -> None:
    """Ends it. Raises NotFound."""
    folder = lists / name
    if not _NAME.fullmatch(name) or not (folder / "terms.json").exists():
        raise NotFound(f"No list is followed as {name!r}. Those that are: ironroot trust show")
    for file in ("terms.json", "list.p7m"):
        (folder / file).unlink(missing_ok=True)
    folder.rmdir()


async def refresh(found: Followed, now: datetime) -> bool:
    """Looks for a newer list and stores it; whether there was one. What goes wrong is in ``problem``; what is held stays."""
    before = found.held
    try:
        await _update(found, now)
    except IronrootError as error:
        found.problem = str(error)
        return False
    found.problem = ""
    if found.held is before or found.held is None:
        return False
    write_atomically(found.folder / "list.p7m", found.held.raw)
    return True


async def _update(found: Followed, now: datetime) -> None:
    answer = await conditional_get(found.terms.url, found.tag)
    if answer is None:
        return
    raw, tag = answer
    received = accept(raw, pins=frozenset((bytes.fromhex(found.terms.pin),)), held=found.held, now=now)
    # Limits that leave nothing in common are said at once, not when the first peer is refused.
    for anchor in received.list.anchors:
        narrow(anchor, found.terms.limits)
    found.tag = tag
    if found.held is None or received.raw != found.held.raw:
        found.held = received


async def conditional_get(url: str, tag: str) -> tuple[bytes, str] | None:
    """The body at ``url`` and its ETag; None if it is still the one of ``tag`` (RFC 9110 13.1.2). Raises Unavailable."""
    headers = {"Accept-Encoding": "identity"} | ({"If-None-Match": tag} if tag else {})
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            if response.status == 304:
                return None
            if response.status != 200:
                raise Unavailable(f"{url} answers with HTTP status {response.status}")
            body = await response.content.read(MAX_LIST + 1)
            while len(body) <= MAX_LIST and (piece := await response.content.read(MAX_LIST)):
                body += piece
            if len(body) > MAX_LIST:
                raise Unavailable(f"{url} answers with more than {MAX_LIST} octets")
            return body, response.headers.get("ETag", "")
    except TimeoutError:
        raise Unavailable(f"{url} does not answer within {_TIMEOUT.total:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise Unavailable(f"{url} cannot be had ({type(error).__name__})") from None
