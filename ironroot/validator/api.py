"""What goes over the wire: requests, verdicts and problems in JSON, and their OpenAPI description. No I/O.

    request = read_request(body)                       # or Problem
    document(judge_result, explain=request.explain)    # octets of the answer

The models are the description: ``openapi`` is made from them, and a test holds real answers against it.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema

from pkix import pem
from pkix.errors import IronrootError, Malformed, TooLarge
from validate.model import Outcome, Purpose, Result, Source, Standing

MAX_BODY = 1 << 20
"""Octets of a request, a batch included."""
MAX_BATCH = 64
MAX_CERTIFICATES = 32
"""Of one request: the end entity's, and those that came with it."""
_MAX_TEXT = 100_000
_MAX_NAMES = 32
_MAX_STAPLES = 8

Encoded = Annotated[str, Field(min_length=1, max_length=_MAX_TEXT)]


class Request(BaseModel):
    """Is this peer good, now, for this purpose?"""

    model_config = ConfigDict(frozen=True, extra="forbid")

    certificate: Encoded = Field(
        description="The peer's certificate: PEM, or base64 of DER. PEM may hold its chain too, the end entity first.",
        examples=["-----BEGIN CERTIFICATE-----\n…"],
    )
    chain: tuple[Encoded, ...] = Field((), max_length=MAX_CERTIFICATES, description="Other certificates that it presented, in any order.")
    purpose: Purpose = Field("any", description="What it wants to be used for.")
    names: tuple[Annotated[str, Field(max_length=1000)], ...] = Field(
        (),
        max_length=_MAX_NAMES,
        description="What it must be called, each of them: dns:HOST, ip:ADDRESS, uri:URI, email:ADDRESS, device:FLEET/SERIAL, id:TEXT.",
        examples=[["device:ecc-devices/plc-7"]],
    )
    staples: tuple[Encoded, ...] = Field((), max_length=_MAX_STAPLES, description="OCSP responses from the TLS handshake, base64 of DER.")
    now: AwareDatetime | None = Field(None, description="The moment to judge for; refused unless the validator is in test mode.")
    explain: bool = Field(False, description="Whether the answer says everything that was looked at.")

    def certificates(self) -> list[bytes]:
        """DER of what was presented, the end entity first. Raises Problem."""
        found = [der for at, text in enumerate((self.certificate, *self.chain)) for der in _ders(text, at)]
        if len(found) > MAX_CERTIFICATES:
            where = "/chain" if self.chain else "/certificate"
            raise Problem(Malformed(f"{len(found)} certificates, and {MAX_CERTIFICATES} are taken"), where)
        return found

    def responses(self) -> list[bytes]:
        """DER of the staples. Raises Problem."""
        return [_base64(text, f"/staples/{at}") for at, text in enumerate(self.staples)]


class CertificateView(BaseModel):
    """One certificate of the path."""

    model_config = ConfigDict(extra="forbid")

    subject: str = Field(description="RFC 4514.")
    serial: str = Field(description="Hexadecimal.")
    sha256: str = Field(description="Fingerprint of its DER.")


