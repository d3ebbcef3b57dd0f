"""Build the Cython codec; everything else about the package stands in pyproject.toml.

``CYTHON_ANNOTATE=1 python setup.py build_ext --inplace`` writes an HTML page per extension that
shows which lines still touch Python objects. ``CODEC_CHECKED=1`` builds with bounds checks and, by
gcc and clang, with the address and undefined behaviour sanitizers; ``.ci/sanitize`` runs that.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

# No fused multiply-add: the codec's output is the same to the bit on every CPU and compiler.
# Nobody reads the floating-point exception flags, and loops that spare them do not vectorise.
COMPILE_ARGS = (
    ["/O2", "/fp:precise"]
    if sys.platform == "win32"
    else ["-O3", "-g0", "-ffp-contract=off", "-fno-trapping-math"]
)
LINK_ARGS: list[str] = []
CHECKED = bool(os.environ.get("CODEC_CHECKED"))
if CHECKED and sys.platform != "win32":
    SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    COMPILE_ARGS += ["-O1", "-g", "-fno-omit-frame-pointer", *SANITIZERS]
    LINK_ARGS += SANITIZERS

# Not everywhere: the only one that needs a library, OpenSSL, and only Linux has the media plane.
# Where it cannot be built the rest is whole without it, and Python's own TLS serves.
OPTIONAL = {"_tls": ["ssl", "crypto"]}
SOURCES = [
    source
    for source in sorted(Path("codec").glob("*.pyx"))
    if source.stem not in OPTIONAL or sys.platform == "linux"
]

EXTENSIONS = cythonize(
    [
        Extension(
            f"codec.{source.stem}",
            [source.as_posix()],
            depends=[header.as_posix() for header in sorted(Path("codec").glob("*.h"))],
            extra_compile_args=COMPILE_ARGS,
            extra_link_args=LINK_ARGS,
            libraries=OPTIONAL.get(source.stem, []),
        )
        for source in SOURCES
    ],
    language_level=3,
    annotate=bool(os.environ.get("CYTHON_ANNOTATE")),
    compiler_directives={
        "boundscheck": CHECKED,
        "wraparound": False,
        "cdivision": True,
        "embedsignature": True,
        "freethreading_compatible": True,
    },
)
for extension in EXTENSIONS:  # made anew by cythonize, which forgets this
    extension.optional = extension.name.rpartition(".")[2] in OPTIONAL

setup(ext_modules=EXTENSIONS)
