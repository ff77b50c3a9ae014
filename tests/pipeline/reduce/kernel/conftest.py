"""The Triton kernel in Triton's interpreter."""

import importlib.util
import sys
from pathlib import Path

import pytest

from headatlas.pipeline import reduce as reduce_package


@pytest.fixture
def interpreter():
    """Import the kernel without the annotation checks, because Triton cannot read wrapped functions."""
    name = "headatlas.pipeline.reduce.triton_kernel"
    if importlib.util.find_spec("triton") is not None and not hasattr(sys.modules.get(name), "_without_import_hook"):
        path = Path(reduce_package.__path__[0]) / "triton_kernel.py"
        spec = importlib.util.spec_from_file_location(name, path)  # bypasses the hook that checks annotations
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module._without_import_hook = True
        reduce_package.triton_kernel = module
