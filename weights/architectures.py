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

from models.resnet import IMAGENET, STEMS
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
    r"_preact_bn/|^post_bn/": "{} of version 2 (pre-activation, Keras)",
    r"^pool\d_(bn|conv)/": "a DenseNet of Keras, not {}",
    r"^linear\.": "{} of a CIFAR repository ('linear'), which pads shortcut A on both sides",
}
OTHERS = {
    r"^stages\.0\.0\.conv\d?_(1x1|kxk)": "a ResNet of timm's byobnet form, or a RepVGG",
    r"conv_transition": "a cross-stage network (CSPNet)",
    r"conv_mid": "a VoVNet",
    r"^(conv2d_1a|Mixed_5b|inception3a)": "an Inception network",
    r"^stage2\.0\.branch1": "a ShuffleNet",
    r"(^|\.)(cls_token|pos_embed|class_token)$|attn\.qkv|self_attention": "a vision transformer",
    r"norm1\.(tau|v)$|^stages\.0\.blocks\.0\.norm1|^norm\.running_mean": (
        "a ResNet v2 (pre-activation)"
    ),
    r"\.gain$": "a normaliser-free ResNet (NF-ResNet)",
    r"denseblock": "a DenseNet",
    r"^s1\.b1\.|trunk_output": "a RegNet",
    r"layer_scale|^stages\.\d\.blocks\.\d+\.gamma|^convnext": "a ConvNeXt",
    r"conv_dw|^conv_stem|^features\.\d+\.(\d+\.)?(conv|block)|dwconv|depthwise": (
        "an EfficientNet or MobileNet"
    ),
    r"_sepconv": "an Xception",
    r"^features\.\d+\.weight|^block1_conv1/": "a VGG, AlexNet or SqueezeNet",
}
# Filters that have no weights leave no trace but in the name.
ANTI_ALIASED = re.compile(r"blur|anti.?alias|resnetaa|(?<![a-z])aa(?![a-z])", re.I)
MORE_DEPTHS = (10, 14, 26, 269)  # that others have built of bottlenecks or basic blocks
NAMELESS = re.compile(
    r"(pytorch_)?(model|checkpoint|ckpt|weights|epoch|step|last|best|final)"
    r"([-_=\d]|best|last|final|ema|epoch|step|of)*",
    re.I,
)
READ = (
    f"Read are ResNet-{', '.join(map(str, IMAGENET))} (also wide, grouped, in C and D form) and "
    "CIFAR's networks of 6n+2 layers; choose a file of one of them."
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
    """The name by which people know a weight file: its folder's, if the file is 'model_best.…'."""
    nameless = NAMELESS.fullmatch(path.name.partition(".")[0])
    return path.absolute().parent.name if nameless else path.stem


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
    width, groups, per_group = _first_block(tensors, max(layers))
    fields, odd = _stem(tensors, width, len(sizes))
    fields |= {"width": width, "groups": groups, "width_per_group": per_group}
    fields |= _depth(fields["stem"], sizes, max(layers))
    fields |= {"shortcut": _shortcut(tensors, sizes), "preactivation": preactivated}
    name = _name(fields, sizes, max(layers), shape)
    if module := _first(MODULES, sources):
        name, why_not = module.format(name), "it has arrays that no network here has"
    elif not any(path.startswith("batch_stats/") for path in tensors):
        name += " without running averages (group normalisation)"
        why_not = "every normalisation here has running averages"
    elif odd:
        name, why_not = f"{name} {odd}", "no network here has that"
    elif "depth" not in fields or len(layers) > 1:
        why_not = "no model.depth has these stages"
    else:
        why_not = ""
    return Network(name, fields, why_not, shape)


def _name(fields, sizes, layers, shape):
    """'ResNet-50', 'ResNeXt-50 32x4d', 'ResNet-50-D', …"""
    kind, suffix, groups, per_group = "ResNet", "", fields["groups"], fields["width_per_group"]
    if groups > 1:
        kind, suffix = "ResNeXt", f" {groups}x{per_group}d"
    elif per_group % 32 == 0 and per_group != 64:
        kind, suffix = "Wide ResNet", f" of width {per_group}"
    depth = fields.get("depth", 2 + sum(sizes) * layers)
    number = f"-{depth}" if "depth" in fields or depth in MORE_DEPTHS else ""
    form = "" if fields["stem"] != "deep" else "-D" if fields["shortcut"] == "D" else "-C"
    return f"{kind}{number}{form}{suffix}" + ("" if number else f" of {shape}")


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


def _first_block(tensors, layers):
    """Width of the first stage, groups of its first 3×3 convolution, and width_per_group."""
    shapes = [
        tensors[path].array.shape if path in tensors else ()
        for path in (f"params/stage1/block1/conv{i}/kernel" for i in range(1, layers + 1))
    ]
    if layers != 3 or any(len(shape) != 4 for shape in shapes):
        return shapes[-1][-1] if shapes[-1] else 0, 1, 64
    (*_, wide), (*_, each, _), (*_, out) = shapes
    return out // 4, max(1, wide // max(1, each)), round(64 * each / max(1, out // 4))


def _stem(tensors, width, stages):
    """The field `stem`, and what is odd about the stem, or ''."""
    sizes = [
        shape
        for name in ("stem_conv", "stem_conv1", "stem_conv2", "stem_conv3")
        if (tensor := tensors.get(f"params/{name}/kernel"))
        and len(shape := tensor.array.shape) == 4
    ]
    kernels, channels = [s[0] for s in sizes], [s[-1] for s in sizes]
    for stem, layers in STEMS.items():
        expected = [int(share * width) for share, *_ in layers]
        if kernels == [size for _, size, _ in layers] and stages == (3 if stem == "cifar" else 4):
            odd = "" if channels == expected else f"with a stem of {channels} channels"
            return {"stem": stem}, odd
    deep = len(kernels) == 3
    kind = "×".join(map(str, 2 * kernels[:1])) or "foreign"
    return {"stem": "deep" if deep else "imagenet"}, f"with a {kind} stem before {stages} stages"


def _shortcut(tensors, sizes):
    """Which shapes are projected, and whether behind a mean pool."""
    projections = [t for path, t in tensors.items() if path.endswith("shortcut_conv/kernel")]
    if any(t.source.endswith("downsample.1.weight") for t in projections):
        return "D"
    return "A" if not projections else "C" if len(projections) == sum(sizes) else "B"


def _depth(stem, sizes, layers):
    """`depth`, and `block` where the depth alone does not tell it, of stages of these sizes."""
    if stem == "cifar":
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
