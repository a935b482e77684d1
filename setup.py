"""The C passes of the loss, compiled where there is a C compiler; the rest is in pyproject.toml."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

FOLDER = "jolkernels/cpu"
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
AVX2 = ["-mavx2", "-mfma"]
VARIANTS = {"rows": [], "rows_avx2": AVX2, "rows_avx512": AVX2}  # native.py picks by processor
SOURCES = sorted(Path(FOLDER).glob("*.[ch]"))
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()[:16]

# Plain shared libraries, which ctypes loads: they need no headers of Python.
setup(
    ext_modules=[
        Extension(
            f"jolkernels.cpu.{name}",
            [f"{FOLDER}/{name}.c"],
            define_macros=[("SOURCE", f"0x{DIGEST}")],
            extra_compile_args=[*FLAGS, *vectors],
            libraries=["m"],
            depends=[*map(str, SOURCES), "setup.py"],
            optional=True,
        )
        for name, vectors in VARIANTS.items()
    ]
)
