from __future__ import annotations

import time
import uuid

import pytest

from pyserve.jobs import records
from pyserve.jobs.records import new_job_id


def test_ids_are_uuids_of_version_7_with_the_time_in_front() -> None:
    before = time.time_ns() // 1_000_000
    value = uuid.UUID(new_job_id())
    after = time.time_ns() // 1_000_000
    assert (value.version, value.variant) == (7, uuid.RFC_4122)
    assert before <= value.int >> 80 <= after + 1


def test_ids_ascend_even_where_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    first = new_job_id()
    monkeypatch.setattr(records.time, "time_ns", lambda: 1_000_000)
    second, third = new_job_id(), new_job_id()
    assert first < second < third
