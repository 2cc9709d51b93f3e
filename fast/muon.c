/* spec/muon.md: the optimiser's step for one weight matrix.
 *
 * In binary64: the iteration multiplies small singular values, and what rounding adds to them, with
 * 3.4^8. Every sum runs along its index in order, whatever the blocks and threads. */
#include "fast/fast.h"

#include <math.h>
#include <string.h>

/* A product is computed in tiles of TILE x TILE, each by one thread, DEPTH terms at a time; in
 * registers are HIGH x WIDE. */
enum { TILE = 64, DEPTH = 256, HIGH = 4, WIDE = 4 };

#define UNROLL _Pragma("GCC unroll 4")

typedef double pair __attribute__((vector_size(16)));

/* Y [m, n] = a X + L (scale R), L [m, depth]. Where `symmetric`, Y is: half of it is computed. */
typedef struct {
    int64_t m, n, depth;
    const double *L, *R; /* R [depth, n] or, where `turned`, [n, depth] */
    bool turned, symmetric;
    double scale, a;
    const double *X;     /* NULL: none */
    double *packed;      /* scale R in strips of WIDE columns, [depth, WIDE] each; zeros behind */
    double *Y;
} product;

static int64_t parts(int64_t n, int64_t size)
{
    return (n + size - 1) / size;
}

static void pack_strip(void *context, int64_t strip, int worker)
{
    const product *p = context;
    double *to = p->packed + strip * WIDE * p->depth;
    (void)worker;
    for (int64_t j = 0; j < WIDE; j++) {
        int64_t column = strip * WIDE + j;
        const double *from = column >= p->n ? NULL : p->R + column * (p->turned ? p->depth : 1);
        for (int64_t i = 0; i < p->depth; i++)
            to[i * WIDE + j] = from == NULL ? 0 : p->scale * from[i * (p->turned ? 1 : p->n)];
    }
}

/* sum[h] += row[h] times the strip, over `depth` terms. */
static void add_products(const double *const *row, const double *strip, int64_t depth,
                         double (*sum)[WIDE])
{
    pair s[HIGH][WIDE / 2];
    memcpy(s, sum, sizeof s);
    for (int64_t i = 0; i < depth; i++) {
        pair right[WIDE / 2];
        memcpy(right, strip + i * WIDE, sizeof right);
        UNROLL
        for (int h = 0; h < HIGH; h++) {
            pair left = {row[h][i], row[h][i]};
            UNROLL
            for (int j = 0; j < WIDE / 2; j++)
                s[h][j] += left * right[j];
        }
    }
    memcpy(sum, s, sizeof s);
}

/* Terms [from, to) of rows top .. top + HIGH - 1 and the columns of a strip. Where the matrix ends,
 * its last row stands in. */
static void add_small_tile(const product *p, int64_t top, int64_t strip, int64_t from, int64_t to)
{
    const double *row[HIGH];
    double sum[HIGH][WIDE] = {{0}};
    int64_t left = strip * WIDE, high = p->m - top < HIGH ? p->m - top : HIGH;
    int64_t wide = p->n - left < WIDE ? p->n - left : WIDE;
    for (int64_t h = 0; h < HIGH; h++)
        row[h] = p->L + (h < high ? top + h : p->m - 1) * p->depth + from;
    for (int64_t h = 0; h < high; h++)
        for (int64_t j = 0; j < wide; j++) {
            int64_t at = (top + h) * p->n + left + j;
            sum[h][j] = from > 0 ? p->Y[at] : p->X != NULL ? p->a * p->X[at] : 0;
        }
    add_products(row, p->packed + (strip * p->depth + from) * WIDE, to - from, sum);
    for (int64_t h = 0; h < high; h++)
        memcpy(p->Y + (top + h) * p->n + left, sum[h], (size_t)wide * sizeof sum[h][0]);
}

static void compute_tile(void *context, int64_t tile, int worker)
{
    const product *p = context;
    int64_t across = parts(p->n, TILE), top = tile / across * TILE, left = tile % across * TILE;
    int64_t bottom = top + TILE < p->m ? top + TILE : p->m;
    int64_t right = left + TILE < p->n ? left + TILE : p->n;
    (void)worker;
    if (p->symmetric && left < top)
        return;
    for (int64_t from = 0, to; from < p->depth; from = to) {
        to = from + DEPTH < p->depth ? from + DEPTH : p->depth;
        for (int64_t strip = left / WIDE; strip < parts(right, WIDE); strip++)
            for (int64_t i = top; i < bottom; i += HIGH)
                add_small_tile(p, i, strip, from, to);
    }
    if (p->symmetric && left > top)
        for (int64_t i = top; i < bottom; i++)
            for (int64_t j = left; j < right; j++)
                p->Y[j * p->n + i] = p->Y[i * p->n + j];
}

