"""The calls that look into a network: layers, filters, feature maps, patches, explanations."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserve.data.manifest import Manifest
from pyserve.errors import FailedPreconditionError, InvalidArgumentError, ResourceExhaustedError
from pyserve.inference.probe import Layer, Probe
from pyserve.insight.deconvnet import RULES, usual_rule
from pyserve.insight.evolution import DEFAULT_CHANNELS as EVOLVING_CHANNELS
from pyserve.insight.evolution import Evolution, evolution
from pyserve.insight.explain import Explanation, Question, explain
from pyserve.insight.feature_maps import DEFAULT_CHANNELS as SHOWN_MAPS
from pyserve.insight.feature_maps import feature_maps, first_filters
from pyserve.insight.predictions import class_index
from pyserve.insight.receptive_field import receptive_fields
from pyserve.insight.shared import ShouldStop
from pyserve.insight.top_patches import DEFAULT_CHANNELS, DEFAULT_PATCHES, Patch, TopPatches, top_patches
from pyserve.jobs.paths import job_folder
from pyserve.jobs.store import JobStore
from pyserve.models.snapshots import snapshots
from pyserve.server import convert, validate
from pyserve.server.services.insight.base import InsightCalls
from pyserve.server.services.insight.looker import optional, question
from pyserve.spec import TrainSpec
from pyserve.v1 import insight_pb2, predict_pb2

METHODS = {
    insight_pb2.EXPLAIN_METHOD_UNSPECIFIED: "grad_cam",
    insight_pb2.GRAD_CAM: "grad_cam",
    insight_pb2.OCCLUSION: "occlusion",
    insight_pb2.DECONVNET: "deconvnet",
}
_SCORES = 5


class NetworkCalls(InsightCalls):
    """See the package.

    `jobs` and `data_dir` are where trainings keep their snapshots; the service sets them.
    """

    jobs: JobStore
    data_dir: Path
    max_message_bytes: int

    async def Layers(self, request: insight_pb2.LayersRequest, context: Any) -> insight_pb2.LayersResponse:
        """The layers of a network."""
        model = validate.model_name(request.model, "model")
        return await self.run(context, lambda stop: self._layers(model))

    async def Filters(self, request: insight_pb2.FiltersRequest, context: Any) -> insight_pb2.FiltersResponse:
        """The first layer's filters."""
        model = validate.model_name(request.model, "model")
        return await self.run(context, lambda stop: self._filters(model))

    async def FeatureMaps(
        self, request: insight_pb2.FeatureMapsRequest, context: Any
    ) -> insight_pb2.FeatureMapsResponse:
        """A layer's feature maps of one picture."""
        validate.model_name(request.model, "model")
        return await self.run(context, lambda stop: self._feature_maps(request))

    async def TopPatches(
        self, request: insight_pb2.TopPatchesRequest, context: Any
    ) -> insight_pb2.TopPatchesResponse:
        """What excites feature maps."""
        question(request.model, request.dataset, request.part)
        _check_rule(request.rule)
        return await self.run(context, lambda stop: self._top_patches(request, stop))

    async def Evolution(
        self, request: insight_pb2.EvolutionRequest, context: Any
    ) -> insight_pb2.EvolutionResponse:
        """How features came about."""
        validate.job_name(request.job, "job")
        validate.part(request.part)
        _check_rule(request.rule)
        return await self.run(context, lambda stop: self._evolution(request, stop))

    async def Explain(self, request: insight_pb2.ExplainRequest, context: Any) -> insight_pb2.ExplainResponse:
        """Why a model says what it says."""
        validate.model_name(request.model, "model")
        _check_rule(request.rule)
        if request.method not in METHODS:
            names = ", ".join(insight_pb2.ExplainMethod.Name(number) for number in METHODS if number)
            raise InvalidArgumentError.field("method", request.method, f"one of {names}")
        return await self.run(context, lambda stop: self._explain(request, stop))

    def _layers(self, model: str) -> insight_pb2.LayersResponse:
        _, probe = self.looker.probe(model)
        fields = receptive_fields(probe)
        return insight_pb2.LayersResponse(
            layers=[_layer(layer, fields[layer.name].size(probe.input_size)) for layer in probe.layers],
            first_convolution=probe.first_convolution,
            last_layer=probe.last_layer.name,
            rule=usual_rule(probe),
        )

    def _filters(self, model: str) -> insight_pb2.FiltersResponse:
        from pyserve.insight.figures import filters as draw  # matplotlib is slow to load

        info, probe = self.looker.probe(model)
        layer, weights = first_filters(probe)
        return insight_pb2.FiltersResponse(
            layer=layer,
            weights=convert.array(weights),
            figures=convert.figures(draw(weights, title=f"Filters of {layer}, {info.name}")),
        )

    def _feature_maps(self, request: insight_pb2.FeatureMapsRequest) -> insight_pb2.FeatureMapsResponse:
        from pyserve.insight.figures import feature_maps as draw

        _, probe = self.looker.probe(request.model)
        layer = request.layer or probe.first_convolution
        shown = self.looker.picture(request.model, request.picture, probe.preprocessing.presize)
        count = optional(request, "count")
        found = feature_maps(probe, shown.batch, layer, request.channels, SHOWN_MAPS if count is None else count)
        self._check_size(found.maps.nbytes, "channels")
        drawn = draw(found.maps, found.channels, found.picture, title=f"Feature maps of {layer}{shown.of}")
        return insight_pb2.FeatureMapsResponse(
            layer=_layer(found.layer, receptive_fields(probe)[layer].size(probe.input_size)),
            channels=found.channels,
            maps=convert.array(found.maps),
            picture=convert.array(_bytes(found.picture)),
            figures=convert.figures(drawn),
        )

    def _top_patches(
        self, request: insight_pb2.TopPatchesRequest, should_stop: ShouldStop
    ) -> insight_pb2.TopPatchesResponse:
        from pyserve.insight.figures import PatchPair
        from pyserve.insight.figures import top_patches as draw

        manifest = self.looker.manifest(request.model, request.dataset)
        _, probe = self.looker.probe(request.model)
        channel_count, count = optional(request, "channel_count"), optional(request, "count")
        found = top_patches(
            probe,
            manifest,
            validate.part(request.part),
            request.layer,
            self.looker.cache_dir,
            channels=request.channels,
            channel_count=DEFAULT_CHANNELS if channel_count is None else channel_count,
            count=DEFAULT_PATCHES if count is None else count,
            rule=request.rule,
            should_stop=should_stop,
        )
        self._check_size(_patch_bytes(found), "channels")
        drawn = draw(
            [
                (f"feature map {c.channel}", [PatchPair(p.pixels, p.projection) for p in c.patches])
                for c in found.channels
            ],
            rule=found.rule,
            title=f"What feature maps of {found.layer.name} look for",
        )
        return insight_pb2.TopPatchesResponse(
            layer=_layer(found.layer, found.field),
            rule=found.rule,
            channels=[
                insight_pb2.ChannelPatches(channel=c.channel, patches=[_patch(manifest, p) for p in c.patches])
                for c in found.channels
            ],
            figures=convert.figures(drawn),
        )

    def _evolution(
        self, request: insight_pb2.EvolutionRequest, should_stop: ShouldStop
    ) -> insight_pb2.EvolutionResponse:
        record = self.jobs.get(request.job)
        if not isinstance(record.spec, TrainSpec):
            raise FailedPreconditionError(f"{request.job} is no training, so it has no snapshots")
        kept = snapshots(job_folder(self.data_dir, request.job))
        if not kept:
            raise FailedPreconditionError(
                f"{request.job} has no snapshots: train with `snapshots`, and for an epoch at least"
            )
        manifest = self.looker.catalog.get(record.spec.dataset)
        channel_count = optional(request, "channel_count")
        found = evolution(
            [(snapshot.epoch, partial(Probe.of_snapshot, snapshot)) for snapshot in kept],
            manifest,
            validate.part(request.part),
            request.layer,
            self.looker.cache_dir,
            channels=request.channels,
            channel_count=EVOLVING_CHANNELS if channel_count is None else channel_count,
            rule=request.rule,
            should_stop=should_stop,
        )
        return _evolution_response(manifest, found)

    def _explain(
        self, request: insight_pb2.ExplainRequest, should_stop: ShouldStop
    ) -> insight_pb2.ExplainResponse:
        info, probe = self.looker.probe(request.model)
        shown = self.looker.picture(request.model, request.picture, probe.preprocessing.presize)
        asked = Question(
            label=class_index(info.labels, request.label, "label") if request.label else None,
            layer=request.layer,
            channel=optional(request, "channel"),
            size=optional(request, "square_size"),
            stride=optional(request, "square_stride"),
            rule=request.rule,
        )
        method = METHODS[request.method]
        found = explain(probe, shown.batch, method, asked, should_stop)
        probabilities = probe.probabilities(probe.logits(probe.prepare(shown.batch)))[0].cpu().numpy()
        order = np.argsort(-probabilities, kind="stable")[:_SCORES].tolist()
        return insight_pb2.ExplainResponse(
            scores=[
                predict_pb2.ClassScore(label=info.labels[i], index=i, probability=float(probabilities[i]))
                for i in order
            ],
            label=info.labels[found.label],
            probability=found.probability,
            layer=found.layer,
            channel=found.channel,
            maps=[
                insight_pb2.NamedArray(name=name, values=convert.array(values))
                for name, values in found.maps.items()
            ],
            picture=convert.array(_bytes(found.picture)),
            figures=convert.figures(_draw(method, found, info.labels, probe, asked)),
        )

    def _check_size(self, size_bytes: int, field: str) -> None:
        """Refuse an answer that would not fit into a message beside its figures."""
        limit = self.max_message_bytes // 2
        if size_bytes > limit:
            raise ResourceExhaustedError.field(
                field, f"{size_bytes} bytes of answer", f"at most {limit} bytes: ask for fewer at once"
            )


