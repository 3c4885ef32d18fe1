"""ResNet-50 of random weights as the authors' release has it: Caffe's text and binary files."""

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from weights.caffe import SCHEMA


def network(random: np.random.Generator) -> tuple[str, dict[str, list[np.ndarray]]]:
    """The text of a network for Caffe, and each layer's arrays."""
    lines = ['name: "ResNet-50" input: "data"', "input_shape { dim: 2 dim: 3 dim: 65 dim: 50 }"]
    blobs: dict[str, list[np.ndarray]] = {}

    def add(kind, name, bottoms, options="", arrays=()):
        below = " ".join(f'bottom: "{b}"' for b in bottoms)
        lines.append(f'layer {{ name: "{name}" type: "{kind}" {below} top: "{name}" {options} }}')
        blobs[name] = [np.asarray(array, np.float32) for array in arrays]
        return name

    def convolution(below, name, channels, out, size, stride, bias=False):
        """Convolution, BatchNorm with its factor, Scale."""
        layer, end = ("conv1", "_conv1") if name == "conv1" else (f"res{name}", name)
        kernel = random.normal(
            0, (2 / (size * size * channels)) ** 0.5, (out, channels, size, size)
        )
        options = f"num_output: {out} kernel_size: {size} stride: {stride} pad: {size // 2}"
        options = f"convolution_param {{ {options} bias_term: {str(bias).lower()} }}"
        top = add(
            "Convolution", layer, [below], options, [kernel, random.normal(0, 0.1, out)][: 1 + bias]
        )
        factor = 999.98
        statistics = [factor * random.normal(0, 0.1, out), factor * random.uniform(0.5, 1.5, out)]
        top = add("BatchNorm", f"bn{end}", [top], "", [*statistics, [factor]])
        affine = [random.uniform(0.3, 0.7, out), random.normal(0, 0.1, out)]
        return add("Scale", f"scale{end}", [top], "scale_param { bias_term: true }", affine)

    top = add("ReLU", "conv1_relu", [convolution("data", "conv1", 3, 64, 7, 2, bias=True)])
    top = add("Pooling", "pool1", [top], "pooling_param { pool: MAX kernel_size: 3 stride: 2 }")
    channels = 64
    for stage, count in enumerate((3, 4, 6, 3), start=2):
        for i in range(count):
            name, width = f"{stage}{'abcdef'[i]}", 2 ** (stage + 4)
            stride, shortcut = 1 + (i == 0 and stage > 2), top
            if i == 0:
                shortcut = convolution(top, f"{name}_branch1", channels, 4 * width, 1, stride)
            for branch, out, size in (("2a", width, 1), ("2b", width, 3), ("2c", 4 * width, 1)):
                top = convolution(top, f"{name}_branch{branch}", channels, out, size, stride)
                channels, stride = out, 1
                if branch != "2c":
                    top = add("ReLU", f"{top}_relu", [top])
            top = add("ReLU", f"res{name}_relu", [add("Eltwise", f"res{name}", [shortcut, top])])
    top = add("Pooling", "pool5", [top], "pooling_param { pool: AVE global_pooling: true }")
    head = [random.normal(0, 0.02, (10, 2048)), random.normal(0, 0.1, 10)]
    add("InnerProduct", "fc1000", [top], "inner_product_param { num_output: 10 }", head)
    return "\n".join(lines), blobs


def file(blobs: dict[str, list[np.ndarray]]) -> bytes:
    """A `.caffemodel` with the arrays of each layer."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(SCHEMA, descriptor_pb2.FileDescriptorProto()))
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))()
    for name, arrays in blobs.items():
        layer = net.layer.add(name=name)
        for array in arrays:
            layer.blobs.add(data=array.ravel(), shape={"dim": array.shape})
    return net.SerializeToString()
