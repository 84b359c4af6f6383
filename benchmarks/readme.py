"""Write the README's figures from the committed results, so that the two cannot disagree.

python benchmarks/readme.py           # rewrites the tables between <!-- results: NAME --> and <!-- end -->
python benchmarks/readme.py --check   # exit 1 where the README differs (a test does this)
"""

from __future__ import annotations

import json
import re
import sys

import report

README = report.ROOT / "README.md"
BLOCK = re.compile(r"<!-- results: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def block(name: str) -> str:
    """The README's section for results NAME*.json: one table of all their rows, and how they were measured."""
    rows, notes = [], []
    for path in sorted(report.RESULTS.glob(f"{name}*.json")):
        result = json.loads(path.read_text())
        rows += result["rows"]
        machine, versions = result["machine"], result["versions"]
        notes.append(
            f"{machine['cpu']}, {machine['cores']} cores, commit {result['commit']}, "
            + ", ".join(f"{package} {version}" for package, version in versions.items())
        )
    measured = "\n".join(f"Measured on {note}." for note in dict.fromkeys(notes))
    return f"<!-- results: {name} -->\n{report.table(rows)}\n{measured}\n<!-- end -->"


def rendered(text: str) -> str:
    """The README with every results section made anew."""
    return BLOCK.sub(lambda match: block(match.group(1)), text)


def main() -> None:
    """Rewrite or check."""
    text = README.read_text()
    fresh = rendered(text)
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if fresh == text else "README.md differs from benchmarks/results: run python benchmarks/readme.py"
        )
    README.write_text(fresh)


if __name__ == "__main__":
    main()
