"""The one thing pyproject.toml cannot say in a stable way: the fused CPU kernel, compiled with the package.

`optional`: without a C++ compiler the install goes on, and torch operations serve (headatlas.pipeline.kernel.explain).
The library holds plain C functions for ctypes, no Python module; it chooses among instruction sets when it runs, so
no -march here.
"""

from setuptools import Extension, setup

FOLDER = "pipeline/kernel"

setup(
    ext_modules=[
        Extension(
            "headatlas.pipeline.kernel._attention",
            sources=[f"{FOLDER}/attention.cpp"],
            depends=[f"{FOLDER}/{name}.h" for name in ("call", "edges", "lanes", "products", "reduce", "vectors")],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", "-g0"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ]
)
