"""Image kernels: what nine numbers make of a picture."""

from __future__ import annotations

from nicegui import events, ui

from pyserve.client import as_array
from pyserve.errors import InvalidArgumentError
from pyserve.spec.names import IMAGE_KERNEL_NAMES
from pyserve.ui import frame

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
        ui.upload(label="Choose a picture, or drop it here", on_upload=self._take, auto_upload=True).props(
            'accept="image/*" flat bordered'
        ).classes("w-full sm:w-96").mark("picture")
        with ui.row().classes("items-start gap-6"):
            titles = {name: name.replace("_", " ") for name in _NAMES}
            self._name = ui.select(titles, value="outline", label="Kernel", on_change=self._apply).classes("w-48")
            with ui.grid(columns=_SIDE).classes("gap-2"):
                self._numbers = [
                    ui.number(value=0, step=0.5, on_change=self._own)
                    .props(f'dense outlined aria-label="row {i // _SIDE + 1}, column {i % _SIDE + 1}"')
                    .classes("w-20")
                    .mark("number")
                    for i in range(_SIDE**2)
                ]
        self._shown = ui.column().classes("w-full")

    @frame.told
    async def _take(self, event: events.UploadEventArguments) -> None:
        event.sender.reset()  # type: ignore[attr-defined]  # an upload's sender is the upload
        self._picture = await event.file.read()
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
        self._shown.clear()
        with self._shown:
            text = f"The picture under {self._name.value}"
            frame.picture(frame.figure_url(answer.filtered), text).classes("w-full max-w-2xl").style(
                "image-rendering: pixelated"
            ).mark("filtered")

    def _kernel(self) -> str | list[list[float]]:
        if self._name.value != _OWN:
            return str(self._name.value)
        values = [field.value for field in self._numbers]
        if None in values:
            raise InvalidArgumentError.field("kernel", "an empty field", "nine numbers")
        return [values[i : i + _SIDE] for i in range(0, _SIDE**2, _SIDE)]
