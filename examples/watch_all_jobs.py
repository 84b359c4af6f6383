"""Follow all jobs that run at the moment, each at its own speed, with the asyncio client.

python examples/watch_all_jobs.py
"""

from __future__ import annotations

import asyncio

from pyserve.client import AsyncClient
from pyserve.v1 import jobs_pb2


async def follow(client: AsyncClient, name: str) -> None:
    """Print a line for each epoch, and how the job ended."""
    async for event in client.watch(name):
        if event.HasField("epoch"):
            epoch = event.epoch
            accuracy = epoch.metrics["accuracy"]
            print(f"{name}: epoch {epoch.epoch}/{epoch.total_epochs}, accuracy {accuracy:.1%}")
    job = await client.get_job(name)
    print(f"{name}: {jobs_pb2.JobState.Name(job.state)}")


async def main() -> None:
    """Follow them side by side."""
    async with AsyncClient() as client:
        jobs = await client.list_jobs([jobs_pb2.QUEUED, jobs_pb2.RUNNING])
        await asyncio.gather(*(follow(client, job.name) for job in jobs))


asyncio.run(main())
