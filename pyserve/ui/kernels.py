"""Image kernels: what nine numbers make of a picture."""

from __future__ import annotations

from nicegui import ui

from pyserve.client import as_array
from pyserve.errors import InvalidArgumentError
from pyserve.spec.names import IMAGE_KERNEL_NAMES
from pyserve.ui import frame
from pyserve.v1 import common_pb2

_OWN = "own"
_SIDE = 3
_NAMES = [*IMAGE_KERNEL_NAMES, _OWN]


async def page() -> None:
    """Build the page."""
    with frame.page("Image kernels"):
        ui.label(
            "A convolution moves a small table of numbers over the picture, and adds up what lies under it. "
            "Black is 0, white is where the picture is most like the table."
        )
        with frame.section("Picture and kernel"):
            Kernels()


class Kernels:
    """A picture, a kernel, and what comes out; the numbers may be changed."""

    def __init__(self) -> None:
        self._picture = b""
        self._filled: list[float] = []  # the numbers of the named kernel that is shown
        frame.picture_upload(self._take)
        with ui.row().classes("items-start gap-6"):
            titles = {name: name.replace("_", " ") for name in _NAMES}
            self._name = ui.select(titles, value="outline", label="Kernel", on_change=self._apply).classes("w-48")
            with ui.grid(columns=_SIDE).classes("gap-2"):
                self._numbers = [
                    ui.number(value=0, step=0.5, on_change=self._own)
                    .props(f'dense outlined aria-label="row {i // _SIDE + 1}, column {i % _SIDE + 1}"')
                    .classes("w-20")
                    for i in range(_SIDE**2)
                ]
        with ui.grid().classes("w-full grid-cols-1 sm:grid-cols-2 gap-4"):
            self._before, self._after = ui.column(), ui.column()

    async def _take(self, picture: bytes) -> None:
        grey = await frame.client().apply_kernel(picture, "identity")
        self._picture = picture
        self._before.clear()
        with self._before:
            self._show(grey.filtered, "The picture, in grey")
        await self._apply()

    async def _own(self) -> None:
        """A number was changed by hand: the kernel is no named one any more."""
        if [field.value for field in self._numbers] == self._filled:
            return
        if self._name.value != _OWN:
            self._name.value = _OWN  # whose change applies it
        else:
            await self._apply()

    @frame.told
    async def _apply(self) -> None:
        if not self._picture:
            return
        answer = await frame.client().apply_kernel(self._picture, self._kernel())
        values = as_array(answer.kernel)
        if self._name.value != _OWN and values.shape == (_SIDE, _SIDE):
            self._filled = [round(value, 4) for value in values.flatten().tolist()]
            for field, value in zip(self._numbers, self._filled, strict=True):
                field.value = value
        self._after.clear()
        with self._after:
            self._show(answer.filtered, f"The picture under {self._name.value}")

    @staticmethod
    def _show(figure: common_pb2.Figure, text: str) -> None:
        frame.picture(frame.figure_url(figure), text).classes("w-full").style("image-rendering: pixelated")

    def _kernel(self) -> str | list[list[float]]:
        if self._name.value != _OWN:
            return str(self._name.value)
        values = [field.value for field in self._numbers]
        if None in values:
            raise InvalidArgumentError.field("kernel", "an empty field", "nine numbers")
        return [values[i : i + _SIDE] for i in range(0, _SIDE**2, _SIDE)]
