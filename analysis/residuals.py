"""Do residual branches make small changes, and what does one block matter?

    python -m analysis.residuals --workdir=runs/digits-resnet20-seed0

Two explanations that readers of the paper give. (1) "It learns small changes": the norm of f(x)
against the norm of the shortcut, per block. (2) Lesioning (Veit et al. 2016): drop one block's
branch, leave its shortcut, and measure the error.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from analysis import command
from data.normalization import normalize
from errors import UserError
from run.command import run as run_command


def branch_norms(model, variables, images):
    """Norms of f(x) and of the shortcut per block, means over images.

    Args:
      model: a residual network of `models.create` with its blocks one by one.
      variables: its `params` and `batch_stats`.
      images: normalised, `[batch, height, width, channels]`.

    Returns:
      `{'stage1/block1': (branch, shortcut, ratio)}`: L2 norms over positions and channels, and the
      mean of their ratio.

    Raises:
      UserError: a plain network has no shortcut to compare with.
    """
    if not model.residual:
        raise UserError("model.residual=False: a plain network has no shortcuts; give a residual.")
    _, state = model.apply(variables, images, train=False, mutable=["intermediates"])
    found = {}
    for stage, block in block_names(variables):
        sown = state["intermediates"][stage][block]
        branch, shortcut = (_norm(sown[name][0]) for name in ("branch", "shortcut"))
        branch *= model.residual_scale
        ratio = branch / jnp.maximum(shortcut, jnp.finfo(jnp.float32).tiny)
        found[f"{stage}/{block}"] = (branch.mean(), shortcut.mean(), ratio.mean())
    return found


def _norm(x):
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum((1, 2, 3)))


def block_names(variables):
    """`(stage, block)` of every block in the network's order."""
    params = variables["params"]
    return [
        (stage, block)
        for stage in sorted(name for name in params if name.startswith("stage"))
        for block in sorted(params[stage], key=lambda name: int(name.removeprefix("block")))
    ]


def lesioned(variables, stage, block):
    """Variables in which one block's branch is zero and its shortcut untouched.

    Zero is made of the branch's last convolution and, where one follows it, of its BN's scale and
    bias (as a leading BN they would only feed the zero convolution).
    """
    params = variables["params"]
    layers = params[stage][block]
    last = max(int(name.removeprefix("conv")) for name in layers if name.startswith("conv"))
    dropped = {
        name: jax.tree.map(jnp.zeros_like, layer) if name in (f"conv{last}", f"bn{last}") else layer
        for name, layer in layers.items()
    }
    stages = {**params, stage: {**params[stage], block: dropped}}
    return {**variables, "params": stages}


def lesion_errors(network, images, labels, batch_size=256):
    """Top-1 error in [0, 1] with every block dropped in turn.

    Returns:
      `(error of the whole network, {'stage1/block1': error, …})`.
    """
    normalization = network.facts.normalization

    @jax.jit
    def wrong(variables, images, labels):
        x = normalize(images, *normalization)
        logits, _ = network.model.apply(variables, x, train=False)
        return (jnp.argmax(logits, -1) != labels).sum()

    def error(variables):
        parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
        return sum(int(wrong(variables, images[p], labels[p])) for p in parts) / len(images)

    dropped = {}
    for stage, block in tqdm(
        block_names(network.variables), desc="lesioning", unit="block", disable=None
    ):
        dropped[f"{stage}/{block}"] = error(lesioned(network.variables, stage, block))
    return error(network.variables), dropped


def main(argv=None):
    """Parses the options, measures and writes `residuals.json` and `residuals.png`."""
    args = command.parser(__doc__, images=1000).parse_args(argv)
    network, out = command.open_workdir(args)
    images, labels = command.load_images(network, args.split, args.images)
    step = jax.jit(functools.partial(branch_norms, network.model))
    sample = normalize(images[:256], *network.facts.normalization)
    norms = {
        name: list(map(float, values)) for name, values in step(network.variables, sample).items()
    }
    names = [f"{stage}/{block}" for stage, block in block_names(network.variables)]
    whole, dropped = lesion_errors(network, images, labels)
    blocks = [
        {
            "block": name,
            "branch_norm": norms[name][0],
            "shortcut_norm": norms[name][1],
            "ratio": norms[name][2],
            "error_without": dropped[name],
        }
        for name in names
    ]
    content = {"workdir": args.workdir, "images": len(images), "error": whole, "blocks": blocks}
    path = command.write(out, "residuals", content)
    picture = _plot(content, out)
    print("block             |f(x)| / |x|   error without it")
    for one in blocks:
        print(f"{one['block']:<16} {one['ratio']:12.3f} {100 * one['error_without']:16.2f} %")
    print(f"whole network {100 * whole:32.2f} %\n{path}, {picture}")


def _plot(content, out):
    plt = command.pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    ratios = [one["ratio"] for one in content["blocks"]]
    errors = [100 * one["error_without"] for one in content["blocks"]]
    positions = np.arange(1, len(ratios) + 1)
    left.bar(positions, ratios)
    left.set(xlabel="block", ylabel="|f(x)| / |shortcut|", title="size of the residual")
    right.bar(positions, errors)
    right.axhline(100 * content["error"], color="k", ls="--", label="whole network")
    right.set(xlabel="block that is dropped", ylabel="error (%)", title="lesioning")
    right.legend()
    return command.save(figure, out, "residuals")


if __name__ == "__main__":
    sys.exit(run_command(main))
