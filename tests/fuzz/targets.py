"""What is fuzzed: readers of what strangers send. Each takes any bytes and lets nothing out but our own errors.

A target ends quietly, or raises what is a bug: another exception, a file outside its folder, a bound exceeded.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError, Message
from PIL import Image

from pyserve import models
from pyserve.data.archive import ArchiveLimits, unpack
from pyserve.data.images import decode_image, decode_square
from pyserve.errors import DataError, PyserveError
from pyserve.inference import bundle_archive
from pyserve.inference.bundle import load_bundle, save_bundle
from pyserve.inference.description import DESCRIPTION_FILE, GOLDEN_FILE, WEIGHTS_FILE, Preprocessing
from pyserve.open_inference import grpc_service_pb2 as inference_pb2
from pyserve.server import convert, open_inference, validate
from pyserve.server.gate import resource_of
from pyserve.v1 import datasets_pb2, jobs_pb2, models_pb2, predict_pb2

SIDE = 16
PIXELS = 1 << 20
LIMITS = ArchiveLimits(max_bytes=1 << 20, max_entries=50, max_compression_ratio=50.0)


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        run: takes the bytes.
        seeds: inputs that it accepts, from which others are made.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]


def archive(data: bytes) -> None:
    """An upload of pictures: a zip, tar or tar.gz."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").write_bytes(data)
        (folder / "out").mkdir()
        with suppress(DataError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zipfile, about names that are there twice
            unpack(folder / "archive", folder / "out", LIMITS)
        assert {path.name for path in folder.iterdir()} == {"archive", "out"}
        written = list((folder / "out").rglob("*"))
        assert not any(path.is_symlink() for path in written)
        assert sum(path.stat().st_size for path in written if path.is_file()) <= LIMITS.max_bytes
        assert sum(path.is_file() for path in written) <= LIMITS.max_entries


def image(data: bytes) -> None:
    """An encoded picture."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damage that it reads over
        with suppress(DataError):
            decoded = decode_image(data, max_pixels=PIXELS)
            assert decoded.mode == "RGB"
            assert decoded.width * decoded.height <= PIXELS
        with suppress(DataError):
            square = decode_square(data, SIDE, max_pixels=PIXELS)
            assert (square.shape, square.dtype) == ((3, SIDE, SIDE), np.uint8)


def bundle(data: bytes) -> None:
    """An archive of a model, as Import takes it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").write_bytes(data)
        (folder / "out").mkdir()
        with suppress(PyserveError):
            bundle_archive.unpack(folder / "archive", folder / "out")
            load_bundle(folder / "out")
        assert {path.name for path in folder.iterdir()} == {"archive", "out"}
        assert {path.name for path in (folder / "out").iterdir()} <= {DESCRIPTION_FILE, WEIGHTS_FILE, GOLDEN_FILE}


def bundle_file(data: bytes) -> None:
    """One file of a model's bundle whose checksums are right all the same; the first byte says which."""
    if not data:
        return
    name = (DESCRIPTION_FILE, WEIGHTS_FILE, GOLDEN_FILE)[data[0] % 3]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        shutil.copytree(_bundle_folder(), folder, dirs_exist_ok=True)
        (folder / name).write_bytes(data[1:])
        if name != DESCRIPTION_FILE:
            _sign(folder, name)
        with suppress(PyserveError):
            load_bundle(folder)


def request(data: bytes) -> None:
    """A request of any call that asks for more than a name; the first byte says of which."""
    if not data:
        return
    kind, check = _REQUESTS[data[0] % len(_REQUESTS)]
    message = kind()
    try:
        message.ParseFromString(data[1:])
    except DecodeError:
        return  # gRPC answers it
    assert isinstance(resource_of(message), str)  # what the audit log writes
    with suppress(PyserveError):
        check(message)
    for field, value in message.ListFields():
        if isinstance(value, str):
            for read in (validate.dataset_name, validate.model_name, validate.resource_id, validate.request_id):
                with suppress(PyserveError):
                    read(value, field.name)
            for look in (validate.job_name, validate.artifact_name):
                with suppress(PyserveError):
                    look(value)


def _infer(message: Any) -> None:
    found = open_inference.pictures(message, lambda count, field: None)
    assert len(found) == message.inputs[0].shape[0]
    open_inference.wanted_outputs(message)
    open_inference.input_field(message)
    open_inference.resource_name(message.model_name, message.model_version)


def _model_names(message: Any) -> None:
    validate.model_name(message.model, "model")
    validate.priority(message.priority)


_REQUESTS: tuple[tuple[type[Message], Callable[[Any], object]], ...] = (
    (jobs_pb2.TrainRequest, lambda m: convert.train_spec(m.train)),
    (jobs_pb2.FindLearningRateRequest, lambda m: convert.find_learning_rate_spec(m.find_learning_rate)),
    (datasets_pb2.RegisterRequest, lambda m: convert.scan_options(m.options, "options")),
    (datasets_pb2.UploadRequest, lambda m: convert.scan_options(m.header.options, "header.options")),
    (jobs_pb2.ListJobsRequest, lambda m: convert.job_states(m.states)),
    (inference_pb2.ModelInferRequest, _infer),
    (predict_pb2.PredictRequest, _model_names),
    (models_pb2.SetAliasRequest, lambda m: validate.model_name(m.version, "version")),
)


def _archive_seeds() -> list[bytes]:
    files = {"a/1.png": b"\x89PNG" + bytes(40), "b/2.png": bytes(300)}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as writer:
        for name, content in files.items():
            writer.writestr(name, content)
    seeds = [zipped.getvalue()]
    for mode in ("w:", "w:gz"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            link = tarfile.TarInfo("c")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        seeds.append(packed.getvalue())
    return seeds


def _image_seeds() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    pictures = [Image.fromarray(pixels[..., :3]), Image.fromarray(pixels), Image.fromarray(pixels[..., 0])]
    seeds = []
    for picture in pictures:
        for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
            buffer = io.BytesIO()
            with suppress(OSError, KeyError):  # no JPEG has an alpha channel
                picture.save(buffer, kind)
                seeds.append(buffer.getvalue())
    return seeds


@functools.cache
def _bundle_folder() -> Path:
    """A small model's bundle."""
    folder = Path(tempfile.mkdtemp(prefix="pyserve-fuzz-"))
    torch.manual_seed(0)
    with torch.random.fork_rng():
        model = models.create_model("smallnet", 2).eval()
    save_bundle(
        folder,
        model,
        architecture="smallnet",
        labels=("a", "b"),
        preprocessing=Preprocessing(image_size=SIDE, presize=SIDE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        golden_inputs=torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8),
    )
    return folder


def _sign(folder: Path, name: str) -> None:
    """Give a changed file the size and checksum that the description expects."""
    path = folder / DESCRIPTION_FILE
    described = json.loads(path.read_text())
    data = (folder / name).read_bytes()
    described["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(described))


def _bundle_seeds() -> list[bytes]:
    return [b"".join(bundle_archive.packed(_bundle_folder()))]


def _bundle_file_seeds() -> list[bytes]:
    names = (DESCRIPTION_FILE, WEIGHTS_FILE, GOLDEN_FILE)
    return [bytes([i]) + (_bundle_folder() / name).read_bytes() for i, name in enumerate(names)]


def _request_seeds() -> list[bytes]:
    training = jobs_pb2.TrainSpec(dataset="datasets/pets", architecture="resnet18", epochs=2, learning_rate=0.1)
    finder = jobs_pb2.FindLearningRateSpec(training=training)
    picture = inference_pb2.ModelInferRequest(model_name="pets", id="1")
    picture.inputs.add(name="encoded", datatype="BYTES", shape=[1])
    picture.raw_input_contents.append(b"\x03\0\0\0abc")
    tensor = inference_pb2.ModelInferRequest(model_name="pets", model_version="1")
    tensor.inputs.add(name="pixels", datatype="UINT8", shape=[1, 2, 2, 3])
    tensor.inputs[0].contents.uint_contents.extend(range(12))
    tensor.outputs.add(name="probabilities").parameters["classification"].int64_param = 2
    options = datasets_pb2.DatasetOptions(valid_fraction=0.2)
    seeds = (
        jobs_pb2.TrainRequest(request_id="x", train=training),
        jobs_pb2.FindLearningRateRequest(find_learning_rate=finder),
        datasets_pb2.RegisterRequest(dataset_id="pets", path="pets", options=options),
        datasets_pb2.UploadRequest(header=datasets_pb2.UploadHeader(dataset_id="pets", options=options)),
        jobs_pb2.ListJobsRequest(page_size=3, states=[jobs_pb2.RUNNING]),
        picture,
        tensor,
        predict_pb2.PredictRequest(model="models/pets", top_k=3, priority=1),
        models_pb2.SetAliasRequest(alias="models/pets@champion", version="models/pets/versions/1"),
    )
    kinds = [kind for kind, _ in _REQUESTS]
    return [bytes([kinds.index(type(seed))]) + seed.SerializeToString() for seed in seeds]


TARGETS = {
    "archive": Target(archive, _archive_seeds),
    "image": Target(image, _image_seeds),
    "bundle": Target(bundle, _bundle_seeds),
    "bundle_file": Target(bundle_file, _bundle_file_seeds),
    "request": Target(request, _request_seeds),
}
