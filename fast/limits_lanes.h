/* The limits of a level's vectors. */

enum { STREAMS = 8, AHEAD = 2048, LINE = 64 };

static uint64_t read_all(const void *from, size_t bytes)
{
    typedef uint64_t words __attribute__((vector_size(4 * LANES)));
    const unsigned char *p = from;
    words sum[STREAMS] = {0}, all = {0};
    for (size_t i = 0; i + sizeof sum <= bytes; i += sizeof sum) {
#pragma GCC unroll 8
        for (size_t line = 0; line < sizeof sum; line += LINE)
            __builtin_prefetch(p + i + AHEAD + line); /* beyond the end it does nothing */
#pragma GCC unroll 8
        for (int s = 0; s < STREAMS; s++) {
            words w;
            memcpy(&w, p + i + (size_t)s * sizeof w, sizeof w);
            sum[s] += w;
        }
    }
    for (int s = 0; s < STREAMS; s++)
        all += sum[s];
    uint64_t result = 0;
    for (size_t i = 0; i < sizeof all / sizeof result; i++)
        result += all[i];
    return result;
}

/* As many sums as are in progress at once; they stay in registers. */
enum { SUMS = LANES == 16 ? 16 : 12 };

static void multiply(int64_t rounds)
{
    volatile float start = 0.5f;
    lanes sum[SUMS], factor = lanes_all(start), term = lanes_all(start), all = {0};
    for (int s = 0; s < SUMS; s++)
        sum[s] = lanes_all(start);
    for (int64_t i = 0; i < rounds; i++)
#pragma GCC unroll 16
        for (int s = 0; s < SUMS; s++)
            sum[s] = lanes_fma(sum[s], factor, term);
    for (int s = 0; s < SUMS; s++)
        all += sum[s];
    volatile float sink = all[0];
    (void)sink;
}

static const fast_peak peaks[] = {
    {"fma_f32", LANES == 4 ? "FP32 multiply and add" : "FP32 FMA", 2.0 * LANES * SUMS, multiply}};
