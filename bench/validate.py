"""Validation in one process, one core: cold, warm and again, against the bare signature verifications of the same run.

- cold: a chain of three of which nothing but the root was seen before: two signatures; OCSP answers for both links are in the cache.
- warm: a new end entity of an issuer that was seen: one signature; its OCSP answer is in the cache.
- again: the same certificate as before.

The bare verification is the signature library's own call on the same signatures, with keys that are loaded. The rounds of all of them
take turns, so that a machine that slows down slows them alike.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import _lru_cache_wrapper
from itertools import count
from typing import Any, NamedTuple

from bench.plant import finish
from pkix import extensions
from pkix.algorithms import SIGNATURES, KeyKind
from pkix.certificate import Certificate, assemble, build_tbs, parse_certificate
from pkix.name import name
from pkix.privatekey import PrivateKey, generate
from validate import Basis, Expected, Memory, Policy, anchors, validate_sync
from validate.status import Revocation
from validate.status_store import Kept, issuer_key

NOW = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
DAY = timedelta(days=1)
URL = "http://pki.plant.example"
_serials = count(1 << 120)


Asked = tuple[Expected, bytes, bytes]
"""Who the peer should be, and the chain that it presents."""


class Party(NamedTuple):
    """Somebody with a key and a certificate."""

    key: PrivateKey
    certificate: Certificate


def issue(issuer: Party | None, cn: str, key: PrivateKey, *, ca: bool) -> Party:
    """A certificate as the house's profiles write them."""
    by = issuer.key if issuer else key
    listed = [extensions.basic_constraints(True, None if issuer is None else 0)] if ca else []
    listed += [extensions.key_usage(*(("keyCertSign", "cRLSign") if ca else ("digitalSignature",)))]
    listed += [] if ca else [extensions.extended_key_usage("clientAuth")]
    listed += [] if ca else [extensions.subject_alternative_name(f"uri:urn:ironroot:device:ecc-devices:{cn}")]
    listed += [extensions.subject_key_identifier(key.public_key)]
    listed += [extensions.authority_key_identifier(issuer.certificate)] if issuer else []
    listed += [extensions.authority_information_access([f"{URL}/ocsp"], [f"{URL}/aia/x.cer"])] if issuer else []
    listed += [extensions.crl_distribution_points(f"{URL}/crl/x.crl")] if issuer else []
    who = name(("O", "Example Plant"), ("CN", cn))
    tbs = build_tbs(
        serial=next(_serials),
        issuer=issuer.certificate.subject if issuer else who,
        subject=who,
        not_before=NOW - DAY,
        not_after=NOW + 90 * DAY,
        public_key=key.public_key,
        signature=SIGNATURES[by.kind],
        extensions=listed,
    )
    return Party(key, parse_certificate(assemble(tbs, SIGNATURES[by.kind], by.sign(tbs))))


def main() -> None:
    """``scripts/bench validate [--count N] [--rounds N]``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200, help="chains of each round")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    figures: dict[str, object] = {}
    for kind in (KeyKind.P_256, KeyKind.SM2):
        figures |= _measure(kind, options.count, options.rounds)
    finish("validate", figures)


def _measure(kind: KeyKind, size: int, rounds: int) -> dict[str, object]:
    root = issue(None, "root", generate(kind), ca=True)
    issuing = issue(root, "issuing", generate(kind), ca=True)
    policy, status, memory = Policy(anchors=anchors(root.certificate)), Revocation(), Memory()

    def known(issuer: Party, party: Party) -> Party:
        """``party``, with an OCSP answer about it in the cache."""
        basis = Basis("good", "ocsp", url=f"{URL}/ocsp", produced_at=NOW, this_update=NOW, until=NOW + DAY)
        status.store.keep_answer((party.certificate.sha256, issuer_key(issuer.certificate)), Kept(basis, NOW + DAY, status.store.lists))
        return party

    def judge(asked: Asked) -> None:
        expected, *chain = asked
        result = validate_sync(chain, purpose="tls-client", expected=expected, now=NOW, policy=policy, status=status, memory=memory)
        assert result.good, result.sentence()

    def device(cn: str, issuer: Party) -> Party:
        return known(issuer, issue(issuer, cn, generate(kind), ca=False))

    def verify(one: Certificate) -> None:
        signer.verify(one.signature, one.tbs, one.signature_algorithm)

    signer = issuing.certificate.public_key
    known(root, issuing)
    judge(_asked(device("first", issuing), issuing))
    speeds: dict[str, list[float]] = {"bare": [], "cold": [], "warm": [], "again": []}
    for turn in range(rounds):
        cas = [known(root, issue(root, f"issuing {turn} {n}", generate(kind), ca=True)) for n in range(size)]
        below = [device(f"below-{turn}-{n}", ca) for n, ca in enumerate(cas)]
        fresh = [device(f"fresh-{turn}-{n}", issuing) for n in range(size)]
        new = [_asked(leaf, ca) for leaf, ca in zip(below, cas, strict=True)]
        seen = [_asked(leaf, issuing) for leaf in fresh]
        _forget()
        speeds["bare"].append(_rate(verify, [leaf.certificate for leaf in fresh]))
        speeds["cold"].append(_rate(judge, new))
        speeds["warm"].append(_rate(judge, seen))
        judge(_asked(fresh[0], issuing))
        speeds["again"].append(_rate(judge, [_asked(fresh[0], issuing) for _ in range(10 * size)]))
    return _figures(kind, speeds)


def _asked(device: Party, issuer: Party) -> Asked:
    """Octets and names of their own, as off the network: no hash of them is known yet."""
    (name,) = device.certificate.names
    leaf, ca = (bytes(bytearray(party.certificate.der)) for party in (device, issuer))
    return Expected(str(bytes(name, "ascii"), "ascii")), leaf, ca


def _forget() -> None:
    """Empties the caches of functions: whoever made the certificates has read them, loaded their keys and compared their names."""
    for cache in [found for found in gc.get_objects() if isinstance(found, _lru_cache_wrapper)]:
        cache.cache_clear()


def _rate(work: Callable[[Any], object], inputs: Iterable[Any]) -> float:
    """Calls a second of CPU time; the garbage of making the inputs is not theirs."""
    given = list(inputs)
    gc.collect()
    began = time.process_time()
    for one in given:
        work(one)
    return len(given) / (time.process_time() - began)


def _figures(kind: KeyKind, speeds: dict[str, list[float]]) -> dict[str, object]:
    """Medians; ratios are taken round by round, where both sides had the same machine."""
    found: dict[str, object] = {f"{kind}.{label}.per_second": round(statistics.median(values)) for label, values in speeds.items()}
    for label, verifications, unit in (("cold", 2, "two_verifications"), ("warm", 1, "one_verification")):
        ratios = [verifications * speed / bare for speed, bare in zip(speeds[label], speeds["bare"], strict=True)]
        found[f"{kind}.{label}.ratio_to_{unit}"] = round(statistics.median(ratios), 3)
    return found


if __name__ == "__main__":
    main()
