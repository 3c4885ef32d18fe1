"""Signal and gradient before training, from 20 to 1202 layers, plain and residual.

    python -m analysis.depth --workdir=runs/digits-resnet20-seed0
    python -m analysis.depth --workdir=runs/digits-resnet20-seed0 --depths 110 1202 --seeds 0

Do gradients vanish or explode with depth, and is 1202 layers a different thing from 110? Networks
of the run's form and width, plain and residual, with random weights and one batch of training
images, BN normalising with the batch as in training: the loss, the root mean square of what leaves
the stem and the last stage, and the norm of the loss's gradient with respect to the kernels of each
block. Blocks run as a loop, so that the deepest compiles as fast as the others.
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

import models
from analysis import subject
from analysis.propagation import in_order
from data.normalization import normalize
from models.scanned import unstack_blocks
from models.summary import count_parameters
from run import command, plotting, result

DEPTHS = [20, 56, 110, 1202]
FAMILIES = {"plain": False, "resnet": True}


def measure(
    model: nn.Module, images: jax.Array, labels: jax.Array, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """What one batch does in a network with random weights, in training mode.

    Args:
      model: of `models.create`.
      images: normalised, `[batch, height, width, channels]`.
      labels: int32 `[batch]`.
      seeds: of the weights.

    Returns:
      `[{'seed', 'loss', 'signal': {'stem': rms, …}, 'gradient': {'stage1/block1': norm, …}}]`; None
      for a number that float32 cannot hold.
    """

    def loss(params, stats, images, labels):
        (logits, endpoints), _ = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        signal = {
            name: jnp.sqrt(jnp.square(endpoints[name].astype(jnp.float32)).mean())
            for name in subject.stages(endpoints)
        }
        return entropies.mean(), signal

    @jax.jit
    def of_seed(key, images, labels):
        variables = model.init(key, images[:1], train=False)
        params, stats = variables["params"], variables["batch_stats"]
        return jax.value_and_grad(loss, has_aux=True)(params, stats, images, labels)

    found = []
    for seed in seeds:
        (value, signal), gradients = of_seed(jax.random.key(seed), images, labels)
        signal = {name: _finite(signal[name]) for name in subject.stages(signal)}  # jit sorts them
        norms = _kernel_norms(unstack_blocks(jax.device_get(gradients)))
        found.append({"seed": seed, "loss": _finite(value), "signal": signal, "gradient": norms})
    return found


def _kernel_norms(gradients):
    """`{'stage1/block1': norm over the block's convolutions}`, in the network's order."""
    norms = {}
    for stage in (name for name in gradients if name.startswith("stage")):
        for block, layers in gradients[stage].items():
            kernels = [layer["kernel"] for layer in layers.values() if "kernel" in layer]
            squares = sum(np.square(np.asarray(kernel, np.float64)).sum() for kernel in kernels)
            norms[f"{stage}/{block}"] = _finite(np.sqrt(squares))
    return {name: norms[name] for name in in_order(norms)}


def _finite(x):
    return float(x) if np.isfinite(x) else None


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `depth.json`, `.md`, `.svg` and `.png`."""
    p = subject.parser("depth", __doc__, images=128, several=False)
    p.set_defaults(split="train")
    p.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="of the networks")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the weights")
    args = p.parse_args(argv)
    [run] = subject.open_workdirs(args)
    images, labels = subject.load_images(run, args.split, args.images)
    x = normalize(jnp.asarray(images), *run.facts.normalization)
    networks = []
    for depth in tqdm(sorted(args.depths), unit="depth", disable=None):
        for family, residual in FAMILIES.items():
            fields = {**run.config.model, "depth": depth, "residual": residual}
            fields |= {"scan_blocks": True, "bn_group_size": 0, "remat": "none"}
            model = models.create(fields, run.facts.num_classes)
            networks.append(
                {
                    "network": f"{family}{depth}",
                    "depth": depth,
                    "residual": residual,
                    "parameters": count_parameters(model, run.facts.image_shape),
                    "seeds": measure(model, x, jnp.asarray(labels), args.seeds),
                }
            )
    subject.publish(
        args,
        [run],
        "Before training: signal and gradient over depths",
        [_table(networks)],
        _plot(networks),
        remarks=[
            f"Random weights, seeds {', '.join(map(str, args.seeds))}; one batch of {len(images)} "
            "images. Gradients are of the loss with respect to the kernels of a block. Nothing "
            "was trained here; the run gives the data, the width and the form of the blocks. Of a "
            "network without a number a seed's gradient was beyond the range of float32."
        ],
        networks=networks,
    )


def _table(networks):
    rows = []
    for one in networks:
        seeds = one["seeds"]
        norms = np.array([list(seed["gradient"].values()) for seed in seeds], float)
        first, last = norms[:, 0], norms[:, -1]
        measured = (
            [seed["loss"] for seed in seeds],
            [seed["signal"]["stem"] for seed in seeds],
            [list(seed["signal"].values())[-1] for seed in seeds],
            first,
            last,
            first / last,
            (first / last) ** (1 / (norms.shape[1] - 1)),
        )
        rows.append([one["network"], f"{one['parameters']:,}", *map(_spread, measured)])
    columns = ["network", "parameters", "loss", "signal behind the stem (rms)"]
    columns += ["behind the last stage", "gradient, first block", "gradient, last block"]
    return result.table("", [*columns, "first over last", "the same, per block"], rows)


def _spread(values):
    return subject.spread(values if np.isfinite(np.array(values, float)).all() else [])


def _plot(networks):
    figure, axes = plotting.pyplot().subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    depths = list(dict.fromkeys(one["depth"] for one in networks))
    for one in networks:
        axis = axes[int(one["residual"])]
        values = np.array([list(seed["gradient"].values()) for seed in one["seeds"]], float)
        where = np.linspace(0, 1, values.shape[1])
        style = {"color": f"C{depths.index(one['depth'])}", "label": f"{one['depth']} layers"}
        axis.plot(where, np.exp(np.log(values).mean(0)), lw=1.2, **style)
    for axis, name in zip(axes, ("plain", "residual"), strict=True):
        axis.set(title=f"{name}, random weights", yscale="log", ylabel="gradient of the kernels")
        axis.set_xlabel("place of the block: 0 first, 1 last")
        axis.grid(alpha=0.3)
        subject.legend_below(axis)
    axes[1].sharey(axes[0])
    return figure


if __name__ == "__main__":
    sys.exit(command.run(main))
