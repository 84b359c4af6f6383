"""NVIDIA's own client, unchanged, against the server: every call of the open inference protocol."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from pyserve.v1 import jobs_pb2, models_pb2
from tests.server.support import CLASSES, SIZE, TRUNCATED, Stubs, failure, png
from tests.server.test_predict import array, probabilities, request

NAME = "colours"


@pytest.fixture(scope="module")
def client(stubs: Stubs, trained: jobs_pb2.Job) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(stubs.address) as made:
        yield made


@pytest.fixture(scope="module")
def raw(stubs: Stubs, trained: jobs_pb2.Job) -> service_pb2_grpc.GRPCInferenceServiceStub:
    """The stub of NVIDIA's generated code, for messages that its client does not make."""
    return service_pb2_grpc.GRPCInferenceServiceStub(stubs.channel)


def encoded(files: list[bytes], *, column: bool = False) -> triton.InferInput:
    values = np.array(files, dtype=object)
    values = values.reshape(-1, 1) if column else values
    tensor = triton.InferInput("encoded", values.shape, "BYTES")
    tensor.set_data_from_numpy(values)
    return tensor


def files(count: int = 6) -> list[bytes]:
    return list(request(count).images.data)


def expected(stubs: Stubs, count: int = 6, **fields: Any) -> np.ndarray[Any, Any]:
    return probabilities(stubs.predict.Predict(request(count, **fields), timeout=20))


def message(**changes: Any) -> service_pb2.ModelInferRequest:
    """Two pictures, as lists of elements."""
    fields: dict[str, Any] = {"model_name": NAME} | changes
    made = service_pb2.ModelInferRequest(**fields)
    if "inputs" not in changes:
        contents = service_pb2.InferTensorContents(bytes_contents=files(2))
        made.inputs.add(name="encoded", datatype="BYTES", shape=[2], contents=contents)
    return made


