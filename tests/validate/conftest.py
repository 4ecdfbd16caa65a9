"""Hierarchies with software keys, and a responder on loopback, for the tests of this room."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count
from types import SimpleNamespace

import pytest
from aiohttp import web

from pkix import der, extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.crl import CrlEntry, build_tbs_crl
from pkix.name import name
from pkix.ocsp import Single, assemble_response, build_response_data, cert_id
from pkix.privatekey import PrivateKey, generate
from validate import Anchor, Expected, Policy, validate_sync

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
DAY = timedelta(days=1)
_serials = count(0x40_00_00_00_00_00_00_01)


@lru_cache
def key(kind: KeyKind, label: str) -> PrivateKey:
    """One key per label: making them is what takes time."""
    return generate(kind)


@dataclass
class Party:
    """Somebody with a key and a certificate."""

    key: PrivateKey
    certificate: Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.der

    def crl(self, *entries: CrlEntry, this_update=NOW, next_update=NOW + DAY, number=1, extra=(), signer=None, issuer=None) -> bytes:
        by = (signer or self).key
        tbs = build_tbs_crl(
            issuer=issuer or self.certificate.subject,
            signature=SIGNATURES[by.kind],
            this_update=this_update,
            next_update=next_update,
            number=number,
            authority_key_identifier=extensions.authority_key_identifier(self.certificate),
            entries=entries,
            extra=extra,
        )
        return assemble(tbs, SIGNATURES[by.kind], by.sign(tbs))

    def ocsp(
        self,
        about: Party,
        status="good",
        *,
        hash="sha1",
        this_update=NOW,
        next_update=NOW + DAY,
        revoked_at=None,
        reason=None,
        signer: Party | None = None,
        included: tuple[Party, ...] | None = None,
        nonce=None,
        by_name=False,
        key: PrivateKey | None = None,
    ) -> bytes:
        by = signer or self
        single = Single(cert_id(hash, self.certificate, about.certificate.serial), status, revoked_at, reason, this_update, next_update)
        who = {"responder_name": by.certificate.subject} if by_name else {"responder_key": by.certificate.public_key}
        tbs = build_response_data(produced_at=this_update, singles=[single], nonce=nonce, **who)
        certificates = included if included is not None else (() if signer is None else (signer,))
        secret = key or by.key
        return assemble_response(tbs, SIGNATURES[secret.kind], secret.sign(tbs), [party.der for party in certificates])


def issue(
    issuer: Party | None,
    cn: str,
    kind: KeyKind = KeyKind.P_256,
    *,
    ca=False,
    path_length=None,
    usage=None,
    purposes=("clientAuth",),
    names=(),
    not_before=NOW - DAY,
    not_after=NOW + 90 * DAY,
    ocsp=(),
    crl=(),
    extra=(),
    without=(),
    subject=None,
    signed_by: Party | None = None,
    key_label: str | None = None,
    serial=None,
    public_key=None,
) -> Party:
    """A certificate as this house writes them, or broken as asked: ``extra`` extensions, ``without`` those of these OIDs."""
    own = key(kind, key_label or cn)
    certified = public_key or own.public_key
    signer = signed_by.key if signed_by else issuer.key if issuer else own
    who = subject or name(("O", "Example Plant"), ("CN", cn))
    usage = usage if usage is not None else ("keyCertSign", "cRLSign") if ca else ("digitalSignature",)
    listed = [extensions.basic_constraints(True, path_length)] if ca else []
    listed += [extensions.key_usage(*usage)] if usage else []
    listed += [] if ca or not purposes else [extensions.extended_key_usage(*purposes)]
    listed += [extensions.subject_alternative_name(*names)] if names else []
    listed += [extensions.subject_key_identifier(certified)]
    listed += [extensions.authority_key_identifier(issuer.certificate)] if issuer else []
    listed += [extensions.authority_information_access(ocsp=list(ocsp))] if ocsp else []
    listed += [extensions.crl_distribution_points(*crl)] if crl else []
    replaced = {extension.oid for extension in extra} | set(without)
    listed = [extension for extension in listed if extension.oid not in replaced] + list(extra)
    algorithm = SIGNATURES[signer.kind]
    tbs = build_tbs(
        serial=next(_serials) if serial is None else serial,
        issuer=issuer.certificate.subject if issuer else who,
        subject=who,
        not_before=not_before,
        not_after=not_after,
        public_key=certified,
        signature=algorithm,
        extensions=listed,
    )
    return Party(own, parse_certificate(assemble(tbs, algorithm, signer.sign(tbs))))


@dataclass
class Plant:
    """Root, issuing CA, a device, and the issuing CA's OCSP signer, in one algorithm family."""

    root: Party
    issuing: Party
    device: Party
    signer: Party
    url: str

    def validate(
        self,
        leaf: Party | bytes | None = None,
        *,
        chain=None,
        trust=None,
        now=NOW,
        purpose="any",
        names=(),
        status="none",
        more=None,
        **policy,
    ):
        """``validate_sync`` of the device or of ``leaf``; ``trust`` are parties or anchors, ``policy`` fields of Policy, ``more`` goes to
        ``validate_sync``. Without ``status``, revocation is not looked at."""
        leaf = self.device if leaf is None else leaf
        trusted = [self.root] if trust is None else trust
        return validate_sync(
            [leaf if isinstance(leaf, bytes) else leaf.der, *(party.der for party in ([self.issuing] if chain is None else chain))],
            policy=Policy(anchors=tuple(t if isinstance(t, Anchor) else Anchor(t.certificate) for t in trusted), status=status, **policy),
            purpose=purpose,
            expected=Expected(*names),
            now=now,
            **(more or {}),
        )


