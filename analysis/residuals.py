"""Do residual branches make small changes, and what does one block matter?

    python -m analysis.residuals --workdir=runs/digits-resnet20-seed0

Two explanations that readers of the paper give. (1) "It learns small changes": the norm of f(x)
against the norm of the shortcut, per block. (2) Lesioning (Veit et al. 2016): drop one block's
branch, leave its shortcut, and measure the error.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from analysis import subject
from data.normalization import normalize
from errors import UserError
from run import command, plotting
from testing.opened_run import OpenedRun


def branches_and_shortcuts(
    model: nn.Module, variables: Any, images: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The two summands of every block.

    Args:
      model: a residual network of `models.create` with its blocks one by one.
      variables: its `params` and `batch_stats`.
      images: normalised, `[batch, height, width, channels]`.

    Returns:
      `{'stage1/block1': (f(x), shortcut)}`, both `[batch, h, w, features]`.

    Raises:
      UserError: a plain network has no shortcut to compare with.
    """
    if not model.residual:
        raise UserError("model.residual=False: a plain network has no shortcuts; give a residual.")
    _, state = model.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda _, method: method in ("f", "shortcut", "g"),
        mutable=["intermediates"],
    )
    found = {}
    for stage, block in block_names(variables):
        # The last value of each: a variant's method may call that of the block it varies.
        kept = {name: values[-1] for name, values in state["intermediates"][stage][block].items()}
        shortcut = kept["shortcut"] * (1 - kept["g"]) if "g" in kept else kept["shortcut"]
        found[f"{stage}/{block}"] = (kept["f"], shortcut)
    return found


def branch_norms(
    model: nn.Module, variables: Any, images: jax.Array
) -> dict[str, tuple[jax.Array, jax.Array, jax.Array]]:
    """Norms of `branches_and_shortcuts`, means over images.

    Returns:
      `{'stage1/block1': (branch, shortcut, ratio)}`: L2 norms over positions and channels, and the
      mean of their ratio.
    """
    found = {}
    for name, parts in branches_and_shortcuts(model, variables, images).items():
        branch, shortcut = map(_norm, parts)
        ratio = branch / jnp.maximum(shortcut, jnp.finfo(jnp.float32).tiny)
        found[name] = (branch.mean(), shortcut.mean(), ratio.mean())
    return found


def _norm(x):
    return jnp.sqrt(jnp.square(x.astype(jnp.float32)).sum((1, 2, 3)))


def block_names(variables: Any) -> list[tuple[str, str]]:
    """`(stage, block)` of every block in the network's order."""
    params = variables["params"]
    return [
        (stage, block)
        for stage in sorted(name for name in params if name.startswith("stage"))
        for block in sorted(params[stage], key=lambda name: int(name.removeprefix("block")))
    ]


def lesioned(variables: Any, stage: str, block: str) -> dict[str, Any]:
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


def lesion_errors(
    run: OpenedRun, images: np.ndarray, labels: np.ndarray, batch_size: int = 256
) -> tuple[float, dict[str, float]]:
    """Top-1 error in [0, 1] with every block dropped in turn.

    Returns:
      `(error of the whole network, {'stage1/block1': error, …})`.
    """
    normalization = run.facts.normalization

    @jax.jit
    def wrong(variables, images, labels):
        x = normalize(images, *normalization)
        logits, _ = run.model.apply(variables, x, train=False)
        return (jnp.argmax(logits, -1) != labels).sum()

    def error(variables):
        parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
        return sum(int(wrong(variables, images[p], labels[p])) for p in parts) / len(images)

    dropped = {}
    for stage, block in tqdm(
        block_names(run.variables), desc="lesioning", unit="block", disable=None
    ):
        dropped[f"{stage}/{block}"] = error(lesioned(run.variables, stage, block))
    return error(run.variables), dropped


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, measures and writes `residuals.json` and `residuals.png`."""
    args = subject.parser("residuals", __doc__, images=1000).parse_args(argv)
    run, out = subject.open_workdir(args)
    images, labels = subject.load_images(run, args.split, args.images)
    step = jax.jit(functools.partial(branch_norms, run.model))
    sample = normalize(jnp.asarray(images[:256]), *run.facts.normalization)
    norms = jax.tree.map(float, step(run.variables, sample))
    whole, dropped = lesion_errors(run, images, labels)
    measured = ("branch_norm", "shortcut_norm", "ratio")
    blocks: list[dict[str, Any]] = [
        {"block": name} | dict(zip(measured, norms[name], strict=True)) | {"error_without": error}
        for name, error in dropped.items()
    ]
    content = {"workdir": args.workdir, "images": len(images), "error": whole, "blocks": blocks}
    path = subject.write(out / "residuals.json", args, content)
    picture = _plot(content, out)
    print("block             |f(x)| / |x|   error without it")
    for one in blocks:
        print(f"{one['block']:<16} {one['ratio']:12.3f} {100 * one['error_without']:16.2f} %")
    print(f"whole network {100 * whole:32.2f} %\n{path}, {picture}")


def _plot(content, out):
    figure, (left, right) = plotting.pyplot().subplots(1, 2, figsize=(11, 4), layout="constrained")
    ratios = [one["ratio"] for one in content["blocks"]]
    errors = [100 * one["error_without"] for one in content["blocks"]]
    positions = np.arange(1, len(ratios) + 1)
    left.bar(positions, ratios)
    left.set(xlabel="block", ylabel="|f(x)| / |shortcut|", title="size of the residual")
    right.bar(positions, errors)
    right.axhline(100 * content["error"], color="k", ls="--", label="whole network")
    right.set(xlabel="block that is dropped", ylabel="error (%)", title="lesioning")
    right.legend()
    return plotting.save(figure, out / "residuals.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(command.run(main))
