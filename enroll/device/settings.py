"""What the agent was told: where, which fleet, who. Kept in ``state.json``; never a secret."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pkix.algorithms import KeyKind
from pkix.errors import Malformed

SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}")
FLEET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\.[A-Za-z0-9_-]{43}")
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """One identity of one device at one server.

    ``idevid`` is the pair of file names (certificate, key) that the manufacturer put in; ``ca_sha256`` the hex SHA-256 of the server's
    TLS root, if it was named; ``time`` the last date seen from a verified server, a lower bound for a clock without a battery.

    Raises:
        Malformed: a URL that is not https, a serial or fleet that cannot be one, an algorithm that we do not have.
    """

    url: str
    fleet: str
    serial: str
    algorithm: KeyKind
    idevid: tuple[str, str] | None = None
    ca_sha256: str | None = None
    time: datetime | None = None

    def __post_init__(self) -> None:
        check_url(self.url)
        if not SERIAL.fullmatch(self.serial):
            raise Malformed("--serial must be 1 to 64 letters, digits, '.' or '-', and begin with a letter or digit")
        if not FLEET.fullmatch(self.fleet):
            raise Malformed("--fleet must be 1 to 64 letters, digits, '.', '_' or '-', such as ecc-devices")
        if self.ca_sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", self.ca_sha256):
            raise Malformed("--ca-sha256 must be 64 hexadecimal digits: the SHA-256 of the server's root certificate in DER")

    @property
    def identity(self) -> tuple[str, str]:
        """What must not change under a certificate: fleet and serial."""
        return self.fleet, self.serial

    def to_json(self) -> str:
        """The text of ``state.json``."""
        value = {
            "version": _VERSION,
            "url": self.url,
            "fleet": self.fleet,
            "serial": self.serial,
            "algorithm": str(self.algorithm),
            "idevid": list(self.idevid) if self.idevid else None,
            "ca_sha256": self.ca_sha256,
            "time": self.time.isoformat() if self.time else None,
        }
        return json.dumps(value, indent=2) + "\n"


def from_json(text: bytes) -> Settings:
    """Read ``state.json``. Raises Malformed if it is not one of ours."""
    try:
        value = json.loads(text)
        if value["version"] != _VERSION:
            raise Malformed(f"state.json has version {value['version']!r}; this program reads {_VERSION}")
        idevid = value["idevid"]
        return Settings(
            url=value["url"],
            fleet=value["fleet"],
            serial=value["serial"],
            algorithm=algorithm(value["algorithm"]),
            idevid=(str(idevid[0]), str(idevid[1])) if idevid else None,
            ca_sha256=value["ca_sha256"],
            time=datetime.fromisoformat(value["time"]).astimezone(UTC) if value["time"] else None,
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise Malformed("state.json in the state folder is damaged; enrol again with `up` and all its options") from None


def algorithm(text: str) -> KeyKind:
    """The key kind of that name. Raises Malformed."""
    try:
        return KeyKind(text)
    except ValueError:
        raise Malformed(f"--algorithm {text!r} is not one of {', '.join(KeyKind)}") from None


def default_algorithm(fleet: str) -> KeyKind:
    """The key kind that a fleet of this name takes, by our naming: ``sm2-…`` takes SM2, every other P-256."""
    return KeyKind.SM2 if fleet.startswith("sm2-") else KeyKind.P_256


def check_url(url: str) -> None:
    """Raises Malformed unless ``url`` is ``https://host[:port][/path]`` and nothing more."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Malformed("--url is not a URL; write it as https://host:port") from None
    if parts.scheme != "https":
        raise Malformed("--url must begin with https://, since a credential is sent to it")
    plain = not (parts.query or parts.fragment or parts.username is not None or port == 0)
    if not (parts.hostname and plain and url.isascii() and url.isprintable() and " " not in url):
        raise Malformed("--url must be https://host:port without user name, query or spaces")
