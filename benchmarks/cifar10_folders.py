"""Write CIFAR-10 as class folders of PNG pictures, train/ and valid/ (its 10,000 test images), for the server.

    python benchmarks/cifar10_folders.py FOLDER [--count 2000]

Reads the mosaics in the folder that PYSERVE_TEST_DATA names. A whole FOLDER is left as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cifar10 import CLASSES, read  # noqa: E402

PARTS = {"train": "train", "valid": "test"}


def write_folders(test_data: Path, folder: Path, count: int | None = None) -> None:
    """Write `folder/{train,valid}/<class>/<number>.png`, the first `count` images of each part (default: all)."""
    for name, part in PARTS.items():
        if (folder / name).is_dir():
            continue
        files = None if count is None else range(-(-count // 1000))
        images, labels = read(test_data, part, files)
        temporary = folder / f"{name}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        for label in CLASSES:
            (temporary / label).mkdir(parents=True)
        for number, (image, label) in enumerate(zip(images[:count], labels[:count], strict=True)):
            Image.fromarray(image).save(temporary / CLASSES[label] / f"{number:05}.png", compress_level=1)
        temporary.rename(folder / name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, help="only the first so many images of each part")
    options = parser.parse_args()
    test_data = Path(os.environ.get("PYSERVE_TEST_DATA") or ROOT.parent / "shared" / "data")
    write_folders(test_data, options.folder, options.count)


if __name__ == "__main__":
    main()
