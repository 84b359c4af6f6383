"""Jobs over gRPC: trainings, the finder, watchers, and jobs that run side by side."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pyserve.v1 import datasets_pb2, jobs_pb2, models_pb2, predict_pb2
from tests.server.conftest import ServerThread
from tests.server.support import CLASSES, Stubs, eventually, failure, pictures, png, train_request, zipped

LONG = {"epochs": 500, "batch_size": 4}


def get(stubs: Stubs, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return stubs.jobs.Get(jobs_pb2.GetJobRequest(name=job.name), timeout=20)


def cancel(stubs: Stubs, job: jobs_pb2.Job) -> jobs_pb2.Job:
    return stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=job.name), timeout=20)


def states(events: list[jobs_pb2.Event]) -> list[int]:
    return [event.state.state for event in events if event.WhichOneof("event") == "state"]


def test_training_tells_its_whole_story(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    events = stubs.watch(trained)
    assert [e.seq for e in events] == list(range(1, trained.last_seq + 1))
    assert states(events) == [jobs_pb2.QUEUED, jobs_pb2.RUNNING, jobs_pb2.SUCCEEDED]
    epochs = [e.epoch for e in events if e.WhichOneof("event") == "epoch"]
    assert [e.epoch for e in epochs] == list(range(1, 7))
    assert set(epochs[0].metrics) == {"train_loss", "loss", "accuracy"}
    result = trained.train_result
    assert result.model.startswith("models/colours/versions/")
    assert result.metrics["accuracy"] == pytest.approx(max(e.metrics["accuracy"] for e in epochs))
    assert (trained.progress.epoch, trained.progress.total_epochs) == (6, 6)
    assert trained.progress.step == trained.progress.total_steps
    assert trained.create_time.ToSeconds() <= trained.start_time.ToSeconds() <= trained.end_time.ToSeconds()
    assert trained.train.epochs == 6
    assert trained.attempt == 1
    assert [e.state.report for e in events if e.state.report] == [f"{trained.name}/report"]
    assert events[-1].state.report  # the last event links to it


def test_the_log_as_a_tensorboard_file(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    request = jobs_pb2.TensorBoardRequest(name=trained.name)
    so_far = b"".join(chunk.data for chunk in stubs.jobs.TensorBoard(request, timeout=60))
    assert b"valid/accuracy" in so_far
    assert b"training_curves" in so_far
    request.follow = True  # of a job that has ended: the same
    assert b"".join(chunk.data for chunk in stubs.jobs.TensorBoard(request, timeout=60)) == so_far
    unknown = jobs_pb2.TensorBoardRequest(name=f"jobs/{uuid.uuid4()}")
    assert failure(lambda: list(stubs.jobs.TensorBoard(unknown, timeout=20)))[0] == grpc.StatusCode.NOT_FOUND


def test_a_tensorboard_file_grows_with_its_job(stubs: Stubs) -> None:
    job = stubs.train(epochs=2)
    request = jobs_pb2.TensorBoardRequest(name=job.name, follow=True)
    followed = b"".join(chunk.data for chunk in stubs.jobs.TensorBoard(request, timeout=120))
    assert get(stubs, job).state == jobs_pb2.SUCCEEDED
    assert followed.count(b"valid/accuracy") == 2


def test_artifacts_can_be_had(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    assert trained.artifacts
    for artifact in trained.artifacts:
        request = jobs_pb2.GetArtifactRequest(name=f"{trained.name}/artifacts/{artifact.name}")
        figure = stubs.jobs.GetArtifact(request, timeout=20)
        assert (figure.name, figure.media_type) == (artifact.name, artifact.media_type)
        assert len(figure.data) == artifact.size_bytes


def test_same_request_id_is_the_same_job(stubs: Stubs) -> None:
    request_id = str(uuid.uuid4())
    first = stubs.train(request_id=request_id, epochs=1)
    assert stubs.train(request_id=request_id, epochs=1).name == first.name
    code, message, _, _ = failure(lambda: stubs.train(request_id=request_id, epochs=2))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id" in message
    assert stubs.wait(first).state == jobs_pb2.SUCCEEDED


def test_finder_and_a_training_that_takes_its_rate(stubs: Stubs) -> None:
    spec = jobs_pb2.FindLearningRateSpec(training=train_request(batch_size=4).train, steps=30)
    request = jobs_pb2.FindLearningRateRequest(find_learning_rate=spec, request_id=str(uuid.uuid4()))
    finder = stubs.jobs.FindLearningRate(request, timeout=20)
    assert stubs.jobs.FindLearningRate(request, timeout=20).name == finder.name
    events = stubs.watch(finder)
    finder = get(stubs, finder)
    assert finder.state == jobs_pb2.SUCCEEDED, finder.reason
    result = finder.learning_rate_result
    points = [e.curve_point for e in events if e.WhichOneof("event") == "curve_point"]
    assert [p.learning_rate for p in points] == [p.learning_rate for p in result.curve]
    assert {s.rule for s in result.suggestions} == {"middle", "peak", "valley", "steep", "slide", "minimum"}
    if not result.learning_rate:
        pytest.fail(f"no suggestion: {result.suggestions}")
    request = train_request(lr_from=finder.name, batch_size=4, epochs=1)
    request.train.ClearField("learning_rate")
    job = stubs.wait(stubs.jobs.Train(request, timeout=20))
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    assert job.train_result.learning_rate == pytest.approx(result.learning_rate)


def test_a_recipe_tells_its_phases(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    request = train_request(recipe="lesson1", weights=trained.train_result.model, epochs=1, frozen_epochs=1)
    request.train.ClearField("learning_rate")
    job = stubs.jobs.Train(request, timeout=20)
    events = stubs.watch(job)
    job = get(stubs, job)
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    assert (job.train.schedule, job.train.cycle_mult, job.train.lr_from) == ("sgdr", 2, "self")  # told, as it is
    names = ["head on activations", "head on pictures", "whole network"]
    phases = [e.phase for e in events if e.WhichOneof("event") == "phase"]
    assert [(p.name, p.phase, p.total_phases, p.first_epoch) for p in phases] == [
        (name, i + 1, 3, first) for i, (name, first) in enumerate(zip(names, (1, 3, 4), strict=True))
    ]
    assert all(p.learning_rate > 0 for p in phases)
    epochs = [e.epoch for e in events if e.WhichOneof("event") == "epoch"]
    assert [e.phase for e in epochs] == [names[0], *names]
    assert {"tta_accuracy", "tta_loss"} < set(job.train_result.metrics)
    assert job.progress.phase == names[-1]


def test_auto_says_what_it_chose(stubs: Stubs) -> None:
    request = jobs_pb2.TrainRequest(
        train=jobs_pb2.TrainSpec(
            dataset="datasets/colours",
            model_id="some",
            architecture="smallnet",
            recipe="auto",
            time_budget_minutes=0.4,
            device="cpu",
        )
    )
    job = stubs.jobs.Train(request, timeout=20)
    assert not job.train.HasField("epochs")  # nobody knows yet
    lines = [e.log.message for e in stubs.watch(job) if e.WhichOneof("event") == "log"]
    job = get(stubs, job)
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    assert any("pictures/s are learnt from" in line for line in lines)
    assert any("the same again: architecture=smallnet" in line for line in lines)
    assert "tta_accuracy" in job.train_result.metrics


def test_jobs_are_listed_in_pages(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    everything = stubs.jobs.List(jobs_pb2.ListJobsRequest(), timeout=20).jobs
    names, token = [], ""
    while True:
        page = stubs.jobs.List(jobs_pb2.ListJobsRequest(page_size=1, page_token=token), timeout=20)
        names += [job.name for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert names == [job.name for job in everything]
    failed = stubs.jobs.List(jobs_pb2.ListJobsRequest(states=[jobs_pb2.FAILED]), timeout=20).jobs
    assert all(job.state == jobs_pb2.FAILED for job in failed)
    assert trained.name in names


def test_ten_watchers_agree_and_leaving_changes_nothing(stubs: Stubs) -> None:
    job = stubs.train(epochs=8)
    leaver = stubs.jobs.Watch(jobs_pb2.WatchRequest(name=job.name), timeout=60)
    next(leaver)
    leaver.cancel()
    with ThreadPoolExecutor(10) as pool:
        stories = list(pool.map(lambda _: stubs.watch(job), range(10)))
    assert all(story == stories[0] for story in stories)
    assert states(stories[0])[-1] == jobs_pb2.SUCCEEDED
    last = stories[0][-1].seq
    assert stubs.watch(job, from_seq=3) == stories[0][2:]
    assert stubs.watch(job, from_seq=last) == stories[0][-1:]
    assert stubs.watch(job, from_seq=last + 1) == []


def test_watch_begins_before_the_event(stubs: Stubs) -> None:
    job = stubs.train(epochs=3)
    ahead = stubs.watch(job, from_seq=8)
    assert ahead == stubs.watch(job)[7:]


def test_negative_sequence_number(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    code, _, violations, _ = failure(lambda: stubs.watch(trained, from_seq=-1))
    assert (code, list(violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["from_seq"])


def test_cancel_keeps_the_checkpoint(server: ServerThread) -> None:
    stubs = server.stubs
    job = stubs.train(**LONG)
    stubs.wait_for_step(job, 3)
    assert cancel(stubs, job).state in (jobs_pb2.CANCELLING, jobs_pb2.CANCELLED)
    events = stubs.watch(job)
    ended = get(stubs, job)
    assert ended.state == jobs_pb2.CANCELLED
    assert not ended.HasField("train_result")
    assert any(e.WhichOneof("event") == "checkpoint" for e in events)
    folder = server.settings.data_dir / "jobs" / job.name.removeprefix("jobs/")
    assert list(folder.rglob("*.safetensors"))


def test_cancel_of_a_queued_job(stubs: Stubs) -> None:
    running = [stubs.train(**LONG) for _ in range(2)]
    queued = stubs.train(**LONG)
    eventually(lambda: all(get(stubs, job).state == jobs_pb2.RUNNING for job in running))
    assert get(stubs, queued).state == jobs_pb2.QUEUED
    for job in (queued, *running):
        cancel(stubs, job)
    assert stubs.wait(queued).state == jobs_pb2.CANCELLED
    assert jobs_pb2.RUNNING not in states(stubs.watch(queued))
    assert [stubs.wait(job).state for job in running] == [jobs_pb2.CANCELLED] * 2


def test_cancel_on_disconnect(stubs: Stubs) -> None:
    job = stubs.train(**LONG)
    stream = stubs.jobs.Watch(jobs_pb2.WatchRequest(name=job.name, cancel_on_disconnect=True), timeout=60)
    next(stream)
    stream.cancel()
    assert stubs.wait(job).state == jobs_pb2.CANCELLED


def test_dataset_in_use_stays(server: ServerThread) -> None:
    stubs = server.stubs
    dataset = stubs.upload(zipped(pictures(6)), "busy")
    job = stubs.train("datasets/busy", **LONG)
    stubs.wait_for_step(job, 1)
    delete = datasets_pb2.DeleteDatasetRequest(name="datasets/busy")
    code, message, _, _ = failure(lambda: stubs.datasets.Delete(delete, timeout=20))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert job.name in message
    cancel(stubs, job)
    stubs.wait(job)
    decoded = server.settings.data_dir / "cache" / "decoded" / dataset.digest
    assert list(decoded.iterdir())
    stubs.datasets.Delete(delete, timeout=20)
    assert not decoded.exists()


def test_failing_job_tells_why_and_no_path(server: ServerThread) -> None:
    root = server.settings.weights_roots[0]
    (root / "broken.pth").write_bytes(b"nothing like weights")
    job = server.stubs.wait(server.stubs.train(weights="broken.pth"))
    assert job.state == jobs_pb2.FAILED
    assert "broken.pth" in job.error.message
    assert job.reason
    assert str(server.settings.data_dir) not in str(job)


def test_health_answers_while_others_watch_and_predict(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    job = stubs.train(**LONG)
    streams = [stubs.jobs.Watch(jobs_pb2.WatchRequest(name=job.name), timeout=60) for _ in range(20)]
    for stream in streams:
        next(stream)
    request = predict_pb2.PredictRequest(model="models/colours")
    request.images.data.extend([png(1, i) for i in range(48)])
    calls: list[Any] = [stubs.predict.Predict.future(request, timeout=60) for _ in range(20)]
    health = health_pb2_grpc.HealthStub(stubs.channel)
    for service in ("", "pyserve.v1.Predict"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert all(len(call.result().predictions) == 48 for call in calls)
    for stream in streams:
        stream.cancel()
    cancel(stubs, job)
    assert stubs.wait(job).state == jobs_pb2.CANCELLED


def test_two_trainings_and_predictions_at_once(server: ServerThread, trained: jobs_pb2.Job) -> None:
    stubs = server.stubs
    request = predict_pb2.PredictRequest(model=trained.train_result.model)
    request.images.data.extend([png(i % 3, 500 + i) for i in range(24)])
    alone = stubs.predict.Predict(request, timeout=60)
    weights = {}
    for seed in (1, 2):
        job = stubs.wait(stubs.train(seed=seed, model_id=f"alone{seed}"))
        weights[seed] = bundle(server, job)
    jobs = {seed: stubs.train(seed=seed, model_id=f"beside{seed}") for seed in (1, 2)}
    done = threading.Event()
    answers = []

    def predict() -> None:
        while not done.is_set():
            answers.append(stubs.predict.Predict(request, timeout=60))

    thread = threading.Thread(target=predict)
    thread.start()
    ended = {seed: stubs.wait(job) for seed, job in jobs.items()}
    done.set()
    thread.join()
    assert {seed: bundle(server, job) for seed, job in ended.items()} == weights
    assert weights[1] != weights[2]
    assert answers
    assert all(answer == alone for answer in answers)


def bundle(server: ServerThread, job: jobs_pb2.Job) -> bytes:
    """The weights that a training stored."""
    assert job.state == jobs_pb2.SUCCEEDED, job.reason
    _, model_id, _, version = job.train_result.model.split("/")
    return (server.settings.data_dir / "models" / model_id / version / "model.safetensors").read_bytes()


def test_models_are_described(stubs: Stubs, trained: jobs_pb2.Job) -> None:
    newest = stubs.models.Get(models_pb2.GetModelRequest(name="models/colours"), timeout=20)
    assert newest == stubs.models.Get(models_pb2.GetModelRequest(name=trained.train_result.model), timeout=20)
    assert (newest.architecture, list(newest.labels), newest.image_size) == ("smallnet", list(CLASSES), 16)
    assert newest.parameter_count > 0
    assert newest.size_bytes > 0
    assert "datasets/colours" in newest.provenance.values()
    assert dict(newest.metrics) == pytest.approx(dict(trained.train_result.metrics))
    names, token = [], ""
    while True:
        page = stubs.models.List(models_pb2.ListModelsRequest(page_size=1, page_token=token), timeout=20)
        names += [model.name for model in page.models]
        token = page.next_page_token
        if not token:
            break
    assert names == [m.name for m in stubs.models.List(models_pb2.ListModelsRequest(), timeout=20).models]
    assert trained.train_result.model in names


def test_delete(server: ServerThread) -> None:
    stubs = server.stubs
    job = stubs.wait(stubs.train(model_id="kept"))
    folder = server.settings.data_dir / "jobs" / job.name.removeprefix("jobs/")
    assert folder.is_dir()
    stubs.jobs.Delete(jobs_pb2.DeleteJobRequest(name=job.name), timeout=20)
    assert not folder.exists()
    code, message, _, _ = failure(lambda: get(stubs, job))
    assert code is grpc.StatusCode.NOT_FOUND
    assert job.name in message
    model = stubs.models.Get(models_pb2.GetModelRequest(name=job.train_result.model), timeout=20)
    assert model.provenance["job"] == job.name  # what it made stays
    running = stubs.train(**LONG)
    code, message, _, _ = failure(lambda: stubs.jobs.Delete(jobs_pb2.DeleteJobRequest(name=running.name)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "cancel it first" in message
    cancel(stubs, running)
    stubs.wait(running)
