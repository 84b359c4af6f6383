"""pyserve, KServe's Python server and MLServer side by side: the same ResNet-18, the same pictures, gRPC v2.

    python benchmarks/serving.py --json benchmarks/results/serving.json

Each server runs alone, in a process of its own with the threads given, and the client beside it on the same
cores. The servers take turns, several rounds of them; a figure is the median of its rounds. Closed loop: so many
callers with one request each; open loop: requests at random moments, half and nine tenths of what the server
managed at best. Peers come from PyPI into virtual environments of their own under `PYSERVE_BENCHMARK_CACHE`
(default ~/.cache/pyserve-benchmarks). The last rows are p99 of pyserve while a training job runs on the same
cores.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import uuid
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import serving_servers
import serving_targets
import torch
from PIL import Image
from serving_servers import Competitor, cpu_s, memory_mib, running

import report
from pyserve import models
from pyserve.client import Client
from pyserve.inference.bundle import save_bundle
from pyserve.inference.description import Preprocessing
from pyserve.inference.model_store import ModelStore

HERE = Path(__file__).resolve().parent
PHOTOS = Path(os.environ.get("PYSERVE_TEST_DATA", report.ROOT.parent / "shared" / "data")) / "photos"
CLASSES, PICTURES = 1000, 64
CLOSED = (1, 8, 32, 128)
OPEN = (0.5, 0.9)
KEYS = ("per_s", "p50_ms", "p99_ms", "cpu_ms", "client_cpu_ms", "memory_mib", "errors", "health_p99_ms")
AGREEMENT = 0.005  # of a probability, between servers that scale pictures a little differently


def main() -> None:
    options = arguments()
    folder, pictures = prepare()
    chosen = [c for c in serving_servers.competitors() if options.only in c.name]
    check_agreement(chosen, folder, pictures, options.threads)
    bare = measure_bare(folder, pictures, options)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(options.rounds):
        for competitor in chosen if number % 2 == 0 else reversed(chosen):
            for case, figures in measure(competitor, folder, pictures, options):
                found.setdefault((competitor.name, case), []).append(figures)
                print(f"round {number + 1}  {competitor.name:24} {case:14} {short(figures)}", flush=True)
    rows = bare_rows(bare) + [row(name, case, rounds) for (name, case), rounds in found.items()]
    if chosen[0].name.startswith("pyserve"):
        rows += during_training(chosen[0], folder, pictures, options)
    verdicts = serving_targets.verdicts(rows)
    summary = summarize(verdicts)
    print(report.table(rows), report.table(verdicts), summary, sep="\n")
    packages = ["torch", "grpcio", "pillow", "numpy"]
    report.write(options.json, "serving", rows, summary, packages, details={"targets": verdicts})


def arguments() -> Namespace:
    parser = report.arguments("Serving against KServe and MLServer")
    parser.add_argument("--only", default="", metavar="NAME", help="only servers with this in their name")
    parser.add_argument("--rounds", type=int, help="turns of each server (default: 3; quick: 1)")
    parser.add_argument("--seconds", type=float, help="length of each measurement (default: 10; quick: 2)")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (2.0 if options.quick else 10.0)
    return options


# What is served, and what is sent


def prepare() -> tuple[Path, Path]:
    """The folder of the model, in every server's form, and that of the pictures; made where missing."""
    folder, pictures = serving_servers.cache() / "model", serving_servers.cache() / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    store = ModelStore(folder / "pyserve")
    if not any(pictures.glob("*.jpg")):
        write_pictures(pictures)
    if not (folder / "model.onnx").exists():
        write_model(store, folder)
    return folder, pictures


