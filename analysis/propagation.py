"""Why x and not x/2: signal and gradient from block to block, for three scales of the shortcut.

    python -m analysis.propagation --workdir=runs/digits-resnet20-seed0

With `x ← λ·x + f(x)` in every block, what reaches block L from block l straight through the
shortcuts is λ^(L−l) of it, forwards and backwards (Identity Mappings, section 3.1). Measured at
initialisation for λ = 1, 0.5, and 0.5 of shortcut and branch, in the original form and
pre-activated (where no ReLU stands on the way, and the product is exact), and in the trained
networks of the runs: norms of each block's input, of the gradient with respect to it, and of the
part of that gradient that came through shortcuts alone, beside the product λ^L.
"""

import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import models
from analysis import subject
from data.normalization import normalize
from models.block import ResidualBlock
from models.ops.norm import BN_MOMENTUM
from run import command, plotting, result
from testing.opened_run import OpenedRun

SCALES = ((1.0, 1.0), (0.5, 1.0), (0.5, 0.5))  # of shortcut and branch
MEASURED = ("signal", "gradient", "through shortcuts")


class Network(NamedTuple):
    """What is measured: `state` is 'trained' or 'initialised', `scale` is λ, 0 in plain ones."""

    network: str
    state: str
    seed: int
    scale: float


def inputs_and_gradients(
    model: nn.Module, variables: Any, images: jax.Array, direction: jax.Array, direct: bool = False
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Every block's input, and the gradient of `direction · logits` with respect to it.

    Args:
      model: a network with its blocks one by one.
      variables: its `params` and `batch_stats`, which normalise: so images do not mix.
      images: normalised, `[batch, height, width, channels]`.
      direction: `[classes]`.
      direct: only the part of the gradient that goes through shortcuts: branches are constants.

    Returns:
      `{'stage1/block1': (x, gradient)}` in the network's order, each `[batch, h, w, channels]`.
    """

    def apply(offsets):
        inputs = {}

        def enter(next_fun, args, kwargs, context):
            if not isinstance(context.module, ResidualBlock):
                return next_fun(*args, **kwargs)
            if context.method_name == "f" and direct:
                return jax.lax.stop_gradient(next_fun(*args, **kwargs))
            if context.method_name == "__call__":
                name = "/".join(context.module.path)
                inputs[name] = args[0]
                args = (args[0] + offsets.get(name, 0), *args[1:])
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(enter):
            logits, _ = model.apply(variables, images, train=False)
        return (logits @ direction).sum(), inputs

    shapes = jax.eval_shape(apply, {})[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    gradients, inputs = jax.grad(apply, has_aux=True)(zeros)
    return {name: (inputs[name], gradients[name]) for name in shapes}


def batch_statistics(model: nn.Module, variables: Any, images: jax.Array) -> dict[str, Any]:
    """Variables whose averages are the statistics of these images, as training would use them."""
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = model.apply(
        {**variables, "batch_stats": zeros},
        images,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    # From zero, one update leaves (1 − momentum) times the batch's own statistics.
    stats = jax.tree.map(lambda x: x / (1 - BN_MOMENTUM), updated["batch_stats"])
    return {**variables, "batch_stats": stats}


def initialised(
    fields: Mapping[str, Any], num_classes: int, images: jax.Array, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """A network of `config.model` fields with random weights and the images' statistics."""
    fields = {**fields, "scan_blocks": False, "remat": "none"}
    fields |= {"zero_init_residual": False, "bn_group_size": 0}
    model = models.create(fields, num_classes)

    @jax.jit
    def init(key, images):
        variables = model.init(key, images[:1], train=False)
        return batch_statistics(model, variables, images)

    return model, init(jax.random.key(seed), images)


def norms(
    model: nn.Module, variables: Any, images: jax.Array, seed: int
) -> dict[str, dict[str, float]]:
    """Norms at every block's input, means over images: `{'stage1/block1': {'signal', …}}`.

    `signal` and `gradient` of `inputs_and_gradients` for a random direction, and `through
    shortcuts`, its direct part (0 in a plain network).
    """
    direction = jax.random.normal(jax.random.key(seed), (model.num_classes,))

    @jax.jit
    def measure(variables, images, direction):
        whole = inputs_and_gradients(model, variables, images, direction)
        direct = inputs_and_gradients(model, variables, images, direction, direct=True)
        return {
            name: [_norm(x), _norm(gradient), _norm(direct[name][1])]
            for name, (x, gradient) in whole.items()
        }

    found = measure(variables, images, direction)
    return {
        name: dict(zip(MEASURED, map(float, found[name]), strict=True)) for name in in_order(found)
    }


def in_order(blocks: Iterable[str]) -> list[str]:
    """Names of blocks, 'stage1/block10', in the network's order, which `jit` does not keep."""
    return sorted(blocks, key=lambda name: [int(n) for n in re.findall(r"\d+", name)])


def _norm(x):
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum((1, 2, 3))).mean()


