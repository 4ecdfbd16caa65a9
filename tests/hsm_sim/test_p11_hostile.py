"""What somebody would try at the PKCS#11 door who wants more than his share, or to leave no trace."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

from hsm_inside import Inside, run
from p11_client import HANDSHAKE, P11, request, u32
from p11_token import serving

from hsm_sim import cka
from hsm_sim.pkcs11.door import Connection, Door


class Line(asyncio.Transport):
    """A connection of which the test reads the other end; it takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def answers(self) -> int:
        """Whole frames after the octet of the version."""
        count, rest = 0, self.written[1:]
        while len(rest) >= 12:
            rest = rest[12 + int.from_bytes(rest[8:12]) :]
            count += 1
        return count


def frames(*bodies: bytes) -> bytes:
    return b"".join(u32(number + 1) + u32(0) + u32(len(body)) + body for number, body in enumerate(bodies))


def test_many_calls_in_one_piece_are_not_all_answered_before_anybody_else_is(home: Path) -> None:
    async def story(hsm: Inside) -> None:
        connection, line, calls = Connection(Door(hsm.device)), Line(), 4000
        connection._transport = cast("asyncio.Transport", line)
        connection.data_received(b"\0" + frames(request("Initialize", HANDSHAKE, 0, b"")))
        assert line.answers() == 1
        connection.data_received(frames(*[request("GetTokenInfo", 0)] * calls))
        assert line.answers() < calls, "it is others' turn"
        while line.answers() <= calls:
            await asyncio.sleep(0)
        assert line.answers() == calls + 1

    run(home, story)


def test_a_key_that_does_not_leave_is_asked_for_and_the_log_says_so() -> None:
    """Also by somebody who only asks how long it would be."""
    with serving() as hsm:
        with P11(hsm.socket) as client:
            session = client.session(writable=True, pin=hsm.pin())
            under, key = client.secret(session, wrap=True), client.secret(session)
            refusal = client.ckr("WrapKey", session, (cka.CKM_AES_KEY_WRAP_PAD, None), under, key, 0)
            client.secret(session)  # whose line takes along what is written within a second
        lines = [json.loads(line) for line in (hsm.home / "audit.log").read_text().split("\n") if line]
    assert refusal == 0x6A
    assert [line["result"] for line in lines if line["op"] == "wrap"] == ["key_unextractable"]
