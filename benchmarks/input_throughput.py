"""Images per second and core of the host pipeline, against tf.data, torch + Pillow and the limit.

    python -m benchmarks.input_throughput --tensorflow=TF/bin/python --torch=TORCH/bin/python

All contenders work on the same generated JPEGs (470×395, about 104 KB), take turns, and are
compared by the median over the rounds of ratios within a round. "Per core" is CPU time of the
contender's process, all its threads included, so that other work on a shared machine changes it
little. The peers live in environments of their own, named by their interpreters; without them
their rows say "not installed". The table goes to benchmarks/input_throughput.md.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from tqdm import tqdm

from benchmarks import input_contenders, reports

HEIGHT, WIDTH = 395, 470
SCRIPT = Path(input_contenders.__file__)
REPORT = SCRIPT.with_name("input_throughput.md")
TITLES = {
    "limit": "the limit: simplejpeg decodes all, nothing else",
    "ours_rrc": "ours: random-resized crop",
    "tf_rrc": "tf.data: decode_and_crop_jpeg + bilinear",
    "torch_rrc": "torch DataLoader + Pillow, uint8",
    "torch_rrc_normalised": "torch DataLoader + Pillow, float, normalised (torchvision's recipe)",
    "ours_jitter": "ours: the paper's scale augmentation",
    "tf_jitter": "tf.data: decode, resize, crop",
    "tf_jitter_one_step": "tf.data: the same as one decode_and_crop_jpeg + bilinear",
    "ours_rrc_2": "ours: random-resized crop, 2 threads",
    "limit_2": "the limit, 2 threads",
}
# (what, contender, against whom, goal)
GOALS = [
    ("random-resized crop / tf.data's best", "ours_rrc", "tf_rrc", 1.0),
    ("scale augmentation / tf.data, two steps", "ours_jitter", "tf_jitter", 1.5),
    ("scale augmentation / tf.data, one step", "ours_jitter", "tf_jitter_one_step", None),
    ("random-resized crop / torch + Pillow, uint8", "ours_rrc", "torch_rrc", 2.0),
    ("random-resized crop / torch + Pillow, normalised", "ours_rrc", "torch_rrc_normalised", 2.0),
    ("random-resized crop / the limit", "ours_rrc", "limit", 0.85),
]


def generate(directory: Path, number: int) -> float:
    """Writes `number` JPEGs cut from scikit-learn's photographs; returns their mean bytes."""
    generator = np.random.default_rng(0)
    photographs = load_sample_images().images
    total = 0
    for index in range(number):
        photograph = photographs[index % 2]
        top = generator.integers(photograph.shape[0] - HEIGHT)
        left = generator.integers(photograph.shape[1] - WIDTH)
        piece = photograph[top : top + HEIGHT, left : left + WIDTH]
        noisy = np.clip(piece + generator.normal(0, 12, piece.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=92)
        total += len(buffer.getvalue())
        (directory / f"{index:04d}.jpg").write_bytes(buffer.getvalue())
    return total / number


class Worker:
    """A contender in its own process; `versions` is None where its library is not installed."""

    def __init__(self, name: str, interpreter: str, directory: Path):
        self._process = subprocess.Popen(
            [interpreter, str(SCRIPT), name, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if name.startswith(("tf", "torch")) else None,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        answer = self._process.stdout.readline().strip()
        self.versions = answer.removeprefix("ready ") if answer.startswith("ready") else None

    def ask(self, line: str) -> str:
        """Sends a command, waits for the answer."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait(timeout=60)


def measure(workers: dict[str, Worker], rounds: int) -> dict[str, np.ndarray]:
    """Contender → [rounds, 2] CPU and wall seconds of a pass, taking turns in each round."""
    times: dict[str, list] = {name: [] for name in workers}
    for number in tqdm(range(rounds), desc="rounds", disable=None):
        names = list(workers)
        names = names[number % len(names) :] + names[: number % len(names)]
        for name in names:
            times[name].append([float(value) for value in workers[name].ask("run").split()])
    return {name: np.array(values) for name, values in times.items()}


def psnr(workers: dict[str, Worker], directory: Path) -> dict[str, float]:
    """Quality of each resize in dB, against Pillow's antialiased resize of the same boxes."""
    paths = sorted(directory.glob("*.jpg"))
    reference = np.stack(
        [
            np.asarray(
                Image.open(path).resize(
                    (input_contenders.SIZE,) * 2,
                    Image.Resampling.BILINEAR,
                    box=(left, top, left + width, top + height),
                )
            )
            for path, (top, left, height, width) in zip(
                paths, input_contenders.boxes(HEIGHT, WIDTH, len(paths)), strict=True
            )
        ]
    ).astype(float)
    quality: dict[str, float] = {}
    for name in ("ours_rrc", "tf_rrc"):
        if name in workers:
            workers[name].ask(f"crops {directory / name}.npy")
            error = np.mean((np.load(directory / f"{name}.npy") - reference) ** 2)
            quality[name] = 10 * np.log10(255**2 / error)
    return quality


def ratio(times: dict[str, np.ndarray], name: str, other: str, column: int = 0) -> float | None:
    """How many times faster `name` is than `other`: the median over rounds."""
    if name not in times or other not in times:
        return None
    return float(np.median(times[other][:, column] / times[name][:, column]))


def report(times: dict[str, np.ndarray], quality: dict[str, float], images: int) -> list[str]:
    """The tables, as Markdown lines."""
    rows = []
    for name, title in TITLES.items():
        if name not in times:
            rows.append((title, "not installed", "", ""))
            continue
        seconds = np.median(times[name][:, 0]) / images
        limit = ratio(times, name, "limit")
        rows.append((title, f"{1e3 * seconds:.2f}", f"{1 / seconds:,.0f}", f"{limit:.2f}"))
    ratios = []
    for title, name, other, goal in GOALS:
        found = ratio(times, name, other)
        shown = "not installed" if found is None else f"{found:.2f}"
        ratios.append((title, shown, "" if goal is None else f"≥ {goal}"))
    for title, name, wanted in [("ours", "ours_rrc", "≥ 1.7"), ("the limit", "limit", "")]:
        scaling = ratio(times, f"{name}_2", name, column=1)
        ratios.append((f"{title}: 2 threads / 1 thread, wall clock", f"{scaling:.2f}", wanted))
    qualities = ", ".join(f"{TITLES[n].split(':')[0]} {q:.1f} dB" for n, q in quality.items())
    return [
        *reports.table(("contender", "CPU ms/image", "images/s/core", "ratio to the limit"), rows),
        "",
        *reports.table(("ratio per core", "measured", "goal"), ratios),
        "",
        f"Resize quality (PSNR; the same boxes, resized by Pillow antialiased): {qualities}.",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison and writes the report."""
    parser = reports.parser(__file__, __doc__)
    parser.add_argument(
        "--tensorflow", help="interpreter of an environment with TensorFlow and Pillow"
    )
    parser.add_argument("--torch", help="interpreter of an environment with torch and Pillow")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    interpreters = {"tf": options.tensorflow, "torch": options.torch}
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        mean_bytes = generate(directory, options.images)
        workers = {}
        for name in tqdm(TITLES, desc="starting", disable=None):
            interpreter = interpreters.get(name.split("_")[0], sys.executable)
            if interpreter:
                worker = Worker(name, interpreter, directory)
                if worker.versions:
                    workers[name] = worker
                else:
                    worker.close()
        where = reports.environment()
        times = measure(workers, options.rounds)
        quality = psnr(workers, directory)
        versions = sorted({part for w in workers.values() for part in w.versions.split(", ")})
        for worker in workers.values():
            worker.close()
    lines = [
        f"{where} Contenders, CPU only: {', '.join(versions)}.",
        f"{options.images} JPEGs of {WIDTH}×{HEIGHT}, {mean_bytes / 1000:.0f} KB in the mean; "
        f"crops of {input_contenders.SIZE}; medians of {options.rounds} rounds in which the "
        "contenders take turns.",
        "",
        *report(times, quality, options.images),
    ]
    reports.write(options.report, "Input throughput", options.command, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
