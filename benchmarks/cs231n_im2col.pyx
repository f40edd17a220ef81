# cython: boundscheck=False, wraparound=False, cdivision=True, language_level=3
"""The fast layers of CS231n by the method of the course: im2col and col2im in plain loops, and np.dot."""

import numpy as np


def im2col(double[:, :, :, ::1] padded, int hh, int ww, int stride):
    """Return (C * hh * ww, N * H' * W') columns."""
    cdef Py_ssize_t n = padded.shape[0], c = padded.shape[1]
    cdef Py_ssize_t out_h = (padded.shape[2] - hh) // stride + 1, out_w = (padded.shape[3] - ww) // stride + 1
    cdef Py_ssize_t channel, i, j, y, x, image, row, column
    result = np.empty((c * hh * ww, n * out_h * out_w))
    cdef double[:, ::1] cols = result
    for channel in range(c):
        for y in range(out_h):
            for x in range(out_w):
                for i in range(hh):
                    for j in range(ww):
                        row = (channel * hh + i) * ww + j
                        for image in range(n):
                            column = (y * out_w + x) * n + image
                            cols[row, column] = padded[image, channel, stride * y + i, stride * x + j]
    return result


def col2im(double[:, ::1] cols, shape, int hh, int ww, int pad, int stride):
    """Add the columns up where `im2col` took them from."""
    cdef Py_ssize_t n = shape[0], c = shape[1]
    cdef Py_ssize_t out_h = (shape[2] + 2 * pad - hh) // stride + 1, out_w = (shape[3] + 2 * pad - ww) // stride + 1
    cdef Py_ssize_t channel, i, j, y, x, image, row, column
    result = np.zeros((n, c, shape[2] + 2 * pad, shape[3] + 2 * pad))
    cdef double[:, :, :, ::1] padded = result
    for channel in range(c):
        for i in range(hh):
            for j in range(ww):
                row = (channel * hh + i) * ww + j
                for y in range(out_h):
                    for x in range(out_w):
                        for image in range(n):
                            column = (y * out_w + x) * n + image
                            padded[image, channel, stride * y + i, stride * x + j] += cols[row, column]
    return result[:, :, pad : pad + shape[2], pad : pad + shape[3]]


def conv_forward(x, w, b, conv_param):
    stride, pad = conv_param["stride"], conv_param["pad"]
    n, _, h, width = x.shape
    filters, _, hh, ww = w.shape
    out_h, out_w = (h + 2 * pad - hh) // stride + 1, (width + 2 * pad - ww) // stride + 1
    cols = im2col(np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), hh, ww, stride)
    out = np.dot(w.reshape(filters, -1), cols) + b.reshape(-1, 1)
    out = out.reshape(filters, out_h, out_w, n).transpose(3, 0, 1, 2)
    return np.ascontiguousarray(out), (x, w, b, conv_param, cols)


def conv_backward(dout, cache):
    x, w, _, conv_param, cols = cache
    filters, _, hh, ww = w.shape
    db = dout.sum(axis=(0, 2, 3))
    dout = dout.transpose(1, 2, 3, 0).reshape(filters, -1)
    dw = np.dot(dout, cols.T).reshape(w.shape)
    dcols = np.dot(w.reshape(filters, -1).T, dout)
    return col2im(dcols, x.shape, hh, ww, conv_param["pad"], conv_param["stride"]), dw, db


def max_pool_forward(x, pool_param):
    size = pool_param["stride"]
    n, c, h, w = x.shape
    tiles = x.reshape(n, c, h // size, size, w // size, size)
    out = tiles.max(axis=3).max(axis=4)
    return out, (x, tiles, out)


def max_pool_backward(dout, cache):
    x, tiles, out = cache
    mask = tiles == out[:, :, :, None, :, None]
    gradient, _ = np.broadcast_arrays(dout[:, :, :, None, :, None], np.zeros_like(tiles))
    result = np.zeros_like(tiles)
    result[mask] = gradient[mask]
    result /= mask.sum(axis=(3, 5), keepdims=True)
    return result.reshape(x.shape)
