"""What a network consists of, counted from the module itself: layers, parameters, multiply-adds.

The network is traced on shapes alone (nothing is computed, no memory is taken) and every call of a
convolution, a batch normalisation or the head is written down as it happens; so the table cannot
differ from what runs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

COUNTED = (nn.Conv, nn.Dense, nn.BatchNorm)


class Row(NamedTuple):
    """One layer.

    Attributes:
      name: path of the layer in the parameters, e.g. 'stage2/block1/conv1'.
      kind: 'Conv', 'BatchNorm' or 'Dense'.
      kernel: shape of its weights, e.g. `(3, 3, in, out)`; () without.
      output_shape: of one image, without the batch: `(height, width, channels)`.
      parameters: trained numbers (BN: scale and bias; its running averages are not trained).
      multiply_adds: of one image, in convolutions and the head, as the paper counts its FLOPs
        (table 1); biases, BN, ReLU, additions and pooling count as nothing.
    """

    name: str
    kind: str
    kernel: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def summary(model: nn.Module, image_shape: Sequence[int]) -> list[Row]:
    """Lists the layers of `model` in the order in which they run.

    Blocks run as a loop (`scan_blocks`) are listed one by one. The head runs twice, on the pooled
    features and at every position of the map; it is one layer and counted once, on the former.

    Args:
      model: a network of `models.create`.
      image_shape: `(height, width, channels)` of one image.
    """
    rows = {}

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        module = context.module
        name = "/".join(module.path)
        if isinstance(module, COUNTED) and context.method_name == "__call__" and name not in rows:
            rows[name] = _row(name, module, output)
        return output

    # Same network, but each block is its own module and runs once.
    plain = model.clone(scan_blocks=False, remat="none")
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda x: plain.init(jax.random.key(0), x, train=False), image)
    return list(rows.values())


def _row(name, module, output):
    params = module.variables.get("params", {})
    kernel = params["kernel"].shape if "kernel" in params else ()
    # Each output number is a sum over the kernel's all but last axis.
    multiply_adds = output.size * math.prod(kernel[:-1]) if kernel else 0
    return Row(
        name,
        type(module).__name__,
        kernel,
        output.shape[1:],
        sum(p.size for p in jax.tree.leaves(params)),
        multiply_adds,
    )


def count_multiply_adds(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-adds of one image `(height, width, channels)`, as an int (see `Row`)."""
    return sum(row.multiply_adds for row in summary(model, image_shape))


def count_parameters(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Trained parameters of `model` for images `(height, width, channels)`, as an int."""
    looped = model.clone(scan_blocks=True, remat="none")  # 1202 layers are traced as fast as 20
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    made = jax.eval_shape(lambda x: looped.init(jax.random.key(0), x, train=False), image)
    return sum(p.size for p in jax.tree.leaves(made["params"]))


def format_table(rows: Sequence[Row]) -> str:
    """Lays `summary`'s rows out as text: one line per layer and a line of totals."""
    header = ("layer", "type", "output shape", "parameters", "multiply-adds")
    body = [
        (
            row.name,
            row.kind,
            " × ".join(map(str, row.output_shape)),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}" if row.multiply_adds else "–",
        )
        for row in rows
    ]
    total = (
        "total",
        f"{len(rows)} layers",
        "",
        f"{sum(row.parameters for row in rows):,}",
        f"{sum(row.multiply_adds for row in rows):,}",
    )
    widths = [max(len(line[i]) for line in (header, *body, total)) for i in range(len(header))]
    rule = "  ".join("─" * width for width in widths)

    def line(cells):
        left, right = (
            zip(cells[:2], widths[:2], strict=True),
            zip(cells[2:], widths[2:], strict=True),
        )
        return "  ".join([*(c.ljust(w) for c, w in left), *(c.rjust(w) for c, w in right)]).rstrip()

    return "\n".join([line(header), rule, *map(line, body), rule, line(total)])
