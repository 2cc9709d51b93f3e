/* The kernels: what is written for one instruction set at a time. Pointers to arrays need no
 * alignment. `released` asks for the roundings of that contract. */
#ifndef DSV4_FAST_KERNELS_H
#define DSV4_FAST_KERNELS_H

#include <stdbool.h>
#include <stdint.h>

#include "host/model.h"

/* A product of fast/linear.c, after its input has been prepared. */
typedef struct {
    const dsv4_matrix *w;
    bool as_bf16;      /* round the weights to bf16 */
    bool round;        /* round the output to bf16 */
    const float *x;    /* [T, cols] at x_stride */
    int64_t T, x_stride;
    const uint16_t *arranged; /* in place of x, for fast_tile_kernels: see there */
    const int *lowest_bit;
    float *y;          /* [T, rows] at y_stride; column 0 is row `first` of w */
    int64_t y_stride;
    int64_t first;
} fast_product;

/* Rows follow one another: those to come are one stretch of memory, of which every step fetches its share, as
 * much as it reads. Where that begins: behind as many groups of `bytes` bytes as memory needs to answer. Only
 * to be fetched, for it may lie behind the last row. */
static inline const unsigned char *fast_ahead(const unsigned char *group, int64_t bytes)
{
    enum { ENOUGH = 8192 };
    return (const unsigned char *)((uintptr_t)group + (uintptr_t)((ENOUGH + bytes - 1) / bytes * bytes));
}

typedef struct {
    /* Rows [begin, end) of p->w -> columns begin - p->first .. of y. scratch: as many values as
     * scratch_size says. */
    void (*product)(const fast_product *p, int64_t begin, int64_t end, float *scratch);
    int64_t (*scratch_size)(const fast_product *p);
    /* The x of an FP4 matrix has to come in an order of its own within every 32 values, so that
     * both halves of a byte meet theirs: one row of it -> out [cols]. NULL where x stays as it
     * is. */
    void (*arrange)(const float *x, int64_t cols, float *out);
} fast_linear_kernels;

/* The same by instructions that multiply numbers of fewer bits, exactly: tiles of bf16 numbers, for
 * many tokens, or the digits of whole numbers, for few. Their order of summing is not that of
 * fast_linear_kernels: a row's result depends on whether they were used. */
typedef struct {
    int tokens; /* of a tile, at most */
    /* Rows of x, of which `tokens` are there -> out [arranged_size]. Returns a number for product:
     * all values are multiples of 2 to that, unless there is one that cannot be used. */
    int (*arrange)(const float *x, int64_t x_stride, int64_t tokens, int64_t cols, uint16_t *out);
    int64_t (*arranged_size)(int64_t cols);
    /* As above, but weights must be rounded to bf16, or be bf16 numbers as stored. arranged: all
     * tiles of the input, one after another; lowest_bit: what arrange returned for each. False where
     * an operand or a product is not a normal number: then y is undefined. */
    bool (*product)(const fast_product *p, int64_t begin, int64_t end, float *scratch);
    int64_t (*scratch_size)(const fast_product *p);
    bool (*works)(void); /* small products are what they should be on this machine; NULL: no doubt */
} fast_tile_kernels;

typedef struct {
    void (*bf16)(float *x, int64_t count); /* round to bf16, ties to even; NaN stays */
    bool (*finite)(const float *x, int64_t count);
    void (*act_quant)(float *x, int64_t count, int64_t block); /* quantise-dequantise, binary32 */
    void (*qdq_index)(float *x, int64_t count);                /* blocks of 32; bf16 */
    /* Entries of a cache, one row: x [values + rope] <-> codes [values], scales [values / 64],
     * rope. */
    void (*pack_kv)(const float *x, int64_t values, int64_t R, uint8_t *codes, uint8_t *scales,
                    uint16_t *rope);
    void (*unpack_kv)(const uint8_t *codes, const uint8_t *scales, const uint16_t *rope,
                      int64_t values, int64_t R, float *x);
    void (*pack_index)(const float *x, int64_t count, uint8_t *codes, uint8_t *scales);
    void (*unpack_index)(const uint8_t *codes, const uint8_t *scales, int64_t count, float *x);
} fast_quant_kernels;

