/* spec/core_attn.md: one block of the softmax over entries, and its end, for the heads of an item.
 *
 * Both products are tiled over heads, so that an entry is loaded once for several of them; but a
 * logit is one chain of additions along d, and a value of the output one along the entries,
 * whatever the tile: a head gets the same bits in any company. */

/* Tiles: of the logits DOT_HEADS x 4 sums, of the output SUM_HEADS x SUM_LANES vectors. */
enum { BLOCK = 64, GROUP = 8, DOT_HEADS = LANES == 4 ? 2 : LANES / 4, DOT_ENTRIES = 4 };
enum { FOLD = LANES / 4, SUM_HEADS = 4, SUM_LANES = LANES == 16 ? 4 : 2 };

#define UNROLL _Pragma("GCC unroll 16")

/* ---- logits ---- */

/* A vector holds numbers in parts, each number in as many bits as the name says: the first half of
 * every number of a and b plus its second half, numbers of a before those of b (below 128 bits:
 * within each 128). */
#if LANES == 16
static inline lanes halve_512(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
                                   31);
}

static inline lanes halve_256(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30,
                                   31);
}

static inline lanes halve_128(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                   31);
}

static inline lanes halve_64(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28,
                                   30) +
           __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29,
                                   31);
}

/* Four numbers, each in four partial sums that stand together. */
static inline lanes quarters(const lanes (*v)[DOT_ENTRIES], int entry)
{
    return halve_256(halve_512(v[0][entry], v[1][entry]), halve_512(v[2][entry], v[3][entry]));
}
#elif LANES == 8
static inline lanes halve_128(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13) +
           __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
}

