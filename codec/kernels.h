/* The codec's inner loops in plain C: no Python, no allocation, no waiting. */
#ifndef OFFHOOK_KERNELS_H
#define OFFHOOK_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "stream.h"

/* Groups converted at a time, so that the working arrays fit on the stack whatever the chunk. */
#define BLOCK 320
#define MOST_DOWN 6
#define MOST_UP 6
#define MOST_LAGS 64

/* Every ratio among 8, 16, 24 and 48 kHz, filled in at import and then only read. */
#define RATE_CHANGES 9
#define COEFFICIENTS 1200
static RateChange rate_changes[RATE_CHANGES];
static float coefficient_pool[COEFFICIENTS];

/* ---- G.711 (ITU-T G.711; signs and ties as in the reference code of G.191) ---- */

static int16_t mulaw_to_pcm(uint8_t code)
{
    int32_t inverted = ~code & 0xFF;
    int32_t segment = (inverted >> 4) & 7;
    int32_t magnitude = ((((inverted & 0xF) << 1) + 33) << segment) - 33;
    return (int16_t)(4 * (inverted & 0x80 ? -magnitude : magnitude));
}

static uint8_t pcm_to_mulaw(int32_t sample)
{
    int32_t magnitude = ((sample < 0 ? ~sample : sample) >> 2) + 33;
    int32_t segment = 0;
    if (magnitude > 8191)
        magnitude = 8191;
    while (magnitude >> (segment + 6))
        segment++;
    return (uint8_t)((sample < 0 ? 0x7F : 0xFF) - ((segment << 4) | ((magnitude >> (segment + 1)) & 0xF)));
}

static int16_t alaw_to_pcm(uint8_t code)
{
    int32_t plain = code ^ 0x55;
    int32_t segment = (plain >> 4) & 7;
    int32_t magnitude = ((plain & 0xF) << 4) + 8;
    if (segment)
        magnitude = (magnitude + 256) << (segment - 1);
    return (int16_t)(plain & 0x80 ? magnitude : -magnitude);
}

static uint8_t pcm_to_alaw(int32_t sample)
{
    int32_t magnitude = (sample < 0 ? ~sample : sample) >> 4;
    int32_t segment = 0;
    while (magnitude >> (segment + 4))
        segment++;
    if (segment)
        magnitude = (segment << 4) | ((magnitude >> (segment - 1)) & 0xF);
    return (uint8_t)((magnitude | (sample < 0 ? 0 : 0x80)) ^ 0x55);
}

/* ---- One stream ---- */

static ptrdiff_t stream_outputs(const Stream *stream, ptrdiff_t inputs)
{
    return (stream->carried + inputs) / stream->change->down * stream->change->up;
}

static size_t stream_memory_bytes(const RateChange *change)
{
    return sizeof(float) * (size_t)(change->down * change->lags);
}

static void stream_reset(Stream *stream)
{
    const RateChange *change = stream->change;
    memset(stream->memory, 0, stream_memory_bytes(change));
    stream->carried = 0;
    stream->started = 0;
}

static float read_sample(Format format, const void *input, ptrdiff_t i)
{
    switch (format) {
    case MULAW:
        return mulaw_to_pcm(((const uint8_t *)input)[i]);
    case ALAW:
        return alaw_to_pcm(((const uint8_t *)input)[i]);
    default: {
        int16_t sample;
        memcpy(&sample, (const char *)input + 2 * i, 2);
        return sample;
    }
    }
}

static float soft_limit(float value)
{
    const float knee = 24576.0f, room = 32767.0f - 24576.0f;
    float size = value < 0 ? -value : value;
    if (size > knee) {
        float over = (size - knee) / room;
        size = knee + room * (over / (1.0f + over));
    }
    return value < 0 ? -size : size;
}

