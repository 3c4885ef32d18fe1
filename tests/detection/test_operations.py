"""The operations of detection/ equal torchvision's: stored numbers, and live ones where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import detection_parity as parity
from benchmarks.detection_operations import OPERATIONS, random_boxes
from detection import boxes, matching, nms, roi
from errors import UserError

REFERENCE = np.load(parity.STORED)
N = 40  # boxes of a case
every_operation = pytest.mark.parametrize("name", OPERATIONS)


@pytest.fixture(scope="module")
def ours():
    """Operation → its results of the stored case; all are compiled as one program."""
    cases = {name: parity.case(name, 0, N) for name in OPERATIONS}
    return jax.jit(lambda c: {k: OPERATIONS[k].ours(*c[k]) for k in c})(cases)


@every_operation
def test_equals_what_torchvision_computed(name, ours):
    exact = OPERATIONS[name].exact
    results = jax.tree.leaves(ours[name])
    expected = [REFERENCE[f"{name}/{i}"] for i in range(len(results))]
    found = results if exact else [parity.sample(x) for x in results]
    assert f"{name}/{len(results)}" not in REFERENCE
    assert parity.difference(found, expected) <= (0 if exact else 1e-5)


@pytest.mark.slow
@every_operation
def test_equals_live_torchvision(name):
    pytest.importorskip("torchvision")
    operation = OPERATIONS[name]
    compiled = jax.jit(operation.ours)
    for seed in range(1, 6):
        arrays = parity.case(name, seed, N)
        apart = parity.difference(compiled(*arrays), parity.theirs(name, arrays))
        assert apart <= (0 if operation.exact else 1e-5)


REGIONS = np.array(
    [
        *([0, 0, 0, 0], [5, 5, 5, 5], [10, 10, 5, 5], [-100, -100, -50, -50], [-16, -16, 0, 0]),
        *([500, 500, 600, 600], [0, 0, 1, 1], [-5, -5, 300, 300], [0, 0, 1000, 2], [8, 8, 24, 24]),
        *([-1e4, -1e4, 1e4, 1e4], [15.9, 0, 16.1, 200], [-0.5, -0.5, 0.5, 0.5]),
    ],
    np.float32,
)
SQUARE, SLICE = [0, 0, 10, 10], [0, 0, 3, 10]  # with an IoU of 0.3
SAME, POINT, FAR = [1, 1, 11, 11], [5, 5, 5, 5], [900, -50, 950, 0]
SUPPRESSED = {  # boxes, scores, valid: the boxes that stay at an IoU of at most 0.3
    "none is valid": ([SQUARE] * 4, [1, 2, 3, 4], [0, 0, 0, 0], []),
    "equal scores": ([SAME, SQUARE, SAME, FAR], [5, 5, 5, 5], [1, 1, 1, 1], [0, 3]),
    "an invalid one suppresses none": (
        [SQUARE, SAME, FAR, FAR],
        [9, 8, 7, 7],
        [0, 1, 1, 0],
        [1, 2],
    ),
    "without area": ([POINT, POINT, SQUARE, SQUARE], [1, 2, 3, 4], [1, 1, 1, 1], [3, 1, 0]),
    "0.3 in float32 is above 0.3": ([SQUARE, SLICE, FAR, FAR], [3, 2, 1, 0], [1, 1, 0, 0], [0]),
    "not in a chain": (
        [[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18], [0, 12, 10, 22]],
        [4, 3, 2, 1],
        [1, 1, 1, 1],
        [0, 2],
    ),
}


@pytest.fixture(scope="module")
def kept():
    """The boxes that stay in each case of SUPPRESSED, computed as one batch."""
    found, scores, valid = (
        np.array([case[i] for case in SUPPRESSED.values()], kind)
        for i, kind in enumerate((np.float32, np.float32, bool))
    )

    def keep(*arrays):
        return nms.keep(*arrays, 0.3, jnp.zeros(4, jnp.int32), limit=3)

    index, stays = jax.jit(jax.vmap(keep))(found, scores, valid)
    return dict(zip(SUPPRESSED, zip(index, stays, strict=True), strict=True))


@pytest.mark.parametrize("name", SUPPRESSED)
def test_what_stays(name, kept):
    index, stays = kept[name]
    assert index[stays].tolist() == SUPPRESSED[name][-1]
    assert not index[~stays].any()


@pytest.mark.slow
def test_no_boxes_are_no_error():
    none = jnp.zeros((0, 4))
    index, stays = nms.keep(none, jnp.zeros(0), jnp.zeros(0, bool), 0.5, limit=2)
    assert not stays.any() and index.tolist() == [0, 0]
    assert matching.match(jnp.zeros((0, 3)), 0.7, 0.3, True).tolist() == [matching.BELOW] * 3
    features = jnp.zeros((5, 6, 2))
    for pooled in (
        lambda f: roi.align(f, none, 7, 1 / 16),
        lambda f: roi.max_pool(f, none, 7, 1 / 16),
        lambda f: roi.align_pyramid([f, f], none, 7, (1 / 4, 1 / 8)),
    ):
        assert jax.eval_shape(pooled, features).shape == (0, 7, 7, 2)
    assert boxes.iou(none, jnp.zeros((3, 4))).shape == (0, 3)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (9, 1), (6, 7)])
def test_regions_without_area_outside_and_larger_than_the_map_equal_live_torchvision(shape):
    torch, ops = pytest.importorskip("torch"), pytest.importorskip("torchvision").ops
    random = np.random.default_rng(0)
    features = random.standard_normal((*shape, 3)).astype(np.float32).round(1)
    forms = {
        (roi.align, ops.roi_align): [(0, False), (3, False), (3, True)],
        (roi.max_pool, ops.roi_pool): [()],
    }

    def ours(features):
        pooled = [
            op(features, REGIONS, (3, 5), 1 / 16, *more)
            for (op, _), each in forms.items()
            for more in each
        ]
        return sum((jnp.cos(x) ** 2).sum() for x in pooled), pooled

    gradient, pooled = jax.jit(jax.grad(ours, has_aux=True))(features)
    planes = torch.tensor(features).permute(2, 0, 1)[None].contiguous().requires_grad_()
    expected = [
        op(planes, [torch.tensor(REGIONS)], (3, 5), 1 / 16, *more).permute(0, 2, 3, 1)
        for (_, op), each in forms.items()
        for more in each
    ]
    sum((x.cos() ** 2).sum() for x in expected).backward()
    for a, b in zip(pooled, expected, strict=True):
        np.testing.assert_allclose(a, b.detach(), atol=1e-5)
    expected = planes.grad[0].permute(1, 2, 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name.startswith(("nms", "RoI"))])
def test_batches_need_no_scatter(name):
    """Nor of derivatives, which these operations have with them: a scatter adds one by one."""
    arrays = [np.stack([x, x]) for x in parity.case(name, 0, N)]
    traced = jax.make_jaxpr(jax.vmap(OPERATIONS[name].ours))(*arrays)
    assert "scatter" not in str(traced)


def test_rows_that_fill_up_match_nothing():
    overlaps = np.array([[0.8, 0.1, 0.0], [0.0, 0.2, 0.0], [0.9, 0.9, 0.9]], np.float32)
    match = jax.jit(lambda valid: matching.match(overlaps, 0.7, 0.15, True, valid))
    assert match(np.array([True, True, False])).tolist() == [0, 1, matching.BELOW]
    assert match(np.array([False] * 3)).tolist() == [matching.BELOW] * 3


@pytest.mark.slow
def test_a_box_alone_is_as_in_a_batch():
    random = np.random.default_rng(0)
    features = random.standard_normal((2, 6, 5, 3)).astype(np.float32)
    found = np.stack([random_boxes(random, 3) for _ in features])

    def pooled(features, found):
        return roi.align(features, found, 2, 1 / 16, 2), roi.max_pool(features, found, 2, 1 / 16)

    def both(features, found):
        together = jax.vmap(pooled)(features, found)
        return together, [pooled(f, b) for f, b in zip(features, found, strict=True)]

    together, alone = jax.jit(both)(features, found)
    for batch, single in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(batch, np.stack(single), atol=1e-6)


def test_a_code_is_read_back():
    random = np.random.default_rng(1)
    reference = random_boxes(random, 50) + np.array([[0, 0, 1, 1]], np.float32)
    wanted = reference + np.array([[-2, -3, 4, 5]], np.float32)
    weights = (10.0, 10.0, 5.0, 5.0)
    code = boxes.encode(wanted, reference, weights)
    np.testing.assert_allclose(boxes.decode(code, reference, weights), wanted, atol=1e-3)


def test_a_pyramid_has_a_fixed_number_of_samples():
    with pytest.raises(UserError, match="sampling=0"):
        roi.align_pyramid([jnp.zeros((4, 4, 1))], jnp.zeros((1, 4)), 7, (1 / 4,), sampling=0)
