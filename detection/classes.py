"""The classes of the sets that torchvision's detectors and segmenters were trained on."""

from collections.abc import Sequence

BACKGROUND = "background"

# COCO's categories by their ids, 1 to 90, of which the set uses 80.
_COCO = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant,
    -, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra,
    giraffe, -, backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket,
    bottle, -,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet, -,
    tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,
    -, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""
_VOC = """
    aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,
    motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
"""
COCO = (BACKGROUND, *(" ".join(name.split()) for name in _COCO.split(",")))
VOC = (BACKGROUND, *(" ".join(name.split()) for name in _VOC.split(",")))


def names(count: int) -> tuple[tuple[str, ...], str]:
    """Names of `count` classes, the background first, that a weight file does not name; and whose.

    91 are COCO's, 21 Pascal VOC's; of others only the numbers are known.
    """
    known = {len(COCO): (COCO, "COCO's"), len(VOC): (VOC, "Pascal VOC's")}
    numbers = (BACKGROUND, *(f"class {i}" for i in range(1, count)))
    return known.get(count, (numbers, "by number"))


def labels_of(given: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The labels of a data set's categories, and the names of all labels, the background first.

    Those of COCO and Pascal VOC are the labels of torchvision's networks, so that COCO's are its
    ids from 1 to 90; others are numbered from 1 on.
    """
    for known in (COCO, VOC):
        used = [i for i, name in enumerate(known) if i and name != "-"]
        if [known[i] for i in used] == list(given):
            return tuple(used), known
    return tuple(range(1, len(given) + 1)), (BACKGROUND, *given)
