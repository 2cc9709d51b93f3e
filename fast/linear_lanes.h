/* spec/linear.md: products with stored weights, in vectors of any width. The file of a level
 * includes this behind kernels.h, lanes.h and its decoders:
 *
 *     FP8_FACTOR              see decode_fp8
 *     ARRANGE_FP4             the table's arrange
 *     widen_bytes             LANES bytes as integers
 *     decode_bf16, decode_f16 LANES weights
 *     decode_fp8              4 LANES codes, FP8_FACTOR times too small. What becomes of NaN is
 *                             free
 *     decode_fp4              a block of 32, in the order of ARRANGE_FP4
 *     larger_codes            the larger of each place of two lanes_codes
 *     total                   the sum of all lanes
 *
 * One output is summed in one order wherever it is computed: the weights of a row are decoded
 * exactly, scale included, to vectors that follow one another along the row; lane l of each goes to
 * partial sum l, by one chain of multiply-adds; the partial sums are added at the end (total). A
 * last vector that is not full is filled up with zeros. How many rows and tokens are in hand at
 * once is free. */
#ifndef DSV4_FAST_LINEAR_LANES_H
#define DSV4_FAST_LINEAR_LANES_H

/* How much is held in registers: what is unrolled has to be known to the compiler. */
#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* not in every kernel again */
#define UNROLL _Pragma("GCC unroll 16")

enum {
    FEW = 4,              /* tokens up to which weights are decoded in registers, never stored */
    GROUP = 4,            /* rows at once, for few tokens */
    MOST = 8,             /* vectors of a step, at most */
    TILE_ROWS = LANES == 16 ? 4 : 3,   /* of decoded rows, for many tokens */
    TILE_TOKENS = LANES == 16 ? 6 : 4, /* 16 registers hold 3 x 4 sums, 32 hold 4 x 6 */
    PANEL = 32768,        /* decoded values that are kept at a time: 128 KB */
    STAGGER = 16          /* values between decoded rows: they fall into different cache sets */
};

/* ---- weights one by one: ends of rows, and scales at the ends of their range ---- */

