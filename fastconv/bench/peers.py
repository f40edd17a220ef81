"""fastconv and the libraries that it is compared with, behind one small interface.

Every library gets what its own interface offers against overhead: inputs and outputs bound in advance, weights prepared
once, eager mode where there is no other. All take and give NCHW arrays of float32, with float32 arithmetic asked for
explicitly; the instances whose name ends in ``channels_last`` take and give NHWC. In networks for inference, batch
normalisation is inside the convolutions, where a library can put it there. A library that is not installed
raises ImportError when it is made.
"""

import ctypes
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastconv

from . import torch_models
from .cases import Arrays, Case
from .networks import OPTIONS, Network, onnx_graph
from .timing import fastest

Call = Callable[[], Any]


class Library:
    """A library: ``prepare`` gives the call that is timed, ``outputs`` turns what it returns into NCHW arrays."""

    name: str
    distribution: str

    def __init__(self, threads: int):
        self.threads = threads

    @property
    def version(self) -> str:
        return version(self.distribution)

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        """Return a function without arguments that runs the case, or None if the library has no such operation."""
        raise NotImplementedError

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        """Return results in the order of `Case.expected`."""
        return (result,)


class FastConv(Library):
    """fastconv itself, as it is called by default or with a layout, an algorithm, an ISA or threads of its own."""

    name = distribution = "fastconv"

    def __init__(self, threads: int, variant: str = "", layout=None, algorithm="auto", isa=None):
        super().__init__(threads)
        self.name = f"fastconv {variant}".strip()
        self.layout, self.algorithm = layout, algorithm
        self.context = partial(fastconv.isa, isa) if isa else partial(fastconv.threads, threads) if variant else None

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        if isinstance(case, Network):
            if self.layout or self.algorithm != "auto":
                return None
            call = partial(case.prepare(), **arrays)
        else:
            call = self._operator(case, arrays)
        return call if call is None or self.context is None else self._within(call)

    def _operator(self, case: Case, arrays: Arrays) -> Call | None:
        function = getattr(fastconv, case.function)
        options = {}
        for name, value, default in (("layout", self.layout, None), ("algorithm", self.algorithm, "auto")):
            if value != default:
                if name not in inspect.signature(function).parameters:
                    return None
                options[name] = value
        x, grad_output = (self._layout(arrays[name]) if name in arrays else None for name in ("x", "grad_output"))
        weights = [arrays[name] for name in ("weight", "bias") if name in arrays]
        windows = case.windows
        if case.direction == "forward":
            out = self._layout(np.empty(case.out_shape, np.float32))
            return partial(function, x, *weights, **windows, **options, out=out)
        if case.weighted:
            out = (np.empty_like(x), *map(np.empty_like, weights))
            return partial(function, grad_output, x, weights[0], **windows, **options, out=out)
        if case.op == "relu":
            return partial(function, grad_output, x, out=np.empty_like(x))
        where = ()
        if case.kind == "max_pool":
            where = (getattr(fastconv, case.op)(x, **windows, **options, return_indices=True)[1],)
        return partial(function, grad_output, *where, x.shape, **windows, **options)

    def _layout(self, array: NDArray) -> NDArray:
        return array if self.layout is None else np.ascontiguousarray(array.transpose(0, 2, 3, 1))

    def _within(self, call: Call) -> Call:
        def run():
            with self.context():
                return call()

        return run

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        results = result if isinstance(result, tuple) else (result,)
        if self.layout is None:
            return results
        return (results[0].transpose(0, 3, 1, 2), *results[1:])


