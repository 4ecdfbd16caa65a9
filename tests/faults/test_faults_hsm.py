"""The HSM stands still (SIGSTOP): signing says 503 and when to come back, everything else goes on, and nothing is lost or doubled."""

from __future__ import annotations

import base64
import os
import signal

import oracles
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from est_client import Door, p256_request, sm2_request, trust


def question(plant, der: bytes, nonce: bytes | None = None) -> bytes:
    """An OCSP request about a certificate of ecc-issuing."""
    issuer = x509.load_der_x509_certificate(plant.get("/aia/ecc-issuing.cer"))
    builder = ocsp.OCSPRequestBuilder().add_certificate(x509.load_der_x509_certificate(der), issuer, hashes.SHA256())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def ask(plant, request: bytes) -> ocsp.OCSPResponse:
    path = "/ocsp/" + base64.b64encode(request).decode().replace("/", "%2F").replace("+", "%2B")
    return ocsp.load_der_ocsp_response(plant.get(path, timeout=30))


def test_an_hsm_that_hangs(own_plant) -> None:
    plant = own_plant
    plant.start()
    serials = {"ecc-devices": ("calm", "caught", "late"), "sm2-devices": ("other",)}
    tokens = {serial: token for fleet, some in serials.items() for serial, token in plant.tokens(fleet, *some).items()}
    requests = {serial: (sm2_request if serial == "other" else p256_request)(serial) for serial in tokens}
    fleets = {serial: fleet for fleet, some in serials.items() for serial in some}

    def enroll(serial: str):
        with Door(plant, trust(plant), timeout=30) as door:  # the deadline is 5 s: an answer there must be
            return door.enroll(fleets[serial], serial, tokens[serial], requests[serial])

    received = [enroll("calm").certificate]
    known = question(plant, received[0])
    assert ask(plant, known).certificate_status is ocsp.OCSPCertStatus.GOOD
    (hsm,) = plant.children("hsm")
    os.kill(hsm, signal.SIGSTOP)
    try:
        for serial in ("caught", "late", "other"):
            answer = enroll(serial)
            assert answer.status == 503, answer
            assert int(answer.headers["retry-after"]) > 0
            assert b"HSM" in answer.body
        assert plant.status("/livez") == 200
        assert plant.status("/readyz") == 503
        assert plant.get("/crl/ecc-issuing.crl")
        assert ask(plant, known).certificate_status is ocsp.OCSPCertStatus.GOOD  # signed before
        assert ask(plant, question(plant, received[0], b"n" * 16)).response_status is ocsp.OCSPResponseStatus.TRY_LATER
        with Door(plant, trust(plant)) as door:
            assert door.ask("GET", "/.well-known/est/ecc-devices/cacerts").status == 200
            assert door.enroll("ecc-devices", "late", "wrong.token", requests["late"]).status == 401  # refused without asking the HSM
        assert list(oracles.issued(plant.home, "ecc-devices")) == ["calm"]
    finally:
        os.kill(hsm, signal.SIGCONT)
    plant.wait_ready()
    for serial in ("caught", "late", "other"):
        answers = []
        plant.until(lambda s=serial, a=answers: a.append(enroll(s)) or a[-1].status == 200, f"the certificate of {serial}", seconds=40)
        assert {answer.status for answer in answers} <= {200, 409, 503}
        received.append(answers[-1].certificate)
    assert ask(plant, question(plant, received[-3], b"n" * 16)).response_status is ocsp.OCSPResponseStatus.SUCCESSFUL
    oracles.check(plant, received)
    assert plant.stop() == 0
