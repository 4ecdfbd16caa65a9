"""What a person reads, in their language: English, or Chinese where the locale says so.

    from ironroot.i18n import _
    help=_("Show one certificate.")

The language is IRONROOT_LANG, else LC_ALL, LC_MESSAGES, LANG (POSIX order). Machine output (``-o json``) is never translated.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def language() -> str:
    """``zh`` or ``en``."""
    for variable in ("IRONROOT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


@cache
def _catalogue() -> Mapping[str, str]:
    if language() == "en":
        return {}
    texts: dict[str, str] = tomllib.loads((Path(__file__).parent / "locale" / "zh_CN.toml").read_text(encoding="utf-8"))
    return texts


def _(text: str) -> str:
    """``text`` in the reader's language; English where there is no translation."""
    return _catalogue().get(text, text)
