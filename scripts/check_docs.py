"""Checks what the docs say against the tree: paths, links, commands.

    python scripts/check_docs.py

Every file that docs/architecture.md names exists, every relative link in a Markdown file leads
somewhere, every command of the command line is described in the README or in docs/, and no
example calls a command that does not exist.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_CODE = re.compile(r"`([^`\n]+)`")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_PATH = re.compile(r"[A-Za-z0-9_.\-]+(?:/[A-Za-z0-9_.\-]+)+/?|[A-Za-z0-9_\-]+\.(?:py|md|toml)")
_OPTIONS = r"(?:[ \t]+(?:-q|--quiet|--json|--store[= ]\S+))*"
_CALL = re.compile(
    rf"(?:^|[\s`$])(?<!import )(?<!from )deltastore{_OPTIONS}[ \t]+([a-z][a-z-]*)", re.MULTILINE
)


def main() -> int:
    """Print every problem; the exit code says whether there were any."""
    problems = [*broken_links(), *missing_files(), *command_problems()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def documents() -> list[Path]:
    """The Markdown files of the project."""
    return sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def broken_links() -> Iterator[str]:
    """Relative links to files or headings that do not exist."""
    for document in documents():
        text = _CODE.sub("", _FENCE.sub("", document.read_text(encoding="utf-8")))
        for target in _LINK.findall(text):
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            path, _, fragment = target.partition("#")
            file = (document.parent / path).resolve() if path else document
            if not file.exists():
                yield f"{document.relative_to(ROOT)}: link to {target}, which does not exist"
            elif fragment and file.suffix == ".md" and fragment not in anchors(file):
                yield f"{document.relative_to(ROOT)}: link to {target}, which has no such heading"


def anchors(document: Path) -> set[str]:
    """The fragments that a document's headings can be linked by."""
    text = _FENCE.sub("", document.read_text(encoding="utf-8"))
    headings = (re.sub(r"[`*]", "", h).lower() for h in _HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def missing_files() -> Iterator[str]:
    """Paths in code spans of the architecture page that do not exist.

    A path counts from the project's root or from the package.
    """
    page = ROOT / "docs" / "architecture.md"
    if not page.exists():
        yield "docs/architecture.md does not exist"
        return
    for span in _CODE.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if not _PATH.fullmatch(span) or "://" in span:
            continue
        if not any((folder / span).exists() for folder in (ROOT, ROOT / "deltastore")):
            yield f"docs/architecture.md: {span} does not exist"


def command_problems() -> Iterator[str]:
    """Commands that no page describes, and examples of commands that do not exist."""
    from deltastore.cli.group import COMMANDS

    described: set[str] = set()
    for document in documents():
        if document.name == "CHANGELOG.md":
            continue
        text = document.read_text(encoding="utf-8")
        examples = "\n".join([*_FENCE.findall(text), *(f"`{span}" for span in _CODE.findall(text))])
        for call in _CALL.findall(examples):
            described.add(call)
            if call not in COMMANDS:
                yield f"{document.relative_to(ROOT)}: 'deltastore {call}' is not a command"
    for name in COMMANDS:
        if name not in described:
            yield f"README.md, docs/: no example of 'deltastore {name}'"


if __name__ == "__main__":
    sys.exit(main())
