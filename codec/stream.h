/* What a stream remembers between chunks. Only data: the code is in kernels.h.
 *
 * A module that cimports codec._kernels includes this file and nothing else of the codec's C.
 */
#ifndef OFFHOOK_STREAM_H
#define OFFHOOK_STREAM_H

#include <stdint.h>

/* How the samples are written down at either end of a stream. */
typedef enum { PCM16, MULAW, ALAW } Format;

/* A change of rate by up/down as a table of taps, built once at import and then only read.
 *
 * Inputs are taken in groups of `down`, and each group gives `up` outputs. The inputs at the same
 * place r of every group form a sub-stream of their own, so that output q of all groups is
 *
 *     output[q][group] = sum over r and lag of tap[q][r][lag] * input[r][group - lag]
 *
 * which is the same sum for every group: a loop over groups that any vector unit can run.
 */
typedef struct {
    int32_t up;
    int32_t down;
    int32_t tail;      /* the largest lag: how many groups an input goes on ringing */
    const float *taps; /* up * down rows of LAGS, see kernels.h; NULL if up == down */
} RateChange;

typedef struct {
    const RateChange *change;
    Format input;
    Format output;
    float gain;            /* 1: samples are left alone, and not limited either */
    int32_t carried;       /* inputs waiting for the rest of their group: 0 to down - 1 */
    int32_t started;       /* something came in since the last reset */
    float *memory;         /* past inputs by sub-stream, then the carried ones */
    double chunk_energy;   /* of the last chunk: its inputs squared and added up, */
    int64_t chunk_samples; /* and how many they were */
    int64_t clipped;       /* outputs so far that needed more than full scale */
} Stream;

#endif
