"""openssl as a relying party: OCSP, CRLs, chains, the issuer found by its address; for SM2 link by link, as openssl 3 needs it."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from programs import SM2_ID, curl, openssl

HASHES = ("sha1", "sha256", "sm3")


def addresses(device) -> dict[str, str]:
    """What the certificate itself says about where to ask."""
    text = openssl("x509", "-in", device.certificate, "-noout", "-ext", "crlDistributionPoints,authorityInfoAccess")
    ocsp, issuer = (re.search(rf"{kind} - URI:(\S+)", text) for kind in ("OCSP", "CA Issuers"))
    crl = re.search(r"Full Name:\s+URI:(\S+)", text)
    assert ocsp, text
    assert issuer, text
    assert crl, text
    return {"ocsp": ocsp[1], "issuer": issuer[1], "crl": crl[1]}


def ask(device, *arguments: str | Path) -> str:
    """``openssl ocsp`` about certificates of this device's authority; verified from the root, so far as openssl can for the family."""
    trust = ("-CAfile", device.root) if device.family == "ecc" else ("-noverify",)
    said = openssl("ocsp", "-issuer", device.issuing, *arguments, *trust)
    if device.family == "ecc":
        assert "Response verify OK" in said
    return said


def sm2_verified(signed: Path, signer: Path) -> bool:
    """Whether an SM2 signature over a signed structure holds, by openssl's dgst (it has no option for the id anywhere else)."""
    parts = re.findall(r"^ *(\d+):d=1 ", openssl("asn1parse", "-inform", "DER", "-in", signed), re.M)
    body, signature = signed.with_suffix(".tbs"), signed.with_suffix(".sig")
    openssl("asn1parse", "-inform", "DER", "-in", signed, "-strparse", parts[0], "-noout", "-out", body)
    openssl("asn1parse", "-inform", "DER", "-in", signed, "-strparse", parts[2], "-noout", "-out", signature)
    key = signed.with_suffix(".pub")
    key.write_text(openssl("x509", "-in", signer, "-noout", "-pubkey"))
    command = ("dgst", "-sm3", "-verify", key, "-sigopt", SM2_ID, "-signature", signature)
    assert "Verification failure" in openssl(*command, signed, fails=True)  # it can say no
    return "Verified OK" in openssl(*command, body)


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_ocsp_good_revoked_and_never_issued(workshop, family) -> None:
    good, revoked = workshop.enrolled(f"{family}-devices"), workshop.revoked(f"{family}-devices", "keyCompromise")
    url = addresses(good)["ocsp"]
    for digest in HASHES:
        asked = [f"-{digest}"]
        for what in (("-cert", good.certificate), ("-cert", revoked.certificate), ("-serial", "0x4142434445464748")):
            asked += [*what, f"-{digest}"]
        said = ask(good, *asked[:-1], "-url", url, "-nonce", "-resp_text")
        assert f"{good.certificate}: good" in said
        assert re.search(rf"{re.escape(str(revoked.certificate))}: revoked\n(\t.*\n)*\tReason: keyCompromise\n", said), said
        assert "0x4142434445464748: unknown" in said  # never "good": we did not issue it
        assert said.count(f"Hash Algorithm: {digest}") == 3
        assert "WARNING" not in said  # the nonce came back
    held = workshop.enrolled(f"{family}-devices")
    workshop.plant.run("cert", "hold", held.serial, "--yes", "--wait")
    assert "Reason: certificateHold" in ask(held, "-cert", held.certificate, "-url", url)
    # The root answers for the issuing authority.
    trust = ("-CAfile", good.root) if family == "ecc" else ("-noverify",)
    assert f"{good.issuing}: good" in openssl("ocsp", "-issuer", good.root, "-cert", good.issuing, "-url", url, *trust)


