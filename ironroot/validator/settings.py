"""Settings of one validator: ``HOME/validator.toml``, and where everything lies below the home folder.

HOME/validator.toml     these settings              HOME/lists/NAME/   a trust list that is followed, and on which terms
HOME/*.pem              anchors that you put there  HOME/status/       OCSP responses and CRLs, for when their sources are away
"""

from __future__ import annotations

import ipaddress
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ironroot.files import write_atomically
from pkix.errors import Malformed, NotFound
from validate.fetch_address import LOOPBACK, PLANT, Network
from validate.model import FAMILIES, Family, StatusMode

TEMPLATE = """\
# Settings of this validator. Unknown keys are refused. Restart `ironroot validator serve` after a change.

[listen]
socket = "validator.sock"        # JSON lines, for platforms on this machine; "" for none. Relative to this folder
socket_mode = "0600"             # "0660": also the group of this service
http = ["127.0.0.1:8480"]        # the HTTP interface; "unix:http.sock" for a Unix socket

[trust]                          # beside the lists that `ironroot trust follow` follows
anchors = []                     # PEM files, relative to this folder
intermediates = []               # CA certificates that help to find a path, and are trusted for nothing
refresh_minutes = 15             # how often lists are asked for

[policy]
families = ["ecc", "sm2", "pq"]  # algorithm families that are taken; never mixed in one path
minimum_strength = 112           # bits of every key: RSA-2048 112; P-256, SM2 and RSA-3072 128; P-384 192

[status]
mode = "hard-fail"               # soft-fail forgives that no status can be had; offline fetches nothing; none does not look
max_age_hours = 24               # a status older than this counts for nothing, whatever its own nextUpdate says
recheck_seconds = 10             # a source is asked again after this at the earliest: so late may a revocation be seen while it answers
allowed_hosts = []               # that may be asked for OCSP and CRLs; the hosts in trust lists are; with neither: any
networks = ["plant"]             # addresses that may be asked beside the public internet: "plant" (private ranges), "loopback", or CIDR
crls = []                        # URLs that `ironroot validator sync` fetches beside those in trust lists

[nginx]                          # who may say in a header which client certificate it saw, at /auth/nginx
header = "X-Client-Certificate"
proxies = []                     # addresses; "unix": whoever may open our Unix socket for HTTP

[test]
allow_now = false                # let a request choose the moment it is judged at. Never in production
"""


_RANGES = {"plant": PLANT, "loopback": LOOPBACK}


def _listener(value: str) -> str:
    if value.startswith("unix:") and len(value) > 5:
        return value
    host, _, port = value.rpartition(":")
    ipaddress.ip_address(host.strip("[]"))
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("must be ADDRESS:PORT or unix:PATH")
    return value


def _proxy(value: str) -> str:
    return value if value == "unix" else str(ipaddress.ip_address(value))


def _network(value: str) -> str:
    if value not in _RANGES:
        ipaddress.ip_network(value)
    return value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Listen(_Part):
    """Where we are asked. ``http``: ``ADDRESS:PORT`` or ``unix:PATH``; paths relative to the home folder."""

    socket: str = "validator.sock"
    socket_mode: Annotated[str, Field(pattern="^0[0-7]{3}$")] = "0600"
    http: list[Annotated[str, AfterValidator(_listener)]] = ["127.0.0.1:8480"]


class TrustFiles(_Part):
    """PEM files, relative to the home folder."""

    anchors: list[str] = []
    intermediates: list[str] = []
    refresh_minutes: Annotated[int, Field(ge=1, le=1440)] = 15


class PolicySettings(_Part):
    """Which algorithms are taken (``validate.Policy``)."""

    families: Annotated[frozenset[Family], Field(min_length=1, strict=False)] = FAMILIES
    minimum_strength: Annotated[int, Field(ge=80, le=256)] = 112


class StatusSettings(_Part):
    """How revocation is looked at (``validate.Policy``)."""

    mode: StatusMode = "hard-fail"
    max_age_hours: Annotated[int, Field(ge=1, le=8760)] | None = 24
    recheck_seconds: Annotated[int, Field(ge=0, le=3600)] = 10
    allowed_hosts: list[str] = []
    networks: list[Annotated[str, AfterValidator(_network)]] = ["plant"]
    crls: list[Annotated[str, Field(pattern="^https?://")]] = []

    @property
    def ranges(self) -> tuple[Network, ...]:
        """``networks`` as addresses."""
        return tuple(one for name in self.networks for one in _RANGES.get(name) or (ipaddress.ip_network(name),))


class Nginx(_Part):
    """The header with the client certificate, and who may send it."""

    header: Annotated[str, Field(pattern="^[A-Za-z0-9-]{1,64}$")] = "X-Client-Certificate"
    proxies: list[Annotated[str, AfterValidator(_proxy)]] = []


class Test(_Part):
    """For tests of platforms."""

    allow_now: bool = False


class ValidatorSettings(_Part):
    """One validator, as read from its file. ``home`` is the folder, absolute."""

    home: Path
    listen: Listen = Listen()
    trust: TrustFiles = TrustFiles()
    policy: PolicySettings = PolicySettings()
    status: StatusSettings = StatusSettings()
    nginx: Nginx = Nginx()
    test: Test = Test()

    @property
    def socket(self) -> Path | None:
        return self.home / self.listen.socket if self.listen.socket else None

    @property
    def lists(self) -> Path:
        return self.home / "lists"

    @property
    def kept_status(self) -> Path:
        return self.home / "status"

    @property
    def max_age(self) -> timedelta | None:
        hours = self.status.max_age_hours
        return None if hours is None else timedelta(hours=hours)

    @classmethod
    def load(cls, home: Path, file: Path | None = None) -> Self:
        """Reads ``file``, by default ``home/validator.toml``.

        Raises:
            NotFound: no such file; ``ironroot validator init`` makes one.
            Malformed: with the key that is wrong.
        """
        file = file or home / "validator.toml"
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFound(f"{file} is not there. Make a validator first: ironroot validator init --home {home}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise Malformed(f"{file}: {error}") from None
        if "home" in values:
            raise Malformed(f"{file}: home: is not a setting")
        try:
            return cls(home=home.absolute(), **values)
        except ValidationError as error:
            problems = (".".join(map(str, problem["loc"])) + ": " + problem["msg"] for problem in error.errors())
            raise Malformed(f"{file}: " + "; ".join(problems)) from None


def initialise(home: Path) -> ValidatorSettings:
    """Makes the folder with default settings; leaves what is there as it is. Raises as ``ValidatorSettings.load``."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = home / "validator.toml"
    if not file.exists():
        write_atomically(file, TEMPLATE.encode(), mode=0o600)
    settings = ValidatorSettings.load(home)
    for folder in (settings.lists, settings.kept_status):
        folder.mkdir(mode=0o700, exist_ok=True)
    return settings
