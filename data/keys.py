"""What random numbers are for: the one list of the purposes that are folded into keys.

Every random number of a run comes from its seed, the purpose, the step and the position of the
image in the batch; so none depends on devices, processes, threads or restarts. Changing a number
here changes every run.
"""

import enum

import jax
import numpy as np


class Purpose(enum.Enum):
    """What is folded into the seed's key."""

    INIT = (0,)
    ORDER = (1, 0)
    AUGMENT = (1, 1)
    DROPOUT = (2,)
    SAMPLE = (3,)


class Augmentation(enum.IntEnum):
    """What is folded into the key of one image in one step."""

    CROP_FLIP = 0
    COLOUR = 1
    MIX = 2
    ERASE = 3


def key_for(seed: int, purpose: Purpose, step: jax.typing.ArrayLike | None = None) -> jax.Array:
    """The key of a purpose, at one step (or epoch) if there is one."""
    key = jax.random.key(seed)
    for number in purpose.value:
        key = jax.random.fold_in(key, number)
    return key if step is None else jax.random.fold_in(key, step)


def example_keys(key: jax.Array, positions: jax.Array) -> jax.Array:
    """One key per image: `key` (seed, purpose and step folded in) with its global position.

    Args:
      key: one typed or raw JAX key.
      positions: int `[batch]`, of the images in the global batch.

    Returns:
      keys `[batch]`.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, positions)


def keys_for(keys: jax.Array, augmentation: Augmentation) -> jax.Array:
    """Keys `[batch]` of one augmentation, from the images' keys `[batch]`."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, int(augmentation))


# On the host, NumPy's Philox takes the place of JAX's keys: a counter-based generator, of which
# neighbouring keys give independent streams. The crops' counters start at 0, the shuffle's here.
_ORDER_COUNTER = 2**128


def host_generator(seed: int, position: int) -> np.random.Generator:
    """The generator of one image's crop and flip: a function of the seed and its position."""
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, position % 2**64]))


def host_order_generator(seed: int, epoch: int) -> np.random.Generator:
    """The generator of one epoch's shuffle."""
    key = [seed % 2**64, epoch]
    return np.random.Generator(np.random.Philox(key=key, counter=_ORDER_COUNTER))
