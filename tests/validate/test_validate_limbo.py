"""Every case of C2SP/x509-limbo. Needs its file: IRONROOT_X509_LIMBO names it; where that is unset, skipped.

Where our verdict is not limbo's, ``DIFFERENT`` says why. Not one of them accepts what RFC 5280 forbids.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from pkix.pem import certificates, decode
from validate import Policy, Result, validate_sync

FILE = os.environ.get("IRONROOT_X509_LIMBO", "")
pytestmark = pytest.mark.skipif(not FILE, reason="IRONROOT_X509_LIMBO does not name the x509-limbo.json to test against")

_TLS = (
    "RFC 8446 4.4.2.2: a key usage without digitalSignature is not for TLS, so a CA certificate is no TLS peer; for purpose any it is good"
)
_CABF = "a rule of the CA/Browser Forum for public web certificates, which RFC 5280 does not have"
_COMMON_NAME = f"{_CABF}: the common name repeats an alternative name. We never look at it, and a device's is its serial number"
_ANCHOR = "who issued a trust anchor, and how it says so, is nobody's business (RFC 5280 6.1.1 (d))"
_SUFFIX = "would need the public suffix list, which is about the public web"
DIFFERENT = {
    # Refused here, good there.
    "pathlen::validation-ignores-pathlen-in-leaf": ("wrong_usage", _TLS),
    "rfc5280::ca-as-leaf": ("wrong_usage", _TLS),
    "webpki::nc::permitted-dns-match-noncritical": ("must_be_critical", "its twin under rfc5280:: demands the refusal"),
    # Good here, refused there.
    "rfc5280::aki::cross-signed-root-missing-aki": ("good", f"marked pedantic; {_ANCHOR}; cve::cve-2024-0567 demands it"),
    "webpki::aki::root-with-aki-missing-keyidentifier": ("good", _ANCHOR),
    "webpki::aki::root-with-aki-authoritycertissuer": ("good", _ANCHOR),
    "webpki::aki::root-with-aki-authoritycertserialnumber": ("good", _ANCHOR),
    "webpki::aki::root-with-aki-all-fields": ("good", _ANCHOR),
    "webpki::aki::root-with-aki-ski-mismatch": ("good", _ANCHOR),
    "webpki::cn::ipv4-hex-mismatch": ("good", _COMMON_NAME),
    "webpki::cn::ipv4-leading-zeros-mismatch": ("good", _COMMON_NAME),
    "webpki::cn::ipv6-uppercase-mismatch": ("good", _COMMON_NAME),
    "webpki::cn::ipv6-uncompressed-mismatch": ("good", _COMMON_NAME),
    "webpki::cn::ipv6-non-rfc5952-mismatch": ("good", _COMMON_NAME),
    "webpki::cn::punycode-not-in-san": ("good", _COMMON_NAME),
    "webpki::cn::utf8-vs-punycode-mismatch": ("good", _COMMON_NAME),
    "webpki::cn::not-in-san": ("good", _COMMON_NAME),
    "webpki::cn::case-mismatch": ("good", _COMMON_NAME),
    "webpki::eku::ee-anyeku": ("good", f"{_CABF}: it names the purpose as well"),
    "webpki::eku::ee-critical-eku": ("good", f"{_CABF}; RFC 5280 4.2.1.12 leaves it to the CA"),
    "webpki::eku::ee-without-eku": ("good", f"{_CABF}; its twin under rfc5280:: demands acceptance"),
    "webpki::eku::root-has-eku": ("good", f"{_CABF}; we take it as a limit on what the root certifies"),
    "webpki::san::public-suffix-multi-label-wildcard-san": ("good", _SUFFIX),
    "webpki::san::public-suffix-private-namespace-wildcard-san": ("good", _SUFFIX),
    "webpki::san::san-critical-with-nonempty-subject": ("good", f"{_CABF}; RFC 5280 4.2.1.6 says SHOULD"),
}

_KINDS = {"DNS": "dns", "IP": "ip", "RFC822": "email"}


@cache
def cases() -> dict[str, dict]:
    return {case["id"]: case for case in json.loads(Path(FILE).read_text())["testcases"]} if FILE else {}


def run(case: dict, purpose: str | None = None) -> Result:
    expected = [case["expected_peer_name"]] if case["expected_peer_name"] else case["expected_peer_names"]
    depth = {} if case["max_chain_depth"] is None else {"max_intermediates": case["max_chain_depth"]}
    policy = Policy(
        purpose=purpose or case["validation_kind"].lower(),
        names=tuple(f"{_KINDS[name['kind']]}:{name['value']}" for name in expected),
        status="offline" if case["crls"] else "none",
        **depth,
    )
    moment = case["validation_time"]
    return validate_sync(
        certificates(case["peer_certificate"])[0],
        chain=[certificates(pem)[0] for pem in case["untrusted_intermediates"]],
        trust=[certificates(pem)[0] for pem in case["trusted_certs"]],
        crls=[der for pem in case["crls"] for _, der in decode(pem)],
        policy=policy,
        now=datetime.fromisoformat(moment) if moment else datetime(2026, 3, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("name", cases() or ["(no file)"])
def test_limbo(name):
    case = cases()[name]
    result = run(case)
    if name in DIFFERENT:
        code, why = DIFFERENT[name]
        assert result.code == code, why
        assert result.good is not (case["expected_result"] == "SUCCESS"), "it agrees now: take it off the list"
    else:
        assert result.good is (case["expected_result"] == "SUCCESS"), result.reason


def test_ca_certificates_in_leaf_position_are_good_where_no_tls_is_asked_for():
    for name in ("pathlen::validation-ignores-pathlen-in-leaf", "rfc5280::ca-as-leaf"):
        assert run(cases()[name], purpose="any").good


def test_the_list_of_differences_is_of_cases_that_exist_and_accepts_nothing_that_rfc_5280_forbids():
    assert DIFFERENT.keys() <= cases().keys()
    accepted = [name for name, (code, _) in DIFFERENT.items() if code == "good"]
    assert [name for name in accepted if not name.startswith("webpki::")] == ["rfc5280::aki::cross-signed-root-missing-aki"]
    assert Counter(name.split("::")[0] for name in DIFFERENT) == {"webpki": 22, "pathlen": 1, "rfc5280": 2}