def write_model(store: ModelStore, folder: Path) -> None:
    """A ResNet-18 with random weights: what it answers does not matter, what it costs does."""
    torch.manual_seed(0)
    model = models.create_model("resnet18", CLASSES).eval()
    preprocessing = Preprocessing(
        image_size=224, presize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )
    golden = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8)
    labels = [f"class {i}" for i in range(CLASSES)]
    store.add(
        "r18",
        lambda staging: _ignore(
            save_bundle(
                staging,
                model,
                architecture="resnet18",
                labels=labels,
                preprocessing=preprocessing,
                golden_inputs=golden,
            )
        ),
    )
    weights = store.get("models/r18").weights_path
    (folder / "model.safetensors").write_bytes(weights.read_bytes())
    network = serving_servers.PEERS / "network.py"
    subprocess.run([serving_servers.python_of("kserve"), network, folder], check=True, capture_output=True)


def write_pictures(folder: Path) -> None:
    """JPEGs of 500 × 375 pixels, about 35 kB each: cuts of real photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [path for path in sorted(PHOTOS.glob("*.*g")) if path.stat().st_size > 50_000]
    if not paths:
        sys.exit(f"no photographs in {PHOTOS}: name their folder's parent with PYSERVE_TEST_DATA")
    photos = [Image.open(path).convert("RGB") for path in paths]
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        photo = photos[number % len(photos)]
        width = int(rng.uniform(0.6, 1.0) * min(photo.width, photo.height * 4 / 3))
        height = width * 3 // 4
        left, top = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - height + 1)
        cut = photo.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        cut.save(folder / f"{number:03}.jpg", quality=88)


def check_agreement(chosen: list[Competitor], folder: Path, pictures: Path, threads: int) -> None:
    """Every server gives the same answers; exits where one does not."""
    reference: Any = None
    for competitor in chosen:
        with running(competitor, folder, threads) as (address, _):
            order = {"address": address, "model": "r18", "pictures": str(pictures), "mode": "answers"}
            found = np.array(json.loads(load(order)))
        reference = found if reference is None else reference
        difference = np.abs(found - reference).max()
        print(f"{competitor.name:24} differs by {difference:.2g} at most", flush=True)
        if not difference < AGREEMENT:
            sys.exit(f"{competitor.name} answers something else")


# Measuring


def load(order: dict[str, Any]) -> str:
    """What the load generator prints."""
    command = [sys.executable, HERE / "serving_load.py", json.dumps(order)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the load generator failed: {done.stderr}")
    return done.stdout


def measure(
    competitor: Competitor, folder: Path, pictures: Path, options: Namespace
) -> Iterator[tuple[str, dict[str, float]]]:
    """One round of one server, case by case."""
    with running(competitor, folder, options.threads) as (address, pid):
        order = {"address": address, "model": "r18", "pictures": str(pictures), "seconds": options.seconds}
        best = 0.0
        for level in CLOSED:
            health = level == CLOSED[-1] and competitor.name.startswith("pyserve")
            figures = ask(order | {"mode": "closed", "level": level, "health": health}, pid)
            best = max(best, figures["per_s"])
            yield f"closed, {level}", figures
        for part in OPEN:
            yield f"open, {part:.0%}", ask(order | {"mode": "open", "level": part * best}, pid)


def ask(order: dict[str, Any], pid: int) -> dict[str, float]:
    """Put a load on the server and measure."""
    before = cpu_s(pid)
    told = json.loads(load(order))
    latencies, answered = told["latencies_ms"], max(told["answered"], 1)
    figures = {
        "per_s": told["answered"] / told["elapsed_s"],
        "p50_ms": percentile(latencies, 50),
        "p99_ms": percentile(latencies, 99),
        "cpu_ms": (cpu_s(pid) - before) / answered * 1e3,
        "client_cpu_ms": told["client_cpu_s"] / answered * 1e3,
        "memory_mib": memory_mib(pid),
        "errors": sum(told["errors"].values()),
    }
    if "health_ms" in told:
        figures["health_p99_ms"] = percentile(told["health_ms"], 99)
    return figures


def measure_bare(folder: Path, pictures: Path, options: Namespace) -> dict[str, dict[str, Any]]:
    """The predictor in a loop, by element type and batch size."""
    found = {}
    version = ModelStore(folder / "pyserve").get("models/r18").folder
    for dtype in ("float32", "bfloat16"):
        command = [sys.executable, HERE / "serving_bare.py", version, pictures, dtype]
        command += [str(options.threads), str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[dtype] = json.loads(done.stdout)
    return found


def during_training(
    competitor: Competitor, folder: Path, pictures: Path, options: Namespace
) -> list[dict[str, Any]]:
    """The same loads with a training job on the same cores, at the job's default standing and at an equal one."""
    rows = []
    for nice in ("19", "0"):
        os.environ["PYSERVE_JOB_NICE"] = nice
        with running(competitor, folder, options.threads) as (address, pid), Client(address) as client:
            archive = folder / "training.zip"
            write_training_set(archive)
            # A name of its own: a run that was broken off may have left a job that still uses its data set.
            dataset = client.upload_dataset(archive, f"bench-{uuid.uuid4().hex[:8]}").name
            job = client.train(dataset=dataset, architecture="resnet18", image_size=96, epochs=10_000)
            next(e for e in client.watch(job.name) if e.WhichOneof("event") == "step")
            order = {"address": address, "model": "r18", "pictures": str(pictures), "seconds": options.seconds}
            for level in (1, 8):
                figures = ask(order | {"mode": "closed", "level": level}, pid)
                rows.append(row(competitor.name, f"closed, {level}, training at nice {nice}", [figures]))
            client.cancel_job(job.name)
            client.wait(job.name)
    del os.environ["PYSERVE_JOB_NICE"]
    return rows


