/* The loops over samples for one instruction set. kernels.h includes this file once for each, with
 * NAME and the vector operations defined, and has the arithmetic on single samples.
 *
 * filter() is written with vectors, because no compiler finds its shape. The others are plain loops
 * that gcc, clang and MSVC vectorise by themselves, each with the instructions allowed here.
 */

/* ---- Samples in: to float32, in units of one 16-bit step ---- */

static void NAME(read)(
    Format format, const char *RESTRICT input, ptrdiff_t samples, float *RESTRICT line)
{
    ptrdiff_t i;
    switch (format) {
    case MULAW:
        for (i = 0; i < samples; i++)
            line[i] = mulaw_value((uint8_t)input[i]);
        break;
    case ALAW:
        for (i = 0; i < samples; i++)
            line[i] = alaw_value((uint8_t)input[i]);
        break;
    case PCM16:
        for (i = 0; i < samples; i++)
            line[i] = (float)pcm_sample(input, i);
        break;
    }
}

/* The sum of squares, for the level. In 16 sums side by side on every machine, so that the order
 * of the additions is always the same. */
static double NAME(energy)(const float *line, ptrdiff_t samples)
{
    float sums[16] = {0};
    double energy = 0;
    ptrdiff_t i, lane;
    for (i = 0; i + 16 <= samples; i += 16)
        for (lane = 0; lane < 16; lane++)
            sums[lane] += line[i + lane] * line[i + lane];
    for (; i < samples; i++)
        sums[i % 16] += line[i] * line[i];
    for (lane = 0; lane < 16; lane++)
        energy += sums[lane];
    return energy;
}

/* Deal the inputs of each group out to their sub-streams. `down` is a constant at every call, so
 * that the compiler knows the stride. */
INLINE void NAME(deal)(
    const float *RESTRICT line, ptrdiff_t groups, int down, float (*RESTRICT sub_streams)[PAST + BLOCK])
{
    int r;
    ptrdiff_t i;
    for (i = 0; i < groups; i++)
        for (r = 0; r < down; r++)
            sub_streams[r][PAST + i] = line[i * down + r];
}

/* ---- The filter ---- */

/* One output per group: sums[i] = sum over sub-streams and lags of tap * sub_stream[i - lag].
 *
 * 40 groups at a time make 5 vectors of sums, kept in registers. Lags are taken in the order 0, 8,
 * 16, 24, 32, 1, 9, ...: since lags 8 apart read the same vectors of input, shifted by one place, 9
 * loads serve 25 multiplications. A narrower machine does the same in 8 / LANES turns, each on its
 * part of every run of 8 groups.
 */
static void NAME(filter)(const float *RESTRICT taps, float (*RESTRICT sub_streams)[PAST + BLOCK],
    int down, ptrdiff_t groups, float *RESTRICT sums)
{
    ptrdiff_t i;
    int part, r, lag;
    for (i = 0; i < groups; i += TILE)
        for (part = 0; part < 8; part += LANES) {
            VECTOR sum_0 = ALL(0.0f), sum_1 = sum_0, sum_2 = sum_0, sum_3 = sum_0, sum_4 = sum_0;
            const float *tap = taps;
            for (r = 0; r < down; r++) {
                const float *now = sub_streams[r] + PAST + i + part;
                for (lag = 0; lag < 8; lag++, now--, tap += 5) {
                    VECTOR tap_0 = ALL(tap[0]), tap_1 = ALL(tap[1]), tap_2 = ALL(tap[2]);
                    VECTOR tap_3 = ALL(tap[3]), tap_4 = ALL(tap[4]), input;
                    input = LOAD(now + 32);
                    sum_4 = ADD_PRODUCT(sum_4, tap_0, input);
                    input = LOAD(now + 24);
                    sum_4 = ADD_PRODUCT(sum_4, tap_1, input);
                    sum_3 = ADD_PRODUCT(sum_3, tap_0, input);
                    input = LOAD(now + 16);
                    sum_4 = ADD_PRODUCT(sum_4, tap_2, input);
                    sum_3 = ADD_PRODUCT(sum_3, tap_1, input);
                    sum_2 = ADD_PRODUCT(sum_2, tap_0, input);
                    input = LOAD(now + 8);
                    sum_4 = ADD_PRODUCT(sum_4, tap_3, input);
                    sum_3 = ADD_PRODUCT(sum_3, tap_2, input);
                    sum_2 = ADD_PRODUCT(sum_2, tap_1, input);
                    sum_1 = ADD_PRODUCT(sum_1, tap_0, input);
                    input = LOAD(now);
                    sum_4 = ADD_PRODUCT(sum_4, tap_4, input);
                    sum_3 = ADD_PRODUCT(sum_3, tap_3, input);
                    sum_2 = ADD_PRODUCT(sum_2, tap_2, input);
                    sum_1 = ADD_PRODUCT(sum_1, tap_1, input);
                    sum_0 = ADD_PRODUCT(sum_0, tap_0, input);
                    input = LOAD(now - 8);
                    sum_3 = ADD_PRODUCT(sum_3, tap_4, input);
                    sum_2 = ADD_PRODUCT(sum_2, tap_3, input);
                    sum_1 = ADD_PRODUCT(sum_1, tap_2, input);
                    sum_0 = ADD_PRODUCT(sum_0, tap_1, input);
                    input = LOAD(now - 16);
                    sum_2 = ADD_PRODUCT(sum_2, tap_4, input);
                    sum_1 = ADD_PRODUCT(sum_1, tap_3, input);
                    sum_0 = ADD_PRODUCT(sum_0, tap_2, input);
                    input = LOAD(now - 24);
                    sum_1 = ADD_PRODUCT(sum_1, tap_4, input);
                    sum_0 = ADD_PRODUCT(sum_0, tap_3, input);
                    input = LOAD(now - 32);
                    sum_0 = ADD_PRODUCT(sum_0, tap_4, input);
                }
            }
            STORE(sums + i + part, sum_0);
            STORE(sums + i + part + 8, sum_1);
            STORE(sums + i + part + 16, sum_2);
            STORE(sums + i + part + 24, sum_3);
            STORE(sums + i + part + 32, sum_4);
        }
}

