"""Vendor personalities: what makes one HSM differ from another in the eyes of its client.

    personality = load("yubihsm")
    personality.sessions                # 16
    personality.allows("CKM_AES_KEY_WRAP")

One TOML file each in ``personalities/``: names, limits, mechanisms that are missing, how signatures are encoded, the vendor's own numbers
for SM2, latency. They are simulations from public documents; a real device has more ways of its own.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pkix.errors import Malformed, NotFound

_FOLDER = Path(__file__).parent / "personalities"
NAMES = tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))
DEFAULT = "ironroot"

Version = tuple[Annotated[int, Field(ge=0, le=255)], Annotated[int, Field(ge=0, le=255)]]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sm2Numbers(_Part):
    """A vendor's own PKCS#11 numbers for SM2; CKK_EC with the SM2 curve is understood beside them."""

    key_type: int
    generate: int
    sign: int


class Personality(_Part):
    """One vendor's manners.

    Attributes:
        manufacturer, model: as CK_INFO and CK_TOKEN_INFO say them (at most 32 and 16 octets).
        hardware, firmware: versions (major, minor).
        pin: shortest and longest PIN, characters.
        sessions: per connection.  objects: token objects per partition.  frame: longest message, octets.
        curves: key kinds of elliptic curves that can be made.
        without: names of mechanisms that this vendor lacks.
        signatures: ``raw`` (r and s, as PKCS#11 says) or ``der`` (X9.62, as some do) for ECDSA and SM2.
        ec_point_on_private: whether private keys show CKA_EC_POINT too.
        sm2: the vendor's numbers for SM2, if it has any.
        latency_ms: added to each signature, in lab mode only.
    """

    name: str
    manufacturer: Annotated[str, Field(max_length=32)]
    model: Annotated[str, Field(max_length=16)]
    hardware: Version = (1, 0)
    firmware: Version = (1, 0)
    pin: tuple[Annotated[int, Field(ge=4)], Annotated[int, Field(le=255)]] = (6, 128)
    sessions: Count = 1024
    objects: Count = 100_000
    frame: Annotated[int, Field(ge=4096, le=1 << 20)] = 1 << 20
    curves: frozenset[Literal["p-256", "p-384", "ed25519", "sm2"]] = frozenset({"p-256", "p-384", "ed25519", "sm2"})
    without: frozenset[str] = frozenset()
    signatures: Literal["raw", "der"] = "raw"
    ec_point_on_private: bool = False
    sm2: Sm2Numbers | None = None
    latency_ms: Annotated[float, Field(ge=0, le=10_000)] = 0

    def allows(self, mechanism: str) -> bool:
        """Whether the device has the mechanism of this PKCS#11 name (``CKM_…``)."""
        return mechanism not in self.without


def load(name: str = DEFAULT) -> Personality:
    """The personality called ``name``. Raises NotFound naming the ones there are, Malformed for a file that is not valid."""
    if name not in NAMES:
        raise NotFound(f"there is no personality {name[:40]!r}; there are {', '.join(NAMES)}")
    file = _FOLDER / f"{name}.toml"
    try:
        return Personality(name=name, **tomllib.loads(file.read_text("utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise Malformed(f"{file}: {error}") from None
