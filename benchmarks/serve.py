"""The service under load, compared with the model alone: many clients, each of which verifies its answers.

    python -m benchmarks.serve [--clients 200] [--requests 10000] [--model lite] [--folder PHOTOS | --side 500]
                               [--hostile 0] [--out FILE]

It starts `intclip serve` in its own process. Clients keep a connection and send one photo per request, from this
process and on the same cores, so their cost counts against the service. They send a folder's photos unchanged, or else
resized parts of a few real ones. "engine" is compute only, "predict" is `Predictor.predict` from the same files. The
load comes in ten parts, and both are measured before, between and after them, so that changes of the machine's speed
affect all alike. `by_part` has each part's ratio to its neighbouring measurements. A part's throughput is counted only
while all clients are active, without its start, when the queue is empty, and its end, when clients finish. `--hostile`
adds clients that send truncated photos, decompression bombs, text, oversized bodies and endless bodies.
"""

import argparse
import asyncio
import io
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.loader import real_photos
from benchmarks.machine import write_report
from intclip.data.images import find_images
from intclip.inference.predictor import Predictor
from intclip.inference.speed import noise_pixels

TOLERANCE = 1e-4
PARTS = 10
BATCH = 32


def photos(side: int, count: int = 60) -> list[bytes]:
    """Return different parts of real photos as JPEG files."""
    rng = np.random.default_rng(0)
    files = []
    originals = real_photos()
    for number in range(count):
        photo = originals[number % len(originals)]
        left, top = (int(rng.integers(0, edge // 4)) for edge in photo.size)
        part = photo.crop((left, top, left + 3 * photo.width // 4, top + 3 * photo.height // 4))
        scale = side / max(part.size)
        stream = io.BytesIO()
        part.resize((round(part.width * scale), round(part.height * scale))).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def files_of(folder: Path, count: int = 200) -> list[bytes]:
    """Return unchanged photos of a folder, drawn with a fixed seed."""
    paths = find_images(folder)
    chosen = np.random.default_rng(0).permutation(len(paths))[:count]
    return [paths[place].read_bytes() for place in chosen]


def request(content: bytes) -> bytes:
    """Return an HTTP request with one photo in a form."""
    start = b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    body = start + content + b"\r\n--x--\r\n"
    head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.split("content-length: ", 1)[1].split("\r\n", 1)[0])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


class Load:
    """Clients of a service, and their results."""

    def __init__(self, port: int, files: list[bytes], expected: list[dict[str, float]]) -> None:
        self.port, self.expected = port, expected
        self.requests = [request(file) for file in files]
        self.milliseconds: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.wrong = 0
        self.hostile: Counter[str] = Counter()
        self.left = 0
        self.last_sent = 0.0
        self.answered: list[float] = []

    async def client(self, number: int) -> None:
        """Run a client that sends photos and checks their scores."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        turn = number
        while self.left > 0:
            self.left -= 1
            turn = (turn + 7) % len(self.requests)
            start = self.last_sent = time.perf_counter()
            writer.write(self.requests[turn])
            await writer.drain()
            status, body = await answer(reader)
            end = time.perf_counter()
            self.milliseconds.append(1000 * (end - start))
            self.statuses[status] += 1
            if status == 200:
                self.answered.append(end)
                scores = json.loads(body)["results"][0]["scores"]
                self.wrong += any(abs(scores[name] - value) > TOLERANCE for name, value in self.expected[turn].items())
            elif status == 429:
                await asyncio.sleep(1)
        writer.close()

    async def enemy(self, number: int) -> None:
        """Run a client that sends invalid requests."""
        good = self.requests[0]
        png = io.BytesIO()
        Image.new("RGB", (4, 4)).save(png, "PNG")
        bomb = png.getvalue()[:16] + (60000).to_bytes(4, "big") * 2 + png.getvalue()[24:]
        sent = [
            request(b"<html>"),
            request(bomb),
            request(good[200:3000]),
            good[: len(good) // 2],
            request(bytes(33_000_000)),
        ]
        while self.left > 0:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(sent[number % len(sent)])
                status, _ = await asyncio.wait_for(answer(reader), 45)
                self.hostile[str(status)] += 1
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.hostile["cut off"] += 1
            writer.close()
            await asyncio.sleep(0.05)

    async def run(self, clients: int, requests: int, hostile: int) -> float:
        """Return answers per second while all clients are active: from everyone's first answer to the last request."""
        self.left, self.answered = requests, []
        enemies = [asyncio.create_task(self.enemy(number)) for number in range(hostile)]
        await asyncio.gather(*(self.client(number) for number in range(clients)))
        for task in enemies:
            task.cancel()
        await asyncio.gather(*enemies, return_exceptions=True)
        at_work = [moment for moment in self.answered[clients - 1 :] if moment <= self.last_sent]
        return (len(at_work) - 1) / (at_work[-1] - at_work[0]) if len(at_work) > 1 else math.nan


def rates(model: Predictor, files: list[bytes], seconds: float) -> dict[str, tuple[float, float]]:
    """Return photos per second and CPU milliseconds per photo, of compute only and of prediction from JPEG bytes."""
    pixels = noise_pixels(BATCH, model.card.preprocessing.size)
    works: dict[str, tuple[int, Callable[[], object]]] = {
        "engine": (BATCH, lambda: model.predict_pixels(pixels)),
        "predict": (len(files), lambda: model.predict(files, batch_size=BATCH)),
    }
    found = {}
    for name, (count, work) in works.items():
        work()
        done, start, cpu = 0, time.perf_counter(), time.process_time()
        while done == 0 or time.perf_counter() - start < seconds:
            work()
            done += count
        found[name] = (done / (time.perf_counter() - start), 1000 * (time.process_time() - cpu) / done)
    return found


def of_process(pid: int) -> tuple[float, float]:
    """Return resident MB and CPU seconds of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(model: str, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a service; return it with its port once it answers."""
    command = [sys.executable, "-m", "intclip.cli", "serve", "--model", model, "--port", "0"]
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stderr=stream)
    while '"url"' not in (told := log.read_text(encoding="utf-8")) or not told.endswith("\n"):
        time.sleep(0.1)
        if server.poll() is not None:
            sys.exit("the service did not start")
    address = next(json.loads(line)["url"] for line in told.splitlines() if '"url"' in line)
    port = int(address.rpartition(":")[2])
    while True:
        try:
            asyncio.run(_probe(port))
            return server, port
        except OSError:
            time.sleep(0.1)


async def _probe(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    await answer(reader)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--hostile", type=int, default=0)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--side", type=int, default=500, help="longer side of the photos")
    parser.add_argument("--folder", type=Path, help="photos to send in their place, as they are")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long the model alone is measured each time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.requests < (least := 3 * PARTS * options.clients):
        parser.error(f"--requests is at least {least}: a part counts while all clients are at work")
    import intclip

    model = intclip.load(options.model)
    files = photos(options.side) if options.folder is None else files_of(options.folder)
    expected = [one.scores for one in model.predict(files)]
    with tempfile.TemporaryDirectory() as folder:
        server, port = start(options.model, Path(folder) / "log")
        try:
            load = Load(port, files, expected)
            asyncio.run(load.run(options.clients, options.clients, 0))  # warm
            load.milliseconds.clear()
            load.statuses.clear()
            memory, served, own = [], [], 0.0
            beside = [rates(model, files, options.seconds)]
            cpu = of_process(server.pid)[1]
            for _ in range(PARTS):
                clients = time.process_time()
                served.append(asyncio.run(load.run(options.clients, options.requests // PARTS, options.hostile)))
                own += time.process_time() - clients
                memory.append(round(of_process(server.pid)[0], 1))
                beside.append(rates(model, files, options.seconds))
            cpu = of_process(server.pid)[1] - cpu
        finally:
            server.send_signal(signal.SIGINT)
            code = server.wait(120)
    count = len(load.milliseconds)
    ordered = sorted(load.milliseconds)
    alone: dict[str, Any] = {}
    by_part: dict[str, list[float]] = {}
    for name in beside[0]:
        rate, cost = (statistics.mean(values) for values in zip(*(each[name] for each in beside), strict=True))
        alone[name] = {"photos_per_second": round(rate, 1), "cpu_ms_a_photo": round(cost, 2)}
        around = [(first[name][0] + second[name][0]) / 2 for first, second in pairwise(beside)]
        by_part[name] = [round(a / b, 3) for a, b in zip(served, around, strict=True)]
    rate, cost = statistics.mean(served), 1000 * cpu / count
    write_report(
        options.out,
        {
            "model": options.model,
            "clients": options.clients,
            "requests": count,
            "photo_sides": dict(Counter(max(Image.open(io.BytesIO(file)).size) for file in files).most_common(3)),
            "alone": alone,
            "service": {"photos_per_second": round(rate, 1), "cpu_ms_a_photo": round(cost, 2)},
            "clients_cpu_ms_a_photo": round(1000 * own / count, 2),
            "share_of_alone": {
                name: {
                    "throughput": round(rate / value["photos_per_second"], 3),
                    "cpu": round(value["cpu_ms_a_photo"] / cost, 3),
                    "by_part": by_part[name],
                }
                for name, value in alone.items()
            },
            "latency_ms": {
                name: round(ordered[int(part * (count - 1))]) for name, part in (("p50", 0.5), ("p99", 0.99))
            },
            "statuses": dict(load.statuses),
            "wrong_answers": load.wrong,
            "hostile": dict(load.hostile),
            "resident_MB": memory,
            "exit_code": code,
        },
    )


if __name__ == "__main__":
    main()
