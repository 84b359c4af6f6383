"""KServe's Python server with a custom model, as its documentation writes one.

Usage: kserve_server.py torch|onnxruntime FOLDER GRPC_PORT HTTP_PORT THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import network
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class ResNet(Model):
    """Encoded pictures in, probabilities out."""

    def __init__(self, backend: str, folder: Path, threads: int) -> None:
        super().__init__("r18")
        self._predict = network.load(backend, folder, threads)
        self.ready = True

    async def predict(
        self, payload: InferRequest, headers: Any = None, response_headers: Any = None
    ) -> InferResponse:
        """One request, on the event loop."""
        pictures = [bytes(data) for data in payload.inputs[0].as_numpy().ravel()]
        probabilities = self._predict(pictures)
        output = InferOutput("probabilities", list(probabilities.shape), "FP32")
        output.set_data_from_numpy(probabilities, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


if __name__ == "__main__":
    backend, folder, grpc_port, http_port, threads = sys.argv[1:]
    model = ResNet(backend, Path(folder), int(threads))
    ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1, enable_grpc=True).start([model])
