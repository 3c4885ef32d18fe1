"""Table 1: the ImageNet architectures, counted from the modules themselves (section 3.3, 4.1).

python -m paper.table1

Multiply-adds of one 224×224 image in convolutions and the head, which the paper calls FLOPs, how
much of them is in 1×1 convolutions, and what a bottleneck saves. Nothing is trained and no weight
is allocated.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

import models
from configs import recipes
from models.resnet import architecture
from models.summary import summary
from paper import numbers, plots
from run import command, plotting, result

TITLE = "Table 1: architectures, parameters and multiply-adds"
DEPTHS = [18, 34, 50, 101, 152]
PLAIN = (18, 34)  # the plain networks of the paper
SIZE, CLASSES = 224, 1000
# Figure 5 and what a bottleneck replaces: network, one of its blocks, in words.
BLOCKS = (
    (50, "stage1/block2", "1×1, 3×3, 1×1 (bottleneck)"),
    (34, "stage1/block2", "3×3, 3×3, as costly"),
    (34, "stage3/block2", "3×3, 3×3, as wide"),
)
STAGES = ("stem_conv", "stage1", "stage2", "stage3", "stage4", "head")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the options, counts and publishes."""
    p = result.parser("table1", __doc__)
    p.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    args = p.parse_args(argv)
    counted = {}
    wanted = [(f"plain{depth}", depth, False) for depth in args.depths if depth in PLAIN]
    wanted += [(f"resnet{depth}", depth, True) for depth in args.depths]
    for name, depth, residual in tqdm(wanted, unit="network", disable=None):
        counted[name] = count(depth, residual)
    blocks = block_weights()
    result.publish(
        args,
        TITLE,
        result.header(args),
        [*tables(counted), block_table(blocks)],
        figures=draw(counted, blocks, args.out),
        remarks=[
            "VGG's numbers are the paper's (section 3.3), for comparison; the rest is counted."
        ],
        counted=counted,
    )


def count(depth: int, residual: bool = True) -> dict[str, Any]:
    """Blocks, parameters and multiply-adds of one network, in all and of every stage."""
    config = recipes.imagenet(f"{'resnet' if residual else 'plain'}{depth}").model
    rows = summary(models.create(config, CLASSES), (SIZE, SIZE, 3))
    pointwise = [row for row in rows if row.kernel[:2] == (1, 1)]
    config.downsample_in = "3x3"
    later = summary(models.create(config, CLASSES), (SIZE, SIZE, 3))
    stages = {}
    for stage in STAGES:
        mine = [row for row in rows if row.name.split("/")[0] == stage]
        stages[stage] = {
            "output": list(mine[-1].output_shape),
            "multiply_adds": sum(row.multiply_adds for row in mine),
        }
    return {
        "depth": depth,
        "blocks": list(architecture("imagenet", depth).stage_sizes),
        "parameters": sum(row.parameters for row in rows),
        "multiply_adds": sum(row.multiply_adds for row in rows),
        "in_1x1": sum(row.multiply_adds for row in pointwise),
        "v1.5": sum(row.multiply_adds for row in later),
        "stages": stages,
    }


def tables(counted: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Networks beside the paper's multiply-adds; output size and multiply-adds of every stage."""
    rows = []
    for name in counted or [f"resnet{depth}" for depth in DEPTHS]:
        one = counted.get(name)
        depth = int(name.removeprefix("plain").removeprefix("resnet"))
        paper = numbers.TABLE1_MULTIPLY_ADDS.get(depth) if name.startswith("resnet") else None
        if one is None:
            rows.append([name, None, None, result.NOT_RUN, None, None, paper / 1e9, None])
            continue
        ours = one["multiply_adds"]
        rows.append(
            [
                name,
                ", ".join(map(str, one["blocks"])),
                f"{one['parameters']:,}",
                f"{ours / 1e9:.3f}",
                f"{100 * one['in_1x1'] / ours:.1f} %",
                f"{one['v1.5'] / 1e9:.3f}",
                f"{paper / 1e9:.1f}" if paper else None,
                f"{100 * (ours / paper - 1):+.1f} %" if paper else None,
            ]
        )
    rows += [
        [f"VGG-{depth}", *[None] * 5, f"{number / 1e9:.1f}", None]
        for depth, number in numbers.VGG_MULTIPLY_ADDS.items()
    ]
    columns = ["network", "blocks", "parameters", "10⁹ multiply-adds", "in 1×1 convolutions"]
    columns += ["stride in 3×3 (v1.5)", "paper", "difference"]
    listed = [result.table("", columns, rows)]
    if counted:
        parts = [
            [name]
            + [
                f"{s['output'][0] if len(s['output']) == 3 else 1}², {s['multiply_adds'] / 1e6:.0f}"
                for s in (one["stages"][stage] for stage in STAGES)
            ]
            for name, one in counted.items()
        ]
        heading = "Output size and 10⁶ multiply-adds of every part"
        listed.append(result.table(heading, ["network", *STAGES], parts))
    return listed


def block_weights() -> list[tuple[str, int, int, str]]:
    """`(words, channels in and out, weights, where it was counted)` of each of BLOCKS.

    Where no block strides, multiply-adds at a position are the same numbers.
    """
    counted = []
    for depth, block, words in BLOCKS:
        network = models.create(recipes.imagenet(f"resnet{depth}").model, CLASSES)
        kernels = [
            row.kernel
            for row in summary(network, (SIZE, SIZE, 3))
            if row.name.startswith(f"{block}/") and row.kernel
        ]
        counted.append(
            (words, kernels[0][2], sum(map(math.prod, kernels)), f"resnet{depth}, {block}")
        )
    return counted


def block_table(counted: Sequence[tuple[str, int, int, str]]) -> dict[str, Any]:
    """The weights of a bottleneck beside those of two 3×3 convolutions (figure 5)."""
    bottleneck = counted[0][2]
    rows = [
        [words, channels, f"{weights:,}", f"{weights / bottleneck:.2f} ×", where]
        for words, channels, weights, where in counted
    ]
    columns = ["block", "channels in and out", "weights", "of the bottleneck's", "counted in"]
    return result.table("What a bottleneck saves", columns, rows)


def draw(
    counted: Mapping[str, Any], blocks: Sequence[tuple[str, int, int, str]], out: str
) -> list[str]:
    """`<out>/table1.svg`: what networks cost, 1×1 convolutions apart; the weights of blocks."""
    if not plotting.can_draw("table1.svg"):
        return []
    figure, (left, right) = plotting.pyplot().subplots(1, 2, figsize=(11, 3), layout="constrained")
    whole, pointwise = (
        [one[kind] / 1e9 for one in counted.values()] for kind in ("multiply_adds", "in_1x1")
    )
    left.barh(list(counted), whole, color=plots.COLOURS[0], label="all others")
    left.barh(list(counted), pointwise, color=plots.COLOURS[1], label="1×1 convolutions")
    left.set(xlabel="10⁹ multiply-adds of an image of 224×224", title="what networks cost")
    left.legend(fontsize="small")
    names = [f"{words}\non {channels} channels" for words, channels, *_ in blocks]
    right.bar_label(right.barh(names, [weights for *_, weights, _ in blocks]), fmt="{:,.0f}")
    right.set(xlabel="weights", title="what blocks cost")
    right.margins(x=0.3)
    for axis in (left, right):
        axis.invert_yaxis()
    return [plots.save(figure, out, "table1")]


if __name__ == "__main__":
    sys.exit(command.run(main))
