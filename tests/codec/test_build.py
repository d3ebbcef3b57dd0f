"""Building the codec where something is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codec.tls import AVAILABLE
from tests.support.required import is_required

ROOT = Path(__file__).parents[2]
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="TLS in C is built on Linux only")


@ON_LINUX
@pytest.mark.skipif(not is_required("openssl"), reason="OpenSSL's headers need not be here")
def test_with_openssls_headers_tls_is_built():
    assert AVAILABLE


@ON_LINUX
@pytest.mark.slow
def test_without_openssls_headers_everything_but_tls_is_built(tmp_path):
    codec = tmp_path / "codec"
    codec.mkdir()
    for source in ("__init__.py", "_tls.pyx", "*.pxd", "*.h"):
        for file in (ROOT / "codec").glob(source):
            shutil.copy(file, codec)
    (codec / "_rest.pyx").write_text("answer = 42\n")
    shutil.copy(ROOT / "setup.py", tmp_path)
    headers = tmp_path / "include" / "openssl"
    headers.mkdir(parents=True)
    (headers / "err.h").write_text("#error nothing of OpenSSL is here\n")

    built = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tmp_path,
        env=os.environ | {"CFLAGS": f"-Wfatal-errors -I{headers.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "nothing of OpenSSL is here" in built.stderr, built.stderr
    assert built.returncode == 0, built.stderr
    assert [file.name.partition(".")[0] for file in codec.glob("*.so")] == ["_rest"]
