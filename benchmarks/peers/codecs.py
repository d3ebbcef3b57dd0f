"""Every way to take telephone audio to a model's rate and back that people use from Python.

Each is called as its documentation or its best-known user calls it: bytes in, bytes out, a 20 ms
chunk at a time, with its state kept between chunks where it has any. G.711 around a peer is
``audioop``'s where there is one (the standard library's up to Python 3.12, audioop-lts after) and
ours where not, which is the cheaper of the two.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import importlib.util
import json
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

import codec
from codec._kernels import use_avx2

Convert = Callable[[bytes], bytes]
ConvertAsync = Callable[[bytes], Coroutine[Any, Any, bytes]]


@dataclass(frozen=True, slots=True)
class Direction:
    """One way through the codec."""

    name: str
    input_rate_hz: int
    output_rate_hz: int


CALLER = Direction("caller", 8000, 16000)
AGENT = Direction("agent", 24000, 8000)
DIRECTIONS = (CALLER, AGENT)


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to do the job."""

    key: str
    label: str
    open_resampler: Callable[[Direction], Convert]
    """A new stream of 16-bit PCM, on which quality is measured."""
    open_converter: Callable[[Direction], Convert | ConvertAsync]
    """A new stream with G.711 at its telephone end, which is what is timed."""
    prepare: Callable[[], object] = lambda: None
    """To be called before each use."""


def find_peers() -> tuple[list[Peer], list[str]]:
    """All peers that can run here, ours first; and what to install for those that cannot."""
    peers, absent = [], []
    for _, needs, find in _FAMILIES:
        try:
            peers += find()
        except ImportError:
            absent.append(needs)
    return peers, absent


def find_peer(key: str) -> Peer:
    """One peer, importing nothing of the others."""
    for prefix, _, find in _FAMILIES:
        if key.startswith(prefix):
            return next(peer for peer in find() if peer.key == key)
    raise ValueError(f"there is no peer {key!r}")


