"""Whose manufacturers' certificates (IDevIDs) a fleet takes: the CA certificates in the files that the fleet names.

trust = TrustFiles(home)
trust(fleet)                  # certificates; files are read again when they change, without a restart
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from pkix import pem
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed
from policies.model import Fleet

Trust = Callable[[Fleet], Sequence[Certificate]]
"""The manufacturers' CA certificates that a fleet trusts."""

log = structlog.get_logger("enroll.trust")


class TrustFiles:
    """A ``Trust`` of PEM files below ``home``. A file that is not there, or holds something else, trusts nobody; the latter is logged."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._read: dict[Path, tuple[tuple[int, int], tuple[Certificate, ...]]] = {}

    def __call__(self, fleet: Fleet) -> Sequence[Certificate]:
        """The certificates in the files of ``fleet.idevid.trust``, as they are now."""
        return [certificate for path in fleet.idevid.trust for certificate in self._certificates(self._home / path)]

    def _certificates(self, path: Path) -> tuple[Certificate, ...]:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._read.get(path)
            if known is None or known[0] != stamp:
                known = stamp, tuple(map(parse_certificate, pem.certificates(path.read_bytes())))
                self._read[path] = known
            return known[1]
        except FileNotFoundError:
            return ()
        except (OSError, Malformed) as error:
            log.warning("trust.not_read", file=path.name, error=str(error))
            return ()
