"""The one issuance pipeline: every door, the command line, our own signers and recovery end here.

    Authorized ─build→ Tbs ─lint→ Linted ─store.intend→ Intent ─signer.sign→ signature ─verify→ Issued

What holds if we crash after each step is said beside it. The content of a certificate comes from the identity and the profile; the
request contributes its public key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from ca.failpoint import failpoint
from ca.model import LINT_PROOF, Authority, Authorized, Intent, Issued, Linted, Signable, Tbs, current
from ca.ports import SerialTaken, Signer, Store
from pkix.algorithms import SIGNATURES, PublicKey
from pkix.certificate import assemble
from pkix.errors import BadSignature, NotFound, OutcomeUnknown, Refused, Unavailable
from policies.compile import Compiled, Urls
from policies.lint import Finding, lint
from policies.model import Profile

_REDRAWS = 3


def draw_serial() -> int:
    """A certificate serial number: 126 random bits in 16 octets, positive, no leading zero octet (RFC 5280 4.1.2.2)."""
    return 1 << 126 | secrets.randbits(126)


class Issuer:
    """Turns an ``Authorized`` into an ``Issued``.

    Args:
        store, signer: the ports.
        authorities: by id; may grow while this lives.
        profiles: by id.
        urls: where relying parties find status and issuer of an authority, by its id.
        organization, country: what profiles may put into subjects.
        serials: draws serial numbers.
    """

    def __init__(
        self,
        *,
        store: Store,
        signer: Signer,
        authorities: Mapping[str, Authority],
        profiles: Mapping[str, Profile],
        urls: Callable[[str], Urls],
        organization: str,
        country: str | None,
        serials: Callable[[], int] = draw_serial,
    ) -> None:
        self._store, self._signer = store, signer
        self._authorities, self._profiles = authorities, profiles
        self._urls, self._organization, self._country = urls, organization, country
        self._serials = serials
        self._compiled: dict[tuple[str, str], Compiled] = {}

    async def issue(self, request: Authorized, now: datetime) -> Issued:
        """The certificate for an authorised request, durably recorded; from its authority's successor, if that has one.

        Raises:
            Refused: lint found something; or as ``Store.intend``.
            Unauthenticated, Conflict: as ``Store.intend``.
            Unavailable: HSM or database away. Nothing was handed out; where nothing was signed either, the token is good again.
        """
        if request.key is None:  # what an authority needs for itself, its OCSP signers, comes from none but itself
            request = replace(request, authority=current(self._authorities, request.authority))
        intent = await self._intend(request, now)
        if isinstance(intent, Issued):
            return intent
        # Crash here: the intent stays without a certificate. Recovery, or the same request once more, finishes it.
        failpoint("issue.intended")
        return await self.finish(intent, now)

    async def finish(self, intent: Intent, now: datetime) -> Issued:
        """Signs, verifies and records an intent: the second half of ``issue``, and all of recovery."""
        authority = self._authority(intent.authority)
        key = authority.certificate.public_key
        try:
            signature = await self._signer.sign(Signable(authority.key, key, "certificate", intent.tbs_der))
        except OutcomeUnknown:
            raise
        except Unavailable:
            # Certainly not signed: the serial is given up and the token is good again. If that cannot be stored either,
            # the intent stays and recovery signs it later.
            with suppress(Unavailable):
                await self._store.abandon(intent, now)
            raise
        # Crash here: a signature exists that nobody was given; the intent names its serial and TBS. Recovery signs the same TBS.
        failpoint("issue.signed")
        try:
            key.verify(signature, intent.tbs_der)
        except BadSignature:
            raise Unavailable(
                "The HSM returned a signature that does not verify; it was thrown away. Check the HSM, then repeat.", retry_after=5
            ) from None
        der = assemble(intent.tbs_der, SIGNATURES[key.kind], signature)
        issued = await self._store.record(intent, der, now)
        # Crash here: the certificate is recorded and its owner was not told. The same request once more gets it.
        failpoint("issue.recorded")
        return issued

    async def recover(self, created_before: datetime, now: datetime) -> int:
        """Finishes what crashes left behind; returns how many. Raises Unavailable where the HSM or the store is away."""
        intents = await self._store.unfinished(created_before)
        for intent in intents:
            await self.finish(intent, now)
        return len(intents)

    def compiled(self, profile: str, authority: str) -> Compiled:
        """The profile, compiled for an authority; kept. Raises NotFound."""
        found = self._compiled.get((profile, authority))
        if found is None:
            issuer = self._authority(authority)
            if profile not in self._profiles:
                raise NotFound(f"There is no profile {profile!r}.")
            found = Compiled(
                self._profiles[profile],
                issuer.certificate,
                SIGNATURES[issuer.certificate.public_key.kind],
                self._urls(authority),
                self._organization,
                self._country,
            )
            self._compiled[profile, authority] = found
        return found

    async def _intend(self, request: Authorized, now: datetime) -> Intent | Issued:
        for _ in range(_REDRAWS):
            linted = self._lint(self._build(request, now))
            try:
                return await self._store.intend(linted, now)
            except SerialTaken:
                continue
        raise Unavailable("No free serial number was drawn; the random number generator of this machine is broken.", retry_after=60)

    def _build(self, request: Authorized, now: datetime) -> Tbs:
        compiled = self.compiled(request.profile, request.authority)
        if self._authority(request.authority).revoked:
            raise Refused(f"The authority {request.authority} is revoked or held and issues nothing. Ask the administrator.")
        serial, identity, key = self._serials(), request.identity, request.csr.public_key
        built = compiled.tbs(serial=serial, now=now, subject_key=key, fleet=identity.fleet, device=identity.device, names=identity.names)
        return Tbs(
            authority=request.authority,
            serial=serial,
            der=built.der,
            subject=built.subject.text,
            not_before=built.not_before,
            not_after=built.not_after,
            spki_sha256=key.sha256,
            profile=request.profile,
            profile_hash=compiled.profile.hash,
            identity=identity,
            token=request.token,
            idempotency=request.idempotency,
            key=request.key,
            application=request.application,
        )

    def _lint(self, tbs: Tbs) -> Linted:
        issuer = self._authority(tbs.authority).certificate
        who = tbs.identity
        findings = lint(
            *(tbs.der, self._profiles[tbs.profile], issuer, SIGNATURES[issuer.public_key.kind]),
            fleet=who.fleet,
            device=who.device,
            names=who.names,
        )
        if findings:
            raise _stopped(findings)
        return Linted(tbs, LINT_PROOF)

    def _authority(self, authority: str) -> Authority:
        try:
            return self._authorities[authority]
        except KeyError:
            raise NotFound(f"There is no authority {authority!r}.") from None


def self_signed(
    profile: Profile, key: PublicKey, *, device: str, organization: str, country: str | None, serial: int, now: datetime
) -> bytes:
    """The TBSCertificate of a root, linted like any other. Raises Refused where lint finds something."""
    signature = SIGNATURES[key.kind]
    compiled = Compiled(profile, None, signature, None, organization, country)
    built = compiled.tbs(serial=serial, now=now, subject_key=key, fleet="authorities", device=device, names=())
    findings = lint(built.der, profile, None, signature)
    if findings:
        raise _stopped(findings)
    return built.der


def _stopped(findings: list[Finding]) -> Refused:
    return Refused("This certificate would break a rule and was not signed: " + "; ".join(f"{f.rule}: {f.text}" for f in findings))
