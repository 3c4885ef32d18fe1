"""The whole train step as the programs here measure it: the paper's recipe on uint8 images.

Images arrive augmented, so that a step is the normalisation, the network, both gradients and the
update, on one device.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

import models
from benchmarks.peers import PeerResNet
from configs import recipes
from data.normalization import Normalization
from errors import UserError
from models.resnet import IMAGENET
from run.mesh import DATA_AXIS, make_mesh, replicate
from training import step as train_step

Times = tuple[float, ...]  # (wall, processor) seconds

ROOT = Path(__file__).parents[1]
# Several processes on one card: JAX would reserve three quarters of its memory for the first.
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
IMAGENET_DEPTHS = tuple(IMAGENET)


class Row(NamedTuple):
    """One network and what is fed to it."""

    network: str  # 'resnet50'
    batch: int
    dtype: str = "float32"

    @classmethod
    def parse(cls, text: str) -> "Row":
        """From NETWORK:BATCH[:DTYPE]; UserError for anything else."""
        network, *rest = text.split(":")
        if not rest or len(rest) > 2 or not rest[0].isdigit():
            raise UserError(f"--rows={text!r}: expected NETWORK:BATCH or NETWORK:BATCH:DTYPE.")
        return cls(network, int(rest[0]), *rest[1:])

    def recipe(self, size: int = 0, **fields: Any) -> tuple[ConfigDict, int, int]:
        """The paper's recipe of the network: `(config, image size, classes)`.

        Args:
          size: of the images in pixels; 0 for 224, or 32 for the 6n+2 networks.
          fields: of `config.model`, where they differ from the recipe's.
        """
        depth = self.network.removeprefix("resnet")
        if not depth.isdigit():
            raise UserError(f"network {self.network!r}: expected e.g. resnet20 or resnet50.")
        imagenet = int(depth) in IMAGENET_DEPTHS
        config = recipes.imagenet(self.network) if imagenet else recipes.cifar(self.network)
        config.batch_size = self.batch
        # Peers take BN's statistics over the whole batch.
        config.model.update(dtype=self.dtype, scan_blocks=False, bn_group_size=0)
        config.model.update(fields)
        config.augment.update(kind="none", pca_noise=0.0)
        return config, size or (224 if imagenet else 32), 1000 if imagenet else 10


def jitted_step(
    config: ConfigDict,
    model: nn.Module,
    normalization: Normalization,
    mesh: Mesh,
    options: dict[str, str] | None = None,
) -> Any:
    """The train step `(state, batch) → state` over a mesh, with its state donated."""
    step = jax.shard_map(
        train_step.make_train_step(config, model, normalization),
        mesh=mesh,
        in_specs=(P(), P(DATA_AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(step, donate_argnums=0, compiler_options=options)


class WholeStep:
    """The train step of a config and a model on the first device, before any array is made.

    Args:
      size: of the images in pixels.
      options: for the compiler; training has none.
      devices: the first is computed on; None takes those of this machine.

    Attributes:
      state: shapes of the train state; batch: shapes of the images, labels and their validity.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nn.Module,
        size: int,
        options: dict[str, str] | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        self._config, self._model, self._image = config, model, (size, size, 3)
        self._options = options
        self._mesh = make_mesh((devices or jax.devices())[:1])
        self.state = train_step.abstract_state(config, model, self._image)
        shape = (config.batch_size,)
        self.batch = {
            "image": jax.ShapeDtypeStruct((*shape, *self._image), jnp.uint8),
            "label": jax.ShapeDtypeStruct(shape, jnp.int32),
            "valid": jax.ShapeDtypeStruct(shape, bool),
        }

    @classmethod
    def of(
        cls,
        row: Row,
        size: int = 0,
        devices: Sequence[jax.Device] | None = None,
        options: dict[str, str] | None = None,
        **fields: Any,
    ) -> "WholeStep":
        """The step of our own network, `models.create`'s."""
        config, size, classes = row.recipe(size, **fields)
        return cls(config, models.create(config.model, classes), size, options, devices)

    @classmethod
    def of_flax(
        cls,
        row: Row,
        size: int = 0,
        devices: Sequence[jax.Device] | None = None,
        options: dict[str, str] | None = None,
        **fields: Any,
    ) -> "WholeStep":
        """The same step of plain Flax modules (`benchmarks.peers`)."""
        config, size, classes = row.recipe(size, **fields)
        shared = {f: config.model[f] for f in ("depth", "stem", "shortcut", "width", "dtype")}
        return cls(config, PeerResNet(num_classes=classes, **shared), size, options, devices)

    def trace(self) -> Any:
        """The step with its state donated: `jax.stages.Traced`."""
        normalization = Normalization(np.full(3, 127.5, np.float32), np.full(3, 64, np.float32))
        jitted = jitted_step(self._config, self._model, normalization, self._mesh, self._options)
        return jitted.trace(self.state, self.batch)

    def lower(self) -> Any:
        """The traced program for this device's compiler: `jax.stages.Lowered`."""
        return self.trace().lower()

    def runner(self) -> Callable[[int], Times]:
        """Compiles, runs two steps; a function that runs n more and returns `timed`'s seconds."""
        compiled = self.lower().compile()
        state = train_step.create_state(self._config, self._model, self._image)
        held = [replicate(state, self._mesh)]
        rng = np.random.default_rng(0)
        labels = np.arange(self._config.batch_size, dtype=np.int32) % self._model.num_classes
        batch = jax.device_put(
            {
                "image": rng.integers(0, 256, self.batch["image"].shape, np.uint8),
                "label": labels,
                "valid": np.ones(len(labels), bool),
            },
            NamedSharding(self._mesh, P(DATA_AXIS)),
        )

        def run(steps):
            def work():
                for _ in range(steps):
                    held[0] = compiled(held[0], batch)
                jax.block_until_ready(held[0])

            return timed(work)

        run(2)
        return run


class Contender:
    """One contender in a process of its own, which runs steps when it is told to.

    Args:
      words: the command that serves steps (`step_server.py`, `torch_peer.py`).
      environment: what its environment has besides this process's.

    Raises:
      UserError: it does not come up.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str] = SHARED):
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **SHARED, **environment},
        )
        first = self._process.stdout.readline()
        if not first.startswith("ready"):
            self.close()
            raise UserError(f"{' '.join(map(str, words))}: said {first!r} instead of 'ready'.")

    def __call__(self, steps: int) -> Times:
        """(wall, processor) seconds of so many steps."""
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return tuple(map(float, self._process.stdout.readline().split()))

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def timed(work: Callable[[], Any]) -> Times:
    """(wall, processor) seconds of a call; the processor's of all threads of this process."""
    started, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - used


def take_turns(
    runs: Mapping[str, Callable[[int], Times]], repetitions: int, steps: int = 1
) -> dict[str, Times]:
    """Median (wall, processor) seconds per step of contenders that take turns.

    Args:
      runs: name → function of a number of steps that returns seconds (`WholeStep.runner`).
    """
    times = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            times[name].append(run(steps))
    return {
        name: tuple(statistics.median(part) / steps for part in zip(*turns, strict=True))
        for name, turns in times.items()
    }