def test_the_server_tells_of_itself(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "pyserve"
    assert metadata.version
    assert {"classification", "model_repository", "statistics"} <= set(metadata.extensions)


def test_a_model_tells_of_itself(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(NAME, "1")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready(NAME, "99")
    metadata = client.get_model_metadata(NAME)
    assert (metadata.name, metadata.versions[-1], metadata.platform) == (NAME, "1", "pyserve")
    inputs = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs}
    assert inputs == {
        "encoded": ("BYTES", [-1]),
        "pixels": ("UINT8", [-1, SIZE, SIZE, 3]),
        "values": ("FP32", [-1, SIZE, SIZE, 3]),
    }
    assert [(t.name, list(t.shape)) for t in metadata.outputs] == [("probabilities", [-1, len(CLASSES)])]
    config = client.get_model_config(NAME, as_json=True)["config"]
    assert (config["name"], config["max_batch_size"], config["backend"]) == (NAME, 8, "pyserve")
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "2000"
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["parameters"]["labels"]["string_value"] == '["blue", "green", "red"]'


@pytest.mark.parametrize("column", [False, True])
def test_encoded_pictures(client: triton.InferenceServerClient, stubs: Stubs, column: bool) -> None:
    result = client.infer(NAME, [encoded(files(), column=column)], request_id="mine")
    answer = result.as_numpy("probabilities")
    assert answer.dtype == np.float32
    assert (np.abs(answer - expected(stubs)) < 1e-5).all()
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (NAME, "1", "mine")


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", ["pixels", "whatever__0"])
def test_tensors(
    client: triton.InferenceServerClient, stubs: Stubs, datatype: str, layout: str, name: str
) -> None:
    values: Any = array(request())
    values = values if layout == "NHWC" else values.transpose(0, 3, 1, 2)
    values = values if datatype == "UINT8" else (values / 255).astype(np.float32)
    tensor = triton.InferInput(name, values.shape, datatype)
    tensor.set_data_from_numpy(np.ascontiguousarray(values))
    answer = client.infer(NAME, [tensor]).as_numpy("probabilities")
    assert (np.abs(answer - expected(stubs)) < 1e-4).all()


def test_classification(client: triton.InferenceServerClient, stubs: Stubs) -> None:
    wanted = triton.InferRequestedOutput("probabilities", class_count=2)
    answer = client.infer(NAME, [encoded(files())], outputs=[wanted]).as_numpy("probabilities")
    assert answer.shape == (6, 2)
    for row, values in zip(answer, expected(stubs), strict=True):
        told = [entry.decode().split(":", 2) for entry in row]
        best = np.argsort(-values)[:2]
        assert [int(index) for _, index, _ in told] == best.tolist()
        assert [label for _, _, label in told] == [CLASSES[i] for i in best]
        assert [float(p) for p, _, _ in told] == pytest.approx(values[best], abs=1e-5)


def test_answers_come_in_the_form_of_the_request(raw: Any, stubs: Stubs) -> None:
    answer = raw.ModelInfer(message(id="7"), timeout=20)
    assert not answer.raw_output_contents
    output = answer.outputs[0]
    assert (answer.id, output.datatype, list(output.shape)) == ("7", "FP32", [2, 3])
    found = np.array(output.contents.fp32_contents).reshape(2, 3)
    assert (np.abs(found - expected(stubs, 2)) < 1e-5).all()
    asked = message()
    asked.outputs.add(name="probabilities").parameters["classification"].int64_param = 1
    labels = [e.split(b":")[2].decode() for e in raw.ModelInfer(asked).outputs[0].contents.bytes_contents]
    assert labels == [CLASSES[0], CLASSES[1]]


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
def test_tensors_as_lists(raw: Any, stubs: Stubs, datatype: str) -> None:
    values = array(request(2))
    tensor = {"name": "x", "datatype": datatype, "shape": values.shape}
    contents = (
        {"uint_contents": values.ravel().tolist()}
        if datatype == "UINT8"
        else {"fp32_contents": (values / 255).ravel().tolist()}
    )
    made = message(inputs=[service_pb2.ModelInferRequest.InferInputTensor(**tensor, contents=contents)])
    found = np.array(raw.ModelInfer(made, timeout=20).outputs[0].contents.fp32_contents).reshape(2, 3)
    assert (np.abs(found - expected(stubs, 2)) < 1e-4).all()


def test_test_time_augmentation_priority_and_timeout(client: triton.InferenceServerClient, stubs: Stubs) -> None:
    result = client.infer(NAME, [encoded(files())], parameters={"tta": True}, priority=1, timeout=20_000_000)
    assert (np.abs(result.as_numpy("probabilities") - expected(stubs, tta=True)) < 1e-5).all()


def test_deadlines(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"cannot be there in time|deadline passed"):
        client.infer(NAME, [encoded(files())], timeout=1)
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
        client.infer(NAME, [encoded(files())], client_timeout=0.0001)
    assert client.infer(NAME, [encoded(files(1))]).as_numpy("probabilities").shape == (1, 3)


async def test_the_asynchronous_client(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    async with triton_aio.InferenceServerClient(stubs.address) as client:
        assert await client.is_model_ready(NAME)
        result = await client.infer(NAME, [encoded(files())])
    assert (np.abs(result.as_numpy("probabilities") - expected(stubs)) < 1e-5).all()


def test_asynchronous_calls_of_the_blocking_client(client: triton.InferenceServerClient, stubs: Stubs) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(20):
        client.async_infer(NAME, [encoded(files(2))], lambda result, error: answers.put((result, error)))
    for _ in range(20):
        result, error = answers.get(timeout=20)
        assert error is None
        assert (np.abs(result.as_numpy("probabilities") - expected(stubs, 2)) < 1e-5).all()


def test_a_stream_answers_each_request_with_its_id_and_survives_bad_ones(
    client: triton.InferenceServerClient, stubs: Stubs
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    pictures = files(90)
    for i, picture in enumerate(pictures):
        bad = i % 10 == 3
        client.async_stream_infer(NAME, [encoded([TRUNCATED if bad else picture])], request_id=str(i))
    found: dict[int, Any] = {}
    errors = []
    for _ in pictures:
        result, error = answers.get(timeout=20)
        if error is None:
            found[int(result.get_response().id)] = result.as_numpy("probabilities")[0]
        else:
            errors.append(str(error))
    client.stop_stream()
    assert len(errors) == 9
    assert all("raw_input_contents[0][0]: cannot be decoded" in error for error in errors)
    values = expected(stubs, 60)
    assert set(found) == {i for i in range(90) if i % 10 != 3}
    for i in (i for i in found if i < 60):
        assert (np.abs(found[i] - values[i]) < 1e-5).all()


def test_what_a_stream_says_of_a_failure(raw: Any) -> None:
    asked = message(id="a")
    asked.parameters["triton_enable_empty_final_response"].bool_param = True
    answers = {
        a.infer_response.id: a for a in raw.ModelStreamInfer(iter([message(id="b", model_name="x"), asked]))
    }
    assert "models/x does not exist" in answers["b"].error_message
    assert answers["b"].infer_response.model_name == "x"
    assert not answers["a"].error_message
    assert answers["a"].infer_response.parameters["triton_final_response"].bool_param


def test_models_are_listed_loaded_and_unloaded(client: triton.InferenceServerClient, stubs: Stubs) -> None:
    def state() -> tuple[str, str]:
        entries = {(m.name, m.version): m for m in client.get_model_repository_index().models}
        entry = entries[NAME, "1"]
        return entry.state, entry.reason

    client.load_model(NAME)
    assert state() == ("READY", "")
    client.unload_model(NAME)
    assert state() == ("UNAVAILABLE", "unloaded")
    assert not client.is_model_ready(NAME)
    with pytest.raises(InferenceServerException, match="models/colours/versions/1 is unloaded: load it first"):
        client.infer(NAME, [encoded(files(1))])
    client.load_model(NAME)
    assert client.is_model_ready(NAME)
    assert client.infer(NAME, [encoded(files(1))]).as_numpy("probabilities").shape == (1, 3)
    with pytest.raises(InferenceServerException, match="parameters: got 'config', expected none"):
        client.load_model(NAME, config="{}")
    with pytest.raises(InferenceServerException, match="models/nobody does not exist"):
        client.load_model("nobody")


def test_an_alias_is_a_model(client: triton.InferenceServerClient, stubs: Stubs) -> None:
    alias = models_pb2.SetAliasRequest(alias=f"models/{NAME}@champion", version=f"models/{NAME}/versions/1")
    stubs.models.SetAlias(alias, timeout=20)
    result = client.infer(f"{NAME}@champion", [encoded(files(1))])
    assert result.get_response().model_version == "1"
    with pytest.raises(InferenceServerException, match="an alias has a version of its own"):
        client.infer(f"{NAME}@champion", [encoded(files(1))], model_version="1")


def test_statistics_say_why_batches_had_their_size(client: triton.InferenceServerClient) -> None:
    def told() -> Any:
        return client.get_inference_statistics(NAME).model_stats[0]

    before = told()
    client.infer(NAME, [encoded(files(11))])
    with pytest.raises(InferenceServerException):
        client.infer(NAME, [encoded([b"none"])])
    after = told()
    assert (after.name, after.version) == (NAME, "1")
    assert after.inference_count - before.inference_count == 11
    assert after.inference_stats.success.count - before.inference_stats.success.count == 1
    assert after.inference_stats.fail.count - before.inference_stats.fail.count == 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert sum(b.batch_size * b.compute_infer.count for b in after.batch_stats) == after.inference_count
    reasons = {name: entry.success.count for name, entry in after.response_stats.items()}
    assert sum(reasons.values()) == after.execution_count
    assert reasons["batch_closed:full"] > before.response_stats["batch_closed:full"].success.count
    assert after.memory_usage[0].byte_size > 1000
    assert after.last_inference >= before.last_inference > 0
    with pytest.raises(InferenceServerException, match="does not exist"):
        client.get_inference_statistics("nobody")


CALLS_THAT_ARE_NOT_HERE = (
    lambda c: c.get_system_shared_memory_status(),
    lambda c: c.register_system_shared_memory("a", "/a", 10),
    lambda c: c.unregister_system_shared_memory(),
    lambda c: c.get_cuda_shared_memory_status(),
    lambda c: c.unregister_cuda_shared_memory(),
    lambda c: c.get_trace_settings(),
    lambda c: c.get_log_settings(),
)


@pytest.mark.parametrize("call", CALLS_THAT_ARE_NOT_HERE)
def test_what_is_not_offered_says_so(client: triton.InferenceServerClient, call: Any) -> None:
    with pytest.raises(InferenceServerException) as info:
        call(client)
    assert info.value.status() == "StatusCode.UNIMPLEMENTED"


def tensor(**fields: Any) -> service_pb2.ModelInferRequest.InferInputTensor:
    return service_pb2.ModelInferRequest.InferInputTensor(**({"name": "x"} | fields))


def parameters(**values: Any) -> dict[str, service_pb2.InferParameter]:
    return {name: service_pb2.InferParameter(**value) for name, value in values.items()}


PIXELS = SIZE * SIZE * 3
ONE = [1, SIZE, SIZE, 3]
BAD: dict[str, tuple[dict[str, Any], grpc.StatusCode, str]] = {
    "name": ({"model_name": "A b"}, grpc.StatusCode.INVALID_ARGUMENT, "model_name"),
    "no model": ({"model_name": "nobody"}, grpc.StatusCode.NOT_FOUND, ""),
    "version": ({"model_version": "one"}, grpc.StatusCode.INVALID_ARGUMENT, "model_version"),
    "no version": ({"model_version": "77"}, grpc.StatusCode.NOT_FOUND, ""),
    "no input": ({"inputs": []}, grpc.StatusCode.INVALID_ARGUMENT, "inputs"),
    "two inputs": ({"inputs": [tensor(), tensor()]}, grpc.StatusCode.INVALID_ARGUMENT, "inputs"),
    "datatype": (
        {"inputs": [tensor(datatype="FP16", shape=ONE)]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].datatype",
    ),
    "shape": (
        {"inputs": [tensor(datatype="UINT8", shape=[SIZE, SIZE, 3])]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].shape",
    ),
    "negative shape": (
        {"inputs": [tensor(datatype="UINT8", shape=[-1, SIZE, SIZE, 3])]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].shape",
    ),
    "another size": (
        {"inputs": [tensor(datatype="UINT8", shape=[1, 8, 8, 3])], "raw_input_contents": [bytes(192)]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].shape",
    ),
    "huge": (
        {"inputs": [tensor(datatype="FP32", shape=[2**40, SIZE, SIZE, 3])], "raw_input_contents": [b"x"]},
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "inputs[0].shape",
    ),
    "short": (
        {"inputs": [tensor(datatype="UINT8", shape=ONE)], "raw_input_contents": [b"x"]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "raw_input_contents",
    ),
    "long list": (
        {"inputs": [tensor(datatype="UINT8", shape=ONE, contents={"uint_contents": [1] * (PIXELS + 1)})]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].contents.uint_contents",
    ),
    "above 255": (
        {"inputs": [tensor(datatype="UINT8", shape=ONE, contents={"uint_contents": [256] * PIXELS})]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].contents.uint_contents",
    ),
    "not 0 to 1": (
        {"inputs": [tensor(datatype="FP32", shape=ONE, contents={"fp32_contents": [9.0] * PIXELS})]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].data",
    ),
    "two raw": (
        {"inputs": [tensor(datatype="BYTES", shape=[1])], "raw_input_contents": [b"", b""]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "raw_input_contents",
    ),
    "cut element": (
        {"inputs": [tensor(datatype="BYTES", shape=[1])], "raw_input_contents": [b"\xff\xff\xff\x7fabc"]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "raw_input_contents",
    ),
    "half a length": (
        {"inputs": [tensor(datatype="BYTES", shape=[1])], "raw_input_contents": [b"\x00\x00"]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "raw_input_contents",
    ),
    "elements": (
        {"inputs": [tensor(datatype="BYTES", shape=[2])], "raw_input_contents": [b"\x01\x00\x00\x00a"]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "raw_input_contents",
    ),
    "many": (
        {
            "inputs": [tensor(datatype="BYTES", shape=[65])],
            "raw_input_contents": [b"\x01\x00\x00\x00a" * 65],
        },
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "inputs[0].shape",
    ),
    "no picture": (
        {"inputs": [tensor(datatype="BYTES", shape=[1], contents={"bytes_contents": [b"a"]})]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "inputs[0].contents.bytes_contents[0]",
    ),
    "shared memory": (
        {"inputs": [tensor(datatype="BYTES", shape=[1], parameters=parameters(shared_memory_region={}))]},
        grpc.StatusCode.UNIMPLEMENTED,
        "",
    ),
    "priority": (
        {"parameters": parameters(priority={"uint64_param": 9})},
        grpc.StatusCode.INVALID_ARGUMENT,
        "parameters.priority",
    ),
    "priority's type": (
        {"parameters": parameters(priority={"string_param": "high"})},
        grpc.StatusCode.INVALID_ARGUMENT,
        "parameters.priority",
    ),
    "timeout": (
        {"parameters": parameters(timeout={"int64_param": -1})},
        grpc.StatusCode.INVALID_ARGUMENT,
        "parameters.timeout",
    ),
    "output": (
        {"outputs": [service_pb2.ModelInferRequest.InferRequestedOutputTensor(name="logits")]},
        grpc.StatusCode.INVALID_ARGUMENT,
        "outputs[0].name",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests(raw: Any, kind: str) -> None:
    changes, expected_code, field = BAD[kind]
    code, told, violations, _ = failure(lambda: raw.ModelInfer(message(**changes), timeout=20))
    assert code == expected_code, told
    assert list(violations) == ([field] if field else [])


def test_one_bad_picture_of_many_requests_fails_alone(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()
    for i in range(16):
        picture = b"none" if i == 5 else png(i % 3, i)
        client.async_infer(NAME, [encoded([picture])], lambda result, error, i=i: answers.put((i, result, error)))
    for _ in range(16):
        i, result, error = answers.get(timeout=20)
        assert (error is not None) == (i == 5)
        assert i == 5 or int(result.as_numpy("probabilities").argmax()) == i % 3


def test_reflection_tells_of_the_protocol(stubs: Stubs) -> None:
    database = ProtoReflectionDescriptorDatabase(stubs.channel)
    assert "inference.GRPCInferenceService" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("inference.GRPCInferenceService")
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {m.name for m in service.methods} == {m.name for m in theirs.methods}
