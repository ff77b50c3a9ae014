"""Build steps that pyproject.toml cannot express: the packages of the four parts, and two compiled libraries.

The parts lie at the top level and are imported as `headatlas.pipeline` and so on; every folder with an `__init__.py`
below them is a package. The libraries are the CPU attention kernel and the loops of searches and of similar heads. They are optional:
without a C++ compiler the install continues, and torch operations and numpy serve instead. They contain plain C
functions for ctypes, no Python module, and choose the instruction set at run time, so no -march is given.
"""

from pathlib import Path

from setuptools import Extension, find_packages, setup

PARTS = ("pipeline", "store", "viewer", "configs")
CAPTURE_KERNEL = Path("pipeline/reduce/kernel")
EDGE_KERNEL = Path("store/queries/kernel")
COMPILE_ARGUMENTS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"]

setup(
    packages=[
        f"headatlas.{name}" for part in PARTS for name in (part, *(f"{part}.{sub}" for sub in find_packages(part)))
    ],
    package_dir={f"headatlas.{part}": part for part in PARTS},
    ext_modules=[
        Extension(
            "headatlas.pipeline.reduce.kernel._attention",
            sources=[str(CAPTURE_KERNEL / "attention.cpp")],
            depends=sorted(map(str, CAPTURE_KERNEL.glob("*.h"))),
            language="c++",
            extra_compile_args=[*COMPILE_ARGUMENTS, "-pthread"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
        Extension(
            "headatlas.store.queries.kernel._edges",
            sources=[str(EDGE_KERNEL / name) for name in ("edges.cpp", "divergence.cpp")],
            language="c++",
            extra_compile_args=COMPILE_ARGUMENTS,
            optional=True,
        ),
    ],
)
