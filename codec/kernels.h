/* The codec's inner loops in plain C: no Python, no allocation, no waiting.
 *
 * From top to bottom: G.711 as arithmetic on one sample; the loops over samples, which stand in
 * kernel_body.h and are compiled once per instruction set; the choice between them; streams.
 *
 * Every compiler and CPU gives the same bits. Each output is one chain of float32 products added
 * in a fixed order; a vector unit runs several such chains side by side, but never splits one.
 * What could break this is fused multiply-add, so setup.py turns contraction off.
 */
#ifndef OFFHOOK_KERNELS_H
#define OFFHOOK_KERNELS_H

#include <stddef.h>
#include <string.h>

#include "stream.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "PCM is little-endian here, in memory as on the wire"
#endif
#if defined(__FAST_MATH__)
#error "-ffast-math would give other bits on every machine"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0
#error "float32 has to be computed as float32: on 32-bit x86, add -msse2 -mfpmath=sse"
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif

#define INLINE static inline
#ifdef _MSC_VER
#include <intrin.h>
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif

/* Lags per row of taps, and groups filtered at a time: see filter() in kernel_body.h. */
#define LAGS 40
#define PAST (LAGS - 1)
#define TILE 40
/* Groups per turn of the main loop: 20 ms of a telephone line. The working arrays are on the stack
 * and so have to be bounded, whatever the size of the chunk. */
#define BLOCK 160
#define MOST_UP 6
#define MOST_DOWN 6

/* ---- Floats as bits ---- */

INLINE uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The nearest integer, ties to even, if |value| < 2^22: adding 1.5 * 2^23 leaves no room for a
 * fraction, so the sum's low bits are the integer. Only additions, so that it vectorises. */
INLINE int32_t nearest(float value)
{
    return (int32_t)(bits_of(value + 12582912.0f) - 0x4B400000u);
}

INLINE int32_t saturated(int32_t sample)
{
    return sample > 32767 ? 32767 : sample < -32768 ? -32768 : sample;
}

/* ---- PCM in memory: little-endian, perhaps at an odd address ---- */

INLINE int16_t pcm_sample(const char *pcm, ptrdiff_t i)
{
    int16_t sample;
    memcpy(&sample, pcm + 2 * i, sizeof sample);
    return sample;
}

INLINE void put_pcm_sample(char *pcm, ptrdiff_t i, int16_t sample)
{
    memcpy(pcm + 2 * i, &sample, sizeof sample);
}

/* ---- G.711 (signs and ties as in the ITU-T reference code, G.191) ----
 *
 * Both laws are a floating-point format: 3 bits of exponent and 4 of fraction. A float32 already
 * has them at bit 19, so no tables are needed, and the loops over samples vectorise.
 */

/* A magnitude of 2^7 and up as the float whose exponent and fraction are the code's seven bits;
 * half a step is added to reach the middle of the interval. */
INLINE float float_of_code(uint32_t seven_bits)
{
    return float_of((seven_bits << 19) + (134u << 23) + (1u << 18));
}

/* mu-law: the magnitude is biased by 33 steps of 4 so that no segment is special. */
INLINE float mulaw_value(uint8_t code)
{
    uint32_t plain = code ^ 0xFFu; /* sent inverted */
    float magnitude = float_of_code(plain & 0x7F) - 132.0f;
    return float_of(bits_of(magnitude) | (plain & 0x80) << 24);
}

INLINE uint8_t mulaw_code(int32_t sample)
{
    int32_t magnitude = ((sample < 0 ? ~sample : sample) >> 2) + 33;
    int32_t seven_bits;
    magnitude = magnitude > 8191 ? 8191 : magnitude;
    seven_bits = (int32_t)(bits_of((float)magnitude) >> 19) - (132 << 4);
    return (uint8_t)((sample < 0 ? 0x7F : 0xFF) - seven_bits);
}

