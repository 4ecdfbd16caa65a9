"""Every sentence that a validation can say, in English and Chinese, by its stable code.

    say("expired", who=certificate, at=certificate.not_after).zh

Values may be certificates (shown by subject), names, times, texts, functions that return one of these, or anything with a ``str``. What
came out of a certificate is shown without control characters and cut at 200 characters: it may be hostile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, reduce
from typing import NamedTuple

from pkix.certificate import Certificate
from pkix.name import Name
from validate.status_text import SENTENCES


class Text(NamedTuple):
    """A sentence in both languages, and the code it goes by. It is put into words when somebody reads it: most are never read."""

    code: str
    sentence: str
    values: Mapping[str, object]

    @property
    def en(self) -> str:
        """In English."""
        return self._worded(0)

    @property
    def zh(self) -> str:
        """In Chinese."""
        return self._worded(1)

    def _worded(self, language: int) -> str:
        sentence = CATALOGUE[self.sentence][language]
        return sentence.format(**{key: _shown(value, language) for key, value in self.values.items()}) if self.values else sentence


CATALOGUE: dict[str, tuple[str, str]] = {
    # Verdicts
    "good": ("Good: {who}, issued by {issuer}; {status}.", "有效：{who}，由 {issuer} 签发；{status}。"),
    "both": ("{first}; {second}", "{first}；{second}"),
    "not_good": ("Not good: {why}.", "无效：{why}。"),
    "status_good": ("not revoked ({source})", "未吊销（{source}）"),
    "status_unasked": ("revocation was not looked at", "未检查吊销状态"),
    "status_none": ("its revocation status could not be had, which the policy forgives", "无法取得吊销状态，策略允许忽略"),
    "status_exempt": ("no revocation status is due", "无需检查吊销状态"),
    "status_anchor": ("it is itself a trust anchor", "其本身就是信任锚"),
    "from_push": ("pushed by its CA, {at}", "由其 CA 推送，{at}"),
    "from_delta": ("delta CRL of {url}, issued {at}", "{url} 的增量 CRL，{at} 签发"),
    "from_delta_supplied": ("delta CRL handed in, issued {at}", "随附的增量 CRL，{at} 签发"),
    "from_none": ("from nobody", "无来源"),
    "from_ocsp": ("OCSP of {url}, produced {at}", "{url} 的 OCSP，{at} 产生"),
    "from_crl": ("CRL of {url}, issued {at}", "{url} 的 CRL，{at} 签发"),
    "from_staple": ("OCSP response handed in, produced {at}", "随附的 OCSP 响应，{at} 产生"),
    "from_crl_supplied": ("CRL handed in, issued {at}", "随附的 CRL，{at} 签发"),
    # Path
    "malformed": ("the certificate cannot be read: {why}", "无法解析证书：{why}"),
    "unknown_issuer": (
        "{who} was issued by {issuer}, whose certificate is neither trusted nor among those given",
        "{who} 由 {issuer} 签发，其证书既不受信任，也不在所给证书之中",
    ),
    "unreadable_issuer": (
        "{who} was issued by {issuer}, whose certificate is not among those that could be read ({why})",
        "{who} 由 {issuer} 签发，其证书不在可读取的证书之中（{why}）",
    ),
    "bad_signature": (
        "the signature on {who} does not verify with the key of {issuer}: it was altered, or another key signed it",
        "{who} 上的签名无法用 {issuer} 的公钥验证：证书被篡改，或由其他密钥签名",
    ),
    "unsupported_signature": ("the signature on {who} cannot be checked: {why}", "无法检查 {who} 上的签名：{why}"),
    "untrusted_root": ("{who} is its own issuer and is not trusted here", "{who} 为自签发证书，在此不受信任"),
    "circle": ("{who} and the CAs above it only certify each other", "{who} 与其上级 CA 只是相互签发"),
    "path_too_long": ("there are more than {limit} CAs above {who}", "{who} 之上的 CA 超过 {limit} 个"),
    "too_many_certificates": (
        "{count} certificates were presented; at most {limit} are looked at",
        "提交了 {count} 张证书，最多只查看 {limit} 张",
    ),
    "out_of_time": ("no verdict was reached within {seconds} s", "{seconds} 秒内未能得出结论"),
    "too_complex": ("the certificates given allow too many paths to try them all", "所给证书可构成的路径过多，无法逐一尝试"),
    "signed_by": ("its signature verifies with the key of {issuer}", "其签名可用 {issuer} 的公钥验证"),
    "is_anchor": ("{who} is itself a trust anchor", "{who} 本身就是信任锚"),
    # Each certificate
    "bad_key": ("the public key of {who} is not acceptable: {why}", "{who} 的公钥不可接受：{why}"),
    "key_ecc": ("its public key is acceptable, of the international algorithms", "其公钥可接受，属国际算法"),
    "key_sm2": ("its public key is acceptable, of SM2", "其公钥可接受，属 SM2 算法"),
    "key_pq": ("its public key is acceptable, of a post-quantum algorithm", "其公钥可接受，属抗量子算法"),
    "family_not_taken": (
        "{who} has a key of the family {family}, which the policy does not take",
        "{who} 的密钥属于策略不接受的 {family} 体系",
    ),
    "too_weak": (
        "the key of {who} has a strength of {strength} bits, and the policy wants {minimum}",
        "{who} 的密钥强度为 {strength} 位，策略要求 {minimum} 位",
    ),
    "expired": ("{who} expired on {at}", "{who} 已于 {at} 过期"),
    "not_yet_valid": ("{who} is valid only from {at} on", "{who} 自 {at} 起才有效"),
    "valid_until": ("it is valid until {at}", "其有效期至 {at}"),
    "unknown_critical": (
        "{who} has the critical extension {oid}, which is not understood here",
        "{who} 含有此处无法理解的关键扩展 {oid}",
    ),
    "extensions_ok": ("each of its critical extensions is understood", "其每个关键扩展均可理解"),
    "must_be_critical": ("{who} has the extension {oid} not marked critical, which it must be", "{who} 的扩展 {oid} 必须标记为关键"),
    "must_not_be_critical": ("{who} has the extension {oid} marked critical, which it must not be", "{who} 的扩展 {oid} 不得标记为关键"),
    "old_version": ("{who} is an X.509 certificate of version 1 or 2", "{who} 是第 1 或第 2 版 X.509 证书"),
    "bad_serial": ("{who} has a serial number that is not positive", "{who} 的序列号不是正数"),
    "empty_issuer": ("{who} names no issuer", "{who} 没有颁发者名称"),
    "empty_subject": ("a CA in the path has no subject name", "路径中有 CA 没有主体名称"),
    "empty_subject_alternative": (
        "{who} has no subject, and its alternative names are missing or not critical",
        "{who} 没有主体名称，且备用名称缺失或未标记为关键",
    ),
    "bad_name": ("{who} carries {name}, which is no well-formed name", "{who} 含有格式错误的名称 {name}"),
    "no_authority_key": ("{who} has no authority key identifier", "{who} 没有颁发者密钥标识符"),
    "no_subject_key": ("the CA {who} has no subject key identifier", "CA {who} 没有主体密钥标识符"),
    "ca_usage": (
        "in {who}, basic constraints and key usage disagree about its being a CA",
        "{who} 的基本约束与密钥用途在是否为 CA 上不一致",
    ),
    "constraints_in_leaf": ("{who} is no CA and has name constraints", "{who} 不是 CA，却含有名称约束"),
    "profile_ok": ("it is built as RFC 5280 asks", "其结构符合 RFC 5280"),
    # The path as a whole
    "not_ca": ("{issuer} issued a certificate of this path and is no CA", "{issuer} 签发了此路径中的证书，但其不是 CA"),
    "no_cert_sign": (
        "{issuer} may not sign certificates: its key usage lacks keyCertSign",
        "{issuer} 无权签发证书：其密钥用途缺少 keyCertSign",
    ),
    "ca_ok": ("it is a CA that may sign certificates", "其为有权签发证书的 CA"),
    "path_length": (
        "{issuer} may have at most {limit} CAs below it, and has {count}",
        "{issuer} 之下最多可有 {limit} 个 CA，实际有 {count} 个",
    ),
    "path_length_ok": ("it has no more CAs below it than it may", "其下级 CA 的数目未超过限制"),
    "name_constraint": (
        "{issuer} may not certify the name {name} that {who} carries",
        "{issuer} 无权认证 {who} 所含的名称 {name}",
    ),
    "bad_constraint": ("{issuer} has name constraints that cannot be read: {why}", "{issuer} 的名称约束无法读取：{why}"),
    "too_many_names": ("too many names and name constraints to compare them all", "名称与名称约束过多，无法逐一比较"),
    "names_allowed": ("its names are within the name constraints above it", "其名称均在上级名称约束之内"),
    "no_name_constraints": ("no CA above it has name constraints", "其上级 CA 均未设名称约束"),
    "policy_missing": ("the path is good for no certificate policy that is asked for", "该路径不满足所要求的任何证书策略"),
    "bad_policies": ("certificate policy extensions of the path cannot be read: {why}", "路径的证书策略扩展无法读取：{why}"),
    "policies_free": ("nobody requires a certificate policy", "未要求任何证书策略"),
    "policies_ok": ("the path is good for a certificate policy that is asked for", "该路径满足所要求的证书策略"),
    "mixed_families": ("the path mixes algorithm families: {families}", "路径混用了不同的算法体系：{families}"),
    "wrong_purpose": (
        "{who} is not {purpose}: its extended key usage is for other things",
        "{who} 不能{purpose}：其扩展密钥用途为其他用途",
    ),
    "purpose_unnamed": (
        "{who} is not {purpose}: it has no extended key usage that says so",
        "{who} 不能{purpose}：其没有相应的扩展密钥用途",
    ),
    "purpose_not_sole": (
        "{who} is not {purpose}: that extended key usage must stand alone and be critical",
        "{who} 不能{purpose}：该扩展密钥用途必须单独存在并标记为关键",
    ),
    "wrong_usage": ("{who} is not {purpose}: its key usage is {usage}", "{who} 不能{purpose}：其密钥用途为 {usage}"),
    "anchor_purpose": ("{who} is not trusted for what is {purpose}", "{who} 不被信任签发{purpose}的证书"),
    "for_tls-client": ("for a TLS client", "用于 TLS 客户端"),
    "for_tls-server": ("for a TLS server", "用于 TLS 服务器"),
    "for_code": ("for signing code", "用于代码签名"),
    "for_data-signature": ("for signing data", "用于数据签名"),
    "for_data-encryption": ("for encrypting data", "用于数据加密"),
    "for_ocsp-signer": ("for signing OCSP responses", "用于签署 OCSP 响应"),
    "for_time-stamp": ("for signing time stamps", "用于签署时间戳"),
    "for_any": ("for anything", "用于任何目的"),
    "may_tls-client": ("its usages allow a TLS client", "其用途允许 TLS 客户端"),
    "may_tls-server": ("its usages allow a TLS server", "其用途允许 TLS 服务器"),
    "may_code": ("its usages allow signing code", "其用途允许代码签名"),
    "may_data-signature": ("its usages allow signing data", "其用途允许数据签名"),
    "may_data-encryption": ("its usages allow encrypting data", "其用途允许数据加密"),
    "may_ocsp-signer": ("its usages allow signing OCSP responses", "其用途允许签署 OCSP 响应"),
    "may_time-stamp": ("its usages allow signing time stamps", "其用途允许签署时间戳"),
    "any_purpose": ("no purpose was asked for", "未指定用途"),
    "wrong_name": ("{who} is not for {name}; it is for {names}", "{who} 不属于 {name}；它属于 {names}"),
    "names_ok": ("it is the certificate of {names}", "它是 {names} 的证书"),
    "any_name": ("no name was asked for", "未指定名称"),
    # The public web
    "web_ok": ("it obeys the rules of the public web", "其符合公共网络的规则"),
    "web_usage": (
        "{who} must have an extended key usage that is not critical and not for anything",
        "{who} 必须有非关键且不为任意用途的扩展密钥用途",
    ),
    "web_names_critical": ("{who} has a subject, and alternative names that are critical", "{who} 有主体名称，备用名称却标记为关键"),
    "web_wildcard": ("{who} has {name}, a wildcard right below a public suffix", "{who} 含有 {name}，即公共后缀下的通配符"),
    "web_common_name": ("the common name {name} of {who} is none of its alternative names", "{who} 的通用名 {name} 不在其备用名称之中"),
    "web_root_usage": ("the root {who} has an extended key usage", "根证书 {who} 含有扩展密钥用途"),
    "web_root_identifier": (
        "the root {who} has an authority key identifier other than its own",
        "根证书 {who} 的颁发者密钥标识符并非其自身的标识符",
    ),
    # Status
    "revoked": ("{who} was revoked on {at}, reason {reason} ({source})", "{who} 已于 {at} 被吊销，原因 {reason}（{source}）"),
    "on_hold": ("{who} is on hold since {at} ({source})", "{who} 自 {at} 起被冻结（{source}）"),
    "unknown_serial": ("the issuer of {who} does not know it ({source})", "{who} 的颁发者不认得该证书（{source}）"),
    "no_status": ("the revocation status of {who} could not be had: {why}", "无法取得 {who} 的吊销状态：{why}"),
    "not_revoked": ("{who} is not revoked ({source})", "{who} 未被吊销（{source}）"),
    "status_skipped": ("the policy does not ask for revocation status", "策略不要求检查吊销状态"),
    "status_partial": (
        "the revocation status of {who} could not be had, which the policy forgives: {why}",
        "无法取得 {who} 的吊销状态，策略允许忽略：{why}",
    ),
    "no_status_source": ("nobody was given to ask", "未提供可查询的来源"),
    "nowhere": ("it names no OCSP responder and no CRL", "它没有指明 OCSP 服务或 CRL"),
    "not_fetched": ("nothing that was handed in covers it, and nothing may be fetched", "随附材料均不涉及该证书，且不允许联网获取"),
    "unreachable": ("{url} did not answer: {why}", "{url} 没有应答：{why}"),
    "unusable": ("{source} is no use: {why}", "{source} 不可用：{why}"),
    "the_staple": ("an OCSP response that was handed in", "随附的 OCSP 响应"),
    "the_list": ("a CRL that was handed in", "随附的 CRL"),
    "the_responder": ("OCSP of {url}", "{url} 的 OCSP"),
    "the_point": ("the CRL of {url}", "{url} 的 CRL"),
    "unusable_detail": ("{why}", "{why}"),
    "not_about_it": ("it is not about this certificate", "与该证书无关"),
    "too_slow": ("no source answered within {seconds} s", "{seconds} 秒内没有任何来源应答"),
    "from_future": ("it says it was made in the future, at {at}", "其时间在未来：{at}"),
    "stale": ("it was valid only until {at}", "其有效期只到 {at}"),
    "too_old": ("it was made at {at}, longer ago than the policy allows", "它产生于 {at}，早于策略允许的时间"),
    "wrong_nonce": ("it does not repeat our nonce", "它没有带回我方的随机数"),
    "signer_unchecked": ("nothing says that its signer {who} is not revoked", "无法确认其签名者 {who} 未被吊销"),
    "no_next_update": ("it does not say when the next one comes", "未给出下次更新时间"),
    "bad_crl_number": ("its CRL number is missing or critical", "CRL 编号缺失或被标记为关键"),
    "no_crl_sign": ("{issuer} may not sign CRLs: its key usage lacks cRLSign", "{issuer} 无权签发 CRL：其密钥用途缺少 cRLSign"),
    "bad_crl_signature": ("it is not signed with the key of {issuer}", "它不是用 {issuer} 的密钥签名的"),
    "crl_scope": ("it does not cover this certificate: {why}", "它不涵盖该证书：{why}"),
    **SENTENCES,
}


def say(sentence: str, **values: object) -> Text:
    """The sentence of the catalogue with ``values`` to be filled in; its name is its code."""
    return Text(sentence, sentence, values)


def under(code: str, sentence: str, **values: object) -> Text:
    """As ``say``, but going by another code: that of what is wrapped."""
    return Text(code, sentence, values)


def joined(texts: Sequence[Text]) -> Text:
    """Several sentences as one, under the code of the first."""
    return reduce(lambda first, second: under(first.code, "both", first=first, second=second), texts)


def moment(at: datetime) -> str:
    """A time for people and for JSON: ISO 8601, UTC, to the second."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def title(certificate: Certificate) -> str:
    """What a certificate is called in a sentence: its subject, or a name of it, or its serial number."""
    return _name(certificate.subject) or next(iter(certificate.names), f"serial {certificate.serial:x}")


def _shown(value: object, language: int) -> str:
    if callable(value):
        value = value()
    if isinstance(value, Text):
        return value.zh if language else value.en
    if isinstance(value, datetime):
        return moment(value)
    text = title(value) if isinstance(value, Certificate) else _name(value) if isinstance(value, Name) else str(value)
    if not text.isprintable():
        text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= 200 else f"{text[:199]}…"


@lru_cache(maxsize=1024)
def _name(name: Name) -> str:
    return name.text
