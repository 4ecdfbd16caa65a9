"""Every case of C2SP/x509-limbo. Needs its file: IRONROOT_X509_LIMBO names it; where that is unset, skipped.

Where our verdict is not limbo's, ``DIFFERENT`` says why. Not one of them accepts what RFC 5280 forbids.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from pkix.pem import certificates, decode
from validate import Expected, Policy, Result, anchors, validate_sync
from validate.status import Revocation

FILE = os.environ.get("IRONROOT_X509_LIMBO", "")
pytestmark = pytest.mark.skipif(not FILE, reason="IRONROOT_X509_LIMBO does not name the x509-limbo.json to test against")

_TLS = (
    "RFC 8446 4.4.2.2: a key usage without digitalSignature is not for TLS, so a CA certificate is no TLS peer; for purpose any it is good"
)
_ANCHOR = "who issued a trust anchor, and how it says so, is nobody's business (RFC 5280 6.1.1 (d))"
_COMMON_NAME = "its common name is none of its alternative names (BR 7.1.4.3); webpki::cn::not-in-san demands the refusal"
DIFFERENT = {
    # Refused here, good there.
    "pathlen::validation-ignores-pathlen-in-leaf": ("wrong_usage", _TLS),
    "rfc5280::ca-as-leaf": ("wrong_usage", _TLS),
    "webpki::nc::nc-permits-dns-san-pattern": ("web_common_name", _COMMON_NAME),
    "webpki::san::exact-localhost-ip-san": ("web_common_name", _COMMON_NAME),
    "webpki::san::leftmost-wildcard-san": ("web_common_name", _COMMON_NAME),
    # Good here, refused there.
    "rfc5280::aki::cross-signed-root-missing-aki": ("good", f"marked pedantic; {_ANCHOR}; cve::cve-2024-0567 demands it"),
}

SUFFIXES = frozenset(("com", "uk", "co.uk", "amazonaws.com", "s3.amazonaws.com"))
"""An excerpt of the public suffix list, which the caller of ``web_pki`` supplies."""
_KINDS = {"DNS": "dns", "IP": "ip", "RFC822": "email"}


@cache
def cases() -> dict[str, dict]:
    return {case["id"]: case for case in json.loads(Path(FILE).read_text())["testcases"]} if FILE else {}


def run(case: dict, purpose: str | None = None, web: bool | None = None) -> Result:
    """Cases under ``webpki::`` with the rules of the public web, all others without."""
    expected = [case["expected_peer_name"]] if case["expected_peer_name"] else case["expected_peer_names"]
    depth = {} if case["max_chain_depth"] is None else {"max_intermediates": case["max_chain_depth"]}
    web = case["id"].startswith("webpki::") if web is None else web
    policy = Policy(
        anchors=anchors(*(certificates(pem)[0] for pem in case["trusted_certs"])),
        status="offline" if case["crls"] else "none",
        web_pki=web,
        public_suffixes=SUFFIXES if web else frozenset(),
        **depth,
    )
    moment = case["validation_time"]
    return validate_sync(
        [certificates(pem)[0] for pem in (case["peer_certificate"], *case["untrusted_intermediates"])],
        purpose=purpose or f"tls-{case['validation_kind'].lower()}",
        expected=Expected(*(f"{_KINDS[name['kind']]}:{name['value']}" for name in expected)),
        crls=[der for pem in case["crls"] for _, der in decode(pem)],
        status=Revocation(),
        policy=policy,
        now=datetime.fromisoformat(moment) if moment else datetime(2026, 3, 1, tzinfo=UTC),
    )


@pytest.mark.parametrize("name", cases() or ["(no file)"])
def test_limbo(name):
    case = cases()[name]
    result = run(case)
    assert result.good is not any(check.outcome == "failed" for check in result.checks)
    if name in DIFFERENT:
        code, why = DIFFERENT[name]
        assert result.code == code, why
        assert result.good is not (case["expected_result"] == "SUCCESS"), "it agrees now: take it off the list"
    else:
        assert result.good is (case["expected_result"] == "SUCCESS"), result.sentence()


def test_ca_certificates_in_leaf_position_are_good_where_no_tls_is_asked_for():
    for name in ("pathlen::validation-ignores-pathlen-in-leaf", "rfc5280::ca-as-leaf"):
        assert run(cases()[name], purpose="any").good


def test_refusals_for_the_common_name_are_of_the_public_web_alone():
    for name, (code, _) in DIFFERENT.items():
        if code == "web_common_name":
            assert run(cases()[name], web=False).good


def test_the_list_of_differences_is_of_cases_that_exist():
    assert DIFFERENT.keys() <= cases().keys()
