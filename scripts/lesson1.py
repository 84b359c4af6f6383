"""docs/lesson1.md as a notebook: run its blocks, keep what they print and draw in both.

    python scripts/lesson1.py --run      # minutes; rewrites the page's outputs and examples/lesson1.ipynb
    python scripts/lesson1.py --quick    # seconds, writes nothing: every block runs, on pictures made up for it
    python scripts/lesson1.py --words    # the notebook where only the page's prose has changed; outputs stay
    python scripts/lesson1.py --check    # exit 1 where the notebook is not made from the page (a test does this)

The page is the one source. What follows a block of Python there, ```text and the pictures of pictures/lesson1/,
is output. `--run` takes cats-dogs, chelsea.png and MobileNetV2's weights from the folder that PYSERVE_TEST_DATA
names.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

from demo_server import running_server  # noqa: E402

from pyserve import models  # noqa: E402

PAGE, NOTEBOOK = ROOT / "docs" / "lesson1.md", ROOT / "examples" / "lesson1.ipynb"
PICTURES = ROOT / "docs" / "pictures" / "lesson1"
DATA = Path(os.environ.get("PYSERVE_TEST_DATA") or ROOT.parent / "shared" / "data").resolve()
MOBILENET = "mobilenet_v2_imagenet1k_from_coral_ptq.pth"
WIDTH = 800  # of the pictures that are kept, pixels
OUTPUT = r"\n```text\n.*?```\n|\n!\[[^\]]*\]\(pictures/lesson1/[^)]*\)\n"
BLOCK = re.compile(rf"```python\n(.*?)```\n(?:{OUTPUT})*", re.DOTALL)
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# What differs from the page where it is run: the weights are a file, and a quick run has another network.
AS_RUN = {'"imagenet"': f'"{MOBILENET}"'}
QUICKLY = {
    '"imagenet"': '"start.pth"',
    '"mobilenet_v2"': '"smallnet"',
    '"image_size": 160': '"image_size": 32',
    '"batch_size": 32': '"batch_size": 8',
    '"features.6"': '"stage2"',
    "square_size=80": "square_size=16",
    "(2, 5, 15, 50)": "(2, 5), depths=(1,), tolerance=0.1",
}


def cells(page: str) -> Iterator[tuple[str, str]]:
    """The page without its outputs: ("markdown" or "code", text)."""
    end = 0
    for match in BLOCK.finditer(page):
        yield "markdown", page[end : match.start()].strip()
        yield "code", match.group(1).strip()
        end = match.end()
    yield "markdown", page[end:].strip()


def notebook(page: str) -> Any:
    """The page's cells, not run; links lead where they led from docs/."""
    made = new_notebook(metadata={"kernelspec": KERNEL})
    for number, (kind, text) in enumerate(cells(page)):
        if not text:
            continue
        if kind == "code":
            cell = new_code_cell(text)
        else:
            cell = new_markdown_cell(re.sub(r"\]\((?!https?:|\.\./|#)", "](../docs/", text))
        cell["id"] = f"cell-{number}"  # the same in every run
        made.cells.append(cell)
    return made


def run(made: Any, folder: Path, weights: Path, changes: dict[str, str]) -> None:
    """Run the cells in a folder, with a server; each keeps its outputs and the source that it had.

    Args:
        weights: the server's root of weights.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised something.
    """
    sources = [cell.source for cell in made.cells]
    unknown = [old for old in changes if not any(old in source for source in sources)]
    if unknown:
        raise SystemExit(f"lesson1: the page does not say {', '.join(unknown)} any more")
    for cell in made.cells:
        for old, new in changes.items():
            cell.source = cell.source.replace(old, new) if cell.cell_type == "code" else cell.source
    os.environ["PYSERVE_WEIGHTS_ROOTS"] = f'["{weights}"]'
    with running_server(folder / "server", folder / "server.log", Console(stderr=True)) as address:
        os.environ["PYSERVE_ADDRESS"] = address
        nbclient.NotebookClient(made, timeout=7200, resources={"metadata": {"path": str(folder)}}).execute()
    for cell, source in zip(made.cells, sources, strict=True):
        cell.source = source
        cell.metadata.pop("execution", None)  # times: another run would differ in nothing else


