"""OCSP over HTTP on loopback: GET and POST of certificates that exist, in random order, answers kept while the status stands; and POST with
a nonce, where every answer is signed anew.

Baselines in the same run: ``openssl speed`` signing, a bare aiohttp handler, and ``openssl ocsp`` as a server (a connection a request).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import secrets
import sys
import urllib.parse
from pathlib import Path

from bench.issue import FLEETS, SPEED, _requests
from bench.plant import Load, bare_aiohttp, finish, get, home, load, median, openssl_speed, post, serving
from ironroot.settings import Settings
from ironroot.wire import installation
from pkix.algorithms import KeyKind
from pkix.ocsp import build_request, cert_id

_CERTIFICATES = 500


def main() -> None:
    """``scripts/bench ocsp [--requests N] [--rounds N] [--connections N] [--workers 1 2]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    figures: dict[str, object] = {"connections": options.connections, "certificates": _CERTIFICATES, "hash": "sha1"}
    for kind in SPEED:
        signing, _ = openssl_speed(SPEED[kind])
        figures[f"{kind}.openssl_sign_per_second"] = round(signing)
        for workers in options.workers:
            figures |= _measure(kind, workers, options, signing)
    finish("ocsp", figures)


def _measure(kind: KeyKind, workers: int, options: argparse.Namespace, signing: float) -> dict[str, object]:
    result: dict[str, object] = {}
    with home() as (folder, http, https):
        with bare_aiohttp(folder, workers) as port:
            bare = load([get("/x")] * options.requests, port, connections=options.connections, tls=True)
        with serving(folder, http, workers):
            load(_requests(folder, kind, _CERTIFICATES), https, connections=16, tls=True)
            asked = asyncio.run(_questions(folder, kind))
            shapes = {
                "get": [get("/ocsp/" + urllib.parse.quote(base64.b64encode(one).decode(), safe="")) for one, _ in asked],
                "post": [post("/ocsp", one, {"Content-Type": "application/ocsp-request"}) for one, _ in asked],
                "nonce": [post("/ocsp", one, {"Content-Type": "application/ocsp-request"}) for _, one in asked],
            }
            for shape, requests in shapes.items():
                count = options.requests if shape != "nonce" else options.requests // 5
                chosen = random.Random(1).choices(requests, k=count)
                load(requests, http, connections=8, tls=False)  # fills the cache
                runs: list[Load] = [load(chosen, http, connections=options.connections, tls=False) for _ in range(options.rounds)]
                speed = median([run.per_second for run in runs])
                label = f"{kind}.workers{workers}.{shape}"
                result[f"{label}.per_second"] = round(speed)
                result[f"{label}.p50_ms"] = round(median([run.p50 for run in runs]), 2)
                result[f"{label}.p99_ms"] = round(median([run.p99 for run in runs]), 2)
                result[f"{label}.ratio_to_bare_aiohttp"] = round(speed / bare.per_second, 3)
                result[f"{label}.ratio_to_openssl_sign"] = round(speed / signing, 3)
    print(result, file=sys.stderr)
    return result


async def _questions(folder: Path, kind: KeyKind) -> list[tuple[bytes, bytes]]:
    """For every certificate an OCSP request without and with a nonce."""
    async with installation(Settings.load(folder)) as here:
        issuer = here.authority(here.fleet(FLEETS[kind]).authority).certificate
        records = await here.store.page(limit=_CERTIFICATES, fleet=FLEETS[kind])
        ids = [cert_id("sha1", issuer, record.serial) for record in records]
        return [(build_request([one]), build_request([one], nonce=secrets.token_bytes(32))) for one in ids]
