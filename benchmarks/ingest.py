"""How fast is `xrec ingest`, and in how much memory, beside a plain `pyarrow.json` read of the same files?

A dump in the shape of the Yelp Open Dataset is generated (the same seed gives the same bytes), then read in turns:

    pyarrow.json    `open_json` over both files, batch by batch, every column, nothing kept or written
    xrec ingest     a process of its own: starts Ray, reads, validates, filters, and writes the tables `reviews` and
                    `items`; with its start-up, and by its own figure for the reading alone

Memory is the largest sum, over a process and all its children, of the proportional set size: pages that processes
share, Ray's object store among them, count once. The page cache of the files does not count.

    python -m benchmarks.ingest [--gigabytes 0.2] [--repetitions 3] [--folder /tmp/FOLDER]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

_ROWS = 20_000
_ID = 22
_ALPHABET = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", dtype=np.uint8)
_TEXT = (
    "the food was great and service friendly but we waited twenty minutes for our table so I'd rather come back on a "
    'quiet weekday morning; their coffee, pastries \\"croissants\\" tacos ramen noodles are worth it, prices fair, '
    "staff helpful place clean parking easy music loud patio lovely caf\\u00e9 na\\u00efve\\n\\nWill return! I "
    "recommend this spot to anyone who loves spicy soup, fresh bread or a good burger with friends and family"
)
_PLAIN = """
import sys, time
import pyarrow.json
started, rows = time.perf_counter(), 0
for file in sys.argv[1:]:
    for batch in pyarrow.json.open_json(file):
        rows += batch.num_rows
print(rows, time.perf_counter() - started)
"""


def ids(count: int, seed: int) -> np.ndarray:
    """`[count, 22]` characters of random ids."""
    return _ALPHABET[np.random.default_rng(seed).integers(0, 64, (count, _ID))]


def generate(folder: Path, size: float, seed: int = 0) -> list[Path]:
    """Write review.json of `size` bytes or a little more and business.json; returns both."""
    random = np.random.default_rng(seed)
    users, items = (ids(max(100, int(size / share)), seed + n) for n, share in ((1, 2600), (2, 35_000)))
    lines, places = _template(random)
    width = np.arange(_ID)
    review, business = folder / "review.json", folder / "business.json"
    block, written = np.frombuffer(lines, dtype=np.uint8).copy(), 0
    with review.open("wb", buffering=0) as file:
        while written < size:
            for place, pool in zip(places, (None, users, items), strict=True):
                fresh = ids(_ROWS, int(random.integers(2**31))) if pool is None else None
                # Squaring a uniform number makes some users and items far more frequent than others.
                chosen = fresh if pool is None else pool[(random.random(_ROWS) ** 2 * len(pool)).astype(int)]
                block[place[:, None] + width] = chosen
            written += file.write(block.tobytes())
    with business.open("wb") as file:
        for n, item in enumerate(items):
            record = {"business_id": item.tobytes().decode(), "name": f"Place {n}", "address": "1 Main St"}
            record |= {"city": "Philadelphia", "state": "PA", "stars": 4.0, "review_count": 7, "is_open": 1}
            record |= {"attributes": {"WiFi": "u'free'"}, "categories": "Restaurants, Coffee & Tea", "hours": None}
            file.write(json.dumps(record).encode() + b"\n")
    return [review, business]


def _template(random: np.random.Generator) -> tuple[bytes, list[np.ndarray]]:
    """Lines of reviews with blank ids, and where the ids of review, user and business begin."""
    words, lines, places, position = _TEXT.split(), [], [[], [], []], 0
    lengths = np.maximum(5, random.lognormal(4.2, 0.8, _ROWS).astype(int))
    for n in range(_ROWS):
        text = " ".join(words[w] for w in random.integers(0, len(words), lengths[n]))
        line = '{"review_id":"'
        for place, key in zip(places, ('","user_id":"', '","business_id":"', '","stars":'), strict=True):
            place.append(position + len(line))
            line += " " * _ID + key
        line += f'{random.integers(1, 6)}.0,"useful":{random.integers(0, 9)},"funny":0,"cool":1,"text":"{text}",'
        line += (
            f'"date":"20{random.integers(10, 22)}-0{random.integers(1, 10)}-1{n % 10} 1{n % 10}:05:{n % 50 + 10}"}}\n'
        )
        lines.append(line)
        position += len(line)
    return "".join(lines).encode(), [np.array(place) for place in places]


def measured(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak bytes of memory over the process tree, and standard output of a command.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    # Ray's workers yield to other processes (niceness 15): on a busy machine that would compare priorities.
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    started, peak = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, _memory(root))
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    return seconds, peak, output


def _memory(root: psutil.Process) -> float:
    total = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in tree:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=0.2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", help="where to generate the files; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="xrec-ingest-", dir=given.folder) as folder:
        files = [str(f) for f in generate(Path(folder), given.gigabytes * 1e9)]
        megabytes = sum(Path(f).stat().st_size for f in files) / 1e6
        plain, whole, reading, memory = [], [], [], {"plain": [], "ingest": []}
        rows, kept = 0, {}
        for n in range(given.repetitions):
            _, peak, output = measured([sys.executable, "-c", _PLAIN, *files])
            rows, seconds = int(output.split()[0]), float(output.split()[1])
            plain.append(megabytes / seconds)
            memory["plain"].append(peak)
            config = Path(folder) / "config.yaml"
            config.write_text(json.dumps({"ingest": {"source": "yelp", "files": files}}))
            workspace = Path(folder) / f"w{n}"
            command = [sys.executable, "-m", "ray_jobs.ingest", "--config", str(config), "--workspace", str(workspace)]
            seconds, peak, _ = measured(command)
            kept = json.loads((workspace / "data" / "metrics.json").read_text())
            whole.append(megabytes / seconds)
            reading.append(kept["megabytes_per_second"])
            memory["ingest"].append(peak)
    table = Table(title=f"{megabytes:,.0f} MB, {rows:,} lines, median of {given.repetitions}, {os.cpu_count()} cores")
    for name in ("", "MB/s", "ratio", "peak memory, GB"):
        table.add_column(name, justify="left" if not name else "right")
    base = statistics.median(plain)
    for name, speeds, peaks in (
        ("pyarrow.json", plain, memory["plain"]),
        ("xrec ingest, reading and writing", reading, memory["ingest"]),
        ("xrec ingest, with its start", whole, memory["ingest"]),
    ):
        speed = statistics.median(speeds)
        table.add_row(name, f"{speed:.1f}", f"{speed / base:.2f}", f"{max(peaks) / 1e9:.2f}")
    Console().print(table)
    dropped = {name: value for name, value in kept.items() if name.startswith("dropped/")}
    print(f"kept {kept['reviews']:,} of {kept['reviews/read']:,} reviews, {kept['items']:,} items; {dropped}")


if __name__ == "__main__":
    main()
