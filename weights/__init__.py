"""Weight files from elsewhere ↔ our variables: torchvision, timm, Keras, the authors' Caffe models."""

from weights.door import Conventions, conventions, load_weights

__all__ = ["Conventions", "conventions", "load_weights"]
