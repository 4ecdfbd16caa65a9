"""A test that lacks its program says so, and fails where nothing may be left out."""

from __future__ import annotations

import pytest
from programs import need


def test_nothing_skips_silently(monkeypatch) -> None:
    monkeypatch.delenv("IRONROOT_TEST_NO_SKIP", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-program is not here"):
        need("openssl", "no-such-program")
    monkeypatch.setenv("IRONROOT_TEST_NO_SKIP", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not here"):
        need("openssl", "no-such-program")
    need("openssl")
