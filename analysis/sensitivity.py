"""What a small change asks of the layers, with a shortcut and without.

    python -m analysis.sensitivity --workdir runs/resnet56-seed0 runs/plain56-seed0

The readers' example: a block shall turn 5 into 5.1, and then into 5.2. What the block computes, H,
has changed by 2 %. Without a shortcut its layers compute H; with one they compute F = H − x, 0.1
and then 0.2, which has changed by 100 %. Measured in trained networks, block by block: |H|, |F| and
the change of F in the example, 2 % · |H| / |F|; and what one step of gradient descent on a batch of
training images changes, with the block's input kept: |ΔH| / |H| and |ΔF| / |F|. Of a plain block F
is H.
"""

import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from analysis import subject
from analysis.propagation import in_order
from data.normalization import normalize
from models.block import ResidualBlock
from run import command, plotting, result
from testing.opened_run import OpenedRun

EXAMPLE = 0.1 / 5.1  # from 5.1 to 5.2
MEASURED = (
    "|F| / |x|",
    "|F| / |H|",
    "example: change of F",
    "step: |ΔH| / |H|",
    "step: |ΔF| / |F|",
)


def parts(
    model: nn.Module, variables: Any, images: jax.Array, inputs: dict[str, jax.Array] | None = None
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """Every block's input x, F and H, before the ReLU that follows.

    Args:
      model: of `models.create`, in the original form, with its blocks one by one.
      variables, images: normalised, `[batch, height, width, channels]`.
      inputs: what each block is given instead of its predecessor's output.

    Returns:
      `{'stage1/block1': (x, F, H)}`, each `[batch, h, w, channels]`; of a plain block H = F.
    """
    found: dict[str, dict[str, jax.Array]] = {}

    def enter(next_fun, args, kwargs, context):
        if not isinstance(context.module, ResidualBlock):
            return next_fun(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name == "__call__" and inputs:
            args = (inputs[name], *args[1:])
        if context.method_name == "__call__":
            found.setdefault(name, {})["x"] = args[0]
        output = next_fun(*args, **kwargs)
        if context.method_name in ("f", "shortcut"):
            found[name][context.method_name] = output
        return output

    with nn.intercept_methods(enter):
        model.apply(variables, images, train=False)
    return {name: (b["x"], b["f"], b["f"] + b.get("shortcut", 0)) for name, b in found.items()}


def stepped(
    model: nn.Module, variables: Any, images: jax.Array, labels: jax.Array, rate: float
) -> dict[str, Any]:
    """Variables after one step of gradient descent of the cross-entropy, without momentum."""

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    gradients = jax.grad(loss)(variables["params"])
    params = jax.tree.map(lambda w, g: w - rate * g, variables["params"], gradients)
    return {**variables, "params": params}


def measure(run: OpenedRun, images: jax.Array, labels: jax.Array) -> dict[str, dict[str, float]]:
    """`{'stage1/block1': {…}}`: MEASURED of every block, of norms over all images."""
    rate = run.config.optim.learning_rate

    @jax.jit
    def compare(variables, images, labels):
        before = parts(run.model, variables, images)
        inputs = {name: x for name, (x, _, _) in before.items()}
        moved = stepped(run.model, variables, images, labels, rate)
        after = parts(run.model, moved, images, inputs)
        found = {}
        for name, (x, f, h) in before.items():
            changes = after[name][2] - h, after[name][1] - f
            found[name] = [jnp.linalg.norm(a.ravel()) for a in (x, f, h, *changes)]
        return found

    sizes = compare(run.variables, images, labels)
    found = {}
    for name in in_order(sizes):
        x, f, h, dh, df = map(float, sizes[name])
        found[name] = dict(
            zip(MEASURED, (f / x, f / h, EXAMPLE * h / f, dh / h, df / f), strict=True)
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `sensitivity.json`, `.md`, `.svg` and `.png`."""
    p = subject.parser("sensitivity", __doc__, images=128)
    p.set_defaults(split="train")
    args = p.parse_args(argv)
    runs = subject.open_workdirs(args)
    measured = []
    for run in tqdm(runs, unit="run", disable=None):
        images, labels = subject.load_images(run, args.split, args.images)
        x = normalize(jnp.asarray(images), *run.facts.normalization)
        measured.append(
            {
                "network": subject.network_name(run.config.model),
                "seed": run.config.seed,
                "rate": run.config.optim.learning_rate,
                "blocks": measure(run, x, jnp.asarray(labels)),
            }
        )
    subject.publish(
        args,
        runs,
        "Sensitivity: what a small change asks of the layers",
        [_table(measured)],
        _plot(measured),
        remarks=[
            "Medians over a network's blocks; the step has the rate that training began with."
        ],
        measured=measured,
    )


def _table(measured):
    rows = []
    for name, seeds in subject.by_network(measured).items():
        medians = [
            subject.spread(np.median([b[kind] for b in one["blocks"].values()]) for one in seeds)
            for kind in MEASURED
        ]
        rows.append([name, *medians])
    return result.table("", ["network", *MEASURED], rows)


def _plot(measured):
    figure, axes = plotting.pyplot().subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    networks = subject.by_network(measured)
    longest = subject.deepest(one["blocks"] for one in measured)
    for i, (name, seeds) in enumerate(networks.items()):
        places = subject.places(seeds[0]["blocks"], longest)
        for axis, kinds in zip(axes, (MEASURED[2:3], MEASURED[3:]), strict=True):
            for kind, style in zip(kinds, ("-", "--"), strict=False):
                values = np.mean([[b[kind] for b in o["blocks"].values()] for o in seeds], 0)
                label = f"{name}, {kind.rpartition(': ')[2]}"
                axis.plot(places, values, style, color=f"C{i}", label=label)
    axes[0].axhline(EXAMPLE, color="k", ls=":", label="change of H")
    axes[0].set(
        title="the example: H changes by 2 %", ylabel="relative change of what layers learn"
    )
    axes[1].set(title="one step of gradient descent", ylabel="relative change")
    for axis in axes:
        subject.mark_stages(axis, longest)
        axis.set(xlabel="block (of the deepest network)", yscale="log")
        axis.grid(alpha=0.3)
        subject.legend_below(axis)
    return figure


if __name__ == "__main__":
    sys.exit(command.run(main))
