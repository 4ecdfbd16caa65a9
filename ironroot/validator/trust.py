"""What a validator trusts right now: the anchors put there by hand, and those of the lists it follows that are not over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from ironroot.validator.follow import Followed
from ironroot.validator.settings import ValidatorSettings
from pkix import pem
from pkix.certificate import Certificate, parse_certificate
from pkix.errors import Malformed, NotFound
from validate.fetch import HttpFetcher
from validate.model import Anchor, Policy
from validate.trust_limits import narrow
from validate.trustlist import StatusSource


@dataclass(frozen=True, slots=True)
class Trust:
    """Anchors, certificates that help to reach them, where status is; ``until``: when the first list is over, None without lists."""

    anchors: tuple[Anchor, ...]
    intermediates: tuple[Certificate, ...]
    sources: tuple[StatusSource, ...]
    until: datetime | None

    @property
    def authorities(self) -> tuple[Certificate, ...]:
        """All of the CA certificates, once each."""
        return tuple(dict.fromkeys((*(anchor.certificate for anchor in self.anchors), *self.intermediates)))


def trusted(settings: ValidatorSettings, lists: Iterable[Followed], now: datetime) -> Trust:
    """Puts together files and lists. A list that is over counts for nothing.

    Raises:
        NotFound, Malformed: a file of the settings is missing or no PEM of certificates.
    """
    anchors = [Anchor(certificate) for file in settings.trust.anchors for certificate in _certificates(settings.home / file)]
    intermediates = [certificate for file in settings.trust.intermediates for certificate in _certificates(settings.home / file)]
    sources: list[StatusSource] = []
    ends: list[datetime] = []
    for one in lists:
        if one.held is None or one.held.list.expires <= now:
            continue
        limits = one.terms.limits
        anchors += [narrowed for anchor in one.held.list.anchors if (narrowed := narrow(anchor, limits)) is not None]
        intermediates += one.held.list.intermediates
        sources += one.held.list.status
        ends.append(one.held.list.expires)
    return Trust(tuple(anchors), tuple(dict.fromkeys(intermediates)), tuple(sources), min(ends, default=None))


def policy(settings: ValidatorSettings, trust: Trust) -> Policy:
    """What peers are judged by."""
    return Policy(
        anchors=trust.anchors,
        intermediates=trust.intermediates,
        families=settings.policy.families,
        minimum_strength=settings.policy.minimum_strength,
        status=settings.status.mode,
        max_age=settings.max_age,
    )


def allowed_hosts(settings: ValidatorSettings, trust: Trust) -> frozenset[str] | None:
    """Hosts that may be asked for status: those of the settings and of the lists; None (any) where neither names one."""
    urls = [url for source in trust.sources for url in (*source.ocsp, *source.crl)] + list(settings.status.crls)
    return frozenset((*settings.status.allowed_hosts, *(urlsplit(url).hostname or "" for url in urls))) or None


def fetcher(settings: ValidatorSettings, trust: Trust) -> HttpFetcher:
    """The way to the network for status."""
    return HttpFetcher(allowed_hosts=allowed_hosts(settings, trust), networks=settings.status.ranges)


def _certificates(file: Path) -> list[Certificate]:
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file}: {error.strerror}") from None
    try:
        return [parse_certificate(der) for der in pem.certificates(raw)]
    except Malformed as error:
        raise Malformed(f"{file}: {error}") from None
