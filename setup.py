"""Build of the one extension, ``fastconv._kernels``; everything else is in ``pyproject.toml``."""

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Contraction and freedom from errno and traps are what vectorised loops need. Not -ffast-math, which breaks NaN, nor
# -march=native: each file in src/micro names its own target, and the CPU chooses among them at import. No debugging
# information: of kernels that are inlined hundreds of times it is a third of a build's time.  Loops start with a cache
# line: where a change elsewhere moves them off it, Winograd's products lose a tenth of their speed on Zen 3.
CFLAGS = [
    *("-O3", "-g0", "-falign-functions=64", "-falign-loops=64"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"),
]

OPENMP_PROGRAM = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
OPENMP_FLAGS = (["-Xpreprocessor", "-fopenmp"], ["-lomp"]) if sys.platform == "darwin" else (["-fopenmp"], ["-fopenmp"])

kernels = Extension(
    "fastconv._kernels",
    sources=["src/_kernels.pyx", *sorted(glob("src/micro/*.c"))],
    include_dirs=["src/micro", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"), ("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION")],
    depends=["setup.py", *sorted(glob("src/**/*.h", recursive=True) + glob("src/**/*.px[di]", recursive=True))],
    libraries=["m"],
    extra_compile_args=CFLAGS,
)


class BuildExt(build_ext):
    """Adds OpenMP where it is, and compiles the sources of the extension side by side."""

    def build_extensions(self):
        if self.compiler.compiler_type == "msvc":
            sys.exit("fastconv is written in GCC vector extensions: build it with gcc or clang")
        if self.has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args += OPENMP_FLAGS[0]
                extension.extra_link_args += OPENMP_FLAGS[1]
        else:
            self.warn("fastconv: this compiler has no OpenMP: building for ONE THREAD (see README.md, Threads)")
        self.compile_in_parallel()
        super().build_extensions()

    def has_openmp(self):
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "openmp.c")
            source.write_text(OPENMP_PROGRAM)
            try:
                objects = self.compiler.compile([str(source)], output_dir=directory, extra_postargs=OPENMP_FLAGS[0])
                self.compiler.link_executable(objects, str(Path(directory, "openmp")), extra_postargs=OPENMP_FLAGS[1])
            except Exception:  # setuptools has moved its CompileError and LinkError about
                return False
        return True

    def compile_in_parallel(self):
        compile_in_turn = self.compiler.compile

        def compile_all(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                objects = pool.map(lambda source: compile_in_turn([source], **options), sources)
                return [path for paths in objects for path in paths]

        self.compiler.compile = compile_all


setup(ext_modules=cythonize([kernels]), cmdclass={"build_ext": BuildExt})