class PyTorch(Library):
    """Eager calls, in the memory format that the name says."""

    distribution = "torch"

    def __init__(self, threads: int, channels_last: bool = False):
        import torch

        super().__init__(threads)
        self.torch = torch
        self.name = "torch channels_last" if channels_last else "torch"
        self.formats = {4: torch.channels_last, 5: torch.channels_last_3d} if channels_last else {}
        torch.set_num_threads(threads)

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        if "channels_last" in self.name and len(case.x_shape) not in self.formats:
            return None
        tensors = {name: self._layout(self.torch.from_numpy(array)) for name, array in arrays.items()}
        return (self._network if isinstance(case, Network) else self._operator)(case, **tensors)

    def _layout(self, tensor):
        return tensor.contiguous(memory_format=self.formats.get(tensor.ndim, self.torch.contiguous_format))

    def _operator(self, case: Case, x, weight=None, bias=None, grad_output=None) -> Call:
        torch, aten, functional = self.torch, self.torch.ops.aten, self.torch.nn.functional
        if case.weighted:
            geometry = [list(sizes) for sizes in (case.stride, case.padding, case.dilation)]
            geometry += [case.transposed, [0] * len(case.kernel), case.groups]
            if grad_output is None:
                return partial(torch.convolution, x, weight, bias, *geometry)
            sizes = list(bias.shape)
            return partial(aten.convolution_backward, grad_output, x, weight, sizes, *geometry, [True, True, True])
        if case.op == "relu":
            return (
                partial(torch.relu, x) if grad_output is None else partial(aten.threshold_backward, grad_output, x, 0)
            )
        window, pool = [list(sizes) for sizes in (case.kernel, case.stride, case.padding)], getattr(functional, case.op)
        if grad_output is None:
            return partial(pool, x, *window)
        if case.kind == "avg_pool":
            return partial(getattr(aten, case.function), grad_output, x, *window, False, True, None)
        _, where = pool(x, *window, return_indices=True)
        function = getattr(aten, f"{case.op}_with_indices_backward")
        return partial(function, grad_output, x, *window, [1] * len(case.kernel), False, where)

    def _network(self, case: Network, x, labels) -> Call:
        torch = self.torch
        model = torch_models.build(torch, case.model_name)
        model.load_state_dict({name: torch.from_numpy(array) for name, array in case.model().state_dict().items()})
        model.to(memory_format=self.formats.get(4, torch.contiguous_format))
        if case.direction == "inference":
            return torch.inference_mode()(partial(torch_models.folded(torch, model), x))
        *_, last, _ = model.parameters()
        optimizer = torch.optim.SGD(model.parameters(), **OPTIONS, fused=True)

        def step():
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()[None], last.grad

        return step

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        return tuple(tensor.numpy() for tensor in (result if isinstance(result, tuple) else (result,)))


def onnx_model(case: Case | Network, arrays: Arrays) -> bytes | None:
    """Return the forward pass as an ONNX model from ``x`` to ``y``: one node, or a network."""
    from onnx import TensorProto, helper, numpy_helper

    if case.direction not in ("forward", "inference") or case.suite == "operators":
        return None
    if isinstance(case, Network):
        nodes, constants = onnx_graph(case)
    else:
        windows = {"kernel_shape": case.kernel, "strides": case.stride, "pads": 2 * case.padding}
        operator, attributes = {
            "conv2d": ("Conv", windows | {"dilations": case.dilation, "group": case.groups}),
            "max_pool2d": ("MaxPool", windows),
            "avg_pool2d": ("AveragePool", windows | {"count_include_pad": 1}),
            "relu": ("Relu", {}),
        }[case.op]
        nodes = [helper.make_node(operator, list(arrays), ["y"], **attributes)]
        constants = [numpy_helper.from_array(array, name) for name, array in arrays.items() if name != "x"]
    graph = helper.make_graph(
        nodes,
        case.name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.x_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, case.out_shape)],
        constants,
    )
    opset = helper.make_opsetid("", 17)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()


class OnnxRuntime(Library):
    """A session with bound input and output."""

    name = distribution = "onnxruntime"

    def __init__(self, threads: int):
        import onnx  # noqa: F401  (the model is made with it)
        import onnxruntime

        super().__init__(threads)
        self.ort = onnxruntime

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        if (model := onnx_model(case, arrays)) is None:
            return None
        options = self.ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        session = self.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.output = self.ort.OrtValue.ortvalue_from_shape_and_type(case.out_shape, np.float32)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", self.ort.OrtValue.ortvalue_from_numpy(arrays["x"]))
        binding.bind_ortvalue_output("y", self.output)
        return partial(session.run_with_iobinding, binding)

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        return (self.output.numpy(),)


class OpenVino(Library):
    """An inference request on tensors that share memory with the arrays."""

    name = distribution = "openvino"

    def __init__(self, threads: int):
        import onnx  # noqa: F401
        import openvino

        super().__init__(threads)
        self.openvino = openvino
        self.core = openvino.Core()

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        if (model := onnx_model(case, arrays)) is None:
            return None
        options = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        request = self.core.compile_model(self.core.read_model(model), "CPU", options).create_infer_request()
        self.output = np.empty(case.out_shape, np.float32)
        request.set_input_tensor(self.openvino.Tensor(arrays["x"], shared_memory=True))
        request.set_output_tensor(self.openvino.Tensor(self.output, shared_memory=True))
        return partial(request.infer, share_outputs=True)

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        return (self.output,)


