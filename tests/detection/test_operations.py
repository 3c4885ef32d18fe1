"""The operations of detection/ equal torchvision's: stored numbers, and live ones where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

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
    for shape, function in {
        (0, 4): lambda b: boxes.clip(boxes.decode(boxes.encode(b, b), b), 3, 4),
        (0,): lambda b: roi.levels(b, 2, 5) + matching.match(boxes.iou(b + 1, b), 0.7, 0.3, True),
        (2,): lambda b: nms.keep(b, b[:, 0], b[:, 0] > 0, 0.5, limit=2)[0],
    }.items():
        assert jax.eval_shape(function, none).shape == shape
        assert jax.eval_shape(jax.vmap(function), none[None]).shape == (1, *shape)
    assert matching.match(jnp.zeros((3, 0)), 0.7, 0.3, True).shape == (0,)
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


# Operations that are also mapped with the same first array for all of a batch.
PARTLY = ("decode", "nms by class, IoU > 0.5", "RoI max pooling 7")


@pytest.fixture(scope="module")
def in_batches():
    """Operation → its results of a batch of two, of which the second is the stored case."""

    def mapped(cases):
        found = {k: [jax.vmap(OPERATIONS[k].ours)(*arrays)] for k, arrays in cases.items()}
        for name in PARTLY:
            first, *others = cases[name]
            axes = (None, *[0] * len(others))
            found[name].append(jax.vmap(OPERATIONS[name].ours, axes)(first[1], *others))
        return found

    pairs = {k: zip(*(parity.case(k, seed, N) for seed in (1, 0)), strict=True) for k in OPERATIONS}
    return jax.jit(mapped)(
        {name: [np.stack(pair) for pair in each] for name, each in pairs.items()}
    )


@pytest.mark.slow
@every_operation
def test_a_case_of_a_batch_is_as_alone(name, ours, in_batches):
    alone = jax.tree.leaves(ours[name])
    for batch in in_batches[name]:
        second = [x[1] for x in jax.tree.leaves(batch)]
        assert parity.difference(second, alone) <= (0 if OPERATIONS[name].exact else 1e-6)


@pytest.mark.slow
def test_boxes_vote_and_match_in_a_batch_as_alone():
    arrays = [parity.case("nms by class, IoU > 0.5", seed, N) for seed in range(2)]

    @jax.jit
    def both(found, scores, valid, classes):
        index, stays = nms.keep(found, scores, valid, 0.5, classes, limit=20)
        votes = nms.vote(index, found, scores, valid, classes)
        overlaps = boxes.iou(found[:5], found)
        return votes, stays, matching.match(overlaps, 0.7, 0.3, True, valid[:5])

    together = jax.vmap(both)(*map(np.stack, zip(*arrays, strict=True)))
    for i, case in enumerate(arrays):
        for batch, alone in zip(together, both(*case), strict=True):
            np.testing.assert_allclose(batch[i], alone, rtol=1e-6)


WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SCALES = (1 / 4, 1 / 8)
IN_HALF = jnp.array([[0.5, 0.5, 1.0, 1.0]])
DIFFERENTIABLE = {  # of boxes or maps `[3, …]`, of which a batch is mapped
    "areas": lambda a: boxes.areas(a),
    "iou": lambda a: boxes.iou(a, a * IN_HALF + 0.3),
    "clip": lambda a: boxes.clip(a, 2.0, 2.5),
    "encode": lambda a: boxes.encode(a, a[::-1] + 0.1, WEIGHTS),
    "encode, by the reference": lambda a: boxes.encode(a[::-1] + 0.1, a, WEIGHTS),
    "decode": lambda a: boxes.decode(a, a[::-1], WEIGHTS),
    "RoIAlign": lambda f: roi.align(f, REGIONS, 2, 1 / 8),
    "RoIAlign of a pyramid": lambda f: roi.align_pyramid([f, f[::2, ::2]], REGIONS, 2, SCALES),
    "RoI max pooling": lambda f: roi.max_pool(f, REGIONS, 2, 1 / 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_are_those_of_small_changes(name):
    """Under `jit` and `vmap`, as a step has them."""
    random = np.random.default_rng(0)
    if name.startswith("Ro"):
        x = random.permutation(2 * 6 * 5 * 2).reshape(2, 6, 5, 2).astype(np.float32) / 10
    else:
        corner = random.uniform(0, 2, (2, 3, 2))
        x = np.concatenate([corner, corner + random.uniform(0.5, 1, (2, 3, 2))], -1)
        x = x.astype(np.float32)
    function = jax.jit(jax.vmap(DIFFERENTIABLE[name]))
    check_grads(function, (x,), order=1, modes=["rev"], eps=1e-2, atol=0.02, rtol=0.02)


@pytest.mark.slow
def test_no_box_makes_a_number_infinite():
    """Without area, turned over, outside, huge; nor do derivatives."""
    found = jnp.concatenate([REGIONS, jnp.float32([[3e4, 0, -3e4, 9], [0, 0, 1e6, 1e6]])])
    features = jnp.cos(jnp.arange(7 * 6 * 2, dtype=jnp.float32)).reshape(7, 6, 2)
    n = len(found)

    def numbers(features):
        pooled = (
            roi.align(features, found, 3, 1 / 16),
            roi.align_pyramid([features, features[::2, ::2]], found, 3, (1 / 16, 1 / 32)),
            roi.max_pool(features, found, 3, 1 / 16),
        )
        return sum((x**2).sum() for x in pooled), pooled

    @jax.jit
    def all_(features):
        deltas = jnp.tile(jnp.float32([[9, -9, 900, -900]]), (n, 1))
        level = roi.levels(found, 2, 5)
        match = matching.match(boxes.iou(found, found), 0.7, 0.3, True)
        kept = nms.keep(found, jnp.ones(n), jnp.ones(n, bool), 0.5, limit=n)
        votes = nms.vote(kept[0], found, jnp.ones(n), kept[1], jnp.zeros(n, jnp.int32))
        floats = boxes.areas(found), boxes.clip(found, 90, 70), boxes.decode(deltas, found), votes
        return jax.grad(numbers, has_aux=True)(features), floats, level, match, kept

    *finite, level, match, (index, stays) = all_(features)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(finite))
    assert set(level.tolist()) <= {0, 1, 2, 3}
    assert match.min() >= matching.BETWEEN and match.max() < n
    # Equal scores: the first of those that overlap, and all that have no area.
    assert index[stays].tolist() == sorted(index[stays].tolist()) and {0, 1} <= {*index.tolist()}


def test_a_code_is_read_back():
    random = np.random.default_rng(1)
    reference = random_boxes(random, 50) + np.array([[0, 0, 1, 1]], np.float32)
    wanted = reference + np.array([[-2, -3, 4, 5]], np.float32)
    code = boxes.encode(wanted, reference, WEIGHTS)
    np.testing.assert_allclose(boxes.decode(code, reference, WEIGHTS), wanted, atol=1e-3)


def test_a_pyramid_has_a_fixed_number_of_samples():
    with pytest.raises(UserError, match="sampling=0"):
        roi.align_pyramid([jnp.zeros((4, 4, 1))], jnp.zeros((1, 4)), 7, (1 / 4,), sampling=0)
