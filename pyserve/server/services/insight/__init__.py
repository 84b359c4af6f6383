"""`pyserve.v1.Insight`: what a model gets wrong, what its network sees, and what runs underneath.

looker.py         models, networks, datasets, pictures, and what was made of them before
predictions.py    TopLosses, ConfusionMatrix, CompareModels, Calibration, Calibrate
neighbours.py     LabelIssues, Duplicates
network.py        Layers, Filters, FeatureMaps, TopPatches, Evolution, Explain
lessons.py        ApplyKernel, Approximate
report.py         Report, with report_sections.py about rates and the network
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyserve import kernels
from pyserve.jobs.store import JobStore
from pyserve.server.ledger import RequestLedger
from pyserve.server.pools import Pools
from pyserve.server.services.insight.looker import Looker
from pyserve.server.services.insight.report import ReportCalls
from pyserve.v1 import insight_pb2, insight_pb2_grpc

__all__ = ["InsightService", "Looker"]


class InsightService(ReportCalls, insight_pb2_grpc.InsightServicer):
    """Insight over gRPC.

    Args:
        looker: finds what calls ask about.
        pools: threads for their work.
        ledger: remembers requests that make something, by id.
        jobs: the jobs.
        data_dir: where jobs keep their files.
        max_message_bytes: larger answers are refused before they are sent.
    """

    def __init__(
        self,
        looker: Looker,
        pools: Pools,
        ledger: RequestLedger,
        jobs: JobStore,
        data_dir: Path,
        max_message_bytes: int,
    ) -> None:
        super().__init__(looker, pools, ledger)
        self.jobs = jobs
        self.data_dir = data_dir
        self.max_message_bytes = max_message_bytes

    async def Kernels(self, request: insight_pb2.KernelsRequest, context: Any) -> insight_pb2.KernelsResponse:
        """What runs underneath."""
        info = kernels.info()
        return insight_pb2.KernelsResponse(
            isa_found=info.isa_found,
            isa_used=info.isa_in_use,
            cuda_loaded=info.cuda_loaded,
            build=info.build,
            variants=[
                insight_pb2.KernelVariant(
                    name=v.name, op=v.op, device=v.device, isa=v.needs, available=v.available, calls=v.calls
                )
                for v in info.variants
            ],
            fallbacks=[
                insight_pb2.KernelFallback(op=op, reason=reason, calls=calls)
                for key, calls in info.fallbacks.items()
                for op, _, reason in (key.partition(": "),)
            ],
            choices=[insight_pb2.KernelChoice(**asdict(choice)) for choice in info.choices],
            table=info.table,
            threads=info.threads,
            workspace=insight_pb2.KernelWorkspace(**asdict(info.workspace)),
        )
