"""Build the Cython codec; everything else about the package stands in pyproject.toml.

``CYTHON_ANNOTATE=1 python setup.py build_ext --inplace`` writes an HTML page per extension that
shows which lines still touch Python objects.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

# No fused multiply-add: the codec's output is the same to the bit on every CPU and compiler.
COMPILE_ARGS = (
    ["/O2", "/fp:precise"] if sys.platform == "win32" else ["-O3", "-g0", "-ffp-contract=off"]
)

setup(
    ext_modules=cythonize(
        [Extension("codec._kernels", ["codec/_kernels.pyx"], extra_compile_args=COMPILE_ARGS)],
        language_level=3,
        annotate=bool(os.environ.get("CYTHON_ANNOTATE")),
        compiler_directives={
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "embedsignature": True,
            "freethreading_compatible": True,
        },
    )
)
