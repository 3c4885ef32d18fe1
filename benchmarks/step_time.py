"""Time of a whole train step: this repository, Flax's own modules, torch; alternating in one run.

    python -m benchmarks.step_time --torch_python=/path/to/python-with-torch

Prints a Markdown table with a row per network and contender: images/s, the median wall time of a
step, processor time per step (all threads; on a machine shared with others the steadier figure),
achieved operations per second, the share of the roofline, and the ratio of images/s to that of the
Flax modules. Ours and the Flax modules run the same `train_step`, torch the same arithmetic.

Operations are twice the multiply-adds of convolutions and head, forward and both gradients. The
roofline of a layer is the larger of operations / peak and bytes / bandwidth, where the bytes are
each input, output and kernel once per pass; normalisation is taken as free. Peak and bandwidth are
a GPU's data sheet's, or on a CPU measured in the same run: a 2048³ product and a 256 MB copy.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import PartitionSpec as P

import models
import train_step
from benchmarks.peers import PeerResNet
from configs import common
from data.device_transforms import Normalization
from errors import UserError
from input_pipeline import DATA_AXIS, make_mesh, replicate
from models import blocks
from models.conv import Conv
from models.resnet import architecture

_ROWS = flags.DEFINE_list(
    "rows", [], "NETWORK:BATCH[:DTYPE], e.g. resnet20:128,resnet50:8; default: this device's rows."
)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Timed turns of each contender.", 1)
_STEPS = flags.DEFINE_integer("steps", 1, "Steps per turn.", 1)
_TORCH = flags.DEFINE_string("torch_python", "", "A Python interpreter that has torch.")
_SCAN = flags.DEFINE_bool("scan", True, "Also time our network with scan_blocks.")
_SIZE = flags.DEFINE_integer("size", 0, "Image size; 0: 224, or 32 for 6n+2 networks.", 0)

CPU_ROWS = ("resnet20:128", "resnet56:128", "resnet50:8")
GPU_ROWS = tuple(
    f"{network}:{dtype}"
    for network in ("resnet50:256", "resnet101:256", "resnet152:256", "resnet20:128")
    for dtype in ("bfloat16", "float32")
)
# Dense operations/s (bfloat16; float32 as TF32, XLA's default there) and bytes/s, data sheets.
DATA_SHEETS = {
    "H200": (989e12, 494e12, 4.8e12),
    "H100": (989e12, 494e12, 3.35e12),
    "A100": (312e12, 156e12, 1.555e12),
}
HEADER = """\
| network | contender | images/s | step, ms | processor, ms | operations/s | roofline | × Flax |
|---|---|---|---|---|---|---|---|"""


class Row(NamedTuple):
    """One network and what is fed to it."""

    network: str
    batch: int
    dtype: str

    @classmethod
    def parse(cls, text):
        """From NETWORK:BATCH[:DTYPE]; UserError for anything else."""
        network, *rest = text.split(":")
        if not rest or len(rest) > 2 or not rest[0].isdigit():
            raise UserError(f"--rows={text!r}: expected NETWORK:BATCH or NETWORK:BATCH:DTYPE.")
        return cls(network, int(rest[0]), rest[1] if len(rest) == 2 else "float32")

    def config(self):
        """The paper's recipe of the network; returns (config, image size, classes)."""
        depth = self.network.removeprefix("resnet")
        if not depth.isdigit():
            raise UserError(f"--rows: network {self.network!r}; expected e.g. resnet20, resnet50.")
        imagenet = int(depth) in (18, 34, 50, 101, 152)
        config = common.imagenet(self.network) if imagenet else common.cifar(self.network)
        config.batch_size, config.model.dtype = self.batch, self.dtype
        config.model.scan_blocks = False
        # Images arrive augmented: a step is the normalisation, the network and the update.
        config.augment.kind, config.augment.pca_noise = "none", 0.0
        return config, _SIZE.value or (224 if imagenet else 32), 1000 if imagenet else 10


def layer_costs(model, shape):
    """(operations, numbers moved) of each convolution and the head in one forward pass."""
    costs = []

    def note(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, (Conv, nn.Dense)) and context.method_name == "__call__":
            channels, x = args[0].shape[-1], args[0]
            taps = getattr(context.module, "kernel_size", 1) ** 2
            if y.ndim == 4 and isinstance(context.module, nn.Dense):
                return y  # the map of logits, which training leaves out
            weights = taps * channels * y.shape[-1]
            costs.append((2 * y.size * taps * channels, x.size + y.size + weights))
        return y

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda: model.init(jax.random.key(0), jnp.zeros(shape, jnp.float32), train=False)
        )
    return costs


def roofline(costs, peak, bandwidth, itemsize):
    """(operations, seconds at the roofline) of a train step: three passes, two for the stem."""
    passes = [2] + [3] * (len(costs) - 1)
    operations = sum(n * ops for n, (ops, _) in zip(passes, costs, strict=True))
    seconds = sum(
        n * max(ops / peak, numbers * itemsize / bandwidth)
        for n, (ops, numbers) in zip(passes, costs, strict=True)
    )
    return operations, seconds


def device_limits(dtype):
    """(operations/s, bytes/s, where they come from) of the first device."""
    kind = jax.devices()[0].device_kind
    for name, (half, single, bandwidth) in DATA_SHEETS.items():
        if name in kind:
            return (half if dtype == "bfloat16" else single), bandwidth, f"data sheet of {name}"
    a = jnp.ones((2048, 2048), dtype)
    big = jnp.ones(2**26, jnp.float32)

    def best(f, x):
        f(x).block_until_ready()
        return min(_timed(lambda: f(x).block_until_ready())[0] for _ in range(5))

    product, copy = best(jax.jit(lambda a: a @ a), a), best(jax.jit(lambda x: x + 1), big)
    return 2 * 2048**3 / product, 2 * big.nbytes / copy, "measured here"