/* A-law: no bias, so the lowest segment has no leading one and is linear. */
INLINE float alaw_value(uint8_t code)
{
    uint32_t plain = code ^ 0x55u; /* sent with the even bits inverted */
    float magnitude = float_of_code(plain & 0x7F);
    magnitude = magnitude < 256.0f ? 2.0f * magnitude - 256.0f : magnitude;
    return float_of(bits_of(magnitude) | (~plain & 0x80) << 24);
}

INLINE uint8_t alaw_code(int32_t sample)
{
    int32_t magnitude = (sample < 0 ? ~sample : sample) >> 4;
    int32_t segmented = (int32_t)(bits_of((float)magnitude) >> 19) - (130 << 4);
    int32_t seven_bits = magnitude < 16 ? magnitude : segmented;
    return (uint8_t)((seven_bits | (sample < 0 ? 0 : 0x80)) ^ 0x55);
}

/* ---- The limiter ---- */

/* 3/4 of full scale is left alone. Above, the curve bends smoothly and never gets to full scale.
 * A quotient, because a division gives the same bits everywhere and tanh() does not. */
#define KNEE 24576.0f
#define HEADROOM (32767.0f - KNEE)

INLINE float limited(float value)
{
    float magnitude = float_of(bits_of(value) & 0x7FFFFFFFu);
    float over = magnitude - KNEE;
    float bent = KNEE + HEADROOM * (over / (HEADROOM + over));
    magnitude = magnitude > KNEE ? bent : magnitude;
    return float_of(bits_of(magnitude) | (bits_of(value) & 0x80000000u));
}

/* ---- How much comes out ---- */

static ptrdiff_t stream_outputs(const Stream *stream, ptrdiff_t inputs)
{
    return (stream->carried + inputs) / stream->change->down * stream->change->up;
}

/* ---- The loops over samples, once per instruction set ---- */

#if defined(__SSE2__) || defined(_M_X64) || (defined(_M_IX86_FP) && _M_IX86_FP >= 2)
#include <immintrin.h>
#define BASELINE "baseline"
#define NAME(function) function##_baseline
#define LANES 4
#define VECTOR __m128
#define LOAD(p) _mm_loadu_ps(p)
#define STORE(p, v) _mm_storeu_ps(p, v)
#define ALL(x) _mm_set1_ps(x)
#define ADD_PRODUCT(sum, a, b) _mm_add_ps(sum, _mm_mul_ps(a, b))
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#define BASELINE "baseline"
#define NAME(function) function##_baseline
#define LANES 4
#define VECTOR float32x4_t
#define LOAD(p) vld1q_f32(p)
#define STORE(p, v) vst1q_f32(p, v)
#define ALL(x) vdupq_n_f32(x)
/* Not vmlaq_f32: compilers make a fused multiply-add of it. */
#define ADD_PRODUCT(sum, a, b) vaddq_f32(sum, vmulq_f32(a, b))
#else
#define BASELINE "plain"
#define NAME(function) function##_baseline
#define LANES 1
#define VECTOR float
#define LOAD(p) (*(p))
#define STORE(p, v) (*(p) = (v))
#define ALL(x) (x)
#define ADD_PRODUCT(sum, a, b) ((sum) + (a) * (b))
#endif
#include "kernel_body.h"

/* On Windows only for MSVC: GCC does not align the stack for 32-byte vectors there (its bug 54412),
 * and clang's headers hide the intrinsics. */
#if (defined(__x86_64__) && !defined(_WIN32)) || (defined(_M_X64) && !defined(__clang__))
#define HAVE_AVX2_KERNELS
#undef NAME
#undef LANES
#undef VECTOR
#undef LOAD
#undef STORE
#undef ALL
#undef ADD_PRODUCT
#define NAME(function) function##_avx2
#define LANES 8
#define VECTOR __m256
#define LOAD(p) _mm256_loadu_ps(p)
#define STORE(p, v) _mm256_storeu_ps(p, v)
#define ALL(x) _mm256_set1_ps(x)
#define ADD_PRODUCT(sum, a, b) _mm256_add_ps(sum, _mm256_mul_ps(a, b))
/* AVX2 but not FMA. MSVC needs no switch to emit AVX2 where intrinsics ask for it. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#include "kernel_body.h"
#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif
#endif

/* ---- The choice, made once at import ---- */