static inline lanes halve_64(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 2, 8, 10, 4, 6, 12, 14) +
           __builtin_shufflevector(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

static inline lanes quarters(const lanes (*v)[DOT_ENTRIES], int entry)
{
    return __builtin_shufflevector(v[0][entry], v[1][entry], 0, 1, 2, 3, 8, 9, 10, 11) +
           __builtin_shufflevector(v[0][entry], v[1][entry], 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
static inline lanes halve_128(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

static inline lanes halve_64(lanes a, lanes b)
{
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
}

static inline lanes quarters(const lanes (*v)[DOT_ENTRIES], int entry)
{
    return v[0][entry];
}
#endif

/* The sums of the lanes of v [FOLD heads, 4 entries], head by head. Halves are added first, as
 * lanes_sum() does it. */
static inline lanes fold(const lanes (*v)[DOT_ENTRIES])
{
    lanes first = halve_128(quarters(v, 0), quarters(v, 1));
    lanes second = halve_128(quarters(v, 2), quarters(v, 3));
    return halve_64(first, second);
}

/* sum[h][j] += q[h] e[j], one vector of each. */
static inline __attribute__((always_inline)) void multiply(const lanes *q, const lanes *e,
                                                           lanes (*sum)[DOT_ENTRIES])
{
    UNROLL
    for (int h = 0; h < DOT_HEADS; h++) {
        UNROLL
        for (int j = 0; j < DOT_ENTRIES; j++)
            sum[h][j] = lanes_fma(q[h], e[j], sum[h][j]);
    }
}

/* q[h] . e[j] -> product [DOT_HEADS, 4] */
static inline __attribute__((always_inline)) void dot_tile(const float *const *q,
                                                           const float *const *e, int64_t d,
                                                           float *product)
{
    lanes sum[DOT_HEADS][DOT_ENTRIES], a[DOT_HEADS], b[DOT_ENTRIES];
    int64_t i = 0;
    UNROLL
    for (int h = 0; h < DOT_HEADS; h++) {
        UNROLL
        for (int j = 0; j < DOT_ENTRIES; j++)
            sum[h][j] = (lanes){0};
    }
    for (; i + LANES <= d; i += LANES) {
        UNROLL
        for (int j = 0; j < DOT_ENTRIES; j++)
            b[j] = lanes_load(e[j] + i);
        UNROLL
        for (int h = 0; h < DOT_HEADS; h++)
            a[h] = lanes_load(q[h] + i);
        multiply(a, b, sum);
    }
    if (i < d) {
        UNROLL
        for (int j = 0; j < DOT_ENTRIES; j++)
            b[j] = lanes_load_some(e[j] + i, d - i, 0);
        UNROLL
        for (int h = 0; h < DOT_HEADS; h++)
            a[h] = lanes_load_some(q[h] + i, d - i, 0);
        multiply(a, b, sum);
    }
    UNROLL
    for (int h = 0; h < DOT_HEADS; h += FOLD)
        lanes_store(product + h * DOT_ENTRIES, fold((const lanes (*)[DOT_ENTRIES])sum + h));
}

/* Logits of entries first .. first + 3 and of heads head .. head + DOT_HEADS - 1 -> logit [heads,
 * BLOCK]. Where there are fewer, the last one stands in for the missing ones. core_attn.logit.1 */
static void some_logits(const fast_softmax *s, int64_t head, const float *const *e, int64_t first,
                        int64_t count, float *logit)
{
    const float *keys[DOT_ENTRIES], *q[DOT_HEADS];
    float product[DOT_HEADS * DOT_ENTRIES];
    for (int64_t j = 0; j < DOT_ENTRIES; j++)
        keys[j] = e[first + j < count ? first + j : count - 1];
    for (int64_t h = 0; h < DOT_HEADS; h++)
        q[h] = s->q + (head + h < s->heads ? head + h : s->heads - 1) * s->d;
    dot_tile(q, keys, s->d, product);
    for (int64_t h = 0; h < DOT_HEADS && head + h < s->heads; h++)
        for (int64_t j = 0; j < DOT_ENTRIES; j++)
            logit[(head + h) * BLOCK + first + j] = product[h * DOT_ENTRIES + j] * s->scale;
}

/* A group of entries stays in the first cache while all heads take it. */
static void logits(const fast_softmax *s, const float *const *e, int64_t count, float *logit)
{
    for (int64_t group = 0; group < count; group += GROUP)
        for (int64_t head = 0; head < s->heads; head += DOT_HEADS)
            for (int64_t j = group; j < group + GROUP && j < count; j += DOT_ENTRIES)
                some_logits(s, head, e, j, count, logit);
}

/* ---- probabilities ---- */

static inline float exp_one(float x)
{
    return lanes_exp(lanes_all(x))[0];
}

/* Logits of one head -> p, in place, what is behind `count` being 0; returns the factor for what
 * there was before. core_attn.block.2, core_attn.block.3 */
static float probabilities(const fast_softmax *s, int64_t head, int64_t count, float *p)
{
    for (int64_t j = count; j < BLOCK; j++)
        p[j] = -__builtin_inff();
    lanes largest = lanes_load(p), sum = {0};
    for (int j = LANES; j < BLOCK; j += LANES)
        largest = lanes_max(largest, lanes_load(p + j));
    float old = s->maximum[head], top = lanes_largest(largest);
    top = top > old ? top : old;
    for (int j = 0; j < BLOCK; j += LANES) {
        lanes x = lanes_exp(lanes_load(p + j) - top);
        sum += x;
        lanes_store(p + j, s->released ? lanes_bf16(x) : x);
    }
    float shrink = exp_one(old - top); /* 0 in the first block: there was nothing before */
    s->denominator[head] = s->denominator[head] * shrink + lanes_sum(sum);
    s->maximum[head] = top;
    return shrink;
}

/* ---- output ---- */

/* out = out shrink + sum_j p[j] e[j] for SUM_HEADS heads, SUM_LANES vectors from column `at` on. */
static void sum_tile(const float *const *e, int64_t count, const float *p, const float *shrink,
                     int64_t d, int64_t at, float *out)
{
    lanes sum[SUM_HEADS][SUM_LANES], value[SUM_LANES];
    UNROLL
    for (int h = 0; h < SUM_HEADS; h++) {
        UNROLL
        for (int v = 0; v < SUM_LANES; v++)
            sum[h][v] = lanes_load(out + h * d + at + v * LANES) * shrink[h];
    }
    for (int64_t j = 0; j < count; j++) {
        UNROLL
        for (int v = 0; v < SUM_LANES; v++)
            value[v] = lanes_load(e[j] + at + v * LANES);
        UNROLL
        for (int h = 0; h < SUM_HEADS; h++) {
            lanes weight = lanes_all(p[h * BLOCK + j]);
            UNROLL
            for (int v = 0; v < SUM_LANES; v++)
                sum[h][v] = lanes_fma(weight, value[v], sum[h][v]);
        }
    }
    UNROLL
    for (int h = 0; h < SUM_HEADS; h++) {
        UNROLL
        for (int v = 0; v < SUM_LANES; v++)
            lanes_store(out + h * d + at + v * LANES, sum[h][v]);
    }
}

/* The same for one head and `some` <= LANES columns: what is left beside the tiles. */
static void sum_rest(const float *const *e, int64_t count, const float *p, float shrink, int64_t at,
                     int64_t some, float *out)
{
    lanes sum = lanes_load_some(out + at, some, 0) * shrink;
    for (int64_t j = 0; j < count; j++) {
        lanes value = some == LANES ? lanes_load(e[j] + at) : lanes_load_some(e[j] + at, some, 0);
        sum = lanes_fma(lanes_all(p[j]), value, sum);
    }
    lanes_store_some(out + at, some, sum);
}

/* core_attn.block.2, core_attn.block.3. A strip of columns of all entries stays in the first cache
 * while all heads take it. */
static void sums(const fast_softmax *s, const float *const *e, int64_t count, const float *p,
                 const float *shrink)
{
    const int64_t strip = SUM_LANES * LANES;
    for (int64_t at = 0, width; at < s->d; at += width) {
        int64_t h = 0, rest = s->d - at;
        width = rest >= strip ? strip : rest < LANES ? rest : LANES;
        for (; width == strip && h + SUM_HEADS <= s->heads; h += SUM_HEADS)
            sum_tile(e, count, p + h * BLOCK, shrink + h, s->d, at, s->out + h * s->d);
        for (; h < s->heads; h++)
            for (int64_t i = 0; i < width; i += LANES)
                sum_rest(e, count, p + h * BLOCK, shrink[h], at + i,
                         width - i < LANES ? width - i : LANES, s->out + h * s->d);
    }
}

static void block(const fast_softmax *s, const float *const *e, int64_t count, float *scratch)
{
    float *p = scratch, *shrink = scratch + s->heads * BLOCK;
    logits(s, e, count, p);
    for (int64_t h = 0; h < s->heads; h++)
        shrink[h] = probabilities(s, h, count, p + h * BLOCK);
    sums(s, e, count, p, shrink);
}

/* core_attn.sink.1, core_attn.out.1 */
static void finish(const fast_softmax *s, const float *sink)
{
    for (int64_t h = 0; h < s->heads; h++) {
        float *out = s->out + h * s->d;
        float denominator = s->denominator[h] + exp_one(sink[h] - s->maximum[h]);
        int64_t i = 0;
        for (; i + LANES <= s->d; i += LANES) {
            lanes x = lanes_load(out + i) / denominator;
            lanes_store(out + i, s->released ? lanes_bf16(x) : x);
        }
        for (; i < s->d; i++) {
            float x = out[i] / denominator;
            out[i] = s->released ? lanes_bf16_one(x) : x;
        }
    }
}

const fast_core_attn_kernels LEVEL_NAME(fast_core_attn) = {.block = block, .finish = finish};
