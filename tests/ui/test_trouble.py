"""What goes wrong is told in the page, in the server's own sentence, and the page goes on."""

from __future__ import annotations

import http.client
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyserve.v1 import jobs_pb2
from tests.server.support import ServerProcess, eventually, pictures, zipped
from tests.ui.conftest import PageProcess

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.fixture(scope="module")
def dataset(server: ServerProcess) -> str:
    return server.stubs.upload(zipped(pictures(20)), f"some-{uuid.uuid4().hex[:6]}").name


def test_a_file_that_is_no_archive(page: Page, site: str, tmp_path: Path) -> None:
    path = tmp_path / "letters.zip"
    path.write_text("no archive at all")
    page.goto(site)
    page.locator("input[type=file][accept]").set_input_files(path)
    page.get_by_role("alert").get_by_text("archive").first.wait_for()
    assert page.url.rstrip("/") == site


def test_a_file_of_another_kind(page: Page, site: str, tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("no picture at all")
    page.goto(f"{site}/kernels")
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_role("alert").get_by_text("file: expected one of image/*, at most 32 MiB").wait_for()


def test_a_picture_that_cannot_be_read(page: Page, site: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n, and no more")
    page.goto(f"{site}/kernels")
    page.locator("input[type=file]").set_input_files(path)
    page.get_by_role("alert").get_by_text("image").first.wait_for()


def test_what_does_not_exist(page: Page, site: str) -> None:
    for path in ("datasets/none", "models/none", "jobs/00000000-0000-7000-8000-000000000000"):
        page.goto(f"{site}/{path}")
        page.get_by_role("alert").get_by_text(path).first.wait_for()


def test_a_wrong_option_names_its_field(page: Page, site: str, dataset: str) -> None:
    page.goto(f"{site}/{dataset}")
    page.get_by_label("Weights to begin with").fill("../../etc/passwd")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("alert").get_by_text("weights").first.wait_for()


def test_a_job_is_seen_in_two_tabs_survives_a_reload_and_is_cancelled(
    new_tab: Callable[[], Page], site: str, server: ServerProcess, dataset: str
) -> None:
    job = server.stubs.train(dataset, epochs=2000)
    server.stubs.wait_for_step(job, 3)
    tabs = [new_tab(), new_tab()]
    for tab in tabs:
        tab.goto(f"{site}/{job.name}")
        tab.get_by_text(re.compile("step [0-9]+ of")).wait_for()
    tabs[0].reload()
    tabs[0].get_by_text(re.compile("step [0-9]+ of")).wait_for()
    tabs[0].get_by_role("button", name="Cancel").click()
    for tab in tabs:
        tab.get_by_text("cancelled", exact=True).wait_for()
    ended = server.stubs.jobs.Get(jobs_pb2.GetJobRequest(name=job.name))
    assert ended.state == jobs_pb2.CANCELLED


def test_the_server_is_gone(new_tab: Callable[[], Page], tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    page = PageProcess(server.stubs.address)
    tab = new_tab()
    try:
        tab.goto(page.url)
        tab.get_by_text("No data sets yet.").wait_for()
        server.terminate()
        tab.goto(page.url)
        tab.get_by_role("alert").first.wait_for()
        assert page.process.poll() is None
    finally:
        assert page.stop() in (0, -15)


def test_it_answers_to_loopback_names_only(site: str) -> None:
    port = int(site.rpartition(":")[2])
    own, foreign = f"127.0.0.1:{port}", f"evil.example:{port}"
    for host in (own, f"localhost:{port}", f"[::1]:{port}"):
        assert status_of(port, {"Host": host}) == 200
    assert status_of(port, {"Host": foreign}) == 421
    assert status_of(port, {"Host": own, "Origin": "https://evil.example"}) == 421
    assert status_of(port, {"Host": own, "Origin": f"http://localhost:{port + 1}"}) == 421
    assert status_of(port, {"Host": own, "Origin": f"http://{own}"}) == 200


def status_of(port: int, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_closed_tabs_end_their_watches(
    new_tab: Callable[[], Page], site: str, server: ServerProcess, dataset: str
) -> None:
    job = server.stubs.train(dataset, epochs=2000)
    server.stubs.wait_for_step(job, 1)
    tab = new_tab()
    tab.goto(f"{site}/{job.name}")
    tab.get_by_text(re.compile("step [0-9]+ of")).wait_for()
    tab.close()
    eventually(lambda: "Jobs/Watch code=CANCELLED" in server.log().replace("pyserve.v1.", ""))
    server.stubs.jobs.Cancel(jobs_pb2.CancelJobRequest(name=job.name))
    server.stubs.wait(job)