@contextmanager
def material(quick: bool) -> Iterator[tuple[Path, Path]]:
    """A folder with pictures/ as the page expects them, and one with the weights."""
    with tempfile.TemporaryDirectory(prefix="pyserve-lesson1-") as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        weights = folder if quick else DATA / "weights"
        if quick:
            _make_up(folder)
        else:
            (folder / "pictures" / "cats-dogs").symlink_to(DATA / "cats-dogs")
            (folder / "pictures" / "chelsea.png").symlink_to(DATA / "photos" / "chelsea.png")
        yield folder, weights


def _make_up(folder: Path) -> None:
    """Noise that is bluer for cats and redder for dogs, a few under the wrong name; a network's first weights."""
    rng = np.random.default_rng(0)

    def picture(channel: int) -> Image.Image:
        pixels = rng.integers(0, 150, (32, 32, 3), dtype=np.uint8)
        pixels[..., channel] += 60
        return Image.fromarray(pixels)

    for channel, label in ((2, "cat"), (0, "dog")):
        for part, count in (("train", 32), ("valid", 12)):
            place = folder / "pictures" / "cats-dogs" / part / label
            place.mkdir(parents=True)
            for i in range(count):
                picture(2 - channel if i == 0 else channel).save(place / f"{i}.png")
    picture(2).resize((64, 64)).save(folder / "pictures" / "chelsea.png")
    torch.manual_seed(0)
    torch.save(models.create_model("smallnet", 2).state_dict(), folder / "start.pth")


def keep(made: Any, page: str) -> str:
    """Shrink the pictures of the outputs, write them for the page too, and give the page with its outputs."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("*.webp"):
        old.unlink()
    code = iter([cell for cell in made.cells if cell.cell_type == "code"])
    return BLOCK.sub(lambda match: f"```python\n{match.group(1)}```\n" + _outputs(next(code)), page)


def _outputs(cell: Any) -> str:
    """A cell's outputs as Markdown."""
    text, pictures = "", []
    for output in cell.outputs:
        text += output.get("text", "")
        png = output.get("data", {}).get("image/png")
        if png is not None:
            image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
            image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
            name = f"{cell.id.removeprefix('cell-')}_{len(pictures)}.webp"
            image.save(PICTURES / name, quality=80, method=6)
            pictures.append(f"\n![what the block above draws](pictures/lesson1/{name})\n")
            buffer = io.BytesIO()
            image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            output["data"] = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
    return (f"\n```text\n{text.rstrip()}\n```\n" if text else "") + "".join(pictures)


def take_over(old: Any, made: Any) -> None:
    """The outputs of a notebook for one with the same code."""
    run_cells, new_cells = ([cell for cell in n.cells if cell.cell_type == "code"] for n in (old, made))
    if [cell.source for cell in run_cells] != [cell.source for cell in new_cells]:
        raise SystemExit("lesson1: the code has changed, too: run python scripts/lesson1.py --run")
    for run_cell, cell in zip(run_cells, new_cells, strict=True):
        cell.outputs, cell.execution_count = run_cell.outputs, run_cell.execution_count


def sources(made: Any) -> list[tuple[str, str]]:
    """What a notebook says, without outputs."""
    return [(cell.cell_type, cell.source) for cell in made.cells]


def main() -> None:
    """Run, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group(required=True)
    for option in ("run", "quick", "words", "check"):
        how.add_argument(f"--{option}", action="store_true")
    options = parser.parse_args()
    page = PAGE.read_text()
    made = notebook(page)
    if options.check:
        same = sources(made) == sources(nbformat.read(NOTEBOOK, as_version=4))
        sys.exit(
            0 if same else f"{NOTEBOOK.name} is not made from {PAGE.name}: run python scripts/lesson1.py --run"
        )
    if options.words:
        take_over(nbformat.read(NOTEBOOK, as_version=4), made)
        nbformat.write(made, NOTEBOOK)
        return
    with material(options.quick) as (folder, weights):
        run(made, folder, weights, QUICKLY if options.quick else AS_RUN)
    if options.run:
        PAGE.write_text(keep(made, page))
        nbformat.write(made, NOTEBOOK)


if __name__ == "__main__":
    main()