static void multiply(const fast_context *c, const product *p)
{
    product copy = *p;
    fast_pool_run(c->pool, parts(p->n, WIDE), pack_strip, &copy);
    fast_pool_run(c->pool, parts(p->m, TILE) * parts(p->n, TILE), compute_tile, &copy);
}

/* One step, and what it takes. X, Y [m, n], A, P [m, m], m <= n. muon.transpose.1 */
typedef struct {
    const fast_muon_options *options;
    int64_t rows, cols, m, n;
    const float *G;
    float *B, *M;
    double *X, *Y, *A, *P, *packed;
    double *squares; /* [rows] */
    double factor;
} step;

/* Y <- a X + (b A + c A A) X with A = X X^T; then X and Y change places. */
static void newton_schulz(const fast_context *context, step *s, double a, double b, double c)
{
    multiply(context, &(product){
        .m = s->m, .n = s->m, .depth = s->n, .L = s->X, .R = s->X, .turned = true,
        .symmetric = true, .scale = 1, .packed = s->packed, .Y = s->A});
    /* P = (b / c) A + A A, so that it is symmetric to the last bit; c comes with X. */
    multiply(context, &(product){
        .m = s->m, .n = s->m, .depth = s->m, .L = s->A, .R = s->A, .turned = true,
        .symmetric = true, .scale = 1, .a = b / c, .X = s->A, .packed = s->packed, .Y = s->P});
    multiply(context, &(product){
        .m = s->m, .n = s->n, .depth = s->m, .L = s->P, .R = s->X, .scale = c, .a = a, .X = s->X,
        .packed = s->packed, .Y = s->Y});
    double *made = s->Y;
    s->Y = s->X;
    s->X = made;
}

/* Where value [i, j] of the matrix stands in X. */
static int64_t place(const step *s, int64_t i, int64_t j)
{
    return s->rows > s->cols ? j * s->n + i : i * s->n + j;
}

static void momentum_row(void *context, int64_t i, int worker)
{
    const step *s = context;
    double mu = s->options->momentum, squares = 0;
    (void)worker;
    for (int64_t j = 0; j < s->cols; j++) {
        int64_t at = i * s->cols + j;
        double g = s->G[at], b = mu * s->B[at] + g; /* muon.momentum.1 */
        double u = g + mu * b;                      /* muon.nesterov.1 */
        s->B[at] = (float)b;
        s->X[place(s, i, j)] = u;
        squares += u * u;
    }
    s->squares[i] = squares;
}

static void scale_row(void *context, int64_t i, int worker)
{
    const step *s = context;
    (void)worker;
    for (int64_t j = 0; j < s->n; j++)
        s->X[i * s->n + j] *= s->factor;
}

/* muon.update.1 */
static void update_row(void *context, int64_t i, int worker)
{
    const step *s = context;
    double lr = s->options->learning_rate, keep = 1 - lr * s->options->weight_decay;
    double length = lr * s->options->rescale * sqrt((double)s->n);
    float *M = s->M + i * s->cols;
    (void)worker;
    for (int64_t j = 0; j < s->cols; j++)
        M[j] = (float)(M[j] * keep - length * s->X[place(s, i, j)]);
}

void fast_muon_step(const fast_context *c, const fast_muon_options *options, int64_t rows,
                    int64_t cols, const float *G, float *B, float *M)
{
    fast_place mark = fast_mark(c->memory);
    step s = {.options = options, .rows = rows, .cols = cols, .m = rows < cols ? rows : cols,
              .n = rows < cols ? cols : rows, .G = G, .B = B, .M = M};
    s.X = FAST_TAKE(c, double, s.m * s.n);
    s.Y = FAST_TAKE(c, double, s.m * s.n);
    s.A = FAST_TAKE(c, double, s.m * s.m);
    s.P = FAST_TAKE(c, double, s.m * s.m);
    s.packed = FAST_TAKE(c, double, (s.m + WIDE) * (s.n + WIDE));
    s.squares = FAST_TAKE(c, double, rows);
    fast_pool_run(c->pool, rows, momentum_row, &s);
    double squares = 0;
    for (int64_t i = 0; i < rows; i++)
        squares += s.squares[i];
    s.factor = squares > 0 ? 1 / sqrt(squares) : 1;
    fast_pool_run(c->pool, s.m, scale_row, &s); /* muon.orthogonal.1 */
    for (int i = 0; i < 8; i++)
        newton_schulz(c, &s, 3.4445, -4.7750, 2.0315); /* muon.orthogonal.2 */
    for (int i = 0; i < 2; i++)
        newton_schulz(c, &s, 2, -1.5, 0.5); /* muon.orthogonal.3 */
    fast_pool_run(c->pool, rows, update_row, &s);
    fast_release(c->memory, mark);
}
