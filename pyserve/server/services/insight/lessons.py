"""The calls that need no model: image kernels on a picture, networks that approximate a function."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyserve.data.images import decode_image
from pyserve.errors import DataError, InvalidArgumentError
from pyserve.insight.approximation import (
    DEFAULT_DEPTHS,
    DEFAULT_STAIRS,
    DEFAULT_TOLERANCE,
    stairs,
    width_against_depth,
)
from pyserve.insight.image_kernels import apply_kernel, learned_kernel, named_kernel, own_kernel
from pyserve.insight.shared import ShouldStop
from pyserve.server import convert, validate
from pyserve.server.services.insight.base import InsightCalls
from pyserve.server.services.insight.looker import unusable
from pyserve.v1 import common_pb2, insight_pb2

_MAX_COUNTS = 9


class LessonCalls(InsightCalls):
    """See the package."""

    async def ApplyKernel(
        self, request: insight_pb2.ApplyKernelRequest, context: Any
    ) -> insight_pb2.ApplyKernelResponse:
        """A small kernel on a picture."""
        if not request.image:
            raise InvalidArgumentError.field("image", "none", "an encoded picture")
        if request.WhichOneof("kernel") is None:
            raise InvalidArgumentError.field("kernel", "none", "a name, a matrix, or a learned one")
        return await self.run(context, lambda stop: self._apply_kernel(request))

    async def Approximate(
        self, request: insight_pb2.ApproximateRequest, context: Any
    ) -> insight_pb2.ApproximateResponse:
        """Networks that approximate a function."""
        for field, counts in (("steps", request.steps), ("depths", request.depths)):
            if len(counts) > _MAX_COUNTS:
                raise InvalidArgumentError.field(field, f"{len(counts)} numbers", f"at most {_MAX_COUNTS}")
        return await self.run(context, lambda stop: self._approximate(request, stop))

    def _apply_kernel(self, request: insight_pb2.ApplyKernelRequest) -> insight_pb2.ApplyKernelResponse:
        from pyserve.insight.figures import kernel as draw  # matplotlib is slow to load

        try:
            image = decode_image(request.image, max_pixels=self.looker.max_image_pixels)
        except DataError as error:
            raise unusable("image", error) from error
        name, kernel, normalisation = self._kernel(request)
        found = apply_kernel(image, kernel, normalisation)
        drawn = draw(found.picture, found.kernel, found.shown, name=name, white=found.white)
        return insight_pb2.ApplyKernelResponse(
            kernel=convert.array(found.kernel),
            response=convert.array(found.response),
            white=found.white,
            filtered=_png(found.shown),
            figures=convert.figures(drawn),
        )

    def _kernel(self, request: insight_pb2.ApplyKernelRequest) -> tuple[str, npt.NDArray[np.float32], Any]:
        """Name, numbers, and what a picture has to be normalised with."""
        kind = request.WhichOneof("kernel")
        if kind == "name":
            return request.name, named_kernel(request.name), None
        if kind == "matrix":
            values = list(request.matrix.values)
            side = math.isqrt(len(values))
            if side**2 != len(values):
                raise InvalidArgumentError.field("matrix.values", f"{len(values)} numbers", "4, 9 or 25")
            return "own", own_kernel([values[i * side : (i + 1) * side] for i in range(side)]), None
        model = validate.model_name(request.learned.model, "learned.model")
        info, probe = self.looker.probe(model)
        channel = request.learned.channel
        preprocessing = probe.preprocessing
        name = f"filter {channel} of {info.name}"
        return name, learned_kernel(probe, channel), (preprocessing.mean, preprocessing.std)

    def _approximate(
        self, request: insight_pb2.ApproximateRequest, should_stop: ShouldStop
    ) -> insight_pb2.ApproximateResponse:
        from pyserve.insight import figures

        target = request.target or "waves"
        tolerance = request.tolerance if request.HasField("tolerance") else DEFAULT_TOLERANCE
        found = stairs(target, request.steps or DEFAULT_STAIRS, should_stop)
        against = width_against_depth(target, tolerance, request.depths or DEFAULT_DEPTHS, should_stop)
        drawn = [
            *figures.stairs(
                [figures.Staircase(s.x, s.target, s.output, s.places, s.heights, s.error) for s in found]
            ),
            *figures.width_depth(
                [figures.NetworkError(f.depth, f.width, f.parameters, f.error) for f in against.fits], tolerance
            ),
        ]
        return insight_pb2.ApproximateResponse(
            x=convert.array(found[0].x),
            target=convert.array(found[0].target),
            staircases=[
                insight_pb2.Staircase(
                    output=convert.array(s.output), places=s.places, heights=s.heights, error=s.error
                )
                for s in found
            ],
            networks=[
                insight_pb2.NetworkFit(depth=f.depth, width=f.width, parameters=f.parameters, error=f.error)
                for f in against.fits
            ],
            tolerance=tolerance,
            figures=convert.figures(drawn),
        )


def _png(shown: npt.NDArray[np.float32]) -> common_pb2.Figure:
    buffer = io.BytesIO()
    Image.fromarray(np.round(shown * 255).astype(np.uint8)).save(buffer, "PNG")
    return common_pb2.Figure(name="filtered.png", media_type="image/png", data=buffer.getvalue())
