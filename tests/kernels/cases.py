"""The convolution problems that every variant is tested on."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Case:
    """One convolution: N images of C×H×W, K filters of R×S over C/groups channels."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __str__(self) -> str:
        parts = [f"N{self.N}", f"C{self.C}", f"{self.H}x{self.W}", f"K{self.K}", f"{self.R}x{self.S}"]
        for field in fields(self)[7:10]:
            value = getattr(self, field.name)
            if value != field.default:
                parts.append(f"{field.name[0]}{value[0]},{value[1]}")
        return "-".join([*parts, *([f"g{self.groups}"] if self.groups > 1 else [])])


def square(
    N: int,
    C: int,
    H: int,
    K: int,
    R: int,
    stride: int = 1,
    padding: int = 0,
    *,
    dilation: int = 1,
    groups: int = 1,
) -> Case:
    """A case with one number for height and width."""
    return Case(N, C, H, H, K, R, R, (stride, stride), (padding, padding), (dilation, dilation), groups)


# Register tiles are 8 or 16 floats wide, up to 64 output channels; positions go in blocks of 96; a panel of
# packed weights is cut where taps × channels exceed 1024 (AVX-512) or 4096 (AVX2).
_AROUND_TILES = [
    *(square(1, 16, 6, K, 3, 1, 1) for K in (1, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 130)),
    *(square(1, C, 6, 16, 3, 1, 1) for C in (1, 2, 3, 4, 7, 8, 9, 15, 17, 31, 33, 65)),
    *(Case(1, 8, 1, W, 16, 1, 1) for W in (1, 5, 6, 7, 95, 96, 97, 193)),
    *(Case(2, 4, H, 5, 8, 3, 3, (1, 1), (1, 1)) for H in (3, 19, 20)),
    square(1, 1025, 3, 20, 1),
    square(1, 350, 4, 20, 3, 1, 1),
    square(1, 4100, 2, 17, 1),
]

_NETWORK_LAYERS = [
    square(1, 3, 28, 64, 7, 2, 3),  # the stem of a ResNet
    square(2, 3, 16, 16, 3, 1, 1),  # the stem of a CIFAR ResNet
    square(1, 3, 17, 32, 3, 2, 1),  # the stem of MobileNetV2
    square(2, 16, 12, 16, 3, 1, 1),
    square(1, 64, 14, 64, 3, 1, 1),
    square(1, 64, 14, 128, 3, 2, 1),
    square(1, 64, 14, 128, 1, 2),
    square(1, 256, 7, 64, 1),
    square(1, 64, 9, 256, 1),
    square(1, 128, 7, 128, 3, 1, 1),
    square(1, 512, 3, 64, 3, 1, 1),
    square(2, 96, 11, 96, 3, 1, 1, groups=96),
    square(1, 144, 11, 144, 3, 2, 1, groups=144),
    square(1, 32, 9, 32, 3, 1, 1, groups=8),  # ResNeXt
]

_ODD_ONES = [
    Case(2, 5, 9, 7, 6, 3, 2, (2, 1), (1, 0)),
    Case(1, 6, 11, 13, 10, 5, 3, (3, 2), (2, 1)),
    Case(1, 8, 12, 10, 12, 3, 3, (1, 1), (2, 2), (2, 2)),
    Case(1, 3, 13, 12, 9, 3, 3, (1, 2), (2, 0), (3, 1)),
    Case(1, 8, 9, 8, 12, 3, 3, (2, 3), (1, 2), (2, 2), 4),
    Case(1, 6, 8, 8, 12, 3, 3, (1, 1), (1, 1), (1, 1), 6),  # two filters per channel
    Case(1, 12, 8, 8, 12, 5, 3, (2, 1), (2, 1), (1, 2), 12),  # depthwise, not square
    square(1, 20, 7, 20, 3, 4, 1, groups=20),  # strides beyond the kernel: some inputs are never read
    square(1, 4, 7, 5, 1, 3),
    square(3, 24, 11, 40, 1, 2),
    square(2, 32, 7, 48, 1, groups=2),
    square(3, 5, 1, 9, 1),  # images of one pixel
    square(2, 5, 1, 9, 3, 1, 1),
    square(1, 8, 5, 4, 5),  # the kernel is the image
    square(1, 4, 3, 6, 3, 2, 5),  # more padding than image
    square(1, 33, 5, 65, 3, 2, 1),
]