def _draw(method: str, found: Explanation, labels: tuple[str, ...], probe: Probe, asked: Question) -> Any:
    """The figure of an explanation."""
    from pyserve.insight import figures

    label = labels[found.label]
    maps: Mapping[str, npt.NDArray[np.float32]] = found.maps
    if method == "grad_cam":
        return figures.grad_cam(maps["grad_cam"], found.picture, label, found.probability, layer=found.layer)
    if method == "occlusion":
        return figures.occlusion(
            maps["probability"],
            maps["activation"],
            maps["label"].astype(np.int64),
            labels,
            found.picture,
            label,
            size=found.square_size,
            layer=found.layer,
        )
    assert found.place is not None  # noqa: S101  a projection is of one place
    assert found.channel is not None  # noqa: S101
    box = receptive_fields(probe)[found.layer].box(*found.place, probe.input_size)
    return figures.deconvnet(
        maps["projection"],
        found.picture,
        layer=found.layer,
        channel=found.channel,
        rule=asked.rule or usual_rule(probe),
        box=(box.top, box.left, box.bottom, box.right),
    )


def _evolution_response(manifest: Manifest, found: Evolution) -> insight_pb2.EvolutionResponse:
    from pyserve.insight.figures import PatchPair
    from pyserve.insight.figures import evolution as draw

    drawn = draw(
        [
            (f"feature map {row.channel}", [PatchPair(p.pixels, p.projection) if p else None for p in row.patches])
            for row in found.rows
        ],
        found.epochs,
        rule=found.rule,
        title=f"How features of {found.layer.name} come about",
    )
    return insight_pb2.EvolutionResponse(
        layer=_layer(found.layer, found.field),
        rule=found.rule,
        epochs=found.epochs,
        channels=[
            insight_pb2.ChannelEvolution(
                channel=row.channel,
                patches=[
                    insight_pb2.EpochPatch(epoch=epoch, patch=_patch(manifest, patch) if patch else None)
                    for epoch, patch in zip(found.epochs, row.patches, strict=True)
                ],
            )
            for row in found.rows
        ],
        figures=convert.figures(drawn),
    )


def _check_rule(rule: str) -> None:
    if rule and rule not in RULES:
        raise InvalidArgumentError.field("rule", rule, f"one of {', '.join(RULES)}")


def _layer(layer: Layer, field: tuple[int, int]) -> insight_pb2.Layer:
    return insight_pb2.Layer(
        name=layer.name,
        kind=layer.kind,
        channels=layer.channels,
        height=layer.height,
        width=layer.width,
        field_height=field[0],
        field_width=field[1],
    )


def _patch(manifest: Manifest, patch: Patch) -> insight_pb2.Patch:
    return insight_pb2.Patch(
        path=patch.path,
        label=manifest.classes[patch.label],
        activation=patch.activation,
        row=patch.row,
        column=patch.column,
        top=patch.box.top,
        left=patch.box.left,
        pixels=convert.array(patch.pixels),
        projection=convert.array(patch.projection),
    )


def _patch_bytes(found: TopPatches) -> int:
    return sum(p.pixels.nbytes + p.projection.nbytes for c in found.channels for p in c.patches)


def _bytes(picture: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.round(picture * 255).astype(np.uint8)