typedef struct {
    void (*rmsnorm)(const float *x, const float *w, int64_t width, double eps, bool released,
                    float *y);
    void (*head)(float *x, int64_t width, double eps, bool released);
} fast_rmsnorm_kernels;

typedef struct {
    /* x [R] in place, angles [R]: cos, sin, .. */
    void (*rotate)(const float *angles, bool inverse, int64_t R, bool released, float *x);
} fast_rope_kernels;

typedef struct {
    void (*transform)(float *x, int64_t width, bool released); /* width: a power of two */
} fast_hadamard_kernels;

typedef struct {
    float (*squares)(const float *x, int64_t count);
    void (*pre)(const float *pre, const float *x, int64_t n, int64_t D, bool released, float *u);
    void (*post)(const float *post, const float *comb, const float *y, int64_t n, int64_t D,
                 bool released, float *x);
} fast_mhc_kernels;

typedef struct {
    /* One entry of a compressor: `items` rows of z and a, [head] each -> entry [head]. */
    void (*pool)(const float *const *a, const float *const *z, int64_t items, int64_t head,
                 float *entry);
} fast_compressor_kernels;

/* The indexer's scores in RELEASED from keys as they are stored, FAST_KEYS at a time: unpacked once, for
 * any number of rows. A key's score does not depend on the keys beside it. */
enum { FAST_KEYS = 64 };
typedef struct {
    int64_t (*query_size)(int64_t n_i, int64_t d_i); /* bytes, as keys_size */
    void (*arrange)(const float *iq, const float *w, int64_t n_i, int64_t d_i, void *query);
    int64_t (*keys_size)(int64_t d_i);
    /* codes [count, d_i / 2], scales [count, d_i / 32]; d_i is a multiple of 32 */
    void (*unpack)(const uint8_t *codes, const uint8_t *scales, int64_t d_i, int64_t count,
                   void *keys);
    /* Of the first `count` keys -> score. Where bit i of the result is set, key i and this row have
     * numbers that are beyond these kernels, and score[i] is undefined. */
    uint64_t (*scores)(const void *query, const void *keys, int64_t count, float *score);
    void (*begin)(void), (*end)(void); /* around calls of `scores`, on their thread; NULL: nothing */
    bool (*works)(void);               /* as that of fast_tile_kernels */
} fast_coded_kernels;

typedef struct {
    /* iq [n_i, d_i], w [n_i], keys [count, d_i] -> score [count] */
    void (*scores)(const float *iq, const float *w, const float *keys, int64_t n_i, int64_t d_i,
                   int64_t count, bool released, float *score);
    const fast_coded_kernels *coded; /* NULL: keys are unpacked to binary32 */
} fast_indexer_kernels;

/* A softmax over blocks of entries, in progress. */
typedef struct {
    const float *q;       /* [heads, d] */
    int64_t heads, d;
    float scale;          /* d^(-1/2) */
    bool released;
    float *maximum, *denominator; /* [heads] */
    float *out;           /* [heads, d], the numerator */
} fast_softmax;

typedef struct {
    /* One block: entries e[0] .. e[count - 1], [d] each; count <= 64. scratch [2 * 64 * heads] */
    void (*block)(const fast_softmax *s, const float *const *e, int64_t count, float *scratch);
    /* The sink joins [heads]; out becomes the quotient, rounded in RELEASED. */
    void (*finish)(const fast_softmax *s, const float *sink);
} fast_core_attn_kernels;

/* The same in RELEASED by tiles, from entries as rows of bf16 numbers. Their order of summing is not that
 * of fast_core_attn_kernels, but does not depend on the heads that are there either. An item is begin,
 * block after block, end, on one thread. */
