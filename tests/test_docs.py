"""What the docs say is so: lengths, paths, links, and the lists that exist twice."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def prose(text: str) -> list[str]:
    """The paragraphs and items of a page, without its code blocks."""
    plain = re.sub(r"^```.*?^```$", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n|\n(?=- )", plain)]


def test_the_readme_is_short_and_starts_with_a_picture() -> None:
    assert len(README.split()) <= 900
    assert max(len(paragraph.split()) for paragraph in prose(README)) <= 80
    picture = re.search(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert picture
    assert README.index(picture[0]) < README.index("\n## ")
    assert (ROOT / picture[1]).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_where_names_files_that_exist() -> None:
    where = (ROOT / "docs/where.md").read_text()
    rows = [line for line in where.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) >= 20
    for row in rows:
        paths = re.findall(r"`((?:segpipe|tests|flows|demo|benchmarks|deployments)/[^`]*)`", row)
        assert paths, row
        for path in paths:
            assert (ROOT / path).exists(), path


def test_the_import_contract_is_the_one_in_the_docs() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    shown = re.search(r"^```layers\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert shown
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = [
        contract["layers"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    assert shown[1].split("\n")[:-1] == layers


def test_every_package_has_its_place_in_the_import_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = " | ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"]).split(" | ")
    packages = {f"segpipe.{init.parent.name}" for init in (ROOT / "segpipe").glob("*/__init__.py")}
    assert packages <= set(layers)


def test_contracts_named_in_docstrings_are_defined() -> None:
    defined = set(re.findall(r"^- \*\*(C\d+) ", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    named = {
        name
        for source in (ROOT / "segpipe").rglob("*.py")
        for name in re.findall(r"\b(?:contract )(C\d+)\b", source.read_text())
    }
    assert named <= defined


def test_pre_commit_runs_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == commands


def test_every_make_target_of_the_tests_is_in_the_contributors_table_and_in_ci() -> None:
    targets = re.findall(r"^(test[a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    contributing, ci = (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / ".ci/run").read_text()
    for target in targets:
        assert f"| `make {target}` |" in contributing
        assert re.search(rf"^make {target}$", ci, re.MULTILINE)
