/* Roundings, and sums in other orders: how a correct engine may compute. */
#include "museum.h"

#include <math.h>
#include <string.h>

/* Nearest, ties to even: a binary32 number loses its last 16 bits. */
double m_to_f32(double x)
{
    return (double)(float)x;
}

/* By way of binary32, which every value that is rounded to bf16 has been rounded to before. */
double m_to_bf16(double x)
{
    float single = (float)x;
    uint32_t bits;
    if (!isfinite(single))
        return single;
    memcpy(&bits, &single, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&single, &bits, sizeof bits);
    return single;
}

/* xorshift64*: no promise but that it is the same everywhere. */
static uint64_t draw(museum *m)
{
    m->random ^= m->random >> 12;
    m->random ^= m->random << 25;
    m->random ^= m->random >> 27;
    return m->random * 0x2545f4914f6cdd1d;
}

static double uniform(museum *m) /* [-1, 1) */
{
    return (double)(int64_t)draw(m) * 0x1p-63;
}

static bool plain(const museum *m)
{
    return m->engine->arithmetic == MUSEUM_BINARY64;
}

double m_op(museum *m, double x)
{
    return plain(m) ? x : m_to_f32(x);
}

double m_f32(museum *m, double x)
{
    return plain(m) && !released(m) ? x : m_to_f32(x);
}

double m_bf16(museum *m, double x)
{
    if (released(m) || m->engine->arithmetic == MUSEUM_BF16)
        return m_to_bf16(m_f32(m, x));
    return m_op(m, x);
}

double m_mid(museum *m, double x)
{
    bool coarse = m->engine->arithmetic == MUSEUM_BF16 && m->engine->seed % 2 == 1;
    return coarse ? m_to_bf16(m_to_f32(x)) : m_op(m, x);
}

void m_bf16_all(museum *m, double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        x[i] = m_bf16(m, x[i]);
}

double m_fn(museum *m, double x)
{
    if (plain(m))
        return x;
    double y = m_to_f32(x);
    if (m->engine->seed == 0 || y == 0 || !isfinite(y))
        return y;
    int exponent;
    frexp(y, &exponent);
    int off = (int)(draw(m) % 5) - 2; /* -2..2 ulp; most libraries are better */
    return m_to_f32(y + off * ldexp(1, exponent - 24));
}

static double jitter(museum *m, double sum)
{
    return m->engine->jitter > 0 ? m_to_f32(sum * (1 + m->engine->jitter * uniform(m))) : sum;
}

/* An order of summation: terms go into `lanes` partial sums, as in vector units, from term `first` on,
 * upwards or downwards; the partial sums are then added pairwise. */
typedef struct { int64_t lanes, first; bool down; } order;

enum { LANES = 16 };

static order draw_order(museum *m, int64_t count)
{
    if (m->engine->seed == 0 || count < 2)
        return (order){.lanes = 1};
    uint64_t r = draw(m);
    return (order){.lanes = count < 64 ? INT64_C(1) << r % 5 : INT64_C(4) << r % 3,
                   .first = (int64_t)(r >> 8 & 0xffffff) % count, .down = r >> 40 & 1};
}

/* The terms from `begin` to before `end`, in steps of 1 or -1. A product joins its sum unrounded: a fused
 * multiply-add, or the exact product of two short numbers. */
static void add_terms(float lane[LANES], int64_t lanes, int64_t *turn, const double *a,
                      const double *b, int64_t stride, int64_t begin, int64_t end)
{
    int64_t step = begin < end ? 1 : -1;
    for (int64_t i = begin; i != end; i += step) {
        float *sum = &lane[(*turn)++ & (lanes - 1)];
        *sum = (float)(*sum + (b != NULL ? a[i] * b[i] : a[i * stride]));
    }
}

static double add_up(museum *m, const double *a, const double *b, int64_t count, int64_t stride)
{
    if (plain(m)) {
        double sum = 0;
        for (int64_t i = 0; i < count; i++)
            sum += b != NULL ? a[i] * b[i] : a[i * stride];
        return sum;
    }
    float lane[LANES] = {0};
    int64_t turn = 0;
    order o = draw_order(m, count);
    if (o.down) {
        add_terms(lane, o.lanes, &turn, a, b, stride, o.first, -1);
        add_terms(lane, o.lanes, &turn, a, b, stride, count - 1, o.first);
    } else {
        add_terms(lane, o.lanes, &turn, a, b, stride, o.first, count);
        add_terms(lane, o.lanes, &turn, a, b, stride, 0, o.first);
    }
    for (int64_t width = o.lanes / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return jitter(m, lane[0]);
}

double m_sum(museum *m, const double *x, int64_t count, int64_t stride)
{
    return add_up(m, x, NULL, count, stride);
}

double m_dot(museum *m, const double *a, const double *b, int64_t count)
{
    return add_up(m, a, b, count, 1);
}

void m_choose(museum *m, int64_t index)
{
    m->choices = (m->choices ^ (uint64_t)index) * 0x100000001b3; /* FNV-1a by words */
}
