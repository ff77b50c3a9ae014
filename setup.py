"""What pyproject.toml cannot say in a stable way: two libraries that are compiled with the package.

They are the fused CPU kernel and the loop over stored edges. `optional`: without a C++ compiler the install goes on,
and torch operations (headatlas.pipeline.kernel.explain) and numpy serve. They hold plain C functions for ctypes, no
Python module, and choose among instruction sets when they run, so no -march here.
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
        ),
        Extension(
            "headatlas.store.search.kernel._edges",
            sources=["store/search/kernel/edges.cpp"],
            language="c++",
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"],
            optional=True,
        ),
    ]
)
