"""Issuance over EST: every device its own token and key, TLS, proof of possession, policy, lint, two durable commits, the HSM's process and
its log, verification after signing, audit. Keys and requests are made beforehand.

Baselines in the same run: ``openssl speed`` signing on one core, and a bare aiohttp POST handler behind the same TLS certificate.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import secrets
import sys
from pathlib import Path

from bench.plant import Load, bare_aiohttp, digest, finish, home, load, median, openssl_speed, post, serving
from ca.model import Invitation
from ironroot.settings import Settings
from ironroot.wire import installation
from pkix.algorithms import KeyKind
from pkix.csr import build_csr
from pkix.name import name
from pkix.privatekey import generate

SPEED = {KeyKind.P_256: "ecdsap256", KeyKind.SM2: "sm2"}
FLEETS = {KeyKind.P_256: "ecc-devices", KeyKind.SM2: "sm2-devices"}


def main() -> None:
    """``scripts/bench issue [--requests N] [--rounds N] [--connections N] [--workers 1 2]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=6000, help="P-256 requests a round; SM2: a third of it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    figures: dict[str, object] = {
        "connections": options.connections,
        "on": "TLS, token, PoP, lint, 2 durable commits, audit, HSM log, verify",
    }
    for kind in SPEED:
        signing, _ = openssl_speed(SPEED[kind])
        figures[f"{kind}.openssl_sign_per_second"] = round(signing)
        for workers in options.workers:
            figures |= _measure(kind, workers, options, signing)
    finish("issue", figures)


def _measure(kind: KeyKind, workers: int, options: argparse.Namespace, signing: float) -> dict[str, object]:
    count = options.requests if kind is KeyKind.P_256 else options.requests // 3
    with home() as (folder, http, https):
        with bare_aiohttp(folder, workers) as port:
            request = post("/x", b"x" * 500, {"Content-Type": "application/pkcs10"})
            bare = load([request] * 8000, port, connections=options.connections, tls=True)
        with serving(folder, http, workers):
            load(_requests(folder, kind, 200), https, connections=8, tls=True)  # warm
            runs = [
                _check(load(_requests(folder, kind, count), https, connections=options.connections, tls=True))
                for _ in range(options.rounds)
            ]
            full = sorted(runs, key=lambda run: run.per_second)[len(runs) // 2]
            half = _check(
                load(_requests(folder, kind, count // 2), https, connections=options.connections, tls=True, rate=full.per_second / 2)
            )
    label = f"{kind}.workers{workers}"
    result = {
        f"{label}.per_second": round(full.per_second),
        f"{label}.p50_ms": round(median([run.p50 for run in runs]), 1),
        f"{label}.p99_ms": round(median([run.p99 for run in runs]), 1),
        f"{label}.half_load_p50_ms": round(half.p50, 1),
        f"{label}.half_load_p99_ms": round(half.p99, 1),
        f"{label}.bare_aiohttp_per_second": round(bare.per_second),
        f"{label}.ratio_to_openssl_sign": round(full.per_second / signing, 3),
        f"{label}.ratio_to_bare_aiohttp": round(full.per_second / bare.per_second, 3),
    }
    print(result, file=sys.stderr)
    return result


def _check(run: Load) -> Load:
    if run.refused:
        raise SystemExit(f"{run.refused} of {run.requests} requests were refused")
    return run


def _requests(folder: Path, kind: KeyKind, count: int) -> list[bytes]:
    """So many invited devices, each with a key and a request ready to send."""
    fleet = FLEETS[kind]
    made, invitations = [], []

    async def work() -> None:
        async with installation(Settings.load(folder)) as here:
            now = here.clock.now()
            for _ in range(count):
                device, token = f"B{secrets.token_hex(8)}", secrets.token_urlsafe(32) + "." + "A" * 43
                invitations.append(Invitation(digest(token), fleet, device, (), now, now + here.fleet(fleet).token_lifetime))
                csr = base64.b64encode(build_csr(generate(kind), name(("CN", device))))
                basic = base64.b64encode(f"{device}:{token}".encode()).decode()
                headers = {"Authorization": f"Basic {basic}", "Content-Type": "application/pkcs10"}
                made.append(post(f"/.well-known/est/{fleet}/simpleenroll", csr, headers))
            for start in range(0, count, 1000):
                await here.store.invite(invitations[start : start + 1000], now, actor="bench")

    asyncio.run(work())
    return made