def write_training_set(archive: Path) -> None:
    """Noise in two classes: enough for a training that goes on."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(archive, "w") as files:
        for number in range(200):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(buffer, "PNG")
            files.writestr(f"{'ab'[number % 2]}/{number}.png", buffer.getvalue())


# Telling


def percentile(values: list[float], percent: float) -> float:
    """Of no values: 0."""
    return float(np.percentile(values, percent)) if values else 0.0


def row(name: str, case: str, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds."""
    medians = {key: statistics.median(r[key] for r in rounds) for key in KEYS if all(key in r for r in rounds)}
    return {"case": case, "server": name, **medians}


def bare_rows(bare: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The bare predictor as rows; without a server there is no more to tell."""
    return [
        {"case": f"bare loop, batch {batch}", "server": f"no server, {dtype}"} | dict.fromkeys(KEYS, "") | figures
        for dtype, by_batch in bare.items()
        for batch, figures in by_batch.items()
    ]


def short(figures: dict[str, float]) -> str:
    """One line of a round."""
    health = f"  health p99 {figures['health_p99_ms']:.1f} ms" if "health_p99_ms" in figures else ""
    return (
        f"{figures['per_s']:7.1f}/s  p50 {figures['p50_ms']:7.1f}  p99 {figures['p99_ms']:7.1f} ms  "
        f"{figures['cpu_ms']:6.2f} + {figures['client_cpu_ms']:.2f} ms of processor  "
        f"{figures['memory_mib']:.0f} MiB  {figures['errors']:.0f} errors{health}"
    )


def summarize(verdicts: list[dict[str, Any]]) -> str:
    """How many targets are met, and which are not, in one sentence for each element type."""
    told = []
    for name in dict.fromkeys(v["server"] for v in verdicts):
        mine = [v for v in verdicts if v["server"] == name]
        others = [v for v in mine if v["verdict"] != "met"]
        facts = [f"{v['target']}: {v['measured']}, wanted {v['wanted']}" for v in others]
        told.append(
            f"{name} meets {len(mine) - len(others)} of {len(mine)} targets" + "".join(f"; {f}" for f in facts)
        )
    return ". ".join([*told, ""]).strip()


def _ignore(_: object) -> None:
    """For a writer that returns something."""


if __name__ == "__main__":
    main()
