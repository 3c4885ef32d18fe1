"""What network the arrays of a file are: the fields of `config.model`, or the name of another one.

Only names and shapes are looked at. What they do not show (where a bottleneck strides, how the stem
pools, whether a filter without weights smooths before a stride) is the file's origin's to say, or
its name's.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from models import FIELDS
from models.resnet import IMAGENET
from weights.files import Tensor

HEAD = ("params/head/kernel", "params/head/bias")
# Networks whose arrays have names of their own: a pattern of one of them, and what it is. First the
# modules that a ResNet can have in addition, then what is none.
MODULES = {
    r"layer\d\.\d+\.conv\d\.(attn|paths)": "SK-{} (selective kernels)",
    r"layer\d\.\d+\.conv2\.(fc1|bn0)": "ResNeSt (split attention) in the form of {}",
    r"layer\d\.\d+\.conv\d\.conv\b": "TResNet in the form of {}",
    r"layer\d\.\d+\.(se|se_module)\.fc": "SE-{} (squeeze-and-excitation)",
    r"layer\d\.\d+\.(se\.conv|eca)\b": "ECA-{} (channel attention)",
    r"layer\d\.\d+\.convs\.0": "Res2Net in the form of {}",
    r"layer\d\.\d+\.bn\d\.(IN|BN)": "IBN-{} (instance normalisation)",
    r"\.filt$": "an anti-aliased {} (blur-pool)",
    r"\.(scale|zero_point)$": "a quantised {}",
    r"layer\d\.\d+\.conv\d\.0\b": "a video {}",
    r"layer\d\.\d+\..*(attn|attention|cbam|ca\.|sa\.|gc\.|context)": "{} with attention",
    r"^stage\d\.\d\.branches": "HRNet in the form of {}",
    r"^linear\.": "{} of a CIFAR repository ('linear'), which pads shortcut A on both sides",
}
OTHERS = {
    r"^stages\.0\.0\.conv1_1x1": "a ResNet of timm's byobnet form",
    r"(^|\.)(cls_token|pos_embed|class_token)$|attn\.qkv|self_attention": "a vision transformer",
    r"norm1\.(tau|v)$|^stages\.0\.blocks\.0\.norm1|^norm\.running_mean": (
        "a ResNet v2 (pre-activation)"
    ),
    r"\.gain$": "a normaliser-free ResNet (NF-ResNet)",
    r"denseblock": "a DenseNet",
    r"^s1\.b1\.|trunk_output": "a RegNet",
    r"layer_scale|^stages\.\d\.blocks\.\d+\.gamma": "a ConvNeXt",
    r"conv_dw|^conv_stem|^features\.\d+\.(conv|block)": "an EfficientNet or MobileNet",
    r"^features\.\d+\.weight": "a VGG, AlexNet or SqueezeNet",
}
# Filters that have no weights leave no trace but in the name.
ANTI_ALIASED = re.compile(r"blur|anti.?alias|resnetaa|(?<![a-z])aa(?![a-z])", re.I)
MORE_DEPTHS = (10, 14, 26, 200, 269)  # that others have built of bottlenecks or basic blocks
NAMELESS = re.compile(r"(pytorch_)?model\b", re.I)
READ = (
    f"Read are ResNet-{', '.join(map(str, IMAGENET))} and CIFAR's networks of 6n+2 layers; choose "
    "a file of one of them."
)


class Network(NamedTuple):
    """What a file holds.

    Attributes:
      name: e.g. 'ResNet-50'.
      fields: of `config.model`, as far as arrays show them; those with the default's value, too.
      why_not: why no network here is like it, or ''.
      stages: e.g. '3 + 4 + 6 + 3 blocks of 3 convolutions'.
    """

    name: str
    fields: dict[str, Any]
    why_not: str = ""
    stages: str = ""

    def __str__(self) -> str:
        depth = f", depth {self.fields['depth']} ({self.stages})" if "depth" in self.fields else ""
        return f"{self.name}{depth}"


def telling_name(path: Path) -> str:
    """The name by which people know a weight file: its folder's, if the file is 'model.…'."""
    return path.parent.name if NAMELESS.match(path.stem) else path.stem


