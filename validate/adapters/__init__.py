"""Where a platform puts validation: TLS in Python (``tls``), aiohttp (``web``), pyOpenSSL with SM2 (``openssl``).

Each takes a judge: a function from the certificates that a peer presented (DER, its own first) to a verdict. In the process:

    status, memory = …, Memory()
    def judge(chain):
        return validate(chain, policy=policy, purpose="tls-client", now=datetime.now(UTC), status=status, memory=memory)

or in the validator beside it:

    client = Client("/run/ironroot-validator/validator.sock")
    def judge(chain):
        return client.ask(chain, purpose="tls-client")
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from validate.model import Language


class Answer(Protocol):
    """A verdict: ``validate.Result``, or ``validate.client.Verdict``."""

    @property
    def good(self) -> bool: ...

    @property
    def code(self) -> str: ...

    def sentence(self, language: Language = "en") -> str: ...


Judge = Callable[[Sequence[bytes]], Awaitable[Answer]]
BlockingJudge = Callable[[Sequence[bytes]], Answer]
