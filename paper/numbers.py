"""The paper's numbers as data; errors in %, parameters and multiply-adds as counts.

Deep Residual Learning for Image Recognition (arXiv 1512.03385) unless a name starts with
`IDENTITY_MAPPINGS` (arXiv 1603.05027). None: the source has no such number.
"""

# Table 1: multiply-adds ("FLOPs"), and the VGG networks' for comparison (section 3.3).
TABLE1_MULTIPLY_ADDS = {18: 1.8e9, 34: 3.6e9, 50: 3.8e9, 101: 7.6e9, 152: 11.3e9}
VGG_MULTIPLY_ADDS = {16: 15.3e9, 19: 19.6e9}

# Table 2: top-1 error on ImageNet validation, 10-crop.
TABLE2 = {"plain18": 27.94, "resnet18": 27.88, "plain34": 28.54, "resnet34": 25.03}

# Table 3: top-1 and top-5 error on ImageNet validation, 10-crop. The letter is the shortcut option.
TABLE3 = {
    "VGG-16": (28.07, 9.33),
    "GoogLeNet": (None, 9.15),
    "PReLU-net": (24.27, 7.38),
    "plain34": (28.54, 10.02),
    "resnet34A": (25.03, 7.76),
    "resnet34B": (24.52, 7.46),
    "resnet34C": (24.19, 7.40),
    "resnet50": (22.85, 6.71),
    "resnet101": (21.75, 6.05),
    "resnet152": (21.43, 5.71),
}

# Table 4: best single models, multi-scale fully convolutional, ImageNet validation.
TABLE4 = {
    "VGG (ILSVRC'14)": (None, 8.43),
    "GoogLeNet (ILSVRC'14)": (None, 7.89),
    "VGG (v5)": (24.4, 7.1),
    "PReLU-net": (21.59, 5.71),
    "BN-inception": (21.99, 5.81),
    "resnet34B": (21.84, 5.71),
    "resnet34C": (21.53, 5.60),
    "resnet50": (20.74, 5.25),
    "resnet101": (19.87, 4.60),
    "resnet152": (19.38, 4.49),
}

# Table 5: ensembles, top-5 error on the ImageNet test set.
TABLE5 = {
    "VGG (ILSVRC'14)": 7.32,
    "GoogLeNet (ILSVRC'14)": 6.66,
    "VGG (v5)": 6.8,
    "PReLU-net": 4.94,
    "BN-inception": 4.82,
    "ResNet (ILSVRC'15, six models)": 3.57,
}

# The data of table 6 and figure 6, and of tables 1 to 5, as `config.dataset`.
TABLE6_DATASET, TABLE2_DATASET = "cifar10", "tfds:imagenet2012"
# Table 6: CIFAR-10 test error. 110: the best of five runs, and their mean ± standard deviation.
TABLE6 = {
    "resnet20": 8.75,
    "resnet32": 7.51,
    "resnet44": 7.17,
    "resnet56": 6.97,
    "resnet110": 6.43,
    "resnet1202": 7.93,
}
TABLE6_RESNET110 = (6.61, 0.16)
TABLE6_OTHERS = {
    "Maxout": 9.38,
    "NIN": 8.81,
    "DSN": 8.22,
    "FitNet (2.5M)": 8.39,
    "Highway (2.3M)": 7.54,
    "Highway (1.25M)": 8.80,
}
# Table 6's own column, in millions.
TABLE6_PARAMETERS = {
    "resnet20": 0.27,
    "resnet32": 0.46,
    "resnet44": 0.66,
    "resnet56": 0.85,
    "resnet110": 1.7,
    "resnet1202": 19.4,
}
# Section 4.2 on plain-110: "over 60 %", not shown in figure 6.
PLAIN110_AT_LEAST = 60.0

# Tables 7, 10 and 11: Pascal VOC, mAP at IoU 0.5 in %, on the test sets of 2007 and 2012.
TABLE7 = {"VGG-16": (73.2, 70.4), "resnet101": (76.4, 73.8)}
# "Baseline+++": trained on COCO too, with table 9's box refinement, context, multi-scale testing.
TABLE10 = {"VGG-16": 73.2, "resnet101": 76.4, "resnet101, baseline+++": 85.6}
TABLE11 = {"VGG-16": 70.4, "resnet101": 73.8, "resnet101, baseline+++": 83.8}
# Table 8: COCO validation, mAP in % at IoU 0.5 and averaged over 0.5 to 0.95.
TABLE8 = {"VGG-16": (41.5, 21.2), "resnet101": (48.4, 27.2)}
# Table 9: the same on validation, and on test-dev, each row with what stands in those before it.
TABLE9 = {
    "VGG-16": (41.5, 21.2, None, None),
    "resnet101": (48.4, 27.2, None, None),
    "+ box refinement": (49.9, 29.9, None, None),
    "+ context": (51.1, 30.0, 53.3, 32.2),
    "+ multi-scale testing": (53.8, 32.5, 55.7, 34.9),
    "ensemble of 3": (None, None, 59.0, 37.4),
}
# Table 12: ImageNet detection, mAP in % at IoU 0.5 on val2 and the test set.
TABLE12 = {
    "GoogLeNet (ILSVRC'14)": (None, 43.9),
    "resnet101": (60.5, 58.8),
    "ensemble of 3": (63.6, 62.1),
}
# Table 13: ImageNet localization, error in % on validation: of the true class, and top-5 of the
# classes that a network names.
TABLE13 = {
    "VGG-16, 1 crop": (33.1, None),
    "resnet101, RPN, 1 crop": (13.3, None),
    "resnet101, RPN, dense": (11.7, None),
    "resnet101, RPN, dense, predicted classes": (None, 14.4),
    "resnet101, RPN and R-CNN": (None, 10.6),
    "ensemble": (None, 8.9),
}
# Table 14: the same, top-5 error in % on validation and the test set.
TABLE14 = {
    "OverFeat (ILSVRC'13)": (30.0, 29.9),
    "GoogLeNet (ILSVRC'14)": (None, 26.7),
    "VGG (ILSVRC'14)": (26.9, 25.3),
    "ResNet (ILSVRC'15)": (8.9, 9.0),
}

# Identity Mappings, tables 1 and 2: CIFAR-10 test error, median of five runs. A failed run ("fail")
# is one with an error above 20 %.
FAIL = "fail"
IDENTITY_MAPPINGS_FAILS_ABOVE = 20.0
IDENTITY_MAPPINGS_TABLE1 = {
    "original": 6.61,
    "plain (shortcut 0, f 1)": FAIL,
    "scaling (shortcut 0.5, f 1)": FAIL,
    "scaling (shortcut 0.5, f 0.5)": 12.35,
    "exclusive gating, b = 0": FAIL,
    "exclusive gating, b = -6": 8.70,
    "exclusive gating, b = -7": 9.81,
    "shortcut-only gating, b = 0": 12.86,
    "shortcut-only gating, b = -6": 6.91,
    "1x1 conv shortcut": 12.22,
    "dropout shortcut": FAIL,
}
# ResNet-110 and ResNet-164.
IDENTITY_MAPPINGS_TABLE2 = {
    "original": (6.61, 5.93),
    "BN after addition": (8.17, 6.50),
    "ReLU before addition": (7.84, 6.14),
    "ReLU-only pre-activation": (6.71, 5.91),
    "full pre-activation": (6.37, 5.46),
}
