/* What a stream remembers between chunks. Only data: kernels.h has the code.
 *
 * A module that cimports codec._kernels includes this file and nothing else of the codec's C.
 */
#ifndef OFFHOOK_STREAM_H
#define OFFHOOK_STREAM_H

#include <stdint.h>

/* How one sample is written down at either end of a stream. */
typedef enum { PCM16, MULAW, ALAW } Format;

/* A change of rate by up/down as a table of taps, built once at import and then only read.
 *
 * Inputs are taken in groups of `down`, and each group gives `up` outputs. The inputs at the same
 * place of every group form one sub-stream, so that output q of all groups is a sum over
 * sub-streams r and lags s of coefficients[q][r][s] * sub_stream[r][group - s].
 */
typedef struct {
    int32_t up;
    int32_t down;
    int32_t lags;
    const float *coefficients; /* [up][down][lags] */
} RateChange;

typedef struct {
    const RateChange *change;
    Format input;
    Format output;
    float gain;          /* 1.0: none, and no limiter either */
    int32_t carried;     /* inputs waiting for the rest of their group: 0 to down - 1 */
    int32_t started;     /* something was converted since the last reset */
    float *memory;       /* down * (lags - 1) past inputs by sub-stream, then down - 1 carried ones */
    double chunk_energy; /* of the last chunk: its input samples squared and added up, ... */
    int64_t chunk_samples; /* ... and how many they were */
    int64_t clipped;     /* outputs since the last reset that needed more than full scale */
} Stream;

#endif
