"""Settings of one installation: ``HOME/ironroot.toml``, and where everything lies below the home folder.

HOME/ironroot.toml      these settings             HOME/policies/   profiles and fleets, yours to edit
HOME/db/ironroot.db     the database (SQLite)      HOME/idevid/      manufacturers' CAs, a file for each fleet
HOME/hsm/               the simulated HSM          HOME/tls/        the service's own TLS certificate and key
"""

from __future__ import annotations

import ipaddress
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ca.pkcs11_uri import Pkcs11Uri, parse_store
from ironroot.files import write_atomically
from pkix.errors import Conflict, Malformed, NotFound
from policies.compile import Urls

_TEMPLATE = """\
# Settings of this ironroot installation. Unknown keys are refused. Restart `ironroot serve` after a change.

organization = "{organization}"   # goes into the subject of every certificate
# country = "CN"
workers = 1                  # web processes

[http]                       # what must be reachable before trust exists: OCSP, CRLs, CA certificates
host = "127.0.0.1"
port = {http_port}
# public_url = "http://pki.plant.example"   # written into certificates; set it before `ironroot init`

[https]                      # enrolment
host = "127.0.0.1"
port = {https_port}
names = ["localhost", "127.0.0.1", "::1"]    # in the service's own certificate
# public_url = "https://pki.plant.example:8443"

[hsm]
{hsm}

[database]
url = "sqlite:///db/ironroot.db"             # or postgresql+psycopg://…

[status]
crl_hours = 24               # lifetime of a CRL; a new one is made at half of it and after every revocation
ocsp_minutes = 60            # lifetime of an OCSP response
"""

_SIMULATOR = """\
socket = "hsm/native.sock"   # the simulator that comes with ironroot
pin_file = "hsm/pin"
# uri = "pkcs11:token=…?module-path=…&pin-source=file:…"   # a PKCS#11 token in its place (docs/key-stores.md)"""


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("must be http://host[:port][/path] or https://…")
    return value.rstrip("/")


def _store(value: str) -> str:
    try:
        parse_store(value)
    except Malformed as error:
        raise ValueError(str(error)) from None
    return value


def _address(value: str) -> str:
    ipaddress.ip_address(value)
    return value


