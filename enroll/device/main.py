"""The command line ``ironroot-device``: options, help, output, exit codes. Everything slow is imported only when a command runs."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from enroll.device.texts import columns, tr

_EXAMPLES = {
    "": """\
  ironroot-device up --url https://ca.example:8443 --fleet ecc-devices --serial P-1 --token-file token --state /var/lib/ironroot-device
  ironroot-device run --state /var/lib/ironroot-device
  ironroot-device status -o json --state /var/lib/ironroot-device""",
    "up": """\
  ironroot-device up --url https://ca.example:8443 --fleet ecc-devices --serial P-1 --token-file token --state DIR
  ironroot-device up --url https://ca.example:8443 --fleet sm2-devices --idevid idevid.pem idevid.key --ca-sha256 HEX --state DIR
  ironroot-device up --wait 3600 --state DIR""",
    "renew": "  ironroot-device renew --state DIR\n  ironroot-device renew --if-needed --state DIR",
    "run": "  ironroot-device run --state DIR\n  ironroot-device run -o json --state DIR",
    "status": "  ironroot-device status --state DIR\n  ironroot-device status -o json --state DIR",
}
_CODES = "exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 denied, 5 conflict, 6 pending approval, 7 unavailable, 8 not valid"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None = None) -> None:
        super().add_usage(usage, actions, groups, tr("usage: ") if prefix is None else prefix)


class _Parser(argparse.ArgumentParser):
    """A parser whose headings are in the person's language, with examples at the end."""

    def __init__(self, prog: str, command: str, description: str) -> None:
        epilog = f"{tr('examples:')}\n{_EXAMPLES[command]}\n\n{tr(_CODES)}"
        super().__init__(prog, description=tr(description), epilog=epilog, formatter_class=_Formatter, add_help=False, allow_abbrev=False)
        self.options = self.add_argument_group(tr("options"))
        self.option("-h", "--help", action="help", help="show this help and exit")

    def option(self, *names: str, help: str, **details: Any) -> None:
        """Add one option, its help translated."""
        self.options.add_argument(*names, help=tr(help), **details)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("ironroot-device", "", "Give this device a certificate, keep it renewed, tell how it stands.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title=tr("commands"))

    def command(name: str, description: str) -> _Parser:
        added: _Parser = commands.add_parser(name, command=name, description=description, help=tr(description))
        added.option("--state", required=True, type=Path, metavar="DIR", help="state folder (0700, made if missing)")
        added.option("-o", "--output", choices=("text", "json"), default="text", help="output on stdout: text or json")
        return added

    up = command("up", "enrol: get the first certificate")
    up.option("--url", help="address of the server, https://host:port")
    up.option("--fleet", help="fleet to enrol in, such as ecc-devices")
    up.option("--serial", help="serial of this device (default with --idevid: the serialNumber in it)")
    proof = up.options.add_mutually_exclusive_group()
    proof.add_argument("--token", help=tr("one-time token; '-' reads stdin. Others can see arguments: prefer --token-file"))
    proof.add_argument("--token-file", type=Path, metavar="FILE", help=tr("file with the one-time token; '-' reads stdin"))
    proof.add_argument("--idevid", nargs=2, type=Path, metavar=("CERT", "KEY"), help=tr("certificate and key of the manufacturer (PEM)"))
    up.option("--algorithm", metavar="KIND", help="kind of key: p-256, sm2, ... (default by fleet: sm2-* takes sm2, others p-256)")
    up.option("--ca-sha256", metavar="HEX", help="SHA-256 of the server's root certificate")
    up.option("--trust", type=Path, metavar="FILE", help="file with the server's root certificate")
    up.option("--replace", action="store_true", help="enrol anew although there is a valid certificate")
    up.option(
        "--wait",
        type=_seconds,
        metavar="SECONDS",
        help="how long to try, and to wait for approval (default: try 30 s, do not wait for approval)",
    )
    renew = command("renew", "replace certificate and key by new ones")
    renew.option("--if-needed", action="store_true", help="do nothing before the renewal window")
    renew.option("--wait", type=_seconds, metavar="SECONDS", help="how long to try (default 30)")
    command("run", "stay up; renew in time")
    command("status", "show what there is")
    return parser


def _joined(argv: Sequence[str]) -> list[str]:
    """``--token T`` as ``--token=T``: one token in 64 begins with '-', which argparse would take for an option."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] == "--token" and not word.startswith("--"):
            joined[-1] = f"--token={word}"
        else:
            joined.append(word)
    return joined


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; never raises for what a user, a server or a disk can do."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Chinese must not end us
    try:
        args = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
    except SystemExit as end:  # argparse has printed help, or what is wrong
        return int(end.code or 0)
    as_json = args.output == "json"
    try:
        code = _carry_out(args, as_json)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone
        return 1
    except KeyboardInterrupt:
        return 130


def _carry_out(args: argparse.Namespace, as_json: bool) -> int:
    from enroll.device import commands
    from enroll.device.log import Log
    from pkix.errors import IronrootError

    log = Log(as_json=as_json, stamped=args.command == "run")
    try:
        found, code = commands.COMMANDS[args.command](args, log)
    except IronrootError as error:
        _complain(error.code, str(error), as_json)
        return error.exit_code
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:  # the last line of defence: a fault of ours is told in a line, and everything on disk is safe
        _complain("internal", f"internal error, please report it: {type(error).__name__}: {error}", as_json)
        return 1
    if as_json and found:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    elif found:
        print(_text(found))
    return code


def _complain(code: str, text: str, as_json: bool) -> None:
    line = json.dumps({"error": code, "text": text}, ensure_ascii=False) if as_json else f"ironroot-device: {text}"
    print(line, file=sys.stderr, flush=True)


def _text(found: dict[str, Any]) -> str:
    """The report for a person: one aligned line for each thing there is to say."""
    lines = [("state", tr(found["state"]))]
    if found["problem"]:
        lines.append(("problem", found["problem"]))
    if "url" in found:
        lines += [("device", f"{found['serial']} ({found['fleet']}, {found['algorithm']})"), ("server", found["url"])]
        certificate = found["certificate"]
        if certificate:
            due = f" ({tr('due now')})" if found["renewal_due"] else ""
            lines += [
                ("certificate", f"{certificate['serial']}  {certificate['subject']}"),
                ("valid", f"{certificate['not_before']} – {certificate['not_after']}"),
                ("renews", found["renew_at"] + due),
            ]
        if found["unfinished"]:
            lines.append(("unfinished", tr(found["unfinished"])))
        if found["clock_behind"]:
            lines.append(("clock", tr("behind; set it")))
    return "\n".join(f"{tr(label)}:{' ' * (12 - columns(tr(label)))}{value}" for label, value in lines)


if __name__ == "__main__":
    sys.exit(main())
