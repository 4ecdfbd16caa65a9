"""Reads profiles and fleets from a folder of TOML files, and refuses what is unsafe.

    policies = load(home / "policies")      # or load(DEFAULTS)
    policies.fleets["ecc-devices"].profile

    folder/profiles/<id>.toml    one ``Profile`` each
    folder/fleets/<id>.toml      one ``Fleet`` each

Every complaint names the file, the key, the rule and what to write instead, and all complaints come at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import ValidationError

from pkix.errors import Malformed
from policies.fleet_rules import fleet_breaches, unbound_names
from policies.model import Fleet, Profile
from policies.rules import Breach, profile_breaches

DEFAULTS = Path(__file__).parent / "defaults"
"""The profiles and fleets that a new home starts with."""

MAX_SIZE = 65536

_Data = TypeVar("_Data", Profile, Fleet)


@dataclass(frozen=True, slots=True)
class Policies:
    """Profiles and fleets that passed every rule, by id."""

    profiles: Mapping[str, Profile]
    fleets: Mapping[str, Fleet]


def load(folder: Path) -> Policies:
    """All profiles and fleets of ``folder``.

    Raises:
        Malformed: a file that is not readable, not TOML, too large, with unknown or missing keys, or unsafe; or no profile at all. One line
            for each complaint: ``fleets/x.toml: keys: what is wrong; what to write [fleet.family-mix]``.
    """
    complaints: list[str] = []
    profiles = _read(folder, "profiles", Profile, complaints)
    broken = {path.stem for path in _files(folder, "profiles")}.difference(profiles)
    fleets = _read(folder, "fleets", Fleet, complaints)
    for profile in profiles.values():
        breaches = profile_breaches(profile) + unbound_names(profile, fleets.values())
        complaints += _lines(f"profiles/{profile.id}.toml", breaches)
    for fleet in fleets.values():
        # A profile that was there and did not load has its own complaint above; that fleets miss it is no news.
        breaches = [breach for breach in fleet_breaches(fleet, profiles) if breach.key != "profile" or fleet.profile not in broken]
        complaints += _lines(f"fleets/{fleet.id}.toml", breaches)
    if complaints:
        raise Malformed("\n".join(complaints))
    return Policies(MappingProxyType(profiles), MappingProxyType(fleets))


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / kind).glob("*.toml"))


def _lines(file: str, breaches: list[Breach]) -> Iterator[str]:
    return (f"{file}: {breach.key}: {breach.text} [{breach.rule}]" for breach in breaches)


def _read(folder: Path, kind: str, model: type[_Data], complaints: list[str]) -> dict[str, _Data]:
    """The files of one sub-folder by id, in order. What cannot be read goes to ``complaints``."""
    found: dict[str, _Data] = {}
    paths = _files(folder, kind)
    if not paths and kind == "profiles":
        complaints.append(f"{kind}/: no profile here; copy the defaults, or name the folder that holds profiles/ and fleets/ [file.none]")
    for path in paths:
        file = f"{kind}/{path.name}"
        try:
            table = _table(path)
            if "id" in table:
                raise Malformed("id: the name of the file is the id; remove it [file.id]")
            found[path.stem] = model.model_validate({"id": path.stem, **table})
        except Malformed as error:
            complaints.append(f"{file}: {error}")
        except ValidationError as error:
            complaints += (f"{file}: {line}" for line in _explain(error, model))
    return found


def _table(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_SIZE + 1)
        if len(raw) > MAX_SIZE:
            raise Malformed(f"more than {MAX_SIZE} octets, which is no policy; look what it is [file.too-large]")
        return tomllib.loads(raw.decode())
    except OSError as error:
        raise Malformed(f"cannot be read ({error.strerror}); mend its permissions [file.unreadable]") from None
    except UnicodeDecodeError:
        raise Malformed("is not UTF-8; save it as UTF-8 [file.not-toml]") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Malformed(f"is not TOML: {error} [file.not-toml]") from None


def _explain(error: ValidationError, model: type[Profile] | type[Fleet]) -> Iterator[str]:
    room = model.__name__.lower()
    known = [name for name in model.model_fields if name != "id"]
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"]) or "(file)"
        match item["type"]:
            case "extra_forbidden":
                there = f"; there are {', '.join(known)}" if len(item["loc"]) == 1 else ""
                yield f"{key}: no such key{there} [{room}.unknown-key]"
            case "missing":
                yield f"{key}: is missing; write it down [{room}.missing-key]"
            case _:
                yield f"{key}: {item['msg'].removeprefix('Value error, ')} [{room}.value]"
