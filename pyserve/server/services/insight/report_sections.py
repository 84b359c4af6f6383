"""The report's sections about learning rates and about what the network sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pyserve.errors import CancelledError, PyserveError
from pyserve.inference.probe import Probe
from pyserve.insight.figures import FigureFile, lr_curve
from pyserve.insight.report import Section
from pyserve.insight.shared import ShouldStop
from pyserve.jobs.events import CurvePoint, Event, PhaseStarted, StateChange
from pyserve.jobs.records import JobRecord
from pyserve.server.services.insight.lessons import LessonCalls
from pyserve.server.services.insight.looker import Question
from pyserve.server.services.insight.network import NetworkCalls
from pyserve.spec import TrainSpec
from pyserve.v1 import common_pb2, insight_pb2

_EXPLAINED = 3
_CHANNELS = 6
_SHOWN_LAYERS = (0.2, 0.55, 0.9)  # how far into the network
_KERNEL = "outline"

Make = Callable[[], Section]


class NetworkSections(NetworkCalls, LessonCalls):
    """See the module."""

    def _inside(
        self, asked: Question, probe: Probe, job: JobRecord | None, worst: list[str], stop: ShouldStop
    ) -> Iterator[Section]:
        """All that there is to see of a network.

        Args:
            worst: paths of pictures that are labelled wrongly, the worst first.
        """
        yield guarded("Why it is wrong", lambda: self._explanations(asked, worst, stop))
        yield guarded("First-layer filters", lambda: self._first_layer(asked))
        shown = worst[0] if worst else self._first_picture(asked)
        if shown:
            yield guarded("What the first layer sees", lambda: self._seen(asked, shown))
        layers = _shown_layers(probe)
        for layer in layers:
            yield guarded(f"What {layer} looks for", partial(self._patches, asked, layer, stop))
        if job is not None and isinstance(job.spec, TrainSpec) and job.spec.snapshots:
            layer = layers[len(layers) // 2]
            yield guarded("How features came about", lambda: self._grown(job, layer, stop))
        yield guarded("Why layers help", lambda: self._stairs(stop))

    def _explanations(self, asked: Question, worst: list[str], stop: ShouldStop) -> Section:
        figures = []
        for number, path in enumerate(worst[:_EXPLAINED], 1):
            picture = insight_pb2.Picture(path=path, dataset=asked.dataset)
            for method in (insight_pb2.GRAD_CAM, insight_pb2.OCCLUSION):
                request = insight_pb2.ExplainRequest(model=asked.model, picture=picture, method=method)
                figures += renamed(number, self._explain(request, stop).figures)
        text = (
            "The pictures that are most wrong: what speaks for the answer (Grad-CAM), and what hiding a part does."
        )
        return Section("Why it is wrong", text if figures else "No picture is labelled wrongly.", figures=figures)

    def _first_layer(self, asked: Question) -> Section:
        return Section("First-layer filters", figures=files(self._filters(asked.model).figures))

    def _first_picture(self, asked: Question) -> str:
        manifest = self.looker.manifest(asked.model, asked.dataset)
        return next((item.path for item in manifest.items if item.part == asked.part), "")

    def _seen(self, asked: Question, path: str) -> Section:
        """One picture through the first layer, through one of its filters alone, and through a named kernel."""
        manifest = self.looker.manifest(asked.model, asked.dataset)
        picture = insight_pb2.Picture(path=path, dataset=asked.dataset)
        maps = self._feature_maps(insight_pb2.FeatureMapsRequest(model=asked.model, picture=picture))
        figures = files(maps.figures)
        image = Path(manifest.root, path).read_bytes()
        learned = insight_pb2.LearnedKernel(model=asked.model, channel=maps.channels[0])
        alone = insight_pb2.ApplyKernelRequest(image=image, learned=learned)
        named = insight_pb2.ApplyKernelRequest(image=image, name=_KERNEL)
        for number, request in enumerate((alone, named), 1):
            figures += renamed(number, self._apply_kernel(request).figures)
        text = f"{path}: the strongest feature maps, the strongest filter alone, and a kernel that finds outlines."
        return Section("What the first layer sees", text, figures=figures)

    def _patches(self, asked: Question, layer: str, stop: ShouldStop) -> Section:
        request = insight_pb2.TopPatchesRequest(
            model=asked.model, dataset=asked.dataset, layer=layer, channel_count=_CHANNELS
        )
        answer = self._top_patches(request, stop)
        sees = answer.layer
        text = f"Each place sees {sees.field_height} × {sees.field_width} pixels of the picture."
        return Section(f"What {layer} looks for", text, figures=files(answer.figures))

    def _grown(self, job: JobRecord, layer: str, stop: ShouldStop) -> Section:
        request = insight_pb2.EvolutionRequest(job=job.name, layer=layer, channel_count=_CHANNELS)
        answer = self._evolution(request, stop)
        text = f"The strongest place of feature maps of {layer} after epochs {', '.join(map(str, answer.epochs))}."
        return Section("How features came about", text, figures=files(answer.figures))

    def _stairs(self, stop: ShouldStop) -> Section:
        text = (
            "Not about this model: with enough steps, one hidden layer comes as close to a function as one likes, "
            "and with more layers fewer units do."
        )
        answer = self._approximate(insight_pb2.ApproximateRequest(), stop)
        return Section("Why layers help", text, figures=files(answer.figures))


@dataclass
class _Run:
    """A range test as it was logged."""

    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)

    def add(self, point: CurvePoint) -> None:
        self.lrs.append(point.learning_rate)
        self.losses.append(point.loss)
        self.smoothed.append(point.smoothed_loss)


def own_range_tests(events: Iterable[Event]) -> Section:
    """The range tests that a training made before its phases, from its log."""
    figures: list[FigureFile] = []
    run = _Run()
    for event in events:
        payload = event.payload
        if isinstance(payload, CurvePoint):
            run.add(payload)
        elif isinstance(payload, StateChange):  # another worker begins the test again
            run = _Run()
        elif isinstance(payload, PhaseStarted) and len(run.lrs) > 1:
            title = f"Range test before phase {payload.phase}: {payload.name}"
            drawn = lr_curve([run], {"taken": payload.learning_rate}, rule="taken", title=title)
            figures += [FigureFile(f"{payload.phase}_{f.name}", f.media_type, f.data) for f in drawn]
            run = _Run()
    return Section("Learning-rate finder", "A range test before each phase, and the rate taken.", figures=figures)


def guarded(title: str, make: Make) -> Section:
    """A section, or why it is missing; what is cancelled is cancelled as a whole."""
    try:
        return make()
    except CancelledError:
        raise
    except PyserveError as error:
        return Section(title, problem=error.message)


def files(figures: Iterable[common_pb2.Figure]) -> list[FigureFile]:
    """Figures of an answer."""
    return [FigureFile(f.name, f.media_type, f.data) for f in figures]


def renamed(number: int, figures: Iterable[common_pb2.Figure]) -> list[FigureFile]:
    """Figures of which a section has several: a page keeps one of each name."""
    return [FigureFile(f"{number}_{f.name}", f.media_type, f.data) for f in figures]


def _shown_layers(probe: Probe) -> list[str]:
    """An early, a middle and a late layer, whole blocks where there are some."""
    around = [
        x.name
        for x in probe.layers
        if x.height * x.width >= 9 and any(probe.model.get_submodule(x.name).children())
    ]
    names = around or [x.name for x in probe.layers]
    chosen = [names[min(int(place * len(names)), len(names) - 1)] for place in _SHOWN_LAYERS]
    return list(dict.fromkeys(chosen))