/* ---- Samples out ---- */

/* Gain and limiter, in place. Returns how many samples needed more than full scale. */
static int32_t NAME(amplify)(float gain, float *line, ptrdiff_t samples)
{
    int32_t clipped = 0;
    ptrdiff_t i;
    for (i = 0; i < samples; i++) {
        float value = gain * line[i];
        clipped += (value > 32767.0f) | (value < -32768.0f);
        line[i] = limited(value);
    }
    return clipped;
}

/* Round to 16 bits. Returns how many samples were held at full scale. The clamp is on integers:
 * compilers leave the same on floats scalar. */
static int32_t NAME(round)(const float *RESTRICT line, ptrdiff_t samples, int16_t *RESTRICT pcm)
{
    int32_t clipped = 0;
    ptrdiff_t i;
    for (i = 0; i < samples; i++) {
        int32_t sample = nearest(line[i]);
        clipped += sample != saturated(sample);
        pcm[i] = (int16_t)saturated(sample);
    }
    return clipped;
}

static void NAME(write)(Format format, int up, int16_t (*RESTRICT pcm)[BLOCK],
    ptrdiff_t groups, char *RESTRICT output)
{
    ptrdiff_t i;
    int q;
    switch (format) {
    case MULAW:
        for (i = 0; i < groups; i++)
            output[i] = (char)mulaw_code(pcm[0][i]);
        break;
    case ALAW:
        for (i = 0; i < groups; i++)
            output[i] = (char)alaw_code(pcm[0][i]);
        break;
    case PCM16:
        if (up == 1)
            memcpy(output, pcm[0], 2 * (size_t)groups);
        else if (up == 2)
            for (i = 0; i < groups; i++) {
                put_pcm_sample(output, 2 * i, pcm[0][i]);
                put_pcm_sample(output, 2 * i + 1, pcm[1][i]);
            }
        else
            for (i = 0; i < groups; i++)
                for (q = 0; q < up; q++)
                    put_pcm_sample(output, up * i + q, pcm[q][i]);
        break;
    }
}

/* ---- One chunk ---- */

/* Convert a chunk of any size, and return how many samples were written. */
static ptrdiff_t NAME(convert)(Stream *stream, const void *chunk, ptrdiff_t inputs, void *output)
{
    const RateChange *change = stream->change;
    const int up = change->up, down = change->down;
    const ptrdiff_t outputs = stream_outputs(stream, inputs);
    const char *unread = chunk;
    char *unwritten = output;
    float *carried = stream->memory + down * PAST;
    float line[MOST_DOWN * BLOCK];
    float sub_streams[MOST_DOWN][PAST + BLOCK];
    float sums[MOST_UP][BLOCK];
    int16_t pcm[MOST_UP][BLOCK];
    ptrdiff_t groups, groups_left = outputs / up, fresh;
    int q, r;

    if (inputs == 0)
        return 0;
    stream->started = 1;
    stream->chunk_energy = 0;
    stream->chunk_samples = inputs;
    for (; groups_left; groups_left -= groups) {
        groups = groups_left < BLOCK ? groups_left : BLOCK;

        /* In, after what the last chunk left over. */
        memcpy(line, carried, sizeof(float) * (size_t)stream->carried);
        fresh = groups * down - stream->carried;
        NAME(read)(stream->input, unread, fresh, line + stream->carried);
        stream->chunk_energy += NAME(energy)(line + stream->carried, fresh);
        unread += fresh * (stream->input == PCM16 ? 2 : 1);
        inputs -= fresh;
        stream->carried = 0;

        /* Through. */
        if (change->taps == NULL)
            memcpy(sums[0], line, sizeof(float) * (size_t)groups);
        else {
            const ptrdiff_t tiled = (groups + TILE - 1) / TILE * TILE;
            for (r = 0; r < down; r++) {
                memcpy(sub_streams[r], stream->memory + r * PAST, sizeof(float) * PAST);
                memset(sub_streams[r] + PAST + groups, 0, sizeof(float) * (size_t)(tiled - groups));
            }
            switch (down) {
            case 1: NAME(deal)(line, groups, 1, sub_streams); break;
            case 2: NAME(deal)(line, groups, 2, sub_streams); break;
            case 3: NAME(deal)(line, groups, 3, sub_streams); break;
            case 6: NAME(deal)(line, groups, 6, sub_streams); break;
            }
            for (q = 0; q < up; q++)
                NAME(filter)(change->taps + q * down * LAGS, sub_streams, down, tiled, sums[q]);
            for (r = 0; r < down; r++)
                memcpy(stream->memory + r * PAST, sub_streams[r] + groups, sizeof(float) * PAST);
        }

        /* Out. */
        for (q = 0; q < up; q++) {
            if (stream->gain != 1.0f)
                stream->clipped += NAME(amplify)(stream->gain, sums[q], groups);
            stream->clipped += NAME(round)(sums[q], groups, pcm[q]);
        }
        NAME(write)(stream->output, up, pcm, groups, unwritten);
        unwritten += groups * up * (stream->output == PCM16 ? 2 : 1);
    }

    /* What is left over of the chunk is less than a group. */
    NAME(read)(stream->input, unread, inputs, carried + stream->carried);
    stream->chunk_energy += NAME(energy)(carried + stream->carried, inputs);
    stream->carried += (int32_t)inputs;
    return outputs;
}
