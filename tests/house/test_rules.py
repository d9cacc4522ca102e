"""Rules that keep the code readable: one home for a name, one topic a module, the words of the field, short README."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "specpolicy", ROOT / "envs" / "specpolicy_envs")

README_LINES = 120
MODULE_LINES = 450
SHORT_MODULE_LINES = 50
SHORT_MODULES = 12
CHECKPOINT_BYTES = 20 * 2**20
TRACKED_BYTES = 60 * 2**20

# Words with a plain word of the field beside them; docs/glossary.md has the terms that are used.
BANNED = {
    r"laws?": "distribution",
    r"passes": "network evaluations (the field SampleResult.passes keeps its name)",
    r"perceptrons?": "MLP",
    r"miss(es)?": "rejection",
    r"worth": "speed-up, benefit",
    r"mended|mend": "corrected, fix",
    r"held(?!.out)": "constant",  # a held-out set is a word of the field
    r"openings?": "initial guess",
    r"leftovers?": "unverified tail",
    r"seats?|crews?|desks?|nursery|doorway|perform(er|ance)s?": "worker, scheduler, expert rollout",
    r"by people": "human demonstrations",
}
# `passes` is a public field; what is allowed is the name as code.
_ALLOWED = re.compile(r"\w*[._`\"'\[]passes\b|\bpasses\w*\s*[=:,)\]]|\bpasses_\w+|\w+_passes\b", re.IGNORECASE)


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted(package.rglob("*.py"))


@cache
def prose_of(path: Path) -> tuple[tuple[int, str], ...]:
    """Comments and docstrings of a module, or the lines of a document without its code; read once for all words."""
    return tuple(_prose_of(path))


def _prose_of(path: Path) -> Iterator[tuple[int, str]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        fenced = False
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            elif not fenced:
                yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                for offset, line in enumerate(docstring.splitlines()):
                    yield node.body[0].lineno + offset, re.sub(r"`[^`]*`", "", line)
    for number, line in enumerate(text.splitlines(), 1):
        comment = re.match(r"^[^\"']*#\s(.*)$", line)
        if comment:
            yield number, comment[1]


def test_no_public_name_is_defined_twice() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        if path.parent.name == "commands":
            continue  # a command is named as the function that it calls
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
                homes[node.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_a_module_is_one_topic() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules()
        if path.name != "__init__.py"
    }
    assert {name: count for name, count in lines.items() if count > MODULE_LINES} == {}
    short = {name: count for name, count in lines.items() if count < SHORT_MODULE_LINES and "/commands/" not in name}
    assert len(short) <= SHORT_MODULES, short


def test_the_readme_fits_on_three_screens() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= README_LINES
    assert "make rollout" in readme
    assert "make test" in readme


# What a hand holds and how far it opens are the words of the field in an environment.
_OF_HANDS = (r"held(?!.out)", r"openings?")

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BESIDE = [path for name in ("benchmarks", "examples", "tests") for path in sorted((ROOT / name).rglob("*.py"))]


@pytest.mark.parametrize("word", BANNED)
def test_words_of_the_field(word: str) -> None:
    banned = re.compile(rf"\b(?:{word})\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*modules(), *DOCUMENTS, *BESIDE]
        if path.name != "glossary.md" and not (word in _OF_HANDS and {"specpolicy_envs", "envs"} & set(path.parts))
        for number, line in prose_of(path)
        if banned.search(_ALLOWED.sub("", line))
    ]
    assert not found, f"say {BANNED[word]!r}:\n" + "\n".join(found[:40])


def test_the_clone_stays_light() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split("\0")
    sizes = {name: (ROOT / name).stat().st_size for name in listed if name and (ROOT / name).is_file()}
    if not sizes:
        pytest.skip("not a git checkout: an archive has no list of tracked files")
    assert {name: size for name, size in sizes.items() if size > CHECKPOINT_BYTES} == {}
    assert sum(sizes.values()) <= TRACKED_BYTES