def networks(run: OpenedRun, images: jax.Array) -> list[tuple[Network, Callable[[], Any]]]:
    """A run's network as trained, and at initialisation for every scale and form.

    Returns:
      Which network, and what measures its `norms`.
    """
    seed = run.config.seed

    def of(fields, state, measured):
        name, scale = subject.network_name(fields), float(fields["shortcut_scale"])
        return Network(name, state, seed, scale * bool(fields["residual"])), measured

    def untrained(fields):
        model, variables = initialised(fields, run.facts.num_classes, images, seed)
        return norms(model, variables, images, seed)

    trained = functools.partial(norms, run.model, run.variables, images, seed)
    found = [of(run.config.model, "trained", trained)]
    forms = [(scales, form) for form in (False, True) for scales in SCALES]
    for (shortcut, branch), preactivation in forms if run.model.residual else [((1.0, 1.0), False)]:
        fields = dict(run.config.model) | {
            "shortcut_scale": shortcut,
            "residual_scale": branch,
            "preactivation": preactivation,
            "variant": "none",
        }
        found.append(of(fields, "initialised", functools.partial(untrained, fields)))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `propagation.json`, `.md`, `.svg` and `.png`."""
    args = subject.parser("propagation", __doc__, images=128).parse_args(argv)
    runs = subject.open_workdirs(args)
    rows: list[dict[str, Any]] = []
    initial: set[Network] = set()  # runs that differ in scales have the same initialisations
    for run in runs:
        images, _ = subject.load_images(run, args.split, args.images)
        of_run = networks(run, normalize(jnp.asarray(images), *run.facts.normalization))
        for network, norms_of in tqdm(of_run, desc=run.workdir, unit="network", disable=None):
            if network not in initial:
                rows.append(network._asdict() | {"blocks": norms_of()})
            if network.state == "initialised":
                initial.add(network)
    subject.publish(
        args,
        runs,
        "Why x and not x/2: signal and gradient through the blocks",
        [_table(rows)],
        _plot(rows),
        remarks=[
            "Factors are geometric means over the L blocks whose shortcut is the identity: the "
            "norm behind such a block over that before it, of the signal; before it over behind "
            "it, of gradients. λ = 1, the branch's scale 1 where none is named."
        ],
        networks=rows,
    )


def _table(rows):
    found = []
    for key, mine in subject.by_state(rows).items():
        blocks = [row["blocks"] for row in mine]
        factors = [[factor(one, name) for one in blocks] for name in MEASURED]
        number, scale = len(identities(blocks[0])), mine[0]["scale"]
        products = subject.spread(one and one**number for one in factors[-1])
        theory = subject.spread([scale**number] if scale else [])
        whole = subject.spread(map(_ends, blocks))
        found.append([*key, *map(subject.spread, factors), number, products, theory, whole])
    columns = ["network", "state", "signal, per block", "gradient, per block"]
    columns += ["gradient through shortcuts alone, per block", "blocks L", "over all L", "λ^L"]
    return result.table("", [*columns, "gradient, first block over last"], found)


def identities(blocks: Iterable[str]) -> list[tuple[str, str]]:
    """Blocks whose shortcut is the identity, but for the last, each with the block behind it."""
    return [
        (name, following)
        for name, following in itertools.pairwise(blocks)
        if name.startswith("stage1/") or not name.endswith("/block1")
    ]


def factor(blocks: Mapping[str, Mapping[str, float]], kind: str) -> float | None:
    """By what a block with an identity shortcut multiplies a norm, as a geometric mean.

    Args:
      blocks: of `norms`.
      kind: of MEASURED; the signal goes forwards, gradients backwards.

    Returns:
      0 where nothing arrives: ReLUs can close every way. None where nothing sets out, as through
      the shortcuts of a plain network.
    """
    pairs = [(blocks[name][kind], blocks[behind][kind]) for name, behind in identities(blocks)]
    if not pairs or not (pairs[0][0] if kind == "signal" else pairs[-1][1]):
        return None
    if not min(map(min, pairs)):
        return 0.0
    steps = np.log([after / before for before, after in pairs])
    return float(np.exp(steps.mean() if kind == "signal" else -steps.mean()))


def _ends(blocks):
    first, *_, last = (one["gradient"] for one in blocks.values())
    return first / last if last else None


def _plot(rows):
    figure, axes = plotting.pyplot().subplots(1, 3, figsize=(15, 5), layout="constrained")
    grouped = subject.by_state(rows)
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in grouped))}
    longest = subject.deepest(row["blocks"] for row in rows)
    for (name, state), mine in grouped.items():
        places = subject.places(mine[0]["blocks"], longest)
        style = {"ls": "-" if state == "trained" else "--", "color": colours[name]}
        for axis, kind in zip(axes, MEASURED, strict=True):
            values = np.mean([[one[kind] for one in row["blocks"].values()] for row in mine], 0)
            if values.any():
                axis.plot(places, values, **style, label=f"{name}, {state}")
        product = values[-1] * mine[0]["scale"] ** np.arange(len(values))[::-1]
        if product.all():
            axes[-1].plot(places, product, color=colours[name], ls=":")
    for axis, kind in zip(axes, MEASURED, strict=True):
        axis.set(
            yscale="log",
            xlabel="block (of the deepest network)",
            title=kind,
            ylabel="norm at the block's input",
        )
        axis.grid(alpha=0.3)
    axes[-1].set_title("through shortcuts (dotted: λ^L to the last block)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    sys.exit(command.run(main))