def identify(tensors: Mapping[str, Tensor]) -> Network:
    """Names what arrays, keyed by our paths, belong to."""
    sources = [tensor.source for tensor in tensors.values()]
    stages = _stages(tensors)
    preactivated = "params/final_bn/scale" in tensors
    if not stages:
        name = _first(OTHERS, sources) or "no ResNet"
        return Network(name, {}, f"its arrays are {', '.join(sources[:4])}, …")
    sizes = [len(blocks) for blocks in stages]
    layers = {last for blocks in stages for last in blocks.values()}
    shape = f"{' + '.join(map(str, sizes))} blocks of {max(layers)} convolutions"
    fields, odd = _stem(tensors, len(sizes))
    kind, suffix = "ResNet", ""
    if max(layers) == 3:
        groups, per_group = _middle(tensors)
        fields |= {"groups": groups, "width_per_group": per_group}
        if groups > 1:
            kind, suffix = "ResNeXt", f" {groups}x{per_group}d"
        elif per_group % 32 == 0 and per_group != 64:
            kind, suffix = "Wide ResNet", f" of width {per_group}"
    fields |= _depth(fields, sizes, max(layers))
    depth = fields.get("depth", 2 + sum(sizes) * max(layers))
    named = "depth" in fields or depth in MORE_DEPTHS
    name = f"{kind}-{depth}{suffix}" if named else f"{kind}{suffix} of {shape}"
    projections = sum(path.endswith("shortcut_conv/kernel") for path in tensors)
    fields["shortcut"] = "A" if not projections else "C" if projections == sum(sizes) else "B"
    fields["preactivation"] = preactivated
    lacking = [f for f in ("groups", "width_per_group") if f in fields and f not in FIELDS]
    if module := _first(MODULES, sources):
        name, why_not = module.format(name), "it has arrays that no network here has"
    elif not any(path.startswith("batch_stats/") for path in tensors):
        name += " without running averages (group normalisation)"
        why_not = "every normalisation here has running averages"
    elif odd:
        name, why_not = f"{name} {odd}", "no network here has that"
    elif "depth" not in fields or len(layers) > 1:
        why_not = "no model.depth has these stages"
    elif lacking and kind != "ResNet":
        why_not = "the bottlenecks here are neither grouped nor widened"
    else:
        why_not = ""
    return Network(name, {f: v for f, v in fields.items() if f in FIELDS}, why_not, shape)


def _first(table, names):
    """What the first pattern of the table that one of the names has stands for, or ''."""
    return next((kind for p, kind in table.items() if any(re.search(p, n) for n in names)), "")


def _stages(tensors):
    """The last convolution's number in each block: `[{'block1': 2, …}, …]`, one for each stage."""
    stages: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for path in tensors:
        if match := re.fullmatch(r"params/stage(\d+)/(block\d+)/conv(\d+)\b.*/kernel", path):
            blocks, block = stages[int(match[1])], match[2]
            blocks[block] = max(blocks[block], int(match[3]))
    return [stages[stage] for stage in sorted(stages)]


def _middle(tensors):
    """Groups of the first bottleneck's 3×3 convolution, and their width where stages have 64."""
    kernels = [tensors.get(f"params/stage1/block1/conv{i}/kernel") for i in (1, 2, 3)]
    if any(kernel is None or kernel.array.ndim != 4 for kernel in kernels):
        return 1, 64
    (*_, wide), (*_, each, _), (*_, out) = (kernel.array.shape for kernel in kernels)
    return max(1, wide // max(1, each)), round(64 * 4 * each / out)


def _stem(tensors, stages):
    """Fields that the stem shows, and what is odd about it, or ''."""
    stem = tensors.get("params/stem_conv/kernel")
    if stem is None or stem.array.ndim != 4:
        pooled = any(t.source.endswith("0.downsample.2.weight") for t in tensors.values())
        return {}, f"in {'D' if pooled else 'C'} form (a stem of several convolutions)"
    size, _, _, width = stem.array.shape
    fields = {"stem": "imagenet" if size == 7 else "cifar", "width": width}
    if (size, stages) not in ((7, 4), (3, 3)):
        return fields, f"with a {size}×{size} stem before {stages} stages"
    return fields, ""


def _depth(fields, sizes, layers):
    """`depth`, and `block` where the depth alone does not tell it, of stages of these sizes."""
    if fields.get("stem") == "cifar":
        if len(sizes) != 3 or len(set(sizes)) > 1:
            return {}
        depth = {"depth": 2 + sum(sizes) * layers}
        return depth if layers == 2 else depth | {"block": "bottleneck"}
    found = [
        depth
        for depth, (stage_sizes, block) in IMAGENET.items()
        if list(stage_sizes) == sizes and (block.expansion == 4) == (layers == 3)
    ]
    return {"depth": found[0]} if found else {}