static void write_sample(Stream *stream, void *output, ptrdiff_t i, float value)
{
    int32_t sample;
    float rounded;
    uint32_t bits;
    value *= stream->gain;
    if (value > 32767.0f || value < -32768.0f)
        stream->clipped++;
    if (stream->gain != 1.0f)
        value = soft_limit(value);
    rounded = value + 12582912.0f;
    memcpy(&bits, &rounded, 4);
    sample = (int32_t)(bits - 0x4B400000u);
    sample = sample > 32767 ? 32767 : sample < -32768 ? -32768 : sample;
    switch (stream->output) {
    case MULAW:
        ((uint8_t *)output)[i] = pcm_to_mulaw(sample);
        break;
    case ALAW:
        ((uint8_t *)output)[i] = pcm_to_alaw(sample);
        break;
    default: {
        int16_t narrow = (int16_t)sample;
        memcpy((char *)output + 2 * i, &narrow, 2);
    }
    }
}

static ptrdiff_t stream_convert(Stream *stream, const void *input, ptrdiff_t inputs, void *output)
{
    const RateChange *change = stream->change;
    ptrdiff_t down = change->down, up = change->up, lags = change->lags, past = lags - 1;
    ptrdiff_t groups_left = (stream->carried + inputs) / down;
    ptrdiff_t taken = 0, written = 0;
    float line[MOST_DOWN][MOST_LAGS + BLOCK];
    float *carried = stream->memory + down * past;
    ptrdiff_t r, q, s, j, i;
    if (inputs == 0)
        return 0;
    stream->started = 1;
    stream->chunk_energy = 0;
    stream->chunk_samples = inputs;
    for (i = 0; i < inputs; i++) {
        double sample = read_sample(stream->input, input, i);
        stream->chunk_energy += sample * sample;
    }
    while (groups_left) {
        ptrdiff_t groups = groups_left < BLOCK ? groups_left : BLOCK;
        for (r = 0; r < down; r++)
            memcpy(line[r], stream->memory + r * past, sizeof(float) * (size_t)past);
        for (j = 0; j < groups; j++)
            for (r = 0; r < down; r++)
                line[r][past + j] = j == 0 && r < stream->carried
                                        ? carried[r]
                                        : read_sample(stream->input, input, taken++);
        stream->carried = 0;
        for (j = 0; j < groups; j++)
            for (q = 0; q < up; q++) {
                float sum = 0;
                const float *coefficient = change->coefficients + q * down * lags;
                for (r = 0; r < down; r++)
                    for (s = 0; s < lags; s++)
                        sum += *coefficient++ * line[r][past + j - s];
                write_sample(stream, output, written++, sum);
            }
        for (r = 0; r < down; r++)
            memcpy(stream->memory + r * past, line[r] + groups, sizeof(float) * (size_t)past);
        groups_left -= groups;
    }
    while (taken < inputs)
        carried[stream->carried++] = read_sample(stream->input, input, taken++);
    return written;
}

static ptrdiff_t stream_tail_inputs(const Stream *stream)
{
    ptrdiff_t down = stream->change->down;
    if (!stream->started)
        return 0;
    return down * (stream->change->lags - 1) + (down - stream->carried) % down;
}

static ptrdiff_t stream_flush_outputs(const Stream *stream)
{
    return stream_outputs(stream, stream_tail_inputs(stream));
}

static void stream_flush(Stream *stream, void *output)
{
    static const int16_t silence[MOST_DOWN * MOST_LAGS];
    Stream given = *stream;
    stream->input = PCM16; /* because A-law has no code for 0 */
    stream_convert(stream, silence, stream_tail_inputs(stream), output);
    stream->input = given.input;
    stream->chunk_energy = given.chunk_energy;
    stream->chunk_samples = given.chunk_samples;
    stream_reset(stream);
}

static void g711_decode(Format law, const uint8_t *payload, ptrdiff_t n, int16_t *pcm)
{
    ptrdiff_t i;
    for (i = 0; i < n; i++)
        pcm[i] = law == MULAW ? mulaw_to_pcm(payload[i]) : alaw_to_pcm(payload[i]);
}

static void g711_encode(Format law, const int16_t *pcm, ptrdiff_t n, uint8_t *payload)
{
    ptrdiff_t i;
    for (i = 0; i < n; i++)
        payload[i] = law == MULAW ? pcm_to_mulaw(pcm[i]) : pcm_to_alaw(pcm[i]);
}

#endif
