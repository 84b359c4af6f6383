"""The model that a server is given with its settings, as KServe lays one down."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pyserve.config import Settings
from pyserve.errors import DataLossError, InvalidArgumentError
from pyserve.server.app import Server
from pyserve.v1 import jobs_pb2, models_pb2, predict_pb2
from tests.server.conftest import ServerThread
from tests.server.support import png


@pytest.fixture
def bundle(server: ServerThread, trained: jobs_pb2.Job, tmp_path: Path) -> Path:
    """A copy of what an export of the trained model holds."""
    return Path(
        shutil.copytree(
            server.settings.data_dir / trained.train_result.model.replace("versions/", ""), tmp_path / "m"
        )
    )


def settings(tmp_path: Path, **fields: object) -> Settings:
    return Settings(data_dir=tmp_path / "data", port=0, predict_threads=1, **fields)  # type: ignore[arg-type]


def test_it_answers_from_the_start_and_a_restart_takes_it_once(bundle: Path, tmp_path: Path) -> None:
    request = predict_pb2.PredictRequest(model="models/given", images=predict_pb2.EncodedImages(data=[png(0, 1)]))
    answers = []
    for _ in range(2):
        thread = ServerThread(settings(tmp_path, bundle=bundle, bundle_model_id="given"))
        try:
            (model,) = thread.stubs.models.List(models_pb2.ListModelsRequest(), timeout=20).models
            assert (model.name, model.loaded) == ("models/given/versions/1", True)
            answers.append(thread.stubs.predict.Predict(request, timeout=20).predictions[0].scores[0].label)
        finally:
            thread.stop()
    assert len(set(answers)) == 1


async def test_what_cannot_be_taken_ends_the_start(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"bundle: got '/no/such', expected a folder"):
        await Server(settings(tmp_path, bundle=Path("/no/such"))).start()
    with pytest.raises(InvalidArgumentError, match="Not good"):
        await Server(settings(tmp_path, bundle=bundle, bundle_model_id="Not good")).start()
    weights = bundle / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1")
    with pytest.raises(DataLossError):
        await Server(settings(tmp_path, bundle=bundle, bundle_model_id="given")).start()