static float number(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* quant.e8m0.1 */
static float decode_scale(int code)
{
    return code == 0 ? 0x1p-127f : code == 255 ? number(0x7fc00000) : number((uint32_t)code << 23);
}

/* quant.e4m3.1 */
static float decode_code(int code)
{
    float magnitude = number((uint32_t)(code & 0x7f) << 20) * 0x1p120f;
    if ((code & 0x7f) == 0x7f)
        return number(0x7fc00000);
    return (code & 0x80) != 0 ? -magnitude : magnitude;
}

static float half_number(uint32_t bits)
{
    float magnitude = number((bits & 0x7fff) << 13) * 0x1p112f;
    if ((bits & 0x7c00) == 0x7c00)
        magnitude = number(0x7f800000 | (bits & 0x3ff) << 13);
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

static int64_t row_bytes(const dsv4_matrix *w)
{
    switch (w->dtype) {
    case DSV4_F32:
        return 4 * w->cols;
    case DSV4_BF16:
    case DSV4_F16:
        return 2 * w->cols;
    case DSV4_F8_E4M3:
        return w->cols;
    default:
        return w->cols / 2;
    }
}

static const unsigned char *row_data(const dsv4_matrix *w, int64_t row)
{
    return (const unsigned char *)w->data + row * row_bytes(w);
}

/* quant.fp8.1 */
static const uint8_t *fp8_scales(const dsv4_matrix *w, int64_t row)
{
    return w->scale + row / 128 * ((w->cols + 127) / 128);
}

/* One weight; not of FP4, where nothing is left over (checkpoint.storage.2). */
static float weight_at(const dsv4_matrix *w, bool as_bf16, int64_t row, int64_t col)
{
    const unsigned char *data = row_data(w, row);
    uint16_t half;
    float value;
    switch (w->dtype) {
    case DSV4_F32:
        memcpy(&value, data + 4 * col, 4);
        break;
    case DSV4_F8_E4M3:
        value = decode_code(data[col]) * decode_scale(fp8_scales(w, row)[col / 128]);
        break;
    default:
        memcpy(&half, data + 2 * col, 2);
        value = w->dtype == DSV4_BF16 ? number((uint32_t)half << 16) : half_number(half);
    }
    return as_bf16 ? lanes_bf16_one(value) : value;
}

/* Weights [first, cols) of a row, filled up with zeros to a whole vector. */
APART void decode_rest(const dsv4_matrix *w, bool as_bf16, int64_t row, int64_t first, float *out)
{
    int64_t count = w->cols - first;
    for (int64_t i = 0; i < count; i++)
        out[i] = weight_at(w, as_bf16, row, first + i);
    for (; count % LANES != 0; count++)
        out[count] = 0;
}

/* ---- weights in vectors ---- */

/* Whether a row's products of code and scale can be formed in vectors: FP8_FACTOR must not carry a
 * scale out of binary32, and rounding them to bf16 must change none. A bf16 number is a multiple of
 * 2^-133 and a code one of 2^-9. NaN counts as out of range. Scales of FP4 are always fine. */
static bool plain_scales(const fast_product *p, int64_t row)
{
    if (p->w->dtype != DSV4_F8_E4M3)
        return true;
    const uint8_t *scales = fp8_scales(p->w, row);
    int lowest = p->as_bf16 ? 3 : 0;
    for (int64_t i = 0; i < (p->w->cols + 127) / 128; i++)
        if (scales[i] > 246 || scales[i] < lowest)
            return false;
    return true;
}

static int64_t scale_count(const dsv4_matrix *w)
{
    if (w->dtype == DSV4_I8)
        return w->cols / 32;
    return w->dtype == DSV4_F8_E4M3 ? (w->cols + 127) / 128 : 0;
}

/* Room for the scales of a row: whole vectors. */
static int64_t scale_room(const dsv4_matrix *w)
{
    return (scale_count(w) + LANES - 1) / LANES * LANES;
}

/* The scales of a row as numbers; 2^-127 is subnormal, and NaN becomes infinite: its products will
 * not be finite either way. */
static void decode_scales(const dsv4_matrix *w, int64_t row, float *out)
{
    int64_t count = scale_count(w), i = 0;
    const uint8_t *scales =
        w->dtype == DSV4_I8 ? w->scale + row * (w->cols / 32) : fp8_scales(w, row);
    float factor = w->dtype == DSV4_I8 ? 1 : FP8_FACTOR;
    for (; i + LANES <= count; i += LANES) {
        lanes_int bits = widen_bytes(scales + i) << 23, least = {0};
        least += 0x00400000;
        lanes_store(out + i, lanes_select(bits > least, (lanes)bits, (lanes)least) * factor);
    }
    for (; i < count; i++)
        out[i] = (scales[i] == 255 ? number(0x7f800000) : decode_scale(scales[i])) * factor;
}

/* Weights that are decoded at once. */
INLINE int step_of(dsv4_dtype dtype)
{
    return dtype == DSV4_I8 ? 32 : dtype == DSV4_F8_E4M3 ? 4 * LANES : 2 * LANES;
}

INLINE int step_bytes(dsv4_dtype dtype)
{
    return dtype == DSV4_I8 ? 16 : dtype == DSV4_F8_E4M3 ? 4 * LANES
                                 : dtype == DSV4_F32     ? 8 * LANES : 4 * LANES;
}

/* Step `step` of a row -> step_of(dtype) / LANES vectors; FP8 as it is without scales where there are
 * none. linear.plain.1, linear.grouped.2 */
INLINE void decode_step(dsv4_dtype dtype, bool as_bf16, const unsigned char *data,
                        const float *scales, int64_t step, lanes w[MOST])
{
    data += step * step_bytes(dtype);
    if (dtype == DSV4_I8) {
        decode_fp4(data, scales[step], w);
        return;
    }
    if (dtype == DSV4_F8_E4M3) {
        decode_fp8(data, w);
        if (scales != NULL)
            UNROLL for (int j = 0; j < 4; j++)
                w[j] *= lanes_all(scales[step * 4 * LANES / 128]);
        return;
    }
    UNROLL for (int j = 0; j < 2; j++) {
        if (dtype == DSV4_F32)
            memcpy(&w[j], data + 4 * LANES * j, sizeof w[j]);
        else
            w[j] = dtype == DSV4_BF16 ? decode_bf16(data + 2 * LANES * j)
                                      : decode_f16(data + 2 * LANES * j);
        if (as_bf16 && dtype != DSV4_BF16)
            w[j] = lanes_bf16(w[j]);
    }
}

/* Whether one of the codes of an FP8 row is NaN: decode_fp8 does not look. */
static bool has_nan(const unsigned char *codes, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if ((codes[i] & 0x7f) == 0x7f)
            return true;
    return false;
}

/* Twice a code, without its sign, is 254 for NaN alone: the largest of each place. */
INLINE lanes_codes see_codes(lanes_codes seen, const unsigned char *codes)
{
    lanes_codes v;
    memcpy(&v, codes, sizeof v);
    return larger_codes(seen, v + v);
}

APART bool seen_nan(lanes_codes seen)
{
    lanes_int nan = (lanes_int)(seen == 254);
    int32_t any = 0;
    for (int i = 0; i < LANES; i++)
        any |= nan[i];
    return any != 0;
}

APART bool row_has_nan(const dsv4_matrix *w, int64_t row)
{
    if (w->dtype != DSV4_F8_E4M3)
        return false;
    const unsigned char *codes = row_data(w, row);
    lanes_codes seen = {0};
    int64_t i = 0;
    for (; i + 4 * LANES <= w->cols; i += 4 * LANES)
        seen = see_codes(seen, codes + i);
    return seen_nan(seen) || has_nan(codes + i, w->cols - i);
}

/* ---- results ---- */

/* linear.round.1, linear.f32.1 */
static inline void put(const fast_product *p, int64_t row, int64_t t, float y)
{
    p->y[t * p->y_stride + row - p->first] = p->round ? lanes_bf16_one(y) : y;
}

/* A vector of which `count` values are left. */
APART lanes load_end(const float *x, int64_t count)
{
    return count >= LANES ? lanes_load(x) : lanes_load_some(x, count, 0);
}

/* ---- few tokens: weights go from memory to registers ---- */

INLINE void fetch_ahead(const unsigned char *next, int bytes, int64_t step)
{
    UNROLL for (int i = 0; i < bytes; i += 64)
        __builtin_prefetch(next + step * bytes + i, 0, 2);
}

/* Rows row .. row + rows - 1, tokens t .. t + tokens - 1: `rows` and `tokens` are constants.
 * scales [rows, scale_room]; NULL where x has them. */
INLINE void dots(const fast_product *p, dsv4_dtype dtype, bool as_bf16, int rows, int tokens,
                 int64_t row, int64_t t, const float *scales)
{
    const dsv4_matrix *m = p->w;
    const int count = step_of(dtype) / LANES;
    const int64_t steps = m->cols / step_of(dtype), room = scale_room(m);
    const unsigned char *data[GROUP];
    const float *x[FEW];
    lanes sum[GROUP][FEW], w[MOST];
    lanes_codes seen[GROUP];
    UNROLL for (int r = 0; r < rows; r++) {
        data[r] = row_data(m, row + r);
        seen[r] = (lanes_codes){0};
        UNROLL for (int i = 0; i < tokens; i++)
            sum[r][i] = (lanes){0};
    }
    UNROLL for (int i = 0; i < tokens; i++)
        x[i] = p->x + (t + i) * p->x_stride;
    const unsigned char *next = fast_ahead(data[0], rows * row_bytes(m));
    for (int64_t s = 0; s < steps; s++) {
        if (rows > 1)
            fetch_ahead(next, rows * step_bytes(dtype), s);
        UNROLL for (int r = 0; r < rows; r++) {
            decode_step(dtype, as_bf16, data[r], scales == NULL ? NULL : scales + r * room, s, w);
            if (dtype == DSV4_F8_E4M3)
                seen[r] = see_codes(seen[r], data[r] + s * step_bytes(dtype));
            UNROLL for (int j = 0; j < count; j++)
                UNROLL for (int i = 0; i < tokens; i++)
                    sum[r][i] = lanes_fma(w[j], lanes_load(x[i] + s * step_of(dtype) + j * LANES),
                                          sum[r][i]);
        }
    }
    const int64_t done = steps * step_of(dtype), left = m->cols - done;
    lanes_codes seen_anywhere = seen[0];
    UNROLL for (int r = 1; r < rows; r++)
        seen_anywhere = larger_codes(seen_anywhere, seen[r]);
    const bool look = dtype == DSV4_F8_E4M3 && (left > 0 || seen_nan(seen_anywhere));
    UNROLL for (int r = 0; r < rows; r++) {
        if (left > 0) {
            float rest[4 * LANES];
            decode_rest(m, as_bf16, row + r, done, rest);
            for (int64_t j = 0; j < left; j += LANES)
                UNROLL for (int i = 0; i < tokens; i++)
                    sum[r][i] = lanes_fma(lanes_load(rest + j), load_end(x[i] + done + j, left - j),
                                          sum[r][i]);
        }
        bool bad = look && (seen_nan(seen[r]) || has_nan(data[r] + done, left));
        UNROLL for (int i = 0; i < tokens; i++)
            put(p, row + r, t + i, bad ? number(0x7fc00000) : total(sum[r][i]));
    }
}

#define DOTS(name, dtype, as_bf16) DOTS_BY(name, dtype, as_bf16, scales_of_rows)
#define DOTS_BY(name, dtype, as_bf16, scales) \
    static void name(const fast_product *p, int rows, int tokens, int64_t row, int64_t t, \
                     const float *scales_of_rows) \
    { \
        (void)scales_of_rows; \
        if (rows == 1) \
            dots(p, dtype, as_bf16, 1, 1, row, t, scales); \
        else if (tokens == 1) \
            dots(p, dtype, as_bf16, GROUP, 1, row, t, scales); \
        else if (tokens == 2) \
            dots(p, dtype, as_bf16, GROUP, 2, row, t, scales); \
        else \
            dots(p, dtype, as_bf16, GROUP, 4, row, t, scales); \
    }
DOTS(dots_f32, DSV4_F32, false)
DOTS(dots_f32_as_bf16, DSV4_F32, true)
DOTS(dots_bf16, DSV4_BF16, false)
DOTS(dots_f16, DSV4_F16, false)
DOTS(dots_f16_as_bf16, DSV4_F16, true)
DOTS(dots_fp8, DSV4_F8_E4M3, false)
DOTS_BY(dots_fp8_without, DSV4_F8_E4M3, false, NULL)
DOTS(dots_fp4, DSV4_I8, false)

typedef void dots_function(const fast_product *, int, int, int64_t, int64_t, const float *);

static dots_function *dots_for(const fast_product *p)
{
    switch (p->w->dtype) {
    case DSV4_F32:
        return p->as_bf16 ? dots_f32_as_bf16 : dots_f32;
    case DSV4_BF16:
        return dots_bf16;
    case DSV4_F16:
        return p->as_bf16 ? dots_f16_as_bf16 : dots_f16;
    case DSV4_F8_E4M3:
        return dots_fp8;
    default:
        return dots_fp4;
    }
}

/* ---- many tokens: weights are decoded once, a panel of rows at a time ---- */

/* INLINE with a constant dtype. */
INLINE void decode_steps(const fast_product *p, dsv4_dtype dtype, bool as_bf16, int64_t row,
                         const float *scales, float *out)
{
    const int count = step_of(dtype) / LANES;
    const unsigned char *data = row_data(p->w, row);
    lanes w[MOST];
    for (int64_t s = 0; s < p->w->cols / step_of(dtype); s++) {
        decode_step(dtype, as_bf16, data, scales, s, w);
        UNROLL for (int j = 0; j < count; j++)
            lanes_store(out + s * step_of(dtype) + j * LANES, w[j]);
    }
}

/* A row -> out, filled up to a whole vector; scales: scratch. */
static void decode_row(const fast_product *p, int64_t row, float *scales, float *out)
{
    const dsv4_matrix *w = p->w;
    if (!plain_scales(p, row)) {
        decode_rest(w, p->as_bf16, row, 0, out);
        return;
    }
    if (w->scale != NULL)
        decode_scales(w, row, scales);
    switch (w->dtype) {
    case DSV4_F32:
        if (p->as_bf16)
            decode_steps(p, DSV4_F32, true, row, scales, out);
        else
            decode_steps(p, DSV4_F32, false, row, scales, out);
        break;
    case DSV4_BF16:
        decode_steps(p, DSV4_BF16, false, row, scales, out);
        break;
    case DSV4_F16:
        if (p->as_bf16)
            decode_steps(p, DSV4_F16, true, row, scales, out);
        else
            decode_steps(p, DSV4_F16, false, row, scales, out);
        break;
    case DSV4_F8_E4M3:
        decode_steps(p, DSV4_F8_E4M3, false, row, scales, out);
        break;
    default:
        decode_steps(p, DSV4_I8, false, row, scales, out);
    }
    int64_t done = w->cols / step_of(w->dtype) * step_of(w->dtype);
    if (done < w->cols)
        decode_rest(w, p->as_bf16, row, done, out + done);
    if (row_has_nan(w, row))
        out[0] = number(0x7fc00000);
}

static int64_t panel_stride(const dsv4_matrix *w)
{
    return (w->cols + LANES - 1) / LANES * LANES + STAGGER;
}

static int64_t panel_rows(const dsv4_matrix *w)
{
    int64_t rows = PANEL / panel_stride(w) / TILE_ROWS * TILE_ROWS;
    return rows > TILE_ROWS ? rows : TILE_ROWS;
}

/* Decoded rows w [rows, stride], the first being row `row`, and tokens t .. t + tokens - 1: `rows`
 * and `tokens` are constants. */
INLINE void tile(const fast_product *p, const float *w, int rows, int tokens, int64_t row,
                 int64_t t)
{
    const int64_t cols = p->w->cols, stride = panel_stride(p->w), whole = cols / LANES * LANES;
    const float *x = p->x + t * p->x_stride;
    lanes sum[TILE_ROWS][TILE_TOKENS], v[TILE_ROWS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int i = 0; i < tokens; i++)
            sum[r][i] = (lanes){0};
    for (int64_t k = 0; k < whole; k += LANES) {
        UNROLL for (int r = 0; r < rows; r++)
            v[r] = lanes_load(w + r * stride + k);
        UNROLL for (int i = 0; i < tokens; i++) {
            lanes input = lanes_load(x + i * p->x_stride + k);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][i] = lanes_fma(v[r], input, sum[r][i]);
        }
    }
    UNROLL for (int i = 0; i < tokens; i++) {
        lanes input = {0};
        if (whole < cols)
            input = load_end(x + i * p->x_stride + whole, cols - whole);
        UNROLL for (int r = 0; r < rows; r++) {
            if (whole < cols)
                sum[r][i] = lanes_fma(lanes_load(w + r * stride + whole), input, sum[r][i]);
            put(p, row + r, t + i, total(sum[r][i]));
        }
    }
}

/* The last tile may be narrower. */
INLINE void tiles(const fast_product *p, const float *w, int rows, int64_t tokens, int64_t row,
                  int64_t t)
{
    switch (tokens) {
    case 1:
        tile(p, w, rows, 1, row, t);
        break;
    case 2:
        tile(p, w, rows, 2, row, t);
        break;
    case 3:
        tile(p, w, rows, 3, row, t);
        break;
#if LANES == 16
    case 4:
        tile(p, w, rows, 4, row, t);
        break;
    case 5:
        tile(p, w, rows, 5, row, t);
        break;
#endif
    default:
        tile(p, w, rows, TILE_TOKENS, row, t);
    }
}

static void tiles_of_many(const fast_product *p, const float *w, int64_t tokens, int64_t row,
                          int64_t t)
{
    tiles(p, w, TILE_ROWS, tokens, row, t);
}

static void tiles_of_one(const fast_product *p, const float *w, int64_t tokens, int64_t row,
                         int64_t t)
{
    tiles(p, w, 1, tokens, row, t);
}

/* Rows [begin, end), at most a panel. */
static void panel(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    const int64_t stride = panel_stride(p->w);
    float *scales = scratch, *w = scratch + scale_room(p->w);
    for (int64_t row = begin; row < end; row++)
        decode_row(p, row, scales, w + (row - begin) * stride);
    for (int64_t t = 0; t < p->T; t += TILE_TOKENS) {
        int64_t tokens = p->T - t < TILE_TOKENS ? p->T - t : TILE_TOKENS, row = begin;
        for (; row + TILE_ROWS <= end; row += TILE_ROWS)
            tiles_of_many(p, w + (row - begin) * stride, tokens, row, t);
        for (; row < end; row++)
            tiles_of_one(p, w + (row - begin) * stride, tokens, row, t);
    }
}

/* ---- the table ---- */

static bool group_is_plain(const fast_product *p, int64_t row, int rows)
{
    return plain_scales(p, row) && plain_scales(p, row + rows - 1); /* of two blocks at most */
}

/* The scales of FP8 go to 128 rows alike: it is less work to multiply x by them. Products are powers of
 * two times what they were, and sums the same, if that loses nothing: x times the scales of rows like
 * `row` -> out [T, cols], false where it does. */
static bool scale_inputs(const fast_product *p, int64_t row, float *scales, float *out)
{
    const int64_t cols = p->w->cols;
    decode_scales(p->w, row, scales);
    for (int64_t t = 0; t < p->T; t++, out += cols) {
        lanes_int lost = {0};
        for (int64_t i = 0; i < cols; i += LANES) {
            lanes x = lanes_load(p->x + t * p->x_stride + i), y = x * scales[i / 128];
            lanes_store(out + i, y);
            lost |= y * (1 / scales[i / 128]) != x;
        }
        for (int i = 0; i < LANES; i++)
            if (lost[i] != 0)
                return false;
    }
    return true;
}

/* Rows [begin, end) of one block of rows; the rows that are left are the caller's, who is told the
 * first of them. scratch: see linear_scratch_size. */
static int64_t few_tokens_of_block(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    float *x = scratch + scale_room(p->w);
    fast_product scaled = *p;
    scaled.x = x;
    scaled.x_stride = p->w->cols;
    if (end - begin < 2 * GROUP || !plain_scales(p, begin) || !scale_inputs(p, begin, scratch, x))
        return begin;
    for (; begin + GROUP <= end; begin += GROUP) {
        int tokens;
        for (int64_t t = 0; t < p->T; t += tokens) {
            int64_t left = p->T - t;
            tokens = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            dots_fp8_without(&scaled, GROUP, tokens, begin, t, NULL);
        }
    }
    return begin;
}

static void few_tokens(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    dots_function *const function = dots_for(p);
    const int64_t room = scale_room(p->w);
    const bool in_blocks = p->w->dtype == DSV4_F8_E4M3 && p->w->cols % step_of(p->w->dtype) == 0;
    int rows;
    for (int64_t row = begin; row < end; row += rows) {
        if (in_blocks) {
            int64_t last = (row / 128 + 1) * 128;
            row = few_tokens_of_block(p, row, last < end ? last : end, scratch);
            if (row == end)
                break;
        }
        rows = row + GROUP <= end ? GROUP : 1;
        if (!group_is_plain(p, row, rows)) {
            panel(p, row, row + 1, scratch);
            rows = 1;
            continue;
        }
        if (room > 0)
            for (int r = 0; r < rows; r++)
                decode_scales(p->w, row + r, scratch + r * room);
        int tokens;
        for (int64_t t = 0; t < p->T; t += tokens) {
            int64_t left = rows == 1 ? 1 : p->T - t;
            tokens = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            function(p, rows, tokens, row, t, scratch);
        }
    }
}

static void linear_product(const fast_product *p, int64_t begin, int64_t end, float *scratch)
{
    if (p->T <= FEW) {
        few_tokens(p, begin, end, scratch);
        return;
    }
    const int64_t rows = panel_rows(p->w);
    for (int64_t row = begin; row < end; row += rows)
        panel(p, row, row + rows < end ? row + rows : end, scratch);
}

static int64_t linear_scratch_size(const fast_product *p)
{
    const int64_t room = scale_room(p->w), stride = panel_stride(p->w);
    if (p->T <= FEW) /* a row of FP8 may need a panel, or x with scales */
        return GROUP * room + (p->w->dtype == DSV4_F8_E4M3 ? FEW : 1) * stride;
    return room + panel_rows(p->w) * stride;
}

const fast_linear_kernels LEVEL_NAME(fast_linear) = {
    .product = linear_product, .scratch_size = linear_scratch_size, .arrange = ARRANGE_FP4};

#endif
