"""Shattered gradients (Balduzzi et al. 2017): do plain networks' input gradients become noise?

    python -m analysis.gradients --workdir=runs/digits-resnet20-seed0

(1) As in the paper's figure 1: networks of a scalar, at initialisation, dy/dx on 256 points of
[−2, 2], its autocorrelation against the lag, beside white and brown noise. What these curves look
like depends on initialisation and normalisation: here weights are He-normal, the kinks of the first
layer lie evenly in [−2, 2] (its biases), all other biases are zero, "BN" normalises over the 256
points. Reruns by others did not always show the effect; so means and spreads over seeds are given.
(2) The image networks: correlation of the input gradient between neighbouring pixels, at
initialisation over depths, plain against residual, and in the trained network of the workdir.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import models
from analysis import subject
from data.normalization import normalize
from run import command, plotting
from testing.opened_run import OpenedRun

POINTS, UNITS, LAGS = 256, 200, 15
EPSILON = 1e-5
# Name, number of layers, residual, with BN, factor on the residual branch.
SCALAR_NETWORKS = (
    ("1 layer", 1, False, False, 1.0),
    ("plain, 24 layers", 24, False, False, 1.0),
    ("plain with BN, 24 layers", 24, False, True, 1.0),
    ("residual with BN, 50 layers, scale 1", 50, True, True, 1.0),
    ("residual with BN, 50 layers, scale 0.1", 50, True, True, 0.1),
)


def autocorrelation(series: np.ndarray, lags: int = LAGS) -> np.ndarray:
    """Autocorrelation of a series `[points]` at lags 0 … `lags`; 1 at lag 0.

    A constant series has none: zeros after lag 0.
    """
    centred = np.asarray(series, np.float64) - np.mean(series)
    power = np.sum(centred**2)
    if power == 0:
        return np.eye(1, lags + 1)[0]
    size = len(centred)
    return np.array([centred[: size - lag] @ centred[lag:] for lag in range(lags + 1)]) / power


def white_noise(generator: np.random.Generator) -> np.ndarray:
    """Independent normal numbers `[POINTS]`."""
    return generator.normal(size=POINTS)


def brown_noise(generator: np.random.Generator) -> np.ndarray:
    """A random walk `[POINTS]`."""
    return np.cumsum(generator.normal(size=POINTS))


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def scalar_gradient(
    key: jax.Array, layers: int, residual: bool, batch_norm: bool, scale: float
) -> jax.Array:
    """dy/dx float32 `[POINTS]` of a random network of a scalar, at evenly spaced x in [−2, 2].

    Args:
      key: of the weights.
      layers: hidden ReLU layers of `UNITS` units.
      residual: x + scale·f(x) from the second layer on; else f(x).
      batch_norm: normalise each layer over the points.
      scale: of the residual branch.
    """
    points = jnp.linspace(-2, 2, POINTS)
    first, kinks, out, rest = jax.random.split(key, 4)
    slopes = jax.random.normal(first, (UNITS,)) * jnp.sqrt(2.0)
    offsets = -slopes * jax.random.uniform(kinks, (UNITS,), minval=-2, maxval=2)
    weights = jax.random.normal(rest, (layers - 1, UNITS, UNITS)) * jnp.sqrt(2 / UNITS)
    last = jax.random.normal(out, (UNITS,)) / jnp.sqrt(UNITS)

    def network(x):
        hidden = jax.nn.relu(x[:, None] * slopes[None] + offsets[None])

        def layer(hidden, weight):
            branch = hidden
            if residual and batch_norm:
                branch = _normalised(branch)
            if residual:
                branch = jax.nn.relu(branch) @ weight
                return hidden + scale * branch, None
            branch = branch @ weight
            return jax.nn.relu(_normalised(branch) if batch_norm else branch), None

        hidden, _ = jax.lax.scan(layer, hidden, weights)
        return hidden @ last

    return jax.grad(lambda x: network(x).sum())(points)


def _normalised(x):
    """BN over the points; dy/dx is taken at fixed statistics, so that points stay independent."""
    mean, var = jax.lax.stop_gradient((x.mean(0, keepdims=True), x.var(0, keepdims=True)))
    return (x - mean) / jnp.sqrt(var + EPSILON)


def scalar_networks(draws: int, seed: int = 0) -> dict[str, dict[str, list[float]]]:
    """Autocorrelations, mean and standard error over draws: `{name: {'mean', 'error'}}`."""
    generator = np.random.default_rng(seed)
    sources: dict[str, Callable[[int], Any]] = {
        "white noise": lambda draw: white_noise(generator),
        "brown noise": lambda draw: brown_noise(generator),
    }
    for number, (name, *shape) in enumerate(SCALAR_NETWORKS):
        key = jax.random.fold_in(jax.random.key(seed), number)
        sources[name] = functools.partial(_drawn_gradient, key, shape)
    found = {}
    for name, source in tqdm(sources.items(), desc="scalar networks", disable=None):
        curves = np.stack([autocorrelation(source(draw)) for draw in range(draws)])
        error = curves.std(0, ddof=1) / np.sqrt(draws) if draws > 1 else np.zeros(LAGS + 1)
        found[name] = {"mean": curves.mean(0).tolist(), "error": error.tolist()}
    return found


def _drawn_gradient(key, shape, draw):
    return scalar_gradient(jax.random.fold_in(key, draw), *shape)


def neighbour_correlation(gradients: np.ndarray) -> float:
    """Correlation between the gradients at horizontally and vertically neighbouring pixels.

    Args:
      gradients: `[batch, height, width, channels]`.

    Returns:
      mean over images and both directions, a float in [−1, 1].
    """
    g = np.asarray(gradients, np.float64)
    pairs = [(g[:, :, :-1], g[:, :, 1:]), (g[:, :-1], g[:, 1:])]
    return float(np.mean([_correlation(a, b) for a, b in pairs]))


def _correlation(a, b):
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    power = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.mean((a * b).sum(1) / np.maximum(power, np.finfo(np.float64).tiny))


def input_gradients(model: nn.Module, variables: Any, images: jax.Array, train: bool) -> jax.Array:
    """Gradient of the highest logit with respect to normalised images, same shape.

    Args:
      model: a network of `models.create`.
      variables: its `params` and `batch_stats`.
      images: normalised `[batch, height, width, channels]`.
      train: take BN statistics from the batch, as at initialisation there are no others.
    """

    def highest(images):
        (logits, _), _ = model.apply(variables, images, train=train, mutable=["batch_stats"])
        return logits.max(-1).sum()

    return jax.grad(highest)(images)


def image_networks(
    run: OpenedRun, images: np.ndarray, depths: Iterable[int], seeds: int
) -> list[dict[str, Any]]:
    """`neighbour_correlation` at initialisation: `[{'family', 'depth', 'mean', 'values'}]`."""
    x = normalize(jnp.asarray(images), *run.facts.normalization)
    grid = [(family, depth) for depth in depths for family in ("plain", "resnet")]
    rows = []
    for family, depth in tqdm(grid, desc="image networks", unit="network", disable=None):
        fields = dict(run.config.model) | {
            "depth": depth,
            "residual": family == "resnet",
            "zero_init_residual": False,
            "variant": "none",
            "block": "",
            "bn_group_size": 0,
            "scan_blocks": True,
        }
        model = models.create(fields, run.facts.num_classes)

        @jax.jit
        def gradient(key, x, model=model):
            variables = model.init(key, x[:1], train=False)
            return input_gradients(model, variables, x, train=True)

        values = [neighbour_correlation(gradient(jax.random.key(s), x)) for s in range(seeds)]
        rows.append(
            {"family": family, "depth": depth, "mean": float(np.mean(values)), "values": values}
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `gradients.json` and `gradients.png`."""
    p = subject.parser("gradients", __doc__, images=64)
    p.add_argument("--runs", type=command.positive, default=20, help="random scalar networks")
    p.add_argument("--seeds", type=command.positive, default=3, help="random image networks")
    p.add_argument("--depths", type=int, nargs="+", help="of the image networks")
    args = p.parse_args(argv)
    run, out = subject.open_workdir(args)
    images, _ = subject.load_images(run, args.split, args.images)
    depths = args.depths or ([8, 20, 56] if run.model.stem == "cifar" else [18, 34])
    scalar = scalar_networks(args.runs)
    rows = image_networks(run, images, depths, args.seeds)
    x = normalize(jnp.asarray(images), *run.facts.normalization)
    gradient = jax.jit(lambda v, x: input_gradients(run.model, v, x, train=False))
    trained = neighbour_correlation(gradient(run.variables, x))
    content = {
        "workdir": args.workdir,
        "images": len(images),
        "runs": args.runs,
        "scalar_networks": scalar,
        "image_networks": rows,
        "trained": trained,
    }
    path = subject.write(out / "gradients.json", args, content)
    picture = _plot(content, out)
    print("autocorrelation of dy/dx at lag        1       5      15")
    for name, curve in scalar.items():
        print(f"{name:<38}" + "".join(f"{curve['mean'][lag]:8.3f}" for lag in (1, 5, LAGS)))
    print("correlation of neighbouring pixels' gradients")
    for row in rows:
        print(f"{row['family']}{row['depth']} at initialisation: {row['mean']:.3f}")
    print(f"{args.workdir}, trained: {trained:.3f}\n{path}, {picture}")


def _plot(content, out):
    figure, (left, right) = plotting.pyplot().subplots(1, 2, figsize=(12, 4), layout="constrained")
    for name, curve in content["scalar_networks"].items():
        style = "--" if "noise" in name else "-"
        left.errorbar(range(LAGS + 1), curve["mean"], curve["error"], ls=style, label=name)
    left.set(xlabel="lag", ylabel="autocorrelation of dy/dx", title="networks of a scalar")
    for family in ("plain", "resnet"):
        mine = [row for row in content["image_networks"] if row["family"] == family]
        depths, means = [row["depth"] for row in mine], [row["mean"] for row in mine]
        right.plot(depths, means, marker="o", label=family)
    right.axhline(content["trained"], color="k", ls="--", label="the trained network")
    right.set(xlabel="depth", ylabel="correlation", title="gradients of neighbouring pixels")
    for axis in (left, right):
        axis.legend(fontsize="small")
        axis.grid(alpha=0.3)
    return plotting.save(figure, out / "gradients.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(command.run(main))
