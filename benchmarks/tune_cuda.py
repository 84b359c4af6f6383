"""Measures the tile sizes of the tensor core kernels on this GPU and writes the table that the kernels choose by.

    python benchmarks/tune_cuda.py --out tuned_tiles.inc      # then over csrc/cuda/tuned_tiles.inc, and build

Every layer of ResNet-50 and VGG-16, forward and both gradients (of x: without strides, which are products of their
own). Rows of other GPUs that the committed table has are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

import cuda_timing
import report
from conv_cuda import DW, DX, FORWARD, NETWORKS, Buffers, Layer, forward_functions, gradient_functions
from cuda_timing import median_ms
from pyserve.kernels._extension import C

TABLE = report.ROOT / "csrc" / "cuda" / "tuned_tiles.inc"
TILES = ("large", "medium", "small", "narrow")
OPS = {FORWARD: "conv2d", DX: "conv2d_dgrad", DW: "conv2d_wgrad"}
DTYPES = {"bfloat16": "bf16", "float16": "f16"}
ROW = re.compile(r"^\{(\d+), .*\},$", re.MULTILINE)


@dataclass(frozen=True)
class Product:
    """A class of matrix products, as csrc/cuda/choose_tile.h has it."""

    op: str
    dtype: str
    rows: int
    columns: int
    inner: int

    @classmethod
    def of(cls, layer: Layer, N: int, direction: str, dtype: str) -> Product:
        """The product that a direction of a layer is; channels are padded to eights."""
        C, K = (-(-channels // 8) * 8 for channels in (layer.C, layer.K))
        outputs, taps = N * layer.out**2, layer.R**2
        sizes = {
            FORWARD: (outputs, layer.K, taps * C),
            DX: (N * layer.H**2, layer.C, taps * K),
            DW: (layer.K, taps * C, outputs),
        }
        return cls(OPS[direction], dtype, *sizes[direction])

    def row(self, capability: int, tile: str) -> str:
        """A line of the table."""
        key = f"{capability}, Op::{self.op}, DType::{self.dtype}, {self.columns}, {self.inner}"
        return f"{{{key}, {self.rows.bit_length() - 1}, TileSize::{tile}}},"


def best_tile(layer: Layer, N: int, direction: str, dtype: torch.dtype, device: str) -> str:
    """The quickest tile."""
    buffers = Buffers.of(layer, N, dtype, device)
    times = {}
    for tile in TILES:
        C.prefer_tile(tile)
        functions = (
            forward_functions(layer, buffers, compiled=False)
            if direction == FORWARD
            else gradient_functions(layer, buffers, direction)
        )
        found = median_ms({"ours": functions["ours"]}, len(buffers.x), device, rounds=2 if device == "cpu" else 7)
        times[tile] = found["ours"]
    C.prefer_tile("")
    return min(times, key=lambda tile: times[tile])


def merged(table: str, capability: int, rows: list[str]) -> str:
    """The table's text with this GPU's rows replaced."""
    lines = table.splitlines()
    comments = [line for line in lines if line.startswith("//")]
    others = [line for line in lines if (match := ROW.match(line)) and int(match[1]) != capability]
    return "\n".join([*comments, *others, *dict.fromkeys(rows)]) + "\n"


def main() -> None:
    parser = cuda_timing.arguments("the tile sizes of the tensor core kernels")
    parser.add_argument("--out", type=Path, default=Path("tuned_tiles.inc"))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64, 256])
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    capability = 0
    if options.device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        capability = major * 10 + minor
    layers = list(dict.fromkeys(layer for network in NETWORKS.values() for layer in network if layer.C > 4))
    rows = []
    for layer in layers[:1] if options.quick else layers:
        for N in options.batches[:1] if options.quick else options.batches:
            for direction in (FORWARD, DX, DW):
                if direction == DX and layer.stride > 1:
                    continue
                tile = best_tile(layer, N, direction, getattr(torch, options.dtype), options.device)
                rows.append(Product.of(layer, N, direction, DTYPES[options.dtype]).row(capability, tile))
                print(f"{layer!s:36} batch {N:3} {direction:8} {tile}", flush=True)
                # After every row: a run that is stopped leaves what it found.
                options.out.write_text(merged(TABLE.read_text(), capability, rows))


if __name__ == "__main__":
    main()
