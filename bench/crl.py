"""Building a CRL: entries a second and the memory that stays, against ``cryptography``'s builder given one list, in the same run."""

from __future__ import annotations

import argparse
import resource
import time
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bench.plant import finish
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import parse_certificate
from pkix.crl import CrlEntry, build_tbs_crl
from pkix.extensions import authority_key_identifier
from pkix.privatekey import generate


def main() -> None:
    """``scripts/bench crl [--entries N]``."""
    from ironroot.quickstart import Maker

    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=200_000)
    count = parser.parse_args().entries
    now = datetime(2026, 1, 1, tzinfo=UTC)
    issuer = parse_certificate(Maker(KeyKind.P_256, "bench").certificate)
    key = generate(KeyKind.P_256)
    serials = [(1 << 126) + i * 7919 for i in range(count)]
    before, began = _rss(), time.process_time()
    tbs = build_tbs_crl(
        issuer=issuer.subject,
        signature=SIGNATURES[KeyKind.P_256],
        this_update=now,
        next_update=now + timedelta(days=1),
        number=1,
        authority_key_identifier=authority_key_identifier(issuer),
        entries=(CrlEntry(serial, now, 1) for serial in serials),
    )
    key.sign(tbs)
    ours, grown = time.process_time() - began, _rss() - before
    began = time.process_time()
    revoked = [
        x509.RevokedCertificateBuilder()
        .serial_number(serial)
        .revocation_date(now)
        .add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        .build()
        for serial in serials
    ]
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bench")])
    x509.CertificateRevocationListBuilder(name, now, now + timedelta(days=1), [], revoked).sign(
        ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()
    )
    theirs = time.process_time() - began
    finish(
        "crl",
        {
            "entries": count,
            "octets": len(tbs),
            "seconds": round(ours, 3),
            "entries_per_second": round(count / ours),
            "grown_mib": round(grown / 1024),
            "cryptography_seconds": round(theirs, 3),
            "ratio_to_cryptography": round(theirs / ours, 2),
        },
    )


def _rss() -> int:
    """Peak resident memory so far, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
