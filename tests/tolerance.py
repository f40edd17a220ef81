"""THE tolerance table. It is scaled by what a result is made of, and never loosened for one test.

A result is a sum of ``terms`` products. With ``magnitude``, the sum of their absolute values,

    |error| <= (FACTORS[algorithm] * eps + 2**-52) * sqrt(terms) * magnitude + terms * tiny

For up to four terms, factor 1 is the strict bound of any order of summation, terms * eps / 2; for more it is the
probabilistic one (Higham and Mary, 2019), of which random data leave most unused. A term lost or taken twice is far
outside. 2**-52 is for the oracle, which rounds in float64; the absolute term lets intermediate results below the
smallest normal number vanish.
"""

import numpy as np

# Winograd's transforms amplify rounding about three times (Barabasz et al., 2018) and mix the 36 pixels of a tile: each
# product has so many terms more, and its error goes with the largest magnitude of the result, not with its own.
FACTORS = {"gemm": 1.0, "im2col": 1.0, "direct": 1.0, "winograd": 4.0, "sum": 1.0}

# A fused activation scales the error of its argument by its largest slope, and adds this many eps of (1 + |y|) itself.
SLOPES = {None: 1, "relu": 1, "relu6": 1, "leaky_relu": 1, "silu": 1.1, "hardswish": 1.5, "sigmoid": 0.25, "tanh": 1}
OWN_ERRORS = {"leaky_relu": 1, "silu": 4, "hardswish": 2, "sigmoid": 4, "tanh": 4}


def bound(algorithm, dtype, terms, magnitude):
    """Return the largest error that a result may have, elementwise."""
    info = np.finfo(dtype)
    if algorithm == "winograd":
        magnitude, terms = np.max(magnitude[np.isfinite(magnitude)], initial=0), terms + 36
    return (FACTORS[algorithm] * float(info.eps) + 2**-52) * np.sqrt(terms) * magnitude + terms * float(info.tiny)


def activation_bound(activation, dtype, expected, argument_bound):
    """Return the bound of ``activation(z)`` from that of ``z``."""
    name = activation if activation is None or isinstance(activation, str) else activation[0]
    own = OWN_ERRORS[name] * np.finfo(dtype).eps * (1 + np.abs(expected)) if name in OWN_ERRORS else 0
    return SLOPES[name] * argument_bound + own


def assert_close(actual, expected, bound, dtype, what=""):
    """Assert type, shape, the same non-finite values in the same places, and errors within ``bound``."""
    assert actual.dtype == dtype, f"{what}: {actual.dtype} instead of {np.dtype(dtype)}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape} instead of {expected.shape}"
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(
        actual[~finite], expected[~finite].astype(dtype), err_msg=f"{what}: non-finite values"
    )
    error, bound = np.abs(actual[finite] - expected[finite]), np.broadcast_to(bound, expected.shape)[finite]
    wrong = ~(error <= bound)
    if wrong.any():
        worst = np.argmax(np.where(wrong, error / bound, 0))
        place = tuple(map(int, np.argwhere(finite)[worst]))
        raise AssertionError(
            f"{what}: {wrong.sum()} of {expected.size} beyond the bound; at {place}: {actual[place]} instead of "
            f"{expected[place]}, off by {error[worst]:.3g}, allowed {bound[worst]:.3g}"
        )
