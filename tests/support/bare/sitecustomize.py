"""On PYTHONPATH: a Python that has only what computing needs, whatever else is installed.

What is left are jax, flax, optax, orbax, numpy, Pillow, scikit-learn, ml_collections and what they
need themselves.
"""

from importlib.machinery import PathFinder

ABSENT = {
    *("tensorflow_datasets", "tensorflow", "array_record", "grain", "google_crc32c", "torch"),
    *("simplejpeg", "cv2", "tqdm", "matplotlib", "tensorboardX", "safetensors", "h5py", "pandas"),
}
found = PathFinder.find_spec


def find_spec(name, path=None, target=None):
    """Nothing for what is absent, as for any package that is not there."""
    return None if name.partition(".")[0] in ABSENT else found(name, path, target)


PathFinder.find_spec = find_spec
