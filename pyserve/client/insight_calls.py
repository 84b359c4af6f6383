"""The calls that look at models."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Literal

from pyserve.client.calls_base import WORK_TIMEOUT_S, CallsBase
from pyserve.client.pictures import Picture, picture_bytes
from pyserve.client.requests import enum_number
from pyserve.errors import InvalidArgumentError
from pyserve.v1 import common_pb2, insight_pb2, models_pb2

LossOrder = Literal["most_incorrect", "most_correct", "most_uncertain", "highest_loss"]
Part = Literal["train", "valid"]
Binning = Literal["equal_width", "equal_mass"]
Method = Literal["grad_cam", "occlusion", "deconvnet"]
Rule = Literal["deconvnet", "guided"]


class InsightCalls(CallsBase):
    """See `calls.Calls`. A `dataset` of "" means the one that the model was trained on; figures come with every
    answer."""

    async def top_losses(
        self,
        model: str,
        *,
        dataset: str = "",
        part: Part = "valid",
        order: LossOrder = "most_incorrect",
        count: int | None = None,
        label: str = "",
        predicted: str = "",
        timeout_s: float | None = None,
    ) -> insight_pb2.TopLossesResponse:
        """The pictures on which the model is most wrong, most right or least sure, and a gallery of them.

        Args:
            model: any of its names.
            dataset: "datasets/{id}"; "" means the one it was trained on.
            count: how many; the server's default is 9.
            label: only pictures that have this label in the dataset.
            predicted: only pictures that the model gives this label.
        """
        request = insight_pb2.TopLossesRequest(
            model=model,
            dataset=dataset,
            part=_part(part),
            order=enum_number(insight_pb2.LossOrder, order, "order"),
            count=count,
            label=label,
            predicted=predicted,
        )
        return await self._call(self._stubs.insight.TopLosses, request, timeout_s or WORK_TIMEOUT_S)

    async def confusion_matrix(
        self, model: str, *, dataset: str = "", part: Part = "valid", timeout_s: float | None = None
    ) -> insight_pb2.ConfusionMatrixResponse:
        """Which class is taken for which; arguments as for `top_losses`."""
        request = insight_pb2.ConfusionMatrixRequest(model=model, dataset=dataset, part=_part(part))
        return await self._call(self._stubs.insight.ConfusionMatrix, request, timeout_s or WORK_TIMEOUT_S)

    async def compare_models(
        self, before: str, after: str, *, dataset: str = "", part: Part = "valid", timeout_s: float | None = None
    ) -> insight_pb2.CompareModelsResponse:
        """Two models on the same pictures; a `dataset` of "" means the one that `after` was trained on."""
        request = insight_pb2.CompareModelsRequest(before=before, after=after, dataset=dataset, part=_part(part))
        return await self._call(self._stubs.insight.CompareModels, request, timeout_s or WORK_TIMEOUT_S)

    async def calibration(
        self,
        model: str,
        *,
        dataset: str = "",
        part: Part = "valid",
        bins: int | None = None,
        binning: Binning = "equal_width",
        timeout_s: float | None = None,
    ) -> insight_pb2.CalibrationResponse:
        """How sure the model is against how often it is right, and the temperature that makes both agree."""
        request = insight_pb2.CalibrationRequest(
            model=model, dataset=dataset, part=_part(part), bins=bins, binning=binning
        )
        return await self._call(self._stubs.insight.Calibration, request, timeout_s or WORK_TIMEOUT_S)

    async def calibrate(
        self,
        model: str,
        *,
        dataset: str = "",
        part: Part = "valid",
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> models_pb2.Model:
        """A new version of the model, with the temperature that `calibration` tells."""
        request = insight_pb2.CalibrateRequest(
            request_id=request_id or str(uuid.uuid4()), model=model, dataset=dataset, part=_part(part)
        )
        return await self._call(self._stubs.insight.Calibrate, request, timeout_s or WORK_TIMEOUT_S)

    async def label_issues(
        self,
        model: str,
        *,
        dataset: str = "",
        part: Part | None = None,
        count: int | None = None,
        timeout_s: float | None = None,
    ) -> insight_pb2.LabelIssuesResponse:
        """Pictures that probably have a wrong label; a `part` of None means both, the server's count is 20."""
        request = insight_pb2.LabelIssuesRequest(model=model, dataset=dataset, part=_part(part), count=count)
        return await self._call(self._stubs.insight.LabelIssues, request, timeout_s or WORK_TIMEOUT_S)

    async def duplicates(
        self,
        model: str,
        *,
        dataset: str = "",
        part: Part | None = None,
        least_correlation: float | None = None,
        count: int | None = None,
        timeout_s: float | None = None,
    ) -> insight_pb2.DuplicatesResponse:
        """Pictures that show the same; a `part` of None means both.

        Args:
            least_correlation: how alike the pixels' details must be, −1…1; default: 0.7, or more where all
                pictures are alike.
            count: how many pairs; the server's default is 30.
        """
        request = insight_pb2.DuplicatesRequest(
            model=model, dataset=dataset, part=_part(part), least_correlation=least_correlation, count=count
        )
        return await self._call(self._stubs.insight.Duplicates, request, timeout_s or WORK_TIMEOUT_S)

    async def layers(self, model: str, *, timeout_s: float | None = None) -> insight_pb2.LayersResponse:
        """The layers that the calls below can look at."""
        request = insight_pb2.LayersRequest(model=model)
        return await self._call(self._stubs.insight.Layers, request, timeout_s or WORK_TIMEOUT_S)

    async def filters(self, model: str, *, timeout_s: float | None = None) -> insight_pb2.FiltersResponse:
        """The first layer's filters."""
        request = insight_pb2.FiltersRequest(model=model)
        return await self._call(self._stubs.insight.Filters, request, timeout_s or WORK_TIMEOUT_S)

    async def feature_maps(
        self,
        model: str,
        image: Picture | None = None,
        *,
        path: str = "",
        dataset: str = "",
        layer: str = "",
        channels: Sequence[int] = (),
        count: int | None = None,
        timeout_s: float | None = None,
    ) -> insight_pb2.FeatureMapsResponse:
        """A layer's feature maps of one picture.

        Args:
            image: path of a file here, or the bytes of an encoded picture.
            path: instead of that, a picture of a dataset on the server.
            layer: one of `layers`; default: the convolution that sees the picture.
            channels: which feature maps; default: the `count` (16) with the strongest activations.
        """
        request = insight_pb2.FeatureMapsRequest(
            model=model, picture=_picture(image, path, dataset), layer=layer, channels=channels, count=count
        )
        return await self._call(self._stubs.insight.FeatureMaps, request, timeout_s or WORK_TIMEOUT_S)

    async def top_patches(
        self,
        model: str,
        layer: str,
        *,
        dataset: str = "",
        part: Part = "valid",
        channels: Sequence[int] = (),
        channel_count: int | None = None,
        count: int | None = None,
        rule: Rule | Literal[""] = "",
        timeout_s: float | None = None,
    ) -> insight_pb2.TopPatchesResponse:
        """For each feature map the pictures that excite it most, and what in them does.

        Args:
            layer: one of `layers`.
            channels: which feature maps; default: the `channel_count` (8) with the strongest activations.
            count: pictures for each; the server's default is 9.
            rule: how projections pass a ReLU; default: what suits the network.
        """
        request = insight_pb2.TopPatchesRequest(
            model=model,
            dataset=dataset,
            part=_part(part),
            layer=layer,
            channels=channels,
            channel_count=channel_count,
            count=count,
            rule=rule,
        )
        return await self._call(self._stubs.insight.TopPatches, request, timeout_s or WORK_TIMEOUT_S)

    async def evolution(
        self,
        job: str,
        layer: str,
        *,
        part: Part = "valid",
        channels: Sequence[int] = (),
        channel_count: int | None = None,
        rule: Rule | Literal[""] = "",
        timeout_s: float | None = None,
    ) -> insight_pb2.EvolutionResponse:
        """How a layer's features came about over the epochs of a training with `snapshots`."""
        request = insight_pb2.EvolutionRequest(
            job=job, part=_part(part), layer=layer, channels=channels, channel_count=channel_count, rule=rule
        )
        return await self._call(self._stubs.insight.Evolution, request, timeout_s or WORK_TIMEOUT_S)

    async def explain(
        self,
        model: str,
        image: Picture | None = None,
        *,
        path: str = "",
        dataset: str = "",
        method: Method = "grad_cam",
        label: str = "",
        layer: str = "",
        channel: int | None = None,
        square_size: int | None = None,
        square_stride: int | None = None,
        rule: Rule | Literal[""] = "",
        timeout_s: float | None = None,
    ) -> insight_pb2.ExplainResponse:
        """Why the model says what it says about one picture.

        Args:
            image: path of a file here, or the bytes of an encoded picture.
            path: instead of that, a picture of a dataset on the server.
            label: the class that is asked about; default: the likeliest one.
            layer: one of `layers`; default: the last one that tells places apart.
            channel: feature map (occlusion, deconvnet); default: the strongest one.
            square_size, square_stride: of the grey square (occlusion), pixels of the network's input.
            rule: how a projection passes a ReLU; default: what suits the network.
        """
        request = insight_pb2.ExplainRequest(
            model=model,
            picture=_picture(image, path, dataset),
            method=enum_number(insight_pb2.ExplainMethod, method, "method"),
            label=label,
            layer=layer,
            channel=channel,
            square_size=square_size,
            square_stride=square_stride,
            rule=rule,
        )
        return await self._call(self._stubs.insight.Explain, request, timeout_s or WORK_TIMEOUT_S)

    async def apply_kernel(
        self,
        image: Picture,
        kernel: str | Sequence[Sequence[float]] = "",
        *,
        model: str = "",
        channel: int | None = None,
        timeout_s: float | None = None,
    ) -> insight_pb2.ApplyKernelResponse:
        """What a small kernel makes of a picture.

        Args:
            image: path of a file here, or the bytes of an encoded picture.
            kernel: its name ("sobel_top", "outline", …), or its rows: 2, 3 or 5 of as many numbers.
            model, channel: instead of that, a filter of a model's first layer.
        """
        request = insight_pb2.ApplyKernelRequest(image=picture_bytes(image, "image"))
        if model:
            request.learned.CopyFrom(insight_pb2.LearnedKernel(model=model, channel=channel or 0))
        elif isinstance(kernel, str):
            request.name = kernel
        else:
            values = [float(value) for row in kernel for value in row]
            if any(len(row) != len(kernel) for row in kernel):
                raise InvalidArgumentError.field(
                    "kernel", [list(row) for row in kernel], "as many rows as columns"
                )
            request.matrix.CopyFrom(insight_pb2.KernelMatrix(values=values))
        return await self._call(self._stubs.insight.ApplyKernel, request, timeout_s or WORK_TIMEOUT_S)

    async def approximate(
        self,
        target: str = "",
        *,
        steps: Sequence[int] = (),
        tolerance: float | None = None,
        depths: Sequence[int] = (),
        timeout_s: float | None = None,
    ) -> insight_pb2.ApproximateResponse:
        """Networks that approximate a function on 0…1: staircases, and width against depth at equal error.

        Args:
            target: "waves" (default), "sine", "sawtooth" or "jump".
            steps: of the staircases; default 2, 5, 15 and 50.
            tolerance: error that networks of each depth are to reach; default 0.01.
            depths: numbers of hidden layers; default 1, 2 and 3.
        """
        request = insight_pb2.ApproximateRequest(target=target, steps=steps, tolerance=tolerance, depths=depths)
        return await self._call(self._stubs.insight.Approximate, request, timeout_s or WORK_TIMEOUT_S)

    async def report(
        self, name: str, *, dataset: str = "", part: Part = "valid", timeout_s: float | None = None
    ) -> insight_pb2.ReportResponse:
        """All of a model, or of the one that "jobs/{id}" made, as one HTML page that needs nothing else."""
        request = insight_pb2.ReportRequest(name=name, dataset=dataset, part=_part(part))
        return await self._call(self._stubs.insight.Report, request, timeout_s or WORK_TIMEOUT_S)

    async def kernels(self, *, timeout_s: float | None = None) -> insight_pb2.KernelsResponse:
        """Which kernel variants run on the server, how often each ran, and what fell back to ATen and why."""
        return await self._call(self._stubs.insight.Kernels, insight_pb2.KernelsRequest(), timeout_s)


def _part(part: str | None) -> common_pb2.Part.ValueType:
    """None leaves it to the server."""
    if part is None:
        return common_pb2.PART_UNSPECIFIED
    number: common_pb2.Part.ValueType = enum_number(common_pb2.Part, part, "part", "PART_")
    return number


def _picture(image: Picture | None, path: str, dataset: str) -> insight_pb2.Picture:
    if (image is None) == (not path):
        given = "both" if path else "neither"
        raise InvalidArgumentError.field(
            "picture", given, "either an image, or the path of a picture in a dataset"
        )
    if image is None:
        return insight_pb2.Picture(path=path, dataset=dataset)
    return insight_pb2.Picture(image=picture_bytes(image, "image"))