# Winograd tiles are 4 and 3 outputs wide, in blocks of 48; more than 2^20 transformed weights are made in pieces.
_WINOGRAD = [
    *(square(1, 19, H, 18, 3, 1, 1) for H in (1, 2, 3, 4, 5, 7, 8, 10, 13)),
    *(
        Case(1, 16, H, W, 17, 3, 3, (1, 1), padding)
        for H, W, padding in ((3, 6, (0, 0)), (9, 5, (2, 2)), (6, 7, (2, 0)))
    ),
    square(3, 16, 29, 24, 3, 1, 1),
    Case(2, 24, 57, 30, 72, 3, 3, (1, 1), (1, 1)),
    square(1, 176, 7, 180, 3, 1, 1),
    square(2, 180, 22, 176, 3, 1, 1),
    *(square(1, 19, H, 18, 3, 2, 1) for H in (1, 2, 3, 5, 6, 7, 8, 11, 14, 19)),
    *(
        Case(1, 16, H, W, 17, 3, 3, (2, 2), padding)
        for H, W, padding in ((3, 12, (0, 0)), (13, 9, (2, 2)), (12, 14, (2, 0)))
    ),
    square(3, 16, 57, 24, 3, 2, 1),
    square(1, 176, 14, 180, 3, 2, 1),
    square(1, 180, 43, 176, 3, 2, 1),
]

# The first layers' tiles are 4 outputs of a row, in groups of 12, transformed by vectors of tiles; or, done
# directly, up to 16 outputs of a row.
_STEMS = [
    *(Case(1, 3, 12, W, 20, 7, 7, (2, 2), (3, 3)) for W in (5, 6, 16, 31, 97, 131)),
    *(Case(2, C, 9, 23, 70, 3, 3, (1, 1), (1, 1)) for C in (1, 2, 4)),
    Case(1, 3, 8, 200, 17, 3, 3, (1, 1), (2, 0)),
    Case(1, 3, 13, 40, 64, 7, 7, (2, 2), (0, 5)),
    *(Case(2, C, 9, 23, 70, 3, 3, (2, 2), (1, 1)) for C in (1, 2, 3, 4)),
    Case(1, 1, 28, 28, 6, 5, 5, (1, 1), (2, 2)),  # LeNet
    Case(1, 4, 14, 33, 130, 5, 3, (3, 2), (0, 1)),
    Case(1, 3, 23, 19, 24, 11, 11, (4, 1), (2, 5)),
]

# Depthwise windows are 2 × 4 outputs, or what is left of them.
_DEPTHWISE = [
    *(Case(2, 20, H, H + 3, 20, 3, 3, (1, 1), (1, 1), groups=20) for H in (1, 2, 5, 6, 8)),
    *(Case(2, 35, H, H + 5, 35, 3, 3, (2, 2), (1, 1), groups=35) for H in (1, 2, 3, 6, 9, 12)),
    Case(1, 16, 7, 9, 16, 3, 3, (1, 1), (0, 2), groups=16),
    Case(1, 16, 8, 12, 16, 3, 3, (2, 2), (2, 0), groups=16),
]

Window = tuple[int, int, int]  # of a max pooling: size, stride, padding
RESNETS: Window = (3, 2, 1)

# First layers with their max pooling. A tile of the CUDA kernel is 7 × 8 outputs of the usual one, 14 × 16
# positions, 28 × 32 pixels; 64 filters, in float32 32.
POOLED: list[tuple[Case, Window]] = [
    (square(1, 3, 56, 64, 7, 2, 3), RESNETS),
    *((Case(1, 3, H, W, 8, 7, 7, (2, 2), (3, 3)), RESNETS) for H, W in ((27, 31), (28, 32), (29, 33), (57, 66))),
    *((Case(2, 3, H, W, 5, 7, 7, (2, 2), (3, 3)), RESNETS) for H, W in ((1, 1), (2, 5), (1, 40), (6, 3))),
    *((square(1, 3, 20, K, 7, 2, 3), RESNETS) for K in (1, 31, 33, 63, 65, 130)),
    *((square(3, C, 17, 9, 7, 2, 3), RESNETS) for C in (1, 2, 4)),
    *((square(2, 3, 33, 24, R, 2, R // 2), RESNETS) for R in (1, 3, 5)),
    (square(2, 3, 16, 24, 3, 1, 1), (2, 2, 0)),
    (Case(2, 3, 19, 22, 10, 8, 2, (2, 2), (1, 0)), RESNETS),
    (Case(1, 2, 21, 18, 10, 4, 8, (2, 2), (0, 7)), RESNETS),
    *((square(2, 3, 39, 12, 7, 2, 3), pool) for pool in ((2, 2, 0), (3, 1, 1), (4, 3, 2), (2, 5, 1), (1, 1, 0))),
]

EMPTY = square(0, 8, 6, 5, 3, 1, 1)

CASES = [*_AROUND_TILES, *_NETWORK_LAYERS, *_ODD_ONES, *_WINOGRAD, *_STEMS, *_DEPTHWISE]
