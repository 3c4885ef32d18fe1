"""Shattered gradients (Balduzzi et al. 2017): do the gradients of plain networks become noise?

    python -m analysis.gradients                                    # (1) alone
    python -m analysis.gradients --workdir runs/plain56 runs/resnet56

(1) As in the paper's figure 1: networks of a scalar, at initialisation, dy/dx on 256 points of
[−2, 2], its autocorrelation against the lag, beside white and brown noise. What these curves look
like depends on initialisation and normalisation: here weights are He-normal, the kinks of the first
layer lie evenly in [−2, 2] (its biases), all other biases are zero, "BN" normalises over the 256
points. Reruns by others did not always show the effect; so means and spreads over seeds are given.
(2) The networks of workdirs, as initialised with the run's seed and as trained: how similar are the
gradients of different images? The gradient of a random combination of the logits with respect to
the input of each block, and its cosine between any two images, against the number L of layers in
between. Theory, for random weights: 2^−L in plain networks, 1/√L in residual ones with BN.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from analysis import subject
from analysis.propagation import in_order, initialised, inputs_and_gradients
from data.normalization import normalize
from run import command, plotting, result
from testing.opened_run import OpenedRun

POINTS, UNITS, LAGS = 256, 200, 15
NOISE = 0.01  # what mean cosines of a few dozen images are when they are nothing
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


def correlation(gradients: jax.Array) -> jax.Array:
    """Mean cosine between the gradients of any two different images, in [−1, 1].

    Args:
      gradients: `[images, …]`, two images or more.
    """
    flat = gradients.astype(jnp.float32).reshape(len(gradients), -1)
    unit = flat / jnp.maximum(jnp.linalg.norm(flat, axis=1, keepdims=True), 1e-30)
    number = len(unit)
    return (jnp.square(unit.sum(0)).sum() - jnp.square(unit).sum()) / (number * (number - 1))


def correlations(model: nn.Module, variables: Any, images: jax.Array, seed: int) -> list[Any]:
    """`correlation` at every block's input: `[[layers from there to the pooling, r], …]`."""
    direction = jax.random.normal(jax.random.key(seed), (model.num_classes,))

    @jax.jit
    def measure(variables, images, direction):
        found = inputs_and_gradients(model, variables, images, direction)
        return {name: correlation(gradient) for name, (_, gradient) in found.items()}

    found = measure(variables, images, direction)
    per_block = sum(name.startswith("conv") for name in variables["params"]["stage1"]["block1"])
    names = in_order(found)
    return [[per_block * (len(names) - i), float(found[name])] for i, name in enumerate(names)]


def image_networks(run: OpenedRun, images: np.ndarray) -> list[dict[str, Any]]:
    """A run's network as trained and as initialised: `[{'network', 'state', 'seed', 'curve'}]`."""
    x, seed = normalize(jnp.asarray(images), *run.facts.normalization), run.config.seed
    fresh = initialised(run.config.model, run.facts.num_classes, x, seed)
    states = {"initialised": fresh, "trained": (run.model, run.variables)}
    return [
        {
            "network": subject.network_name(run.config.model),
            "state": state,
            "seed": seed,
            "curve": correlations(model, variables, x, seed),
        }
        for state, (model, variables) in tqdm(states.items(), desc=run.workdir, disable=None)
    ]


def fit(curve: Iterable[Sequence[float]]) -> tuple[float | None, float | None]:
    """What multiplies r per layer, and the power of L that it follows; least squares in log r.

    Theory: 0.5 per layer in plain networks, a power of −0.5 in residual ones. Counted are the
    layers from the last block back to where r is below NOISE; None if those are fewer than three.
    """
    points = sorted(map(tuple, curve))
    above = list(itertools.takewhile(lambda point: point[1] >= NOISE, points))
    if len(above) < 3:
        return None, None
    layers, r = np.array(above).T
    per_layer, power = (np.polyfit(x, np.log(r), 1)[0] for x in (layers, np.log(layers)))
    return float(np.exp(per_layer)), float(power)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `gradients.json`, `.md`, `.svg` and `.png`."""
    p = subject.parser("gradients", __doc__, images=64, required=False)
    p.add_argument("--runs", type=command.positive, default=20, help="random scalar networks")
    args = p.parse_args(argv)
    runs, rows = subject.open_workdirs(args), []
    for run in runs:
        images, _ = subject.load_images(run, args.split, max(args.images, 2))
        rows += image_networks(run, images)
    scalar = scalar_networks(args.runs)
    subject.publish(
        args,
        runs,
        "Shattered gradients: do the gradients of plain networks become noise?",
        tables(scalar, rows),
        _plot(scalar, rows),
        remarks=[
            "The last two columns are fitted to r from the last block back to where it is below "
            f"{NOISE:g}; what is smaller is noise of a few dozen images."
        ]
        * bool(rows),
        scalar_networks=scalar,
        image_networks=rows,
    )


def tables(scalar: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Autocorrelations of the scalar networks; correlations and their decay of the others."""
    lags = (1, 5, LAGS)
    cells = [[name, *(curve["mean"][lag] for lag in lags)] for name, curve in scalar.items()]
    heading = "Networks of a scalar, at initialisation: autocorrelation of dy/dx"
    listed = [result.table(heading, ["network", *(f"lag {lag}" for lag in lags)], cells)]
    cells = []
    for key, curves in grouped(rows).items():
        fits = zip(*map(fit, curves), strict=True)
        ends = [
            subject.spread(curve[i][1] for curve in curves) for i in (-1, len(curves[0]) // 2, 0)
        ]
        cells.append([*key, curves[0][0][0], *ends, *map(subject.spread, fits)])
    columns = ["network", "state", "layers L", "r at the last block", "r in the middle"]
    columns += ["r at the first block", "r falls per layer to (theory: plain 0.5)"]
    columns += ["power of L (theory: residual −0.5)"]
    heading = "Image networks: cosine r between the gradients of two images"
    return [*listed, *([result.table(heading, columns, cells)] if rows else [])]


def grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[Any]]:
    """Curves of the seeds of each network and state."""
    return {key: [row["curve"] for row in seeds] for key, seeds in subject.by_state(rows).items()}


def _plot(scalar, rows):
    number = 2 if rows else 1
    figure, axes = plotting.pyplot().subplots(
        1, number, figsize=(6.5 * number, 6), layout="constrained", squeeze=False
    )
    left, right = axes[0, 0], axes[0, -1]
    if rows:
        curves = grouped(rows)
        colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(n for n, _ in curves))}
        for (name, state), of_seeds in curves.items():
            layers, means = np.mean(of_seeds, 0).T
            deviation = np.std(of_seeds, 0)[:, 1]
            style = {"ls": "--" if state == "initialised" else "-", "color": colours[name]}
            right.errorbar(layers, means, deviation, **style, label=f"{name}, {state}")
        layers = np.arange(1, max(curve[0][0] for of in curves.values() for curve in of) + 1)
        right.plot(layers, 2.0**-layers, "k:", lw=1, label="2^−L")
        right.plot(layers, layers**-0.5, "k-.", lw=1, label="1/√L")
        right.set(xlabel="layers L between", ylabel="cosine between two images' gradients")
        right.set(title="networks of images", ylim=(-0.05, 1.02))
    for name, curve in scalar.items():
        style = "--" if "noise" in name else "-"
        left.errorbar(range(LAGS + 1), curve["mean"], curve["error"], ls=style, label=name)
    left.set(xlabel="lag", ylabel="autocorrelation of dy/dx", title="networks of a scalar")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        subject.legend_below(axis)
    return figure


if __name__ == "__main__":
    sys.exit(command.run(main))
