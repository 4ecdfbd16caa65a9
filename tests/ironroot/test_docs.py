"""The documentation holds: every command and setting is described, links lead somewhere, both languages are complete."""

from __future__ import annotations

import argparse
import ast
import os
import re
import string
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from typer.testing import CliRunner

from enroll.device import main as device_cli
from enroll.device.texts import _CHINESE
from ironroot.cli.main import app
from ironroot.settings import Settings
from pkix import errors
from validate.text import CATALOGUE

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/**/*.md")])
COMMANDS_PAGE = (ROOT / "docs/commands.md").read_text()
OF_ALL = {"--home", "--help", "--output", "--state"}  # described once, for all commands


def ironroot_commands() -> dict[str, Any]:
    """``{"ironroot cert list": command, …}``."""
    found: dict[str, Any] = {}

    def walk(command: Any, name: str) -> None:
        children = getattr(command, "commands", None)
        if children is None:
            found[name] = command
        for word, child in (children or {}).items():
            walk(child, f"{name} {word}")

    walk(typer.main.get_command(app), "ironroot")
    return found


def device_commands() -> dict[str, argparse.ArgumentParser]:
    subparsers = next(action for action in device_cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {f"ironroot-device {name}": parser for name, parser in subparsers.choices.items()}


IRONROOT, DEVICE = ironroot_commands(), device_commands()


def section(name: str) -> str:
    found = re.search(rf"^### {re.escape(name)}\n(.*?)(?=^##|\Z)", COMMANDS_PAGE, re.M | re.S)
    assert found, f"docs/commands.md has no section {name}"
    return found[1]


def check_section(name: str, options: set[str], examples: list[str]) -> None:
    text = section(name)
    assert examples, f"{name} --help has no example"
    assert all(example.startswith(name) for example in examples)
    missing = [example for example in examples if f"    {example}\n" not in text]
    missing += sorted(option for option in options - OF_ALL if f"`{option}" not in text and not re.search(rf"`[^`\n]*{option}\b", text))
    general = COMMANDS_PAGE.partition("\n## The installation")[0]
    missing = [word for word in missing if f"`{word}`" not in general]
    assert not missing, f"docs/commands.md does not say of {name}: {missing}"


@pytest.mark.parametrize("name", IRONROOT)
def test_command_has_an_example_and_is_described(name: str) -> None:
    command = IRONROOT[name]
    examples = [line.strip() for line in (command.epilog or "").splitlines() if line.startswith("  ")]
    options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    check_section(name, options, examples)
    shown = CliRunner().invoke(app, [*name.split()[1:], "--help"])
    assert shown.exit_code == 0
    assert all(example in shown.output for example in examples)


@pytest.mark.parametrize("name", DEVICE)
def test_device_command_has_an_example_and_is_described(name: str) -> None:
    parser = DEVICE[name]
    examples = [line.strip() for line in parser.format_help().splitlines() if line.startswith("  ironroot-device ")]
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    check_section(name, options, examples)


def test_no_command_is_described_that_there_is_not() -> None:
    assert set(re.findall(r"^### (ironroot.*)$", COMMANDS_PAGE, re.M)) == {*IRONROOT, *DEVICE}


def test_exit_codes_are_described() -> None:
    table = COMMANDS_PAGE.partition("## Exit codes\n")[2].partition("\n## ")[0]
    said = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.M)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.IronrootError)]
    assert {kind.exit_code for kind in kinds} <= said


def settings_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_settings_are_described() -> None:
    table = (ROOT / "docs/operations.md").read_text().partition("\n## Settings\n")[2].partition("\n## ")[0].partition("| environment")[0]
    described = {key for row in re.findall(r"^\| (`.*?) \|", table, re.M) for key in re.findall(r"`([a-z_.]+)`", row)}
    assert described == set(settings_keys(Settings)) - {"home"}


# Links


def anchor(heading: str) -> str:
    """As the usual renderers make it: lower case, without punctuation, hyphens for spaces."""
    text = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LNM")
    return "".join(kept).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^(```|~~~).*?^\1", "", page.read_text(), flags=re.M | re.S)
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert [page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md" and f"({page.name})" not in index] == []


def test_commands_of_the_readme_exist() -> None:
    for readme in ("README.md", "README.zh-CN.md"):
        scripts = re.findall(r"^    (scripts/\w+)", (ROOT / readme).read_text(), re.M)
        assert {"scripts/quickstart", "scripts/test"} <= set(scripts)
        assert [script for script in scripts if not os.access(ROOT / script, os.X_OK)] == []


# Languages


def calls(tree: ast.AST, *names: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            yield node


def constant(node: ast.AST) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def sources(*folders: str) -> Iterator[ast.Module]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield ast.parse(file.read_text())


def columns(tree: ast.Module) -> Iterator[str]:
    """Headings of tables: the third argument of ``emit``, which translates them."""
    named = {t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
    for call in calls(tree, "emit"):
        if len(call.args) > 2:
            given = call.args[2]
            yield from ast.literal_eval(named[given.id] if isinstance(given, ast.Name) else given)


def test_everything_said_by_the_commands_has_its_chinese() -> None:
    chinese = tomllib.loads((ROOT / "ironroot/locale/zh_CN.toml").read_text())
    said: set[str] = set()
    for tree in sources("ironroot"):
        said |= {text for call in calls(tree, "_") if (text := constant(call.args[0])) is not None}
        said |= {column for column in columns(tree) if "sha256" not in column}
    assert len(said) > 100
    assert sorted(said - set(chinese)) == []
    assert sorted(set(chinese) - said) == []
    assert [text for text, translated in chinese.items() if not is_chinese(translated) and text != "authority"] == []


def test_everything_said_by_the_device_has_its_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    monkeypatch.setattr(device_cli, "tr", lambda text: asked.add(text) or text)
    for parser in (device_cli._parser(), *device_commands().values()):
        parser.format_help()
    trees = list(sources("enroll/device"))
    asked |= {text for tree in trees for call in calls(tree, "tr") if (text := constant(call.args[0])) is not None}
    assert len(asked) > 25
    assert sorted(asked - set(_CHINESE)) == []
    # What status prints is looked up by value: those texts have to stand somewhere in the agent's sources.
    written = {text for tree in trees for node in ast.walk(tree) if not isinstance(node, ast.Dict) and (text := constant(node))}
    assert sorted(set(_CHINESE) - asked - written) == []
    assert [text for text, translated in _CHINESE.items() if not is_chinese(translated)] == []


def fields(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def test_everything_said_by_validation_has_its_chinese() -> None:
    assert [code for code, (english, chinese) in CATALOGUE.items() if fields(english) != fields(chinese)] == []
    worded = {code: chinese for code, (english, chinese) in CATALOGUE.items() if re.search(r"[a-z]", re.sub(r"{\w+}", "", english))}
    assert [code for code, chinese in worded.items() if not is_chinese(chinese)] == []


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


@pytest.mark.parametrize(
    ("command", "expected"),
    [(("ironroot.cli.main", "cert", "revoke"), "永久吊销证书"), (("enroll.device", "up"), "一次性令牌")],
)
def test_help_is_chinese_where_the_reader_is(command: tuple[str, ...], expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command, "--help"],
        env=os.environ | {"IRONROOT_LANG": "zh_CN", "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert expected in done.stdout
    assert "示例" in done.stdout
