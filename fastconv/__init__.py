"""Convolution, pooling and ReLU for NumPy arrays, forward and backward, on SIMD kernels and all cores.

>>> import numpy as np
>>> import fastconv
>>> x = np.ones((1, 3, 32, 32), np.float32)
>>> weight = np.ones((8, 3, 3, 3), np.float32)
>>> fastconv.max_pool2d(fastconv.conv2d(x, weight, padding=1, activation="relu"), 2).shape
(1, 8, 16, 16)

:mod:`fastconv.functional` holds the operators, :mod:`fastconv.layers` layers that remember what their gradients need,
:mod:`fastconv.reference` every operator in plain NumPy. ``python -m fastconv`` lists what else there is.
"""

from . import activations, functional, layers, losses, models, normalization, optim, reference, training
from .activations import *  # noqa: F403
from .folding import fold_batch_norm
from .functional import *  # noqa: F403
from .normalization import *  # noqa: F403
from .runtime import empty_cache, get_num_threads, isa, set_num_threads, show_config, threads
from .training import fit

__version__ = "0.1.0"

__all__ = [
    *activations.__all__,
    *functional.__all__,
    *normalization.__all__,
    "empty_cache",
    "fit",
    "fold_batch_norm",
    "functional",
    "get_num_threads",
    "isa",
    "layers",
    "losses",
    "models",
    "optim",
    "reference",
    "set_num_threads",
    "show_config",
    "threads",
    "training",
]