class CheckView(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(extra="forbid")

    name: str
    outcome: Outcome
    code: str = Field(description="Stable name of the sentence.")
    text: str
    text_zh: str
    clause: str = Field(description="Where the rule stands.")
    certificate: int | None = Field(description="Position in the path of the certificate that it is about.")


class BasisView(BaseModel):
    """What the revocation status of one certificate rests on; times in UTC."""

    model_config = ConfigDict(extra="forbid")

    standing: Standing
    source: Source
    url: str
    produced_at: str | None
    until: str | None
    revoked_at: str | None
    reason: str | None
    detail: str | None


class VerdictView(BaseModel):
    """The verdict."""

    model_config = ConfigDict(extra="forbid")

    good: bool
    code: str = Field(description="good, or the stable name of what is wrong.")
    reason: str = Field(description="One sentence for a person.")
    reason_zh: str
    at: str = Field(description="The moment judged for.")
    path: list[CertificateView] = Field(description="From the peer to the anchor; empty if none was found.")
    basis: list[BasisView] = Field(description="For each certificate of the path below the anchor.")
    checks: list[CheckView] | None = Field(None, description="Only where the request says explain.")


class FieldError(BaseModel):
    """Where a request is wrong."""

    pointer: str = Field(description="JSON Pointer (RFC 6901) into the request.")
    detail: str


class ProblemView(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError] = []


_TITLES = {
    400: "The request is wrong",
    401: "Not authenticated",
    403: "Refused",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    413: "Too large",
    415: "Unsupported media type",
    500: "An error of ours",
    503: "Unavailable",
}


class Problem(Exception):
    """A request that gets no verdict, as RFC 9457 says it.

    Args:
        error: what is wrong; its status and code are those of the answer.  pointer: where in the request.  status: another one.
    """

    def __init__(self, error: IronrootError, pointer: str | None = None, *, status: int | None = None) -> None:
        super().__init__(str(error))
        self.status = status or error.status
        self.retry_after = error.retry_after
        self._code = error.code
        self._errors = [{"pointer": pointer, "detail": str(error)}] if pointer is not None else []

    def under(self, prefix: str) -> Problem:
        """The same, in a part of a larger request."""
        for error in self._errors:
            error["pointer"] = f"{prefix}{error['pointer']}"
        return self

    def add(self, pointer: str, detail: str) -> None:
        """Another place."""
        self._errors.append({"pointer": pointer, "detail": detail})

    def as_dict(self) -> dict[str, object]:
        """The members of RFC 9457 3.1, and ``code`` and ``errors``."""
        members: dict[str, object] = {
            "type": f"urn:ironroot:problem:{self._code}",
            "title": _TITLES.get(self.status, "Problem"),
            "status": self.status,
            "detail": str(self),
            "code": self._code,
        }
        return members | ({"errors": self._errors} if self._errors else {})


_ONE = TypeAdapter(Request)
_BATCH: TypeAdapter[list[Request]] = TypeAdapter(Annotated[list[Request], Field(min_length=1, max_length=MAX_BATCH)])


def read_requests(body: bytes) -> tuple[list[Request], bool]:
    """The requests in a body, and whether they came as a batch (an array). Raises Problem."""
    batch = body.lstrip()[:1] == b"["
    try:
        return (_BATCH.validate_json(body), True) if batch else ([_ONE.validate_json(body)], False)
    except ValidationError as error:
        raise problem_of(error) from None


def problem_of(error: ValidationError) -> Problem:
    """What pydantic says of a request, without repeating what was in it."""
    wrong = [("".join(f"/{_escaped(part)}" for part in e["loc"]), e["msg"]) for e in error.errors(include_input=False, include_url=False)]
    if wrong[0][0] == "":
        return Problem(Malformed(f"The body is no request in JSON: {wrong[0][1]}"))
    problem = Problem(Malformed("The request has members that are missing, unknown or wrong; errors says which."))
    for pointer, detail in wrong[:16]:
        problem.add(pointer, detail)
    return problem


def _escaped(part: int | str) -> str:
    return str(part)[:64].replace("~", "~0").replace("/", "~1")


def document(result: Result, *, explain: bool) -> dict[str, Any]:
    """A verdict in types that JSON knows: ``VerdictView`` without ``at``."""
    said = (result if explain else replace(result, checks=())).as_dict()
    del said["at"]
    if not explain:
        del said["checks"]
    return said


def dumps(value: object) -> bytes:
    """JSON as it goes out."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def too_large() -> Problem:
    """A body over ``MAX_BODY``."""
    return Problem(TooLarge(f"The request is longer than {MAX_BODY} octets. Send fewer at once."))


def _ders(text: str, at: int) -> list[bytes]:
    where = f"/chain/{at - 1}" if at else "/certificate"
    if "-----BEGIN" not in text:
        return [_base64(text, where)]
    try:
        return [der for _, der in pem.decode(text, "CERTIFICATE")]
    except Malformed as error:
        raise Problem(error, where) from None


def _base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(Malformed("neither PEM nor base64 of DER"), where) from None


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 description of what this module reads and writes."""
    views: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        (Request, "validation"),
        (VerdictView, "validation"),
        (ProblemView, "validation"),
    ]
    _, schemas = models_json_schema(views, ref_template="#/components/schemas/{model}")

    def one_or_batch(name: str) -> dict[str, Any]:
        one = {"$ref": f"#/components/schemas/{name}"}
        return {"oneOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": MAX_BATCH}]}

    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemView"}}}
    problems = {str(status): {"description": _TITLES[status], "content": problem} for status in (400, 401, 403, 405, 408, 413, 415, 503)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ironroot validation",
            "version": version,
            "description": "Is this peer good, now, for this purpose, and if not, why?",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/api/v1/validate": {
                "post": {
                    "operationId": "validate",
                    "summary": "Judge one peer, or a batch",
                    "description": f"A certificate that is not good is an answer (200), no problem. At most {MAX_BODY} octets.",
                    "requestBody": {"required": True, "content": {"application/json": {"schema": one_or_batch("Request")}}},
                    "responses": {
                        "200": {
                            "description": "The verdict; for a batch an array in the same order",
                            "content": {"application/json": {"schema": one_or_batch("VerdictView")}},
                        }
                    }
                    | problems,
                }
            },
            "/api/v1/openapi.json": {
                "get": {
                    "operationId": "describe",
                    "summary": "This description",
                    "responses": {"200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}}},
                }
            },
        },
        "components": {"schemas": schemas["$defs"]},
    }


def moment_of(request: Request, now: datetime, *, allow_now: bool) -> datetime:
    """The moment that ``request`` is judged for. Raises Problem where it names one and may not."""
    if request.now is None:
        return now
    if not allow_now:
        raise Problem(Malformed("this validator judges for the present; only one in test mode takes a moment"), "/now")
    return request.now
