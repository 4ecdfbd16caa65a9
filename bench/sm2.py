"""SM2 in one process: signing, verifying, proof of possession of a request, against ``openssl speed`` of the same run."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.plant import finish, openssl_speed
from pkix.algorithms import KeyKind, load_public_key
from pkix.csr import build_csr, parse_csr
from pkix.name import name
from pkix.privatekey import generate


def main() -> None:
    """``scripts/bench sm2``."""
    sign, verify = openssl_speed("sm2")
    key = generate(KeyKind.SM2)
    message = b"m" * 400
    signature, csr = key.sign(message), build_csr(key, name(("CN", "bench")))
    figures: dict[str, object] = {"openssl_sign_per_second": round(sign), "openssl_verify_per_second": round(verify)}
    for label, work, baseline in (
        ("sign", lambda: key.sign(message), sign),
        ("verify", lambda: key.public_key.verify(signature, message), verify),
        ("verify_new_key", lambda: load_public_key(key.public_key.spki).verify(signature, message), verify),
        ("parse_csr", lambda: parse_csr(csr), verify),
    ):
        speed = per_second(work)
        figures[f"{label}.per_second"] = round(speed)
        figures[f"{label}.ratio_to_openssl"] = round(speed / baseline, 3)
    finish("sm2", figures)


def per_second(work: Callable[[], object], seconds: float = 1.0, rounds: int = 5) -> float:
    """Calls a second of CPU time, the median of some rounds."""
    measured = []
    for _ in range(rounds):
        count, began = 0, time.process_time()
        while time.process_time() - began < seconds / rounds:
            for _ in range(20):
                work()
            count += 20
        measured.append(count / (time.process_time() - began))
    return sorted(measured)[len(measured) // 2]
