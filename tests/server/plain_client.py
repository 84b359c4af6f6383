"""A gRPC client that knows nothing of pyserve but its protos (run by test_foreign_clients, in its own process).

Usage: plain_client.py stubs|reflection ADDRESS ARCHIVE PICTURE DATASET_ID [GENERATED_DIR]
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import grpc


class FromStubs:
    """Messages and calls of code that protoc generated."""

    def __init__(self, channel: grpc.Channel, folder: str) -> None:
        sys.path.insert(0, folder)
        self._channel = channel

    def message(self, name: str) -> Any:
        file = {"Upload": "datasets", "Train": "jobs", "Watch": "jobs", "Get": "jobs", "Predict": "predict"}
        stem = next(value for key, value in file.items() if name.startswith(key))
        return getattr(importlib.import_module(f"pyserve.v1.{stem}_pb2"), name)

    def call(self, service: str, method: str) -> Any:
        module = importlib.import_module(f"pyserve.v1.{service.lower()}_pb2_grpc")
        return getattr(getattr(module, f"{service}Stub")(self._channel), method)


class FromReflection:
    """Messages and calls that the server itself describes."""

    def __init__(self, channel: grpc.Channel) -> None:
        from google.protobuf.descriptor_pool import DescriptorPool
        from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

        self._channel = channel
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)

    def message(self, name: str) -> Any:
        from google.protobuf.message_factory import GetMessageClass

        return GetMessageClass(self._pool.FindMessageTypeByName(f"pyserve.v1.{name}"))

    def call(self, service: str, method: str) -> Any:
        from google.protobuf.message_factory import GetMessageClass

        assert f"pyserve.v1.{service}" in self._database.get_services()
        found = self._pool.FindServiceByName(f"pyserve.v1.{service}").FindMethodByName(method)
        kind = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
        }[found.client_streaming, found.server_streaming]
        return kind(
            f"/pyserve.v1.{service}/{method}",
            request_serializer=GetMessageClass(found.input_type).SerializeToString,
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )


def upload(protos: Any, archive: bytes, dataset_id: str) -> Any:
    """Send the archive in two chunks."""
    request, header = protos.message("UploadRequest"), protos.message("UploadHeader")
    middle = len(archive) // 2
    messages = [
        request(
            header=header(
                dataset_id=dataset_id,
                size_bytes=len(archive),
                sha256=hashlib.sha256(archive).hexdigest(),
                request_id=str(uuid.uuid4()),
            )
        ),
        request(chunk=archive[:middle]),
        request(chunk=archive[middle:]),
    ]
    return protos.call("Datasets", "Upload")(iter(messages), timeout=60)


def main() -> None:
    kind, address, archive, picture, dataset_id, *folder = sys.argv[1:]
    with grpc.insecure_channel(address) as channel:
        protos: Any = FromStubs(channel, folder[0]) if kind == "stubs" else FromReflection(channel)
        dataset = upload(protos, Path(archive).read_bytes(), dataset_id)
        spec = protos.message("TrainSpec")(
            dataset=dataset.name, architecture="smallnet", image_size=16, epochs=2, batch_size=8, device="cpu"
        )
        job = protos.call("Jobs", "Train")(protos.message("TrainRequest")(train=spec), timeout=20)
        watch = protos.call("Jobs", "Watch")
        kinds = [e.WhichOneof("event") for e in watch(protos.message("WatchRequest")(name=job.name), timeout=120)]
        job = protos.call("Jobs", "Get")(protos.message("GetJobRequest")(name=job.name), timeout=20)
        request = protos.message("PredictRequest")(model=job.train_result.model)
        request.images.data.append(Path(picture).read_bytes())
        answer = protos.call("Predict", "Predict")(request, timeout=60)
    told = {
        "classes": [c.name for c in dataset.classes],
        "events": kinds,
        "model": answer.model,
        "probabilities": [s.probability for s in answer.predictions[0].scores],
        "modules": {
            name: str(module.__file__)
            for name, module in sys.modules.items()
            if name.split(".")[0] in ("pyserve", "torch")
        },
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