def plant(kind: KeyKind = KeyKind.P_256, url: str = "", **device) -> Plant:
    """A hierarchy; with ``url``, certificates point to ``url/ocsp`` and ``url/<issuer>.crl``."""
    ocsp = (f"{url}/ocsp",) if url else ()
    root = issue(None, f"{kind} root", kind, ca=True)
    issuing = issue(root, f"{kind} issuing", kind, ca=True, path_length=0, ocsp=ocsp, crl=(f"{url}/root.crl",) if url else ())
    wanted = {"names": ("uri:urn:ironroot:device:x:plc-7",), "ocsp": ocsp, "crl": (f"{url}/issuing.crl",) if url else ()} | device
    own = issue(issuing, "plc-7", kind, **wanted)
    signer = issue(issuing, f"{kind} ocsp", kind, purposes=("OCSPSigning",), extra=(extensions.ocsp_nocheck(),))
    return Plant(root, issuing, own, signer, url)


@dataclass
class Web:
    """A loopback HTTP server: ``answers`` by path, bytes or a function of the request; what is not there is 404. Counts what it saw."""

    url: str
    answers: dict
    seen: list[str]


@asynccontextmanager
async def serving():
    web_ = Web("", {}, [])

    async def handle(request: web.Request) -> web.StreamResponse:
        web_.seen.append(f"{request.method} {request.path}")
        answer = web_.answers.get(request.path)
        if callable(answer):
            answer = await answer(request)
        if isinstance(answer, web.StreamResponse):
            return answer
        return web.Response(status=404) if answer is None else web.Response(body=answer)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    web_.url = f"http://127.0.0.1:{port}"
    try:
        yield web_
    finally:
        await runner.cleanup()


def name_constraints(permitted: tuple[bytes, ...] = (), excluded: tuple[bytes, ...] = ()) -> extensions.Extension:
    """NameConstraints, critical, from GeneralNames in DER."""
    trees = [der.context(number, *(der.sequence(base) for base in bases)) for number, bases in enumerate((permitted, excluded)) if bases]
    return extensions.Extension("2.5.29.30", True, der.sequence(*trees))


def dns(text: str) -> bytes:
    return der.context(2, text.encode(), constructed=False)


def codes(result) -> set[str]:
    """Codes of what failed."""
    return {check.code for check in result.checks if check.outcome == "failed"}


@pytest.fixture(scope="session")
def pki() -> SimpleNamespace:
    """Everything above: test modules cannot import each other."""
    return SimpleNamespace(
        NOW=NOW,
        DAY=DAY,
        key=key,
        issue=issue,
        plant=lru_cache(plant),
        at=lambda url, kind=KeyKind.P_256, **device: plant(kind, url, **device),
        serving=serving,
        name_constraints=name_constraints,
        dns=dns,
        codes=codes,
        replace=replace,
    )