enum { FAST_ENTRIES = 64 }; /* of a block, at most */
typedef struct {
    int64_t (*row_size)(int64_t d); /* values */
    void (*row)(const float *e, int64_t d, uint16_t *row);
    /* As fast_quant_kernels has them: d is values + R. */
    void (*coded_row)(const uint8_t *codes, const uint8_t *scales, const uint16_t *rope,
                      int64_t values, int64_t R, uint16_t *row);
    int64_t (*scratch_size)(int64_t heads, int64_t d); /* in binary32 values */
    void (*begin)(const fast_softmax *s, void *scratch);
    void (*block)(const fast_softmax *s, const uint16_t *const *rows, int64_t count, void *scratch);
    /* -> s->maximum, denominator and out; refused [heads]: there were numbers that are beyond these
     * kernels, and what that head has got is undefined. */
    void (*end)(const fast_softmax *s, void *scratch, bool *refused);
    bool (*works)(void); /* as that of fast_tile_kernels */
} fast_row_kernels;

typedef struct {
    /* g [I], v [I] -> g: the activation. weight 1 for the shared expert. */
    void (*swiglu)(float *g, const float *v, float weight, double limit, int64_t I, bool released);
} fast_expert_kernels;

/* A level of instructions. */
typedef struct {
    const char *name; /* "portable", "avx2", "avx512", "avx512bf16", "amx" */
    const fast_linear_kernels *linear;
    /* NULL in most levels: */
    const fast_tile_kernels *tiles;        /* in place of linear, for many tokens */
    const fast_tile_kernels *few_fp4;      /* in place of linear, for few tokens and such weights .. */
    const fast_tile_kernels *few_fp8;      /* .. of whole blocks of 128 columns */
    const fast_coded_kernels *index_tiles; /* in place of indexer->coded */
    const fast_row_kernels *core_attn_tiles; /* in place of core_attn->block */
    const fast_quant_kernels *quant;
    const fast_rmsnorm_kernels *rmsnorm;
    const fast_rope_kernels *rope;
    const fast_hadamard_kernels *hadamard;
    const fast_mhc_kernels *mhc;
    const fast_compressor_kernels *compressor;
    const fast_indexer_kernels *indexer;
    const fast_core_attn_kernels *core_attn;
    const fast_expert_kernels *expert;
} fast_kernels;

/* Every set that is written: FAST_LEVEL_KERNELS(avx2) declares fast_linear_avx2 and so on. */
#define FAST_LEVEL_KERNELS(level) \
    extern const fast_linear_kernels fast_linear_##level; \
    extern const fast_quant_kernels fast_quant_##level; \
    extern const fast_rmsnorm_kernels fast_rmsnorm_##level; \
    extern const fast_rope_kernels fast_rope_##level; \
    extern const fast_hadamard_kernels fast_hadamard_##level; \
    extern const fast_mhc_kernels fast_mhc_##level; \
    extern const fast_compressor_kernels fast_compressor_##level; \
    extern const fast_indexer_kernels fast_indexer_##level; \
    extern const fast_core_attn_kernels fast_core_attn_##level; \
    extern const fast_expert_kernels fast_expert_##level;
FAST_LEVEL_KERNELS(portable)
FAST_LEVEL_KERNELS(avx2)
FAST_LEVEL_KERNELS(avx512)
/* What avx512 has where the machine has VNNI, and what avx512bf16 and amx add to it. */
extern const fast_tile_kernels fast_linear_avx512vnni, fast_linear_avx512bf16,
    fast_linear_avx512vbmi, fast_linear_amx;
extern const fast_coded_kernels fast_indexer_amx;
extern const fast_row_kernels fast_core_attn_avx512bf16, fast_core_attn_amx;

/* ---- isa.c ---- */

/* The levels that this machine can run, the slowest first; `count` of them. */
const fast_kernels *const *fast_levels(int *count);

/* The best level that the machine has and that is not above `cap`: "portable", "avx2", "avx512",
 * "avx512bf16" or "amx"; NULL or "": any that is faster here than those below it. A machine has amx only if the system grants it and small products come out right.
 * NULL with a line in `err` where there is no such level. */
const fast_kernels *fast_level(const char *cap, dsv4_error *err);

#endif
