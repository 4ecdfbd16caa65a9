"""What the ``hsm`` commands share: which HSM, logging in to it, and what its refusals mean to a command."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironroot.cli.common import fail, with_settings
from ironroot.i18n import _
from pkix.errors import Conflict, IronrootError, Malformed, NotFound, Refused, Unavailable

if TYPE_CHECKING:
    from hsm_sim.client import Client
    from hsm_sim.errors import Rejected

Partition = Annotated[str, typer.Option("--partition", help=_("A partition of the HSM; else its first."))]
PinFile = Annotated[
    Path | None, typer.Option("--pin-file", dir_okay=False, help=_("File with the PIN; else the one beside the HSM, or a question."))
]

_PIN_FILES = {"officer": "pin", "so": "so-pin", "auditor": "auditor-pin"}
_MEANINGS: dict[type[IronrootError], tuple[str, ...]] = {
    NotFound: ("key_not_found", "slot_id_invalid"),
    Conflict: ("key_exists",),
    Refused: (
        "pin_incorrect",
        "pin_locked",
        "user_not_logged_in",
        "user_pin_not_initialized",
        "permission_denied",
        "action_prohibited",
        "quorum_missing",
        "limit_reached",
        "key_unextractable",
        "key_function_not_permitted",
    ),
    Unavailable: ("locked", "storage", "stopping", "log_full", "tampered", "rate_limited", "device_error", "device_removed", "key_damaged"),
}


def hsm_home(home: Path) -> Path:
    """Where the HSM of ``home`` lives: as the installation's settings say, or ``home/hsm`` where there is no installation."""
    if (home / "ironroot.toml").exists():
        return with_settings(home).hsm_home
    return home.absolute() / "hsm"


@contextmanager
def logged_in(home: Path, role: str = "", partition: str = "", pin_file: Path | None = None) -> Iterator[Client]:
    """A connection to the HSM of ``home``, logged in as ``role`` ("" for nobody). Ends the command where that fails, and on refusals."""
    from hsm_sim.client import Client
    from hsm_sim.errors import Rejected

    place = hsm_home(home)
    try:
        with Client(place / "native.sock") as hsm:
            if role:
                hsm.call("login", role=role, pin=_pin(place, role, partition, pin_file), **({"partition": partition} if partition else {}))
            yield hsm
    except Rejected as error:
        fail(meaning(error))
    except IronrootError as error:
        fail(error)


def meaning(error: Rejected) -> IronrootError:
    """The HSM's refusal as an error of ours, with its exit code."""
    kind = next((kind for kind, codes in _MEANINGS.items() if error.code.value in codes), Malformed)
    return kind(error.text)


def _pin(place: Path, role: str, partition: str, given: Path | None) -> str:
    """The PIN, from the file that is given or lies beside the HSM, else asked for. Raises NotFound."""
    suffix = f".{partition}" if partition not in ("", "ironroot") and role != "auditor" else ""
    file = given or (place / (_PIN_FILES[role] + suffix) if role in _PIN_FILES else None)
    try:
        if file is not None:
            return file.read_text("utf-8").strip()
    except FileNotFoundError:
        if given is not None:
            raise NotFound(f"there is no PIN file {given}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(f"the PIN file {file} cannot be read: {error}") from None
    if not sys.stdin.isatty():
        raise NotFound(f"the PIN of {role} is not beside the HSM and nobody is there to be asked: say --pin-file")
    return getpass.getpass(_("PIN") + f" ({role}): ")


def read_octets(file: Path, what: str) -> bytes:
    """A file's octets; "-" is stdin. Raises NotFound, Malformed."""
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {file} ({what})") from None
    except OSError as error:
        raise Malformed(f"{file} ({what}) cannot be read: {error.strerror}") from None
