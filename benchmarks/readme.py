"""Write the figures of README.md and docs/ from the committed results, so that the two cannot disagree.

python benchmarks/readme.py           # rewrites the tables between <!-- results: NAME --> and <!-- end -->
                                      # (<!-- results: NAME targets -->: what was to be reached, and was or not)
python benchmarks/readme.py --check   # exit 1 where a page differs (a test does this)
"""

from __future__ import annotations

import json
import re
import sys

import report

PAGES = (report.ROOT / "README.md", *sorted((report.ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"<!-- results: ([\w-]+)( targets)? -->\n.*?<!-- end -->", re.DOTALL)


def block(name: str, part: str = "") -> str:
    """The section for results NAME*.json: their summaries, one table of all their rows, how they were measured.

    Args:
        part: " targets" for a table of these instead of the rows.
    """
    head = f"<!-- results: {name}{part} -->"
    rows, notes, summaries = [], [], []
    for path in sorted(report.RESULTS.glob(f"{name}*.json")):
        result = json.loads(path.read_text())
        rows += result[part.strip() or "rows"]
        summaries.append(result["summary"])
        machine, versions = result["machine"], result["versions"]
        notes.append(
            f"{machine['cpu']}, {machine['cores']} cores, commit {result['commit']}, "
            + ", ".join(f"{package} {version}" for package, version in versions.items())
        )
    if not rows:
        return f"{head}\nNot measured yet.\n<!-- end -->"
    measured = "\n".join(f"Measured on {note}." for note in dict.fromkeys(notes))
    told = "\n".join(summaries)
    return f"{head}\n{told}\n\n{report.table(rows)}\n{measured}\n<!-- end -->"


def rendered(text: str) -> str:
    """A page with every results section made anew."""
    return BLOCK.sub(lambda match: block(match.group(1), match.group(2) or ""), text)


def main() -> None:
    """Rewrite or check."""
    texts = {page: page.read_text() for page in PAGES}
    stale = [page for page, text in texts.items() if rendered(text) != text]
    if "--check" in sys.argv[1:]:
        names = ", ".join(page.name for page in stale)
        sys.exit(f"{names} differ from benchmarks/results: run python benchmarks/readme.py" if stale else 0)
    for page in stale:
        page.write_text(rendered(texts[page]))


if __name__ == "__main__":
    main()
