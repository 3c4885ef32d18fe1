"""Networks with blocks dropped or exchanged, and their errors (Veit et al. 2016)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from analysis.identity import identity_block
from data.normalization import normalize
from errors import UserError
from testing.opened_run import OpenedRun

DRAWS = 8  # random choices of blocks, for each number of them
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 20)  # of blocks dropped, or of pairs exchanged


def block_names(variables: Any) -> list[tuple[str, str]]:
    """`(stage, block)` of every block in the network's order."""
    params = variables["params"]
    return [
        (stage, block)
        for stage in sorted(name for name in params if name.startswith("stage"))
        for block in sorted(params[stage], key=lambda name: int(name.removeprefix("block")))
    ]


def lesioned(variables: Any, stage: str, block: str, residual: bool = True) -> dict[str, Any]:
    """Variables in which one block's branch is zero and its shortcut untouched.

    Zero is made of the branch's last convolution and, where one follows it, of its BN's scale and
    bias (as a leading BN they would only feed the zero convolution). A plain block becomes the
    identity (`analysis.identity`).
    """
    layers, stats = variables["params"][stage][block], variables["batch_stats"][stage][block]
    if residual:
        last = _last_conv(layers).removeprefix("conv")
        dropped = {
            name: jax.tree.map(jnp.zeros_like, layer)
            if name in (f"conv{last}", f"bn{last}")
            else layer
            for name, layer in layers.items()
        }
    else:
        channels = layers["conv1"]["kernel"].shape[-1]
        mean, var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        dropped, stats = identity_block(layers, mean, var, residual=False)
    return _with_blocks(variables, {(stage, block): (dropped, stats)})


def _with_blocks(variables, blocks):
    """Variables with other `(params, batch_stats)` for some `(stage, block)`."""
    made = {name: dict(variables[name]) for name in ("params", "batch_stats")}
    for (stage, block), parts in blocks.items():
        for collection, part in zip(made.values(), parts, strict=True):
            collection[stage] = {**collection[stage], block: part}
    return {**variables, **made}


def _last_conv(layers):
    return max(
        (name for name in layers if name.startswith("conv")),
        key=lambda name: int(name.removeprefix("conv")),
    )


def equal_blocks(variables: Any) -> list[tuple[str, str]]:
    """`(stage, block)` of the blocks that change no shape: an identity could be in their place."""
    found = []
    for stage, block in block_names(variables):
        layers = variables["params"][stage][block]
        kernels = [layers[name]["kernel"].shape for name in ("conv1", _last_conv(layers))]
        if kernels[0][-2] == kernels[1][-1]:
            found.append((stage, block))
    return found


def reordered(variables: Any, swaps: Sequence[tuple[tuple, tuple]]) -> dict[str, Any]:
    """Variables in which pairs of equal blocks `(stage, block)` of a stage have changed places."""
    for one, other in swaps:
        parts = [
            tuple(variables[name][stage][block] for name in ("params", "batch_stats"))
            for stage, block in (other, one)
        ]
        variables = _with_blocks(variables, dict(zip((one, other), parts, strict=True)))
    return variables


def kendall_tau(order: Sequence[int]) -> float:
    """Rank correlation of an order with 0, 1, 2, …: 1 for the same, −1 for the reverse."""
    ranks, places = np.asarray(order), np.arange(len(order))
    agree = np.sign(ranks[:, None] - ranks) * np.sign(places[:, None] - places)
    return float(agree.sum() / (len(order) * (len(order) - 1)))


def error_of(
    run: OpenedRun, images: np.ndarray, labels: np.ndarray, batch_size: int = 256
) -> Callable[[Any], float]:
    """A function from variables to the top-1 error in [0, 1] on these images."""
    normalization = run.facts.normalization

    @jax.jit
    def wrong(variables, images, labels):
        x = normalize(images, *normalization)
        logits, _ = run.model.apply(variables, x, train=False)
        return (jnp.argmax(logits, -1) != labels).sum()

    def error(variables):
        parts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
        return sum(int(wrong(variables, images[p], labels[p])) for p in parts) / len(images)

    return error


def lesion_errors(
    run: OpenedRun, error: Callable[[Any], float]
) -> tuple[float, dict[str, float | None]]:
    """Top-1 error in [0, 1] with every block dropped in turn.

    Args:
      run: with the network and its variables.
      error: of `error_of`.

    Returns:
      `(error of the whole network, {'stage1/block1': error, …})`; None for a plain block that
      changes the shape, which nothing can stand for.

    Raises:
      UserError: a plain network whose blocks cannot be made the identity.
    """
    _check_plain(run)
    residual = run.model.residual
    droppable = set(equal_blocks(run.variables))
    dropped: dict[str, float | None] = {}
    for stage, block in tqdm(
        block_names(run.variables), desc="lesioning", unit="block", disable=None
    ):
        left = None
        if residual or (stage, block) in droppable:
            left = error(lesioned(run.variables, stage, block, residual))
        dropped[f"{stage}/{block}"] = left
    return error(run.variables), dropped


def random_lesions(run: OpenedRun, error: Callable[[Any], float]) -> list[dict[str, Any]]:
    """Errors with k random blocks dropped that change no shape: `[{'blocks', 'errors'}]`."""
    droppable, found = equal_blocks(run.variables), []
    generator = np.random.default_rng(0)
    for count in [count for count in COUNTS if count <= len(droppable)]:
        errors = []
        for _ in range(DRAWS):
            variables = run.variables
            for i in generator.choice(len(droppable), count, replace=False):
                stage, block = droppable[i]
                variables = lesioned(variables, stage, block, run.model.residual)
            errors.append(error(variables))
        found.append({"blocks": count, "errors": errors})
    return found


def random_orders(run: OpenedRun, error: Callable[[Any], float]) -> list[dict[str, Any]]:
    """Errors with pairs of a stage's equal blocks exchanged: `[{'swaps', 'tau', 'errors'}]`.

    `tau` and `errors` have one number per draw: `kendall_tau` over all blocks, and the error.
    """
    blocks, found = equal_blocks(run.variables), []
    pairs = [(a, b) for i, a in enumerate(blocks) for b in blocks[i + 1 :] if a[0] == b[0]]
    generator = np.random.default_rng(0)
    for count in COUNTS if pairs else ():
        taus, errors = [], []
        for _ in range(DRAWS):
            swaps = [pairs[i] for i in generator.integers(len(pairs), size=count)]
            order = list(blocks)
            for one, other in swaps:
                i, j = order.index(one), order.index(other)
                order[i], order[j] = order[j], order[i]
            taus.append(kendall_tau([blocks.index(block) for block in order]))
            errors.append(error(reordered(run.variables, swaps)))
        found.append({"swaps": count, "tau": taus, "errors": errors})
    return found


def _check_plain(run):
    model = run.model
    layers = run.variables["params"]["stage1"]["block1"]
    is_basic = _last_conv(layers) == "conv2"
    if not model.residual and (model.preactivation or model.variant != "none" or not is_basic):
        raise UserError(
            f"{run.workdir}: a plain block is dropped by making it the identity, which is known "
            "for two 3×3 layers of the original form only; give such a network, or a residual one."
        )