static ptrdiff_t (*convert)(Stream *, const void *, ptrdiff_t, void *) = convert_baseline;

/* Returns the name of the instruction set chosen. */
static const char *choose_kernels(int allow_avx2)
{
    convert = convert_baseline;
#ifdef HAVE_AVX2_KERNELS
    if (allow_avx2) {
#ifdef _MSC_VER
        int leaf_1[4], leaf_7[4];
        __cpuid(leaf_1, 1);
        __cpuidex(leaf_7, 7, 0);
        /* Bits 27 and 28: the system saves the wide registers, which XCR0 confirms; the CPU has
         * AVX. Then bit 5 of leaf 7: it has AVX2. */
        if ((leaf_1[2] >> 27 & 3) == 3 && (_xgetbv(0) & 6) == 6 && (leaf_7[1] >> 5 & 1))
#else
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2"))
#endif
        {
            convert = convert_avx2;
            return "avx2";
        }
    }
#endif
    (void)allow_avx2;
    return BASELINE;
}

/* ---- Streams ---- */

/* Every ratio among 8, 16, 24 and 48 kHz, filled in at import and then only read. */
#define RATE_CHANGES 9
#define TAP_ROWS 36
static RateChange rate_changes[RATE_CHANGES];
static float tap_rows[TAP_ROWS][LAGS];

static size_t stream_memory_bytes(const RateChange *change)
{
    return sizeof(float) * (size_t)(change->down * LAGS);
}

static void stream_reset(Stream *stream)
{
    memset(stream->memory, 0, stream_memory_bytes(stream->change));
    stream->carried = 0;
    stream->started = 0;
}

static ptrdiff_t stream_convert(
    Stream *stream, const void *input, ptrdiff_t inputs, void *output)
{
    return convert(stream, input, inputs, output);
}

/* Inputs that complete the group begun and let the last of it ring out. */
static ptrdiff_t tail_inputs(const Stream *stream)
{
    ptrdiff_t down = stream->change->down;
    if (!stream->started)
        return 0;
    return down * stream->change->tail + (down - stream->carried) % down;
}

static ptrdiff_t stream_tail_outputs(const Stream *stream)
{
    return stream_outputs(stream, tail_inputs(stream));
}

static void stream_flush(Stream *stream, void *output)
{
    static const int16_t silence[MOST_DOWN * LAGS];
    Stream before = *stream;
    stream->input = PCM16; /* A-law has no code for silence */
    stream_convert(stream, silence, tail_inputs(stream), output);
    stream->input = before.input;
    stream->chunk_energy = before.chunk_energy;
    stream->chunk_samples = before.chunk_samples;
    stream_reset(stream);
}

/* ---- G.711 alone ---- */

static void g711_decode(
    Format law, const uint8_t *RESTRICT payload, ptrdiff_t samples, char *RESTRICT pcm)
{
    ptrdiff_t i;
    if (law == MULAW)
        for (i = 0; i < samples; i++)
            put_pcm_sample(pcm, i, (int16_t)nearest(mulaw_value(payload[i])));
    else
        for (i = 0; i < samples; i++)
            put_pcm_sample(pcm, i, (int16_t)nearest(alaw_value(payload[i])));
}

static void g711_encode(
    Format law, const char *RESTRICT pcm, ptrdiff_t samples, uint8_t *RESTRICT payload)
{
    ptrdiff_t i;
    if (law == MULAW)
        for (i = 0; i < samples; i++)
            payload[i] = mulaw_code(pcm_sample(pcm, i));
    else
        for (i = 0; i < samples; i++)
            payload[i] = alaw_code(pcm_sample(pcm, i));
}

#endif