Url = Annotated[str, AfterValidator(_http_url)]
Address = Annotated[str, AfterValidator(_address)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Listener(_Part):
    """An address to listen on; ``public_url`` is how the others reach it, where that differs."""

    host: Address = "127.0.0.1"
    port: Port
    public_url: Url | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if ipaddress.ip_address(self.host).is_unspecified and self.public_url is None:
            raise ValueError(f'with host = "{self.host}", public_url has to say by which name the others reach it')
        return self


class TlsListener(Listener):
    """The enrolment door; ``names`` are DNS names and addresses in the service's own certificate."""

    names: list[str] = ["localhost", "127.0.0.1", "::1"]


class Hsm(_Part):
    """Where the simulator listens and where its PIN is kept, relative to the home folder; or ``uri``, a PKCS#11 token in its place.

    ``processes``: how many processes of each of ours may use a token at once.
    """

    socket: str = "hsm/native.sock"
    pin_file: str = "hsm/pin"
    uri: Annotated[str, AfterValidator(_store)] | None = None
    processes: Annotated[int, Field(ge=1, le=32)] = 2


class Database(_Part):
    """An SQLAlchemy URL; SQLite paths are relative to the home folder."""

    url: str = "sqlite:///db/ironroot.db"


class StatusTimes(_Part):
    """Lifetimes of what we say about certificates."""

    crl_hours: Annotated[int, Field(ge=1, le=240)] = 24
    ocsp_minutes: Annotated[int, Field(ge=1, le=10080)] = 60


class Settings(_Part):
    """One installation, as read from its file. ``home`` is the folder, absolute."""

    home: Path
    organization: Annotated[str, Field(min_length=1, max_length=64)] = "ironroot"
    country: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    http: Listener
    https: TlsListener
    hsm: Hsm = Hsm()
    database: Database = Database()
    status: StatusTimes = StatusTimes()

    @property
    def http_url(self) -> str:
        """Base URL of the plain door, no slash at the end."""
        return self.http.public_url or f"http://{_host(self.http.host)}:{self.http.port}"

    @property
    def https_url(self) -> str:
        """Base URL of the TLS door, no slash at the end."""
        return self.https.public_url or f"https://{_host(self.https.host)}:{self.https.port}"

    @property
    def database_url(self) -> str:
        """The database URL with an absolute path."""
        prefix = "sqlite:///"
        if self.database.url.startswith(prefix) and not self.database.url.startswith(prefix + "/"):
            return prefix + str(self.home / self.database.url.removeprefix(prefix))
        return self.database.url

    @property
    def database_lock(self) -> Path | None:
        """The file beside an SQLite database on which its writers queue; None for other databases."""
        prefix = "sqlite:///"
        return Path(self.database_url.removeprefix(prefix) + ".lock") if self.database_url.startswith(prefix) else None

    @property
    def hsm_uri(self) -> Pkcs11Uri | None:
        """The token that holds the keys; None: the simulator does, over its own socket."""
        return None if self.hsm.uri is None else parse_store(self.hsm.uri)

    @property
    def hsm_socket(self) -> Path:
        return self.home / self.hsm.socket

    @property
    def hsm_home(self) -> Path:
        """State folder of the simulated HSM."""
        return self.hsm_socket.parent

    @property
    def pin_file(self) -> Path:
        return self.home / self.hsm.pin_file

    @property
    def policies(self) -> Path:
        return self.home / "policies"

    @property
    def tls(self) -> Path:
        return self.home / "tls"

    @property
    def crl_lifetime(self) -> timedelta:
        return timedelta(hours=self.status.crl_hours)

    @property
    def ocsp_lifetime(self) -> timedelta:
        return timedelta(minutes=self.status.ocsp_minutes)

    def urls(self, authority: str) -> Urls:
        """What certificates of ``authority`` say about where its status and its certificate are."""
        return Urls(crl=f"{self.http_url}/crl/{authority}.crl", ocsp=f"{self.http_url}/ocsp", issuer=f"{self.http_url}/aia/{authority}.cer")

    @classmethod
    def load(cls, home: Path) -> Self:
        """Reads ``home/ironroot.toml``.

        Raises:
            NotFound: no such file; ``ironroot init`` makes one.
            Malformed: with the key that is wrong.
        """
        file = home / "ironroot.toml"
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotFound(f"{file} is not there. Make an installation first: ironroot init --home {home}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise Malformed(f"{file}: {error}") from None
        if "home" in values:
            raise Malformed(f"{file}: home: is not a setting")
        try:
            return cls(home=home.absolute(), **values)
        except ValidationError as error:
            raise Malformed(f"{file}: " + "; ".join(_say(problem) for problem in error.errors())) from None
        except TypeError as error:
            raise Malformed(f"{file}: {error}") from None


def write_default(home: Path, http_port: int | None, https_port: int | None, organization: str | None, hsm: str | None = None) -> None:
    """Writes ``home/ironroot.toml``, for its owner only, unless it is there. ``hsm`` is a PKCS#11 URI; without it the simulator is used.

    Raises:
        Conflict: it is there and says something else than what is asked for now.
        Malformed: ``hsm`` names no token.
    """
    uri = None if hsm is None else str(parse_store(hsm))
    file = home / "ironroot.toml"
    if file.exists():
        settings = Settings.load(home)
        for what, asked, said in (
            ("http.port", http_port, settings.http.port),
            ("https.port", https_port, settings.https.port),
            ("organization", organization, settings.organization),
            ("hsm.uri", uri, settings.hsm_uri and str(settings.hsm_uri)),
        ):
            if asked is not None and asked != said:
                raise Conflict(f"{file} says {what} = {said}, not {asked}. Certificates carry it: change the file on purpose.")
        return
    organization = (organization or "ironroot").replace("\\", "\\\\").replace('"', '\\"')
    text = _TEMPLATE.format(
        http_port=http_port or 8080, https_port=https_port or 8443, organization=organization, hsm=f'uri = "{uri}"' if uri else _SIMULATOR
    )
    write_atomically(file, text.encode(), mode=0o600)


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _say(problem: object) -> str:
    assert isinstance(problem, dict)  # noqa: S101 - pydantic's ErrorDetails
    where = ".".join(str(part) for part in problem["loc"])
    text = "is not a setting (is it misspelt?)" if problem["type"] == "extra_forbidden" else problem["msg"]
    return f"{where}: {text}"