def test_ocsp_get_can_be_kept_by_caches(workshop, tmp_path) -> None:
    device = workshop.enrolled("ecc-devices")
    request, response = tmp_path / "request", tmp_path / "response"
    openssl("ocsp", "-issuer", device.issuing, "-cert", device.certificate, "-no_nonce", "-reqout", request)
    url = addresses(device)["ocsp"]
    for path in (quote(base64.b64encode(request.read_bytes()), safe=""), base64.b64encode(request.read_bytes()).decode()):
        answer = curl(f"{url}/{path}", "--path-as-is")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/ocsp-response")
        assert re.search(r"max-age=\d+", answer.headers["cache-control"])
        response.write_bytes(answer.body)
        said = ask(device, "-cert", device.certificate, "-respin", response)
        assert f"{device.certificate}: good" in said
        assert "Next Update" in said
    unchanged = curl(f"{url}/{path}", "--path-as-is", "-H", f"If-Modified-Since: {answer.headers['last-modified']}")
    assert unchanged.status in (200, 304)


def test_ocsp_signature_sm2(workshop, tmp_path) -> None:
    """The responder's certificate is in the response, made by the issuing authority for just that, and signed what is in it."""
    device = workshop.enrolled("sm2-devices")
    response, basic = tmp_path / "response", tmp_path / "basic"
    ask(device, "-sm3", "-cert", device.certificate, "-url", addresses(device)["ocsp"], "-respout", response)
    parsed = openssl("asn1parse", "-inform", "DER", "-in", response)
    offset = re.search(r"(\d+):d=\d+ .*OCTET STRING", parsed)
    assert offset
    openssl("asn1parse", "-inform", "DER", "-in", response, "-strparse", offset[1], "-noout", "-out", basic)
    text = openssl("ocsp", "-respin", response, "-resp_text", "-noverify")
    responder = tmp_path / "responder.pem"
    responder.write_text(text[text.index("-----BEGIN") : text.index("-----END") + len("-----END CERTIFICATE-----")] + "\n")
    assert "OCSP Signing" in text
    assert "OCSP No Check" in openssl("x509", "-in", responder, "-noout", "-text")
    assert "OK" in openssl("verify", "-vfyopt", SM2_ID, "-partial_chain", "-CAfile", device.issuing, responder)
    assert sm2_verified(basic, responder)


def test_crl_ecc(workshop, tmp_path) -> None:
    good, revoked = workshop.enrolled("ecc-devices"), workshop.revoked("ecc-devices", "affiliationChanged")
    crls = tmp_path / "crls.pem"
    text = ""
    for issuer, url in ((good.issuing, addresses(good)["crl"]), (good.root, addresses(good)["crl"].replace("issuing", "root"))):
        answer = curl(url)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/pkix-crl")
        (tmp_path / "crl").write_bytes(answer.body)
        assert "verify OK" in openssl("crl", "-inform", "DER", "-in", tmp_path / "crl", "-CAfile", issuer, "-noout")
        text += openssl("crl", "-inform", "DER", "-in", tmp_path / "crl")
    crls.write_text(text)
    check = ("verify", "-x509_strict", "-crl_check_all", "-CRLfile", crls, "-CAfile", good.root, "-untrusted", good.issuing)
    assert f"{good.certificate}: OK" in openssl(*check, good.certificate)
    assert "error 23 at 0 depth lookup: certificate revoked" in openssl(*check, revoked.certificate, fails=True)


def test_crl_sm2(workshop, tmp_path) -> None:
    revoked = workshop.revoked("sm2-devices", "cessationOfOperation")
    for issuer, url in ((revoked.issuing, addresses(revoked)["crl"]), (revoked.root, addresses(revoked)["crl"].replace("issuing", "root"))):
        (tmp_path / "crl").write_bytes(curl(url).body)
        assert sm2_verified(tmp_path / "crl", issuer)
    (tmp_path / "crl").write_bytes(curl(addresses(revoked)["crl"]).body)
    text = openssl("crl", "-inform", "DER", "-in", tmp_path / "crl", "-noout", "-text")
    number = openssl("x509", "-in", revoked.certificate, "-noout", "-serial").strip().partition("=")[2]
    assert re.search(rf"Serial Number: {number}\n.*\n.*\n.*\n +Cessation Of Operation", text), text


