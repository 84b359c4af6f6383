"""Between the open inference protocol's messages and arrays: tensors in, tensors out, names of models."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pyserve.errors import InvalidArgumentError, UnimplementedError
from pyserve.inference.predictor import Predictor, Probabilities
from pyserve.inference.work import Pictures
from pyserve.open_inference import grpc_service_pb2 as pb
from pyserve.spec import RESOURCE_ID

ENCODED, UINT8, FP32, PROBABILITIES = "encoded", "pixels", "values", "probabilities"
CLASSIFICATION = "classification"
_DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4")}
_LENGTH_BYTES = 4


def resource_name(name: str, version: str, field: str = "model_name") -> str:
    """The resource name of a model that the protocol calls by name and version.

    Args:
        name: "pets", or "pets@champion".
        version: "3"; "" for the newest, or what the alias points to.
        field: the request field that holds the name.

    Raises:
        InvalidArgumentError: one is of another form.
    """
    if not re.fullmatch(rf"{RESOURCE_ID}(@{RESOURCE_ID})?", name):
        raise InvalidArgumentError.field(field, name, "a model such as pets, or an alias such as pets@champion")
    if not version:
        return f"models/{name}"
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise InvalidArgumentError.field(field.replace("name", "version"), version, "a number ≥ 1, or nothing")
    if "@" in name:
        raise InvalidArgumentError.field(
            field.replace("name", "version"), version, "nothing: an alias has a version of its own"
        )
    return f"models/{name}/versions/{version}"


def protocol_name(resource: str) -> tuple[str, str]:
    """Name and version in the protocol of "models/{id}/versions/{n}"."""
    _, name, _, version = resource.split("/")
    return name, version


def pictures(request: pb.ModelInferRequest, check_count: Callable[[int, str], None]) -> Pictures:
    """The one input of a request, checked as far as that needs no model.

    Args:
        check_count: refuses too many pictures, given their number and the field that says so.

    Returns:
        Encoded files, or an array [N, …].

    Raises:
        InvalidArgumentError: names the field.
        UnimplementedError: the tensor lies in shared memory.
    """
    if len(request.inputs) != 1:
        names = [tensor.name for tensor in request.inputs]
        raise InvalidArgumentError.field("inputs", names, f"exactly one of {ENCODED}, {UINT8}, {FP32}")
    tensor = request.inputs[0]
    if any(name.startswith("shared_memory") for name in tensor.parameters):
        raise UnimplementedError("inputs[0]: tensors in shared memory are not taken; send it in the message")
    if request.raw_input_contents and len(request.raw_input_contents) != 1:
        got = f"{len(request.raw_input_contents)} of them"
        raise InvalidArgumentError.field("raw_input_contents", got, "one, for one input")
    shape = tuple(tensor.shape)
    if tensor.datatype == "BYTES":
        files = _files(request, shape)
        check_count(len(files), "inputs[0].shape")
        return files
    if tensor.datatype in _DTYPES:
        if len(shape) != 4 or min(shape) < 1 or 3 not in (shape[1], shape[3]):
            raise InvalidArgumentError.field(
                "inputs[0].shape", list(shape), "[N, H, W, 3] or [N, 3, H, W], each ≥ 1"
            )
        check_count(shape[0], "inputs[0].shape")
        return _array(request, shape, _DTYPES[tensor.datatype])
    raise InvalidArgumentError.field("inputs[0].datatype", tensor.datatype, "BYTES, UINT8 or FP32")


def input_field(request: pb.ModelInferRequest) -> str:
    """What errors call the pictures of a request."""
    if request.inputs[0].datatype != "BYTES":
        return "inputs[0]"
    return "raw_input_contents[0]" if request.raw_input_contents else "inputs[0].contents.bytes_contents"


def parameter(message: Any, name: str, kinds: tuple[str, ...], expected: str) -> Any:
    """A parameter's value, or None.

    Args:
        message: what has `parameters`.
        kinds: the choices of `InferParameter` that are taken.
        expected: told where it is another one.

    Raises:
        InvalidArgumentError: names the parameter.
    """
    if name not in message.parameters:
        return None
    value = message.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    if kind not in kinds:
        raise InvalidArgumentError.field(f"parameters.{name}", kind, expected)
    return getattr(value, kind)


def wanted_outputs(request: pb.ModelInferRequest) -> list[int]:
    """For each output that is wanted 0, or the number of classes of a classification.

    Raises:
        InvalidArgumentError: an output that there is not, or a classification into no classes.
        UnimplementedError: an output is to go into shared memory.
    """
    wanted = []
    for index, output in enumerate(request.outputs):
        if output.name != PROBABILITIES:
            raise InvalidArgumentError.field(f"outputs[{index}].name", output.name, PROBABILITIES)
        if any(name.startswith("shared_memory") for name in output.parameters):
            raise UnimplementedError(f"outputs[{index}]: shared memory is not written; take it from the message")
        top_k = parameter(output, CLASSIFICATION, ("int64_param", "uint64_param"), "a number ≥ 0") or 0
        if top_k < 0:
            raise InvalidArgumentError.field(f"outputs[{index}].parameters.{CLASSIFICATION}", top_k, "≥ 0")
        wanted.append(int(top_k))
    return wanted or [0]


def add_outputs(
    response: pb.ModelInferResponse,
    wanted: list[int],
    model: Predictor,
    probabilities: Probabilities,
    *,
    raw: bool,
) -> None:
    """Put the outputs into an answer.

    Args:
        wanted: see `wanted_outputs`.
        raw: as raw bytes, not as lists of numbers.
    """
    for top_k in wanted:
        if top_k:
            rows = model.top(probabilities, top_k)
            told = [f"{s.probability:.8g}:{s.index}:{s.label}".encode() for row in rows for s in row]
            response.outputs.add(name=PROBABILITIES, datatype="BYTES", shape=(len(rows), len(rows[0])))
            _add_bytes(response, told, raw)
        else:
            response.outputs.add(name=PROBABILITIES, datatype="FP32", shape=probabilities.shape)
            _add_floats(response, probabilities, raw)


def _add_bytes(response: pb.ModelInferResponse, elements: list[bytes], raw: bool) -> None:
    if raw:
        framed = b"".join(len(e).to_bytes(_LENGTH_BYTES, "little") + e for e in elements)
        response.raw_output_contents.append(framed)
    else:
        response.outputs[-1].contents.bytes_contents.extend(elements)


def _add_floats(response: pb.ModelInferResponse, array: Probabilities, raw: bool) -> None:
    if raw:
        response.raw_output_contents.append(array.astype("<f4", copy=False).tobytes())
    else:
        response.outputs[-1].contents.fp32_contents.extend(array.ravel().tolist())


def _files(request: pb.ModelInferRequest, shape: tuple[int, ...]) -> list[bytes]:
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 1:
        raise InvalidArgumentError.field(
            "inputs[0].shape", list(shape), "[N] or [N, 1], N ≥ 1, of encoded pictures"
        )
    if request.raw_input_contents:
        field, files = "raw_input_contents", list(_split(request.raw_input_contents[0]))
    else:
        field = "inputs[0].contents.bytes_contents"
        files = list(request.inputs[0].contents.bytes_contents)
    if len(files) != shape[0]:
        raise InvalidArgumentError.field(field, f"{len(files)} elements", f"{shape[0]}, as the shape says")
    return files


def _split(data: bytes) -> Iterator[bytes]:
    """The elements of a BYTES tensor: each after its length."""
    position = 0
    while position < len(data):
        begin = position + _LENGTH_BYTES
        length = int.from_bytes(data[position:begin], "little")
        position = begin + length
        if position > len(data):
            got = f"an element of {length} bytes where {len(data) - begin} are left"
            raise InvalidArgumentError.field("raw_input_contents", got, "whole elements")
        yield data[begin:position]


def _array(request: pb.ModelInferRequest, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    count = math.prod(shape)
    if request.raw_input_contents:
        data = request.raw_input_contents[0]
        if len(data) != count * dtype.itemsize:
            expected = f"{count * dtype.itemsize} bytes for {list(shape)} of {request.inputs[0].datatype}"
            raise InvalidArgumentError.field("raw_input_contents", f"{len(data)} bytes", expected)
        return np.frombuffer(data, dtype).reshape(shape)
    contents = request.inputs[0].contents
    field, elements = ("uint", contents.uint_contents) if dtype.itemsize == 1 else ("fp32", contents.fp32_contents)
    name = f"inputs[0].contents.{field}_contents"
    if len(elements) != count:
        raise InvalidArgumentError.field(name, f"{len(elements)} elements", f"{count}, as the shape says")
    array = np.asarray(elements, np.uint32 if dtype.itemsize == 1 else np.float32)
    if dtype.itemsize == 1 and array.max() > 255:
        raise InvalidArgumentError.field(name, f"values up to {array.max()}", "0 to 255")
    return array.astype(dtype, copy=False).reshape(shape)
