"""The calls about pictures that lie next to each other in a network's feature space."""

from __future__ import annotations

from typing import Any

from pyserve.data.manifest import Part
from pyserve.errors import InvalidArgumentError
from pyserve.insight.duplicates import NEIGHBOURS, Duplicate, duplicates
from pyserve.insight.embedding import Embedding
from pyserve.insight.labels import LabelIssue, label_issues, neighbour_count
from pyserve.insight.neighbours import nearest
from pyserve.insight.shared import ShouldStop
from pyserve.server import convert, validate
from pyserve.server.services.insight.base import InsightCalls
from pyserve.server.services.insight.looker import parts
from pyserve.v1 import insight_pb2

DEFAULT_ISSUES, MAX_ISSUES = 20, 100
DEFAULT_PAIRS, MAX_PAIRS = 30, 300
_SHOWN_ISSUES, _SHOWN_PAIRS = 24, 30


class NeighbourCalls(InsightCalls):
    """See the package."""

    async def LabelIssues(
        self, request: insight_pb2.LabelIssuesRequest, context: Any
    ) -> insight_pb2.LabelIssuesResponse:
        """Labels that are probably wrong."""
        model, dataset = _names(request)
        which = parts(request.part)
        count = request.count if request.HasField("count") else DEFAULT_ISSUES
        validate.in_range(count, 1, MAX_ISSUES, "count")
        return await self.run(context, lambda stop: self._label_issues(model, dataset, which, count, stop))

    async def Duplicates(
        self, request: insight_pb2.DuplicatesRequest, context: Any
    ) -> insight_pb2.DuplicatesResponse:
        """Pictures that show the same."""
        model, dataset = _names(request)
        which = parts(request.part)
        count = request.count if request.HasField("count") else DEFAULT_PAIRS
        validate.in_range(count, 1, MAX_PAIRS, "count")
        least = request.least_correlation if request.HasField("least_correlation") else None
        if least is not None and not -1 <= least <= 1:
            raise InvalidArgumentError.field("least_correlation", least, "-1 to 1")
        return await self.run(context, lambda stop: self._duplicates(model, dataset, which, least, count, stop))

    def _label_issues(
        self, model: str, dataset: str, which: tuple[Part, ...], count: int, should_stop: ShouldStop
    ) -> insight_pb2.LabelIssuesResponse:
        from pyserve.insight.figures import Tile, gallery  # matplotlib is slow to load

        found = self.looker.embed(model, dataset, which, should_stop)
        classes = len(found.classes)
        neighbours = nearest(found.features, neighbour_count(len(found), classes), should_stop)
        issues = label_issues(neighbours, found.targets, classes)
        shown = issues[: min(count, _SHOWN_ISSUES)]
        pictures = self.pictures(found.root, [found.paths[i.picture] for i in shown])
        tiles = [
            Tile(picture, *_labels(found, issue), issue.suggested_share, issue.label_share)
            for picture, issue in zip(pictures, shown, strict=True)
        ]
        drawn = gallery(
            tiles,
            title=f"Labels that are probably wrong, {len(issues)} suspected",
            explanation="what its neighbours in feature space vote for; label: the data set's, and its votes",
            truth="label",
        )
        return insight_pb2.LabelIssuesResponse(
            items=[_label_issue(found, issue) for issue in issues[:count]],
            suspected=len(issues),
            confident=sum(issue.confident for issue in issues),
            figures=convert.figures(drawn, stem="label_issues"),
        )

    def _duplicates(
        self,
        model: str,
        dataset: str,
        which: tuple[Part, ...],
        least: float | None,
        count: int,
        should_stop: ShouldStop,
    ) -> insight_pb2.DuplicatesResponse:
        from pyserve.insight.figures import Pair
        from pyserve.insight.figures import duplicates as draw

        found = self.looker.embed(model, dataset, which, should_stop)
        neighbours = nearest(found.features, NEIGHBOURS, should_stop)
        copies = duplicates(neighbours, found.thumbnails, least, should_stop)
        pairs = copies.pairs
        shown = pairs[: min(count, _SHOWN_PAIRS)]
        pictures = self.pictures(found.root, [found.paths[i] for pair in shown for i in (pair.first, pair.second)])
        drawn = draw(
            [
                Pair(pictures[2 * k], pictures[2 * k + 1], *_names_of(found, pair), *_note(found, pair))
                for k, pair in enumerate(shown)
            ],
            title=f"Pictures that show the same: {len(pairs)} pairs",
        )
        return insight_pb2.DuplicatesResponse(
            pairs=[
                insight_pb2.DuplicatePair(
                    first=_picture(found, pair.first),
                    second=_picture(found, pair.second),
                    similarity=pair.similarity,
                    correlation=pair.correlation,
                )
                for pair in pairs[:count]
            ],
            found=len(pairs),
            figures=convert.figures(drawn),
            least_correlation=copies.least_correlation,
        )


def _names(request: insight_pb2.LabelIssuesRequest | insight_pb2.DuplicatesRequest) -> tuple[str, str]:
    model = validate.model_name(request.model, "model")
    return model, validate.dataset_name(request.dataset, "dataset") if request.dataset else ""


def _labels(found: Embedding, issue: LabelIssue) -> tuple[str, str]:
    """The label that a picture has, and the one that is suggested."""
    return found.classes[found.targets[issue.picture]], found.classes[issue.suggested]


def _label_issue(found: Embedding, issue: LabelIssue) -> insight_pb2.LabelIssue:
    label, suggested = _labels(found, issue)
    return insight_pb2.LabelIssue(
        path=found.paths[issue.picture],
        part=convert.part(found.parts[issue.picture]),
        label=label,
        suggested=suggested,
        label_share=issue.label_share,
        suggested_share=issue.suggested_share,
        confident=issue.confident,
    )


def _picture(found: Embedding, i: int) -> insight_pb2.DatasetPicture:
    return insight_pb2.DatasetPicture(
        path=found.paths[i], label=found.classes[found.targets[i]], part=convert.part(found.parts[i])
    )


def _names_of(found: Embedding, pair: Duplicate) -> tuple[str, str]:
    first, second = (f"{found.paths[i]} ({found.parts[i]})" for i in (pair.first, pair.second))
    return first, second


def _note(found: Embedding, pair: Duplicate) -> tuple[str, bool]:
    """A note for the figure, and whether it is a warning."""
    first, second = (found.classes[found.targets[i]] for i in (pair.first, pair.second))
    if first != second:
        return f"two labels: {first} and {second}", True
    if found.parts[pair.first] != found.parts[pair.second]:
        return "learnt and measured", True
    return f"correlation {pair.correlation:.2f}", False