def _import(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # audioop announces that it will leave
        return importlib.import_module(name)


def _with_g711(key: str, label: str, open_resampler: Callable[[Direction], Convert]) -> Peer:
    """A peer that only resamples, between G.711 as found."""
    decode, encode = codec.decode_mulaw, codec.encode_mulaw
    if importlib.util.find_spec("audioop"):
        audioop = _import("audioop")

        def decode(payload: bytes) -> bytes:
            return audioop.ulaw2lin(payload, 2)

        def encode(pcm: bytes) -> bytes:
            return audioop.lin2ulaw(pcm, 2)

    def open_converter(direction: Direction) -> Convert:
        resample = open_resampler(direction)
        if direction is CALLER:
            return lambda payload: resample(decode(payload))
        return lambda pcm: encode(resample(pcm))

    return Peer(key, label, open_resampler, open_converter)


# ---- Ours ----


def _offhook() -> Iterator[Peer]:
    def open_resampler(direction: Direction) -> Convert:
        return codec.Resampler(direction.input_rate_hz, direction.output_rate_hz).resample

    def open_converter(direction: Direction) -> Convert:
        if direction is CALLER:
            return codec.MulawDecoder(direction.output_rate_hz).decode
        return codec.MulawEncoder(direction.input_rate_hz).encode

    def use_best() -> None:
        use_avx2(True)

    def use_baseline() -> None:
        use_avx2(False)

    best = use_avx2(True)
    yield Peer("offhook", f"offhook ({best})", open_resampler, open_converter, use_best)
    if best == "avx2":
        label = "offhook (plain x86-64)"
        yield Peer("offhook_baseline", label, open_resampler, open_converter, use_baseline)


# ---- Theirs ----


def _audioop_peers() -> Iterator[Peer]:
    audioop = _import("audioop")

    def open_stateless(direction: Direction) -> Convert:
        input_rate_hz, output_rate_hz = direction.input_rate_hz, direction.output_rate_hz
        return lambda pcm: audioop.ratecv(pcm, 2, 1, input_rate_hz, output_rate_hz, None)[0]

    def open_stateful(direction: Direction) -> Convert:
        input_rate_hz, output_rate_hz = direction.input_rate_hz, direction.output_rate_hz
        state = None

        def resample(pcm: bytes) -> bytes:
            nonlocal state
            pcm, state = audioop.ratecv(pcm, 2, 1, input_rate_hz, output_rate_hz, state)
            return pcm

        return resample

    yield _with_g711("audioop", "audioop, as most bridges call it", open_stateless)
    yield _with_g711("audioop_state", "audioop, state kept", open_stateful)


def _soxr_peers() -> Iterator[Peer]:
    numpy, soxr = _import("numpy"), _import("soxr")

    def opener(quality: str) -> Callable[[Direction], Convert]:
        def open_resampler(direction: Direction) -> Convert:
            stream = soxr.ResampleStream(
                direction.input_rate_hz, direction.output_rate_hz, 1, "int16", quality
            )

            def resample(pcm: bytes) -> bytes:
                return stream.resample_chunk(numpy.frombuffer(pcm, numpy.int16)).tobytes()

            return resample

        return open_resampler

    for quality in ("QQ", "LQ", "MQ", "HQ", "VHQ"):
        yield _with_g711(f"soxr_{quality.lower()}", f"soxr stream {quality}", opener(quality))


def _pipecat_peers() -> Iterator[Peer]:
    audioop = _import("audioop")
    resamplers = _import("pipecat.audio.resamplers.soxr_stream_resampler")

    def open_async(direction: Direction) -> ConvertAsync:
        # It clears its state after 0.2 s without audio, by the clock: not here, where audio
        # is measured as fast as it can be, with other peers in between.
        stream = resamplers.SOXRStreamAudioResampler(clear_after_secs=None)
        rates = (direction.input_rate_hz, direction.output_rate_hz)

        async def decode(payload: bytes) -> bytes:
            return await stream.resample(audioop.ulaw2lin(payload, 2), *rates)

        async def encode(pcm: bytes) -> bytes:
            return audioop.lin2ulaw(await stream.resample(pcm, *rates), 2)

        return decode if direction is CALLER else encode

    def open_resampler(direction: Direction) -> Convert:
        stream = resamplers.SOXRStreamAudioResampler(clear_after_secs=None)
        rates = (direction.input_rate_hz, direction.output_rate_hz)
        return lambda pcm: finish(stream.resample(pcm, *rates))

    yield Peer("pipecat", "pipecat's default (soxr VHQ)", open_resampler, open_async)


def finish(coroutine: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of a coroutine that never really waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("it waited")


def _pyav_peers() -> Iterator[Peer]:
    av = _import("av")

    def open_resampler(direction: Direction) -> Convert:
        resampler = av.AudioResampler(format="s16", layout="mono", rate=direction.output_rate_hz)
        given = 0

        def resample(pcm: bytes) -> bytes:
            nonlocal given
            frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
            frame.sample_rate = direction.input_rate_hz
            frame.pts = given
            frame.planes[0].update(pcm)
            given += frame.samples
            frames = resampler.resample(frame)
            return b"".join([bytes(out.planes[0])[: 2 * out.samples] for out in frames])

        return resample

    yield _with_g711("pyav", "PyAV AudioResampler", open_resampler)


def _speexdsp_peers() -> Iterator[Peer]:
    """Called through ctypes, because no binding on PyPI builds: that adds about 1 us."""
    name = ctypes.util.find_library("speexdsp")
    if name is None:
        raise ImportError("libspeexdsp")
    library = ctypes.CDLL(name)
    library.speex_resampler_init.restype = ctypes.c_void_p
    library.speex_resampler_destroy.argtypes = [ctypes.c_void_p]
    process = library.speex_resampler_process_int
    process.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
    ]

    def opener(quality: int) -> Callable[[Direction], Convert]:
        def open_resampler(direction: Direction) -> Convert:
            rates = (direction.input_rate_hz, direction.output_rate_hz)
            error = ctypes.c_int()
            state = library.speex_resampler_init(1, *rates, quality, ctypes.byref(error))
            taken, given = ctypes.c_uint32(), ctypes.c_uint32()
            taken_at, given_at = ctypes.addressof(taken), ctypes.addressof(given)

            def resample(pcm: bytes) -> bytes:
                taken.value = len(pcm) // 2
                given.value = room = 2 * len(pcm)
                out = ctypes.create_string_buffer(2 * room)
                process(state, 0, pcm, taken_at, out, given_at)
                return out.raw[: 2 * given.value]

            weakref.finalize(resample, library.speex_resampler_destroy, state)
            return resample

        return open_resampler

    for quality in (3, 5, 10):
        yield _with_g711(f"speexdsp_q{quality}", f"speexdsp q{quality} (ctypes)", opener(quality))


def _samplerate_peers() -> Iterator[Peer]:
    numpy, samplerate = _import("numpy"), _import("samplerate")

    def opener(kind: str) -> Callable[[Direction], Convert]:
        def open_resampler(direction: Direction) -> Convert:
            stream = samplerate.Resampler(kind, channels=1)
            ratio = direction.output_rate_hz / direction.input_rate_hz

            def resample(pcm: bytes) -> bytes:
                samples = numpy.frombuffer(pcm, numpy.int16).astype(numpy.float32)
                out = stream.process(samples, ratio)
                return numpy.clip(numpy.rint(out), -32768, 32767).astype(numpy.int16).tobytes()

            return resample

        return open_resampler

    for kind in ("linear", "sinc_fastest", "sinc_medium", "sinc_best"):
        yield _with_g711(f"samplerate_{kind}", f"samplerate {kind}", opener(kind))


def _scipy_peers() -> Iterator[Peer]:
    numpy, signal = _import("numpy"), _import("scipy.signal")
    filters = json.loads((resources.files("codec") / "filters.json").read_text("ascii"))

    def to_pcm(samples: Any) -> bytes:
        return numpy.clip(numpy.rint(samples), -32768, 32767).astype(numpy.int16).tobytes()

    def open_stateless(direction: Direction) -> Convert:
        rates = (direction.output_rate_hz // 8000, direction.input_rate_hz // 8000)
        return lambda pcm: to_pcm(
            signal.resample_poly(numpy.frombuffer(pcm, numpy.int16).astype(float), *rates)
        )

    def open_with_history(direction: Direction) -> Convert:
        up, down = direction.output_rate_hz // 8000, direction.input_rate_hz // 8000
        taps = up * numpy.array(filters[str(max(up, down))])
        past = len(taps) // up - 1
        held = numpy.zeros(past)

        def resample(pcm: bytes) -> bytes:
            nonlocal held
            held = numpy.concatenate([held, numpy.frombuffer(pcm, numpy.int16)])
            groups = (len(held) - past) // down
            # Output 0 belongs to the last input of the first new group.
            first = past + down - 1
            out = signal.upfirdn(taps, held[first % down :], up, down)
            out = out[first // down * up :][: groups * up]
            held = held[groups * down :]
            return to_pcm(out)

        return resample

    yield _with_g711("scipy_resample_poly", "scipy resample_poly, per chunk", open_stateless)
    yield _with_g711("scipy_upfirdn", "scipy upfirdn, our taps", open_with_history)


# By the beginning of their keys, and what each needs.
_FAMILIES: tuple[tuple[str, str, Callable[[], Iterator[Peer]]], ...] = (
    ("offhook", "", _offhook),
    ("audioop", "audioop-lts", _audioop_peers),
    ("soxr", "soxr", _soxr_peers),
    ("pipecat", "pipecat-ai", _pipecat_peers),
    ("pyav", "av", _pyav_peers),
    ("speexdsp", "the speexdsp shared library", _speexdsp_peers),
    ("samplerate", "samplerate", _samplerate_peers),
    ("scipy", "scipy", _scipy_peers),
)
