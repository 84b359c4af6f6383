"""What the open inference protocol tells of a model: metadata, configuration, statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pyserve.inference.backlog import Policy
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.predictor import Predictor
from pyserve.inference.statistics import Total
from pyserve.inference.work import DEFAULT_PRIORITY, LAST_PRIORITY
from pyserve.open_inference import grpc_service_pb2 as pb
from pyserve.server.open_inference import ENCODED, FP32, PROBABILITIES, UINT8, protocol_name

PLATFORM = "pyserve"


def model_metadata(info: ModelInfo, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """A model's inputs, of which a request has one, and its output.

    Args:
        versions: that there are, ascending.
    """
    size = info.preprocessing.image_size
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=info.model_id,
        versions=[str(number) for number in reversed(versions)],
        platform=PLATFORM,
        inputs=[
            tensor(name=ENCODED, datatype="BYTES", shape=[-1]),
            tensor(name=UINT8, datatype="UINT8", shape=[-1, size, size, 3]),
            tensor(name=FP32, datatype="FP32", shape=[-1, size, size, 3]),
        ],
        outputs=[tensor(name=PROBABILITIES, datatype="FP32", shape=[-1, len(info.labels)])],
    )


def model_config(info: ModelInfo, policy: Policy, models: LoadedModels) -> pb.ModelConfig:
    """How a model is served."""
    size = info.preprocessing.image_size
    nhwc = pb.ModelInput.FORMAT_NHWC
    on_gpu = models.device.type == "cuda"
    parameters = {
        "architecture": info.architecture,
        "dtype": models.dtype_name,
        "image_size": str(size),
        "labels": json.dumps(info.labels, ensure_ascii=False),
    }
    return pb.ModelConfig(
        name=info.model_id,
        platform=PLATFORM,
        backend=PLATFORM,
        max_batch_size=policy.max_batch_size,
        input=[
            pb.ModelInput(name=ENCODED, data_type=pb.TYPE_STRING, dims=[1], optional=True),
            pb.ModelInput(name=UINT8, data_type=pb.TYPE_UINT8, format=nhwc, dims=[size, size, 3], optional=True),
            pb.ModelInput(name=FP32, data_type=pb.TYPE_FP32, format=nhwc, dims=[size, size, 3], optional=True),
        ],
        output=[pb.ModelOutput(name=PROBABILITIES, data_type=pb.TYPE_FP32, dims=[len(info.labels)])],
        instance_group=[
            pb.ModelInstanceGroup(
                name=models.device.type,
                count=policy.lanes,
                kind=pb.ModelInstanceGroup.KIND_GPU if on_gpu else pb.ModelInstanceGroup.KIND_CPU,
                gpus=[models.device.index or 0] if on_gpu else [],
            )
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            preferred_batch_size=policy.preferred_sizes,
            max_queue_delay_microseconds=round(policy.max_delay_s * 1e6),
            priority_levels=LAST_PRIORITY,
            default_priority_level=DEFAULT_PRIORITY,
            default_queue_policy=pb.ModelQueuePolicy(allow_timeout_override=True),
        ),
        parameters={name: pb.ModelParameter(string_value=value) for name, value in parameters.items()},
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )


def model_statistics(predictor: Predictor) -> pb.ModelStatistics:
    """What a model in memory has done."""
    figures = predictor.statistics.snapshot()
    name, version = protocol_name(predictor.name)
    device = predictor.bundle.device
    memory = pb.MemoryUsage(
        type="GPU" if device.type == "cuda" else "CPU",
        id=device.index or 0,
        byte_size=predictor.bundle.memory_bytes,
    )
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=round(figures.last_time * 1e3),
        inference_count=figures.pictures,
        execution_count=figures.passes.count,
        inference_stats=pb.InferStatistics(
            success=_duration(figures.success),
            fail=_duration(figures.failure),
            queue=_duration(figures.queue),
            compute_input=_duration(figures.decode),
            compute_infer=_duration(figures.passes),
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, compute_infer=_duration(figures.batches[size]))
            for size in sorted(figures.batches)
        ],
        memory_usage=[memory],
        response_stats={
            f"batch_closed:{reason}": pb.InferResponseStatistics(success=_duration(total))
            for reason, total in figures.closed.items()
        },
    )


def _duration(total: Total) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=total.count, ns=round(total.seconds * 1e9))