def _timed(run):
    started, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - used


def jax_contender(config, model, size):
    """A function that runs n train steps and returns (wall, processor) seconds."""
    mesh = make_mesh(jax.devices()[:1])
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (config.batch_size, size, size, 3), np.uint8),
        "label": np.arange(config.batch_size, dtype=np.int32) % model.num_classes,
        "valid": np.ones(config.batch_size, bool),
    }
    normalization = Normalization(np.full(3, 127.5, np.float32), np.full(3, 64, np.float32))
    step = jax.shard_map(
        train_step.make_train_step(config, model, normalization),
        mesh=mesh,
        in_specs=(P(), P(DATA_AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    sample = jnp.zeros((1, size, size, 3), jnp.float32)
    # The key is an argument: XLA would fold constant random numbers while compiling, slowly.
    variables = jax.jit(lambda key: model.init(key, sample, train=False))(jax.random.key(0))
    state = jax.jit(lambda v: train_step.state_from(config, v))(variables)
    held = [replicate(state, mesh)]
    batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, P(DATA_AXIS)))
    compiled = jax.jit(step, donate_argnums=0).lower(held[0], batch).compile()

    def run(steps):
        def work():
            for _ in range(steps):
                held[0] = compiled(held[0], batch)
            jax.block_until_ready(held[0])

        return _timed(work)

    run(2)
    return run


def torch_contender(config, size, classes, python):
    """The same for torch in a process of its own; raises UserError when it does not come up."""
    m = config.model
    table = architecture(m.stem, m.depth)
    gpu = jax.default_backend() == "gpu"
    options = {
        "network": {
            "stage_sizes": table.stage_sizes,
            "bottleneck": table.layers is blocks.bottleneck_layers,
            "stem": m.stem,
            "shortcut": m.shortcut,
            "width": m.width,
            "classes": classes,
        },
        "batch": config.batch_size,
        "size": size,
        "dtype": m.dtype,
        "device": "cuda" if gpu else "cpu",
        "compile": gpu,
    }
    script = Path(__file__).with_name("torch_peer.py")
    process = subprocess.Popen(
        [python, script, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    first = process.stdout.readline()
    if not first.startswith("ready"):
        raise UserError(f"--torch_python={python}: said {first!r}; is torch installed there?")

    def run(steps):
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
        return tuple(map(float, process.stdout.readline().split()))

    return run, process


def measure(row):
    """Yields the table's lines for one row."""
    config, size, classes = row.config()
    ours = models.create(config.model, classes)
    shared = {f: config.model[f] for f in ("depth", "stem", "shortcut", "width", "dtype")}
    peer = PeerResNet(num_classes=classes, **shared)
    contenders = {"Flax modules": jax_contender(config, peer, size)}
    contenders["this repository"] = jax_contender(config, ours, size)
    if _SCAN.value:
        scanned = models.create({**config.model, "scan_blocks": True}, classes)
        contenders["this repository, scan_blocks"] = jax_contender(config, scanned, size)
    process = None
    if _TORCH.value:
        run, process = torch_contender(config, size, classes, _TORCH.value)
        contenders["torch"] = run

    times = {name: [] for name in contenders}
    for _ in range(_REPETITIONS.value):
        for name, run in contenders.items():
            times[name].append(run(_STEPS.value))
    if process:
        process.communicate()

    limits = device_limits(row.dtype)
    costs = layer_costs(ours, (row.batch, size, size, 3))
    operations, ideal = roofline(costs, *limits[:2], jnp.dtype(row.dtype).itemsize)
    middle = {
        name: [statistics.median(part) / _STEPS.value for part in zip(*turns, strict=True)]
        for name, turns in times.items()
    }
    flax_wall = middle["Flax modules"][0]
    label = f"{row.network}, {row.batch} × {size}², {row.dtype}"
    for name, (wall, processor) in middle.items():
        yield (
            f"| {label} | {name} | {row.batch / wall:.1f} | {wall * 1e3:.0f} | "
            f"{processor * 1e3:.0f} | {operations / wall:.3g} | {ideal / wall:.0%} | "
            f"{flax_wall / wall:.2f} |"
        )
    yield f"| | limits, {limits[2]} | | | | {limits[0]:.3g} | {limits[1]:.3g} B/s | |"


def main(argv):
    """Prints the table, row by row."""
    del argv
    device = jax.devices()[0]
    gpu = jax.default_backend() == "gpu"
    print(
        f"{time.strftime('%Y-%m-%d')}, {device.platform} {device.device_kind}, Python "
        f"{sys.version.split()[0]}, jax {jax.__version__}, flax {flax.__version__}, "
        f"medians of {_REPETITIONS.value} alternating turns of {_STEPS.value} step(s)\n"
    )
    print(HEADER, flush=True)
    for text in _ROWS.value or (GPU_ROWS if gpu else CPU_ROWS):
        for line in measure(Row.parse(text)):
            print(line, flush=True)
    if not gpu:
        for text in GPU_ROWS:
            print(f"| {text.replace(':', ', ')} | all, on a GPU | not run |" + " |" * 5)


if __name__ == "__main__":
    app.run(main)
