"""What finding out about revocation can say, in English and Chinese; part of the catalogue of ``validate.text``."""

from __future__ import annotations

SENTENCES: dict[str, tuple[str, str]] = {
    "out_of_patience": ("there was no more time to wait for it", "等待时间已用完"),
    "ocsp_error": ("the responder gave no answer but {name}", "响应者未作答复，只返回 {name}"),
    "the_delta": ("a delta CRL", "一份增量 CRL"),
    "crl_is_delta": ("it is a delta CRL and complete only together with another", "它是增量 CRL，须与完整 CRL 一并使用"),
    "scope_point": ("it is for another distribution point", "它属于另一个分发点"),
    "scope_users": ("it is for end entity certificates only", "它仅用于终端实体证书"),
    "scope_cas": ("it is for CA certificates only", "它仅用于 CA 证书"),
    "scope_attributes": ("it is for attribute certificates only", "它仅用于属性证书"),
    "scope_reasons": (
        "the reasons it is for are covered already, or not those of the distribution point",
        "其吊销原因已覆盖，或不属于该分发点",
    ),
    "scope_not_indirect": (
        "its issuer is another than the certificate's, and it does not call itself indirect",
        "其颁发者并非证书颁发者，且未声明为间接 CRL",
    ),
    "crl_reasons": ("the CRLs to be had do not cover every reason for revocation", "可取得的 CRL 未覆盖所有吊销原因"),
    "crl_signer": (
        "its signer {who} is not good under the trust anchor of this certificate",
        "其签名者 {who} 在该证书的信任锚之下无效",
    ),
    "crl_circular": ("its signer would vouch for itself", "其签名者在为自己作证"),
    "delta_numbers": ("its numbers do not fit the complete CRL", "其编号与完整 CRL 不相符"),
    "delta_scope": ("its issuer, key identifier or scope is not that of the complete CRL", "其颁发者、密钥标识符或范围与完整 CRL 不同"),
    "delta_key": ("another key signed it than the complete CRL", "其签名密钥与完整 CRL 不同"),
}
