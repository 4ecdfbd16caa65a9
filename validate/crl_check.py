"""What CRLs say of one certificate (RFC 5280 6.3.3): lists are taken in one by one until every reason for revocation is covered. Pure.

    tally = Tally(certificate, question)
    for point in points(certificate):
        problem = tally.unfit(point, crl)                  # None, or why this list says nothing of it: name, scope, dates
        ...                                                # whose signature it is, is for ``validate.crl_signer``
        tally.take(point, crl, delta, source)
        tally.basis                                        # Basis as soon as it is settled

A list in pieces by reason is good only as a whole; one entry on any of them revokes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from pkix import extensions
from pkix.certificate import Certificate
from pkix.crl import CrlEntry
from validate.crl_load import LoadedCrl
from validate.crl_points import ALL_REASONS, Point
from validate.model import Basis, Question
from validate.names import DIRECTORY, issuer
from validate.status_ocsp import REASONS, outdated, standing_of
from validate.text import Text, say


class Origin(NamedTuple):
    """Where a list came from: its URL, or nothing if it was handed in."""

    url: str = ""


@dataclass(slots=True)
class Tally:
    """The state of RFC 5280 6.3.3 for one certificate: ``reasons`` covered so far, and ``basis`` once the answer is there."""

    certificate: Certificate
    question: Question
    reasons: int = 0
    basis: Basis | None = None
    _partial: Basis | None = None

    def unfit(self, point: Point, crl: LoadedCrl) -> Text | None:
        """Why a complete ``crl`` is no use for what ``point`` promises, or None (RFC 5280 6.3.3 (b), (e); 5.1.2.5; 5.2.3).

        Dates are not looked at here: a list that is over may still be brought up to date by a delta.
        """
        if crl.index.base is not None:
            return say("crl_is_delta")
        if crl.issuer not in (point.authorities or (issuer(self.certificate),)):
            return say("not_about_it")
        if point.authorities and not crl.scope.indirect and crl.issuer != issuer(self.certificate):
            return say("crl_scope", why=say("scope_not_indirect"))
        problem = self._out_of_scope(point, crl)
        if problem is not None:
            return problem
        if crl.index.next_update is None:
            return say("no_next_update")
        number = crl.index.extensions.get(extensions.CRL_NUMBER)
        if number is None or number.critical:
            return say("bad_crl_number")
        return None

    def _out_of_scope(self, point: Point, crl: LoadedCrl) -> Text | None:
        scope = crl.scope
        if scope.attributes_only:
            return say("crl_scope", why=say("scope_attributes"))
        if scope.cas_only and not self.certificate.is_ca:
            return say("crl_scope", why=say("scope_cas"))
        if scope.users_only and self.certificate.is_ca:
            return say("crl_scope", why=say("scope_users"))
        names = point.names or {(DIRECTORY, name) for name in point.authorities}
        if scope.names is not None and not scope.names & names:
            return say("crl_scope", why=say("scope_point"))
        listed = self._entry(crl) is not None
        if not point.reasons & scope.reasons & ~self.reasons and not listed:
            return say("crl_scope", why=say("scope_reasons"))
        return None

    def revokes(self, crl: LoadedCrl) -> bool:
        """Whether the certificate stands on the list, and not just for the time being."""
        entry = self._entry(crl)
        return entry is not None and entry.reason not in (6, 8)

    def covers(self, point: Point) -> bool:
        """Whether nothing more is to be learned of ``point``."""
        return self.basis is not None or not point.reasons & ~self.reasons

    def take(self, point: Point, crl: LoadedCrl, delta: LoadedCrl | None, origin: Origin) -> Text | None:
        """Takes in a list that is fit and whose signature is verified, with its delta; why it is no use after all, or None."""
        newest = crl if delta is None else delta
        until = newest.index.next_update or newest.this_update
        problem = outdated(newest.this_update, until, self.question)
        if problem is not None:
            return problem
        entry = self._entry(crl)
        changed = None if delta is None else self._entry(delta)
        if changed is not None:
            # A delta takes an entry off a list only if that was a hold; anything else stays (RFC 5280 5.2.4, 5.3.1).
            lifted = changed.reason == 8 and (entry is None or entry.reason == 6)
            entry = None if lifted else entry if changed.reason == 8 else changed
        if entry is not None and entry.reason == 8:
            entry = None
        said = _said(entry, newest.this_update, until, "crl" if delta is None else "delta", origin)
        self.reasons |= point.reasons & crl.scope.reasons
        self._partial = said if self._partial is None else _oldest(self._partial, said)
        if entry is not None:
            self.basis = said
        elif self.reasons == ALL_REASONS:
            self.basis = self._partial
        return None

    def _entry(self, crl: LoadedCrl) -> CrlEntry | None:
        """The certificate's entry: of its serial number, under its issuer's name (RFC 5280 5.3.3), however often that is written."""
        found = (crl.index.entries.find(self.certificate.serial, number) for number in crl.numbers.get(issuer(self.certificate), ()))
        return min((entry for entry in found if entry is not None), key=lambda entry: entry.reason in (6, 8), default=None)


def unpaired(crl: LoadedCrl, delta: LoadedCrl) -> Text | None:
    """Why ``delta`` does not bring ``crl`` up to date, or None (RFC 5280 5.2.4, 6.3.3 (c)). Both signatures are verified."""
    base, number, own = delta.index.base, crl.index.number, delta.index.number
    if base is None or number is None or own is None:
        return say("delta_numbers")
    if delta.issuer != crl.issuer or delta.scope != crl.scope or delta.index.aki != crl.index.aki:
        return say("delta_scope")
    if not base <= number < own:
        return say("delta_numbers")
    if not delta.same_key(crl):
        return say("delta_key")
    return None


def _said(entry: CrlEntry | None, this_update: datetime, until: datetime, source: str, origin: Origin) -> Basis:
    reason = None if entry is None else REASONS.get(entry.reason)
    return Basis(
        standing="good" if entry is None else standing_of(reason),
        source="crl" if source == "crl" else "delta",
        url=origin.url,
        produced_at=this_update,
        this_update=this_update,
        until=until,
        revoked_at=None if entry is None else entry.revoked_at,
        reason=reason,
    )


def _oldest(first: Basis, second: Basis) -> Basis:
    """Two lists that are good only together last as long as the one that ends first, and are as old as the older."""
    older, other = (first, second) if _when(first) <= _when(second) else (second, first)
    ends = [basis.until for basis in (older, other) if basis.until is not None]
    return replace(older, until=min(ends, default=None))


def _when(basis: Basis) -> float:
    return 0.0 if basis.this_update is None else basis.this_update.timestamp()
