"""MLServer's custom runtime, as its documentation writes one; `benchmarks/serving.py` writes its settings."""

from __future__ import annotations

import os
from pathlib import Path

import network
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class ResNet(MLModel):
    """Encoded pictures in, probabilities out."""

    async def load(self) -> bool:
        """Read the model that the environment names."""
        folder, threads = Path(os.environ["PEER_FOLDER"]), int(os.environ["PEER_THREADS"])
        self._predict = network.load(os.environ["PEER_BACKEND"], folder, threads)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One request, or a batch that MLServer made of several."""
        data = payload.inputs[0].data
        pictures = [bytes(item) for item in (data if isinstance(data, list) else data.root)]
        probabilities = self._predict(pictures)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", probabilities)]
        )
