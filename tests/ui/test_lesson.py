"""The lesson in a browser, from the upload to the corrected labels, with the pages as people use them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyserve.v1 import datasets_pb2, jobs_pb2, models_pb2
from tests.server.support import ServerProcess, pictures, zipped

if TYPE_CHECKING:
    from playwright.sync_api import Page


def choose(page: Page, field: str, option: str) -> None:
    """Pick an option of a drop-down list."""
    page.get_by_label(field, exact=True).first.click()
    page.get_by_role("option", name=re.compile(rf"^{re.escape(option)}( |$)")).first.click()


def fill_network(page: Page) -> None:
    choose(page, "Architecture", "smallnet")
    page.get_by_label("Image size, pixels").fill("16")
    page.get_by_label("Batch size").fill("8")


@pytest.fixture(scope="module")
def trained(server: ServerProcess) -> models_pb2.Model:
    """A model of pictures some of which have the wrong label."""
    files = pictures(20)
    wrong = {path: data for path, data in files.items() if path in ("red/0.png", "blue/3.png", "green/5.png")}
    files = {path: data for path, data in files.items() if path not in wrong}
    for path, data in wrong.items():
        label = {"red": "blue", "blue": "green", "green": "red"}[path.partition("/")[0]]
        files[f"{label}/wrong-{path.replace('/', '-')}"] = data
    dataset = server.stubs.upload(
        zipped({f"{part}/{k}": v for part in ("train", "valid") for k, v in files.items()}),
        f"mixed-{uuid.uuid4().hex[:6]}",
    )
    job = server.stubs.wait(server.stubs.train(dataset.name, model_id="mixed", epochs=4))
    return server.stubs.models.Get(models_pb2.GetModelRequest(name=job.train_result.model))


def test_from_pictures_to_a_model(
    page: Page, site: str, server: ServerProcess, archive_file: Path, picture_file: Path
) -> None:
    dataset_id = f"colours-{uuid.uuid4().hex[:6]}"
    page.goto(site)
    page.get_by_label("Name of the data set").fill(dataset_id)
    page.locator("input[type=file][accept]").set_input_files(archive_file)
    page.wait_for_url(f"{site}/datasets/{dataset_id}")
    page.get_by_text("3 classes, 48 pictures to train on, 12 to validate").wait_for()

    fill_network(page)
    page.get_by_role("button", name="Find the learning rate").click()
    page.wait_for_url(re.compile("/jobs/"))
    page.get_by_text(re.compile("^Learning rate [0-9]")).wait_for()
    finder = server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name="jobs/" + page.url.rpartition("/")[2]))
    rate = finder.learning_rate_result.learning_rate
    assert page.get_by_text(re.compile("^Learning rate [0-9]")).inner_text() == f"Learning rate {rate:.2g}"
    assert page.locator(".nicegui-echart").get_by_text("suggested").is_visible()

    page.get_by_role("button", name="Train with it").click()
    page.wait_for_url(re.compile("lr_from="))
    assert page.get_by_label("Image size, pixels").input_value() == "16"  # as the rate was found with
    page.get_by_label("Epochs").fill("3")
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_url(re.compile("/jobs/"))
    page.get_by_text(re.compile("^Accuracy [0-9]")).wait_for()
    training = server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name="jobs/" + page.url.rpartition("/")[2]))
    assert training.train.lr_from == finder.name
    assert training.train_result.epochs_run == 3
    page.get_by_text("Log", exact=True).click()
    page.get_by_text("epoch 3 of 3").wait_for()

    with page.expect_download() as download:
        page.get_by_role("button", name="Report").click()
    assert "<html" in download.value.path().read_text()

    page.get_by_role("button", name="Look at the model").click()
    page.wait_for_url(re.compile("/models/"))
    page.locator("input[type=file]").set_input_files(picture_file)
    page.get_by_alt_text("Grad-CAM").wait_for()
    page.get_by_alt_text("Confusion matrix").wait_for()
    page.get_by_text("of 12 validation pictures are right").wait_for()


def test_a_folder_is_uploaded_as_it_lies(page: Page, site: str, server: ServerProcess, tmp_path: Path) -> None:
    dataset_id = f"folder-{uuid.uuid4().hex[:6]}"
    long_name = f"{'long-' * 30}ü"
    for path, data in pictures(4).items():
        target = tmp_path / dataset_id / path.replace("blue", long_name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (tmp_path / dataset_id / "red" / ".DS_Store").write_bytes(b"not for others")
    page.goto(site)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="or choose a folder").press("Enter")
    chooser.value.set_files(tmp_path / dataset_id)
    page.wait_for_url(f"{site}/datasets/{dataset_id}")
    dataset = server.stubs.datasets.Get(datasets_pb2.GetDatasetRequest(name=f"datasets/{dataset_id}"))
    assert sorted(member.name for member in dataset.classes) == sorted(["green", long_name, "red"])
    assert dataset.train_count + dataset.valid_count == 12
    assert not dataset.bad_images


def test_an_empty_folder_is_told(page: Page, site: str, tmp_path: Path) -> None:
    page.goto(site)
    (tmp_path / ".hidden").write_bytes(b"")
    page.locator("input[webkitdirectory]").set_input_files(tmp_path)
    page.get_by_role("alert").get_by_text("folder: got one without files").wait_for()


def test_a_picture_is_dropped(page: Page, site: str, trained: models_pb2.Model, picture_file: Path) -> None:
    page.goto(f"{site}/{trained.name}")
    place = page.locator(".q-uploader").first
    place.wait_for()
    dropped = page.evaluate_handle(
        """([bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "red.png", { type: "image/png" }));
          return transfer;
        }""",
        [list(picture_file.read_bytes())],
    )
    place.dispatch_event("dragover", {"dataTransfer": dropped})
    page.locator(".q-uploader__dnd").dispatch_event("drop", {"dataTransfer": dropped})
    page.get_by_alt_text("Grad-CAM: what speaks for red").wait_for()


def test_mistakes_are_relabelled(page: Page, site: str, server: ServerProcess, trained: models_pb2.Model) -> None:
    page.goto(f"{site}/{trained.name}")
    labels = page.get_by_label(re.compile("^label of "))
    labels.first.wait_for()
    page.wait_for_function("document.querySelectorAll('img[alt*=\"wrong-\"]').length >= 1")
    picture = page.locator('img[alt*="wrong-"]').first
    path = picture.get_attribute("alt")
    assert path is not None
    right = path.rpartition("wrong-")[2].partition("-")[0]
    choose(page, f"label of {path}", right)
    page.get_by_text("1 labels corrected, 0 pictures left out").wait_for()
    page.get_by_role("button", name="Make a corrected version of the data set").click()
    page.wait_for_url(re.compile(r"/datasets/.*weights="))
    page.get_by_text("1 labels corrected of").wait_for()
    name = "datasets/" + page.url.partition("/datasets/")[2].partition("?")[0]
    corrected = server.stubs.datasets.Get(datasets_pb2.GetDatasetRequest(name=name))
    assert [(c.path, c.new_label) for c in corrected.origin.corrections] == [(path, right)]
    assert page.get_by_label("Weights to begin with").input_value() == trained.name
    page.get_by_label("Epochs").fill("1")
    page.get_by_role("button", name="Train", exact=True).click()
    page.wait_for_url(re.compile("/jobs/"))
    page.get_by_text(re.compile("^Accuracy [0-9]")).wait_for()
    job = server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name="jobs/" + page.url.rpartition("/")[2]))
    assert (job.train.dataset, job.train.architecture) == (name, "smallnet")
    assert job.train.weights == trained.name


def test_recipe_auto_is_told_the_minutes_alone(
    new_tab: Callable[[], Page], site: str, server: ServerProcess, trained: models_pb2.Model
) -> None:
    tab = new_tab()
    tab.goto(f"{site}/{trained.provenance['dataset']}")
    fill_network(tab)
    choose(tab, "Recipe", "auto: the best")
    tab.get_by_label("Epochs").wait_for(state="hidden")
    tab.get_by_label("Minutes").fill("0.5")
    tab.get_by_role("button", name="Train", exact=True).click()
    tab.wait_for_url(re.compile("/jobs/"))
    job = server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name="jobs/" + tab.url.rpartition("/")[2]))
    server.stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=job.name))
    assert (job.train.recipe, job.train.time_budget_minutes) == ("auto", 0.5)
    assert job.train.architecture == "smallnet"
    server.stubs.wait(job)


def test_changes_can_be_forgotten(page: Page, site: str, trained: models_pb2.Model) -> None:
    page.goto(f"{site}/{trained.name}")
    first = page.get_by_label(re.compile("^label of ")).first
    first.wait_for()
    field = first.get_attribute("aria-label")
    assert field is not None
    choose(page, field, "leave it out")
    page.get_by_text("0 labels corrected, 1 pictures left out").wait_for()
    page.get_by_role("button", name="Forget them").click()
    page.get_by_text("1 pictures left out").wait_for(state="hidden")


def test_image_kernels(page: Page, site: str, picture_file: Path) -> None:
    page.goto(f"{site}/kernels")
    page.locator("input[type=file]").set_input_files(picture_file)
    page.get_by_alt_text("The picture under outline").wait_for()
    assert page.get_by_label("row 2, column 2").input_value() == "8"
    choose(page, "Kernel", "sobel top")
    page.get_by_alt_text("The picture under sobel_top").wait_for()
    assert [page.get_by_label(f"row {row}, column 2").input_value() for row in (1, 2, 3)] == ["2", "0", "-2"]
    before = page.get_by_alt_text("The picture under sobel_top").get_attribute("src")
    page.get_by_label("row 1, column 2").fill("5")
    page.get_by_alt_text("The picture under own").wait_for()
    assert page.get_by_alt_text("The picture under own").get_attribute("src") != before