def test_verify_sm2_link_by_link(workshop) -> None:
    """openssl 3 gives the id to the leaf's signature alone, so each link is a call of its own."""
    for fleet in ("sm2-devices", "sm2-platforms"):
        device = workshop.enrolled(fleet)
        links = ((device.root, device.root), (device.root, device.issuing), (device.issuing, device.certificate))
        for above, below in links:
            assert "OK" in openssl("verify", "-x509_strict", "-vfyopt", SM2_ID, "-partial_chain", "-CAfile", above, below)
            if above != below:
                openssl("verify", "-vfyopt", "distid:", "-partial_chain", "-CAfile", above, below, fails=True)


def test_verify_purposes_ecc(workshop) -> None:
    device = workshop.enrolled("ecc-devices")
    platform = workshop.enrolled("ecc-platforms", "scada.plant.example", names=("dns:www.plant.example", "ip:192.0.2.7"))
    check = ("verify", "-x509_strict", "-CAfile", device.root, "-untrusted", device.issuing)
    assert "OK" in openssl(*check, "-purpose", "sslclient", device.certificate)
    openssl(*check, "-purpose", "sslserver", device.certificate, fails=True)
    for names in (("-verify_hostname", "www.plant.example"), ("-verify_hostname", "scada.plant.example"), ("-verify_ip", "192.0.2.7")):
        assert "OK" in openssl(*check, "-purpose", "sslserver", *names, platform.certificate)
    openssl(*check, "-verify_hostname", "evil.example", platform.certificate, fails=True)


@pytest.mark.parametrize("family", ["ecc", "sm2"])
def test_the_issuer_is_where_the_certificate_says(workshop, tmp_path, family) -> None:
    device = workshop.enrolled(f"{family}-devices")
    answer = curl(addresses(device)["issuer"])
    assert (answer.status, answer.headers["content-type"]) == (200, "application/pkix-cert")
    (tmp_path / "issuer").write_bytes(answer.body)
    assert openssl("x509", "-inform", "DER", "-in", tmp_path / "issuer") == device.issuing.read_text()
    above = openssl("x509", "-in", device.issuing, "-noout", "-ext", "authorityInfoAccess")
    root = curl(re.findall(r"CA Issuers - URI:(\S+)", above)[0])
    assert openssl("x509", "-inform", "DER", feed=root.body) == device.root.read_text()


@pytest.mark.parametrize("version", ["1_2", "1_3"])
def test_s_client_sees_a_whole_chain(workshop, version) -> None:
    address = ("-connect", f"127.0.0.1:{workshop.plant.https}")
    trust = ("-CAfile", workshop.folder / "ecc-root.pem", "-verify_return_error", "-showcerts")
    for name in (("-verify_hostname", "localhost"), ("-verify_ip", "127.0.0.1"), ("-verify_ip", "::1")):
        said = openssl("s_client", *address, f"-tls{version}", *trust, *name)
        assert "Verify return code: 0 (ok)" in said
        assert f"TLSv{version.replace('_', '.')}" in said
        chain = re.findall(r"^ \d s:(.*)$", said, re.M)  # the root is the client's own business
        assert chain == ["O = ironroot, CN = ironroot-service", "O = ironroot, CN = ecc-issuing"]
    openssl("s_client", *address, *trust, "-verify_hostname", "evil.example", fails=True)


@pytest.mark.parametrize("old", ["-tls1", "-tls1_1"])
def test_s_client_old_versions_are_refused(workshop, old) -> None:
    said = openssl("s_client", "-connect", f"127.0.0.1:{workshop.plant.https}", old, "-cipher", "ALL:@SECLEVEL=0", fails=True)
    assert "Cipher is (NONE)" in said