class Ncnn(Library):
    """The faster of one extraction for each image, which is what its kernels know best, and one for the batch."""

    name = distribution = "ncnn"

    def __init__(self, threads: int):
        import ncnn

        super().__init__(threads)
        self.ncnn = ncnn

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        if case.direction != "forward" or case.suite == "operators":
            return None
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = case.kernel, case.stride, case.padding, case.dilation
        if case.op == "conv2d":
            kind = "ConvolutionDepthWise" if case.groups > 1 else "Convolution"
            options = {1: kw, 11: kh, 2: dw, 12: dh, 3: sw, 13: sh, 4: pw, 14: ph}
            options |= {0: case.oc, 5: 1, 6: arrays["weight"].size, 7: case.groups}
        elif case.op == "relu":
            kind, options = "ReLU", {}
        else:
            kind, options = "Pooling", {1: kw, 11: kh, 2: sw, 12: sh, 3: pw, 13: ph, 5: 1}
            options |= {0: 1, 6: 1} if case.op == "avg_pool2d" else {}
        layer = " ".join([kind, "layer 1 1 x y", *(f"{key}={value}" for key, value in options.items())])
        net = self.ncnn.Net()
        net.opt.num_threads = self.threads
        for name in dir(net.opt):
            if name.startswith(("use_fp16", "use_bf16", "use_int8", "use_vulkan")):
                setattr(net.opt, name, False)
        net.load_param_mem(f"7767517\n2 2\nInput x 0 1 x\n{layer}\n")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "weights.bin")
            with open(path, "wb") as file:
                if case.op == "conv2d":  # a tag, which says float32, and the weights; the bias has no tag
                    file.write(bytes(4) + arrays["weight"].tobytes() + arrays["bias"].tobytes())
            net.load_model(path)

        def extract(image):
            extractor = net.create_extractor()
            extractor.input("x", image)
            return extractor.extract("y")[1]

        images = [self.ncnn.Mat(image).clone() for image in arrays["x"]]  # in ncnn's memory: it may work in place
        batch = self.ncnn.Mat(arrays["x"], 0).clone()
        return fastest([lambda: [extract(image) for image in images], lambda: extract(batch)])

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        images = result if isinstance(result, list) else [result.batch(i) for i in range(result.n)]
        return (np.stack([np.array(image) for image in images]),)


class Mnn(Library):
    """A session on the converted ONNX model: its converter is what makes weights constant and Winograd possible."""

    name, distribution = "MNN", "MNN"

    def __init__(self, threads: int):
        with _silent():
            import _tools  # MNN's converter; importing it as MNN.tools would install telemetry with pip
            import MNN
            import onnx  # noqa: F401

        super().__init__(threads)
        self.mnn, self.convert = MNN, _tools.mnnconvert

    def prepare(self, case: Case | Network, arrays: Arrays) -> Call | None:
        if (model := onnx_model(case, arrays)) is None:
            return None
        with tempfile.TemporaryDirectory() as folder, _silent():
            source, target = (os.path.join(folder, name) for name in ("case.onnx", "case.mnn"))
            with open(source, "wb") as file:
                file.write(model)
            before = os.getcwd()
            os.chdir(folder)  # where the converter puts its temporary files
            try:
                self.convert(["", "-f", "ONNX", "--modelFile", source, "--MNNModel", target, "--bizCode", "fastconv"])
            finally:
                os.chdir(before)
            interpreter = self.mnn.Interpreter(target)
            session = interpreter.createSession({"backend": "CPU", "precision": "high", "numThread": self.threads})
        x = self.mnn.Tensor(case.x_shape, self.mnn.Halide_Type_Float, arrays["x"], self.mnn.Tensor_DimensionType_Caffe)
        bound = interpreter.getSessionInput(session)
        self.output, self.shape = interpreter.getSessionOutput(session), case.out_shape

        def run():
            bound.copyFrom(x)  # the session overwrites its inputs
            interpreter.runSession(session)

        return run

    def outputs(self, result: Any) -> tuple[NDArray, ...]:
        return (np.array(self.output.getNumpyData()).reshape(self.shape),)


@contextmanager
def _silent() -> Iterator[None]:
    """Send what compiled code prints to the null device."""
    with open(os.devnull, "wb") as null:
        kept = [os.dup(1), os.dup(2)]
        try:
            for descriptor in (1, 2):
                os.dup2(null.fileno(), descriptor)
            yield
        finally:
            ctypes.CDLL(None).fflush(None)
            for descriptor, copy in enumerate(kept, 1):
                os.dup2(copy, descriptor)
                os.close(copy)


PEERS: dict[str, Callable[[int], Library]] = {
    "torch": PyTorch,
    "torch channels_last": partial(PyTorch, channels_last=True),
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ncnn": Ncnn,
    "MNN": Mnn,
}


def installed_peers(threads: int) -> list[Library]:
    """Make every peer that is installed."""
    found = []
    for make in PEERS.values():
        try:
            found.append(make(threads))
        except ImportError:
            continue
    return found
