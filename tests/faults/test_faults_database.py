"""Somebody else holds the database, or it is gone: 503 and when to come back, nothing signed; when it is back it goes on by itself."""

from __future__ import annotations

import base64
import sqlite3
from contextlib import closing

import oracles
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from est_client import Door, p256_request, trust


def test_locked_and_gone(own_plant) -> None:
    plant = own_plant
    plant.start()
    context, serials = trust(plant), ("before", "locked", "gone")
    tokens = plant.tokens("ecc-devices", *serials)
    requests = {serial: p256_request(serial) for serial in serials}
    received = []

    def enroll(serial: str) -> int:
        with Door(plant, context, timeout=30) as door:
            reply = door.enroll("ecc-devices", serial, tokens[serial], requests[serial])
        if reply.status == 200:
            received.append(reply.certificate)
        else:
            assert (reply.status, int(reply.headers["retry-after"]) > 0) == (503, True), reply
            assert b"database" in reply.body
        return reply.status

    def status(der: bytes) -> ocsp.OCSPResponse:
        certificate, issuer = (x509.load_der_x509_certificate(octets) for octets in (der, plant.get("/aia/ecc-issuing.cer")))
        request = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA256()).build().public_bytes(Encoding.DER)
        path = base64.b64encode(request).decode().replace("/", "%2F").replace("+", "%2B")
        return ocsp.load_der_ocsp_response(plant.get(f"/ocsp/{path}", timeout=30))

    assert enroll("before") == 200
    signed = len(oracles.signatures(plant.home))
    with closing(sqlite3.connect(plant.home / "db" / "ironroot.db", isolation_level=None)) as somebody:
        somebody.execute("BEGIN EXCLUSIVE")
        assert enroll("locked") == 503
        assert status(received[0]).certificate_status is ocsp.OCSPCertStatus.GOOD  # readers go on
        assert plant.get("/crl/ecc-issuing.crl")
    plant.until(lambda: enroll("locked") == 200, "the lock to be seen gone")
    database, away = plant.home / "db" / "ironroot.db", plant.home / "db" / "away.db"
    certificates = [entry for entry in oracles.signatures(plant.home)[signed:] if entry["purpose"] == "certificate"]
    assert len(certificates) == 1
    database.rename(away)
    try:
        assert enroll("gone") == 503
        assert plant.status("/livez") == 200
        assert not database.exists()  # no new and empty one in its place
    finally:
        away.rename(database)
    plant.until(lambda: enroll("gone") == 200, "the database to be seen again")
    oracles.check(plant, received)
    assert plant.stop() == 0
