/* The optimised forward pass: the same operators as ref/, on arrays of binary32, for any
 * instruction set. Checked against ref/ by the golden vectors; shares no code with it.
 *
 * An operator is spec/STEM.md, fast/STEM.c and, where it has kernels, fast/STEM_lanes.h (written
 * once, in vectors of any width), fast/STEM_portable.c, fast/x86/STEM_avx2.c and
 * fast/x86/STEM_avx512.c. The kernels of an instruction set are a row of the table in isa.c, chosen
 * when the program starts. Two levels are avx512 and, in RELEASED, products of bf16 numbers: avx512bf16
 * by vectors, for products with weights and core attention (fast/x86/STEM_avx512bf16.c); amx by tiles,
 * for products of many tokens, the indexer's scores and core attention (fast/x86/STEM_amx.c).
 *
 * Activations are binary32 in both contracts. RELEASED: they hold bf16 numbers wherever spec/ says
 * so, and fast_bf16() and its kin are the rounding points. EXACT: nothing is rounded on purpose;
 * the result is an approximation in binary32 of the mathematics.
 *
 * Every result is a function of its row alone: sums run in an order that depends on the widths of
 * the operands, never on how many rows a call has, which of them they are, or on which thread
 * works. So chunks, batches and threads change no bit. Who adds a kernel keeps it that way, or
 * offers it only where c->deterministic is not set: products of bf16 numbers are for many
 * rows or for few, those of FP4 weights by whole numbers (fast/x86/linear_avx512vnni.c) for few, and
 * all sum in orders of their own. Then a row's bits depend on how many rows go through a product, or through an expert,
 * together; on threads they do not.
 *
 * Letters as in the specification: T rows of this call, D hidden_size, H heads, d head_dim, R
 * qk_rope_head_dim, n hc_mult, W sliding_window, E experts, k chosen experts, I
 * moe_intermediate_size, V vocab_size, r compression ratio. [T, n, D] is an array's shape, last
 * index fastest. */
#ifndef DSV4_FAST_H
#define DSV4_FAST_H

#include <stdbool.h>
#include <stdint.h>

#include "fast/kernels.h"
#include "fast/memory.h"
#include "fast/pool.h"
#include "host/path.h"

typedef struct fast_profile fast_profile;

/* What every operator knows besides its operands. */
typedef struct {
    const dsv4_config *config;
    bool released;               /* which contract */
    bool deterministic;          /* as --deterministic: see above */
    const fast_kernels *kernels; /* of the level that runs */
    fast_pool *pool;
    fast_memory *memory;         /* room for intermediate results */
    dsv4_error *error;           /* the first thing that went wrong; empty while all is well */
    int64_t layer;               /* in progress, for the tap and for messages */
    fast_profile *profile;       /* where the time goes; NULL: nobody asked */
} fast_context;

/* ---- profile.c: a stopwatch that is always on one part of the pass ---- */

struct fast_profile {
    dsv4_profile *sum;
    int kind;       /* of layer, or DSV4_OUTSIDE */
    dsv4_part part; /* whose time is running */
    double since;   /* CLOCK_MONOTONIC, seconds */
};

fast_profile fast_profile_start(dsv4_profile *sum);
/* From now on the time is that of `part`, or of that kind of layer. The part so far is returned. */
dsv4_part fast_profile_switch(fast_profile *profile, dsv4_part part);
void fast_profile_kind(const fast_context *c, int kind);

static inline dsv4_part fast_enter(const fast_context *c, dsv4_part part)
{
    return c->profile == NULL ? DSV4_PART_OTHER : fast_profile_switch(c->profile, part);
}

/* ---- spec/state.md: state.c ---- */

/* Finished entries of a compressor. EXACT keeps them as binary32, RELEASED as the codes that QDQ
 * made of them, which lose nothing: 583 bytes of a Flash KV entry, 68 of an indexer key. */
typedef struct {
    bool index;       /* keys of the indexer: FP4 in blocks of 32; else FP8 in blocks of 64, rope in bf16 */
    int64_t head;     /* d, or d_i */
    int64_t count;    /* entries so far */
    float *values;    /* EXACT: [.., head]; RELEASED: NULL */
    uint8_t *codes;   /* RELEASED: [.., head - R] E4M3, or [.., head / 2] pairs of E2M1, low nibble first */
    uint8_t *scales;  /* [.., (head - R) / 64], or [.., head / 32]: E8M0 */
    uint16_t *rope;   /* [.., R] bf16; NULL where `index` */
} fast_entries;

typedef struct {
    int64_t ratio;   /* r */
    int64_t halves;  /* c: 2 in CSA, 1 in HCA */
    float *a, *z;    /* [c r, c head]: items of the unfinished group (CSA: of the one before too),
                        token t in row t mod c r */
    fast_entries entries;
} fast_compressor_state;

typedef struct {
    float *window;   /* [min(W, max_tokens), d]: kv of token t in row t mod W */
    fast_compressor_state compressor, index; /* entries.head is 0 where the layer has none */
} fast_layer_state;

/* One sequence. Memory is reserved for max_tokens and taken as it is written. */
typedef struct {
    int64_t max_tokens, position; /* room for, and seen so far */
    int64_t mtp_position;
    int64_t layers, mtp_layers;
    fast_layer_state *layer, *mtp;
} fast_state;

/* NULL with a line in `err` where the memory cannot be had. */
fast_state *fast_state_new(const dsv4_config *config, bool released, int64_t mtp_layers,
                           int64_t max_tokens, dsv4_error *err);
void fast_state_free(fast_state *state);
/* What that takes when it is full; -1 where it is more than can be counted. */
int64_t fast_state_bytes(const dsv4_config *config, bool released, int64_t mtp_layers,
                         int64_t max_tokens);

/* Appends one finished entry [head], which has passed QDQ in RELEASED. */
void fast_entries_push(const fast_context *c, fast_entries *entries, const float *entry);

/* Rows `first` to `first + count - 1` as binary32 -> out [count, head]. */
void fast_entries_get(const fast_context *c, const fast_entries *entries, int64_t first,
                      int64_t count, float *out);

/* The state of a sequence of `position` tokens, MTP aside, made up of random numbers. */
void fast_state_fill(const fast_context *c, fast_state *state, int64_t position, uint64_t seed);

/* a, z [c head] of token t join their compressor. */
void fast_compressor_push(fast_compressor_state *state, int64_t t, const float *a, const float *z);

/* ---- calls ---- */

/* The rows of one sequence in a call, in order: tokens position .. position + rows - 1. */
typedef struct {
    fast_state *state;
    int64_t first, rows; /* rows of the call's arrays */
    int64_t position;    /* of row `first` in its sequence */
    const dsv4_tap *tap; /* sees the named tensors of this sequence; may be NULL */
} fast_segment;

/* What one call computes: rows of one or several sequences, which share every product with a
 * weight. */
typedef struct {
    int64_t T; /* rows of all segments */
    int64_t segments;
    const fast_segment *segment; /* in order of rows, without gaps */
    const int64_t *position;     /* [T]: of each row in its sequence */
} fast_call;

/* Shows rows of a named tensor to the taps of the segments; they may overwrite them. values [T,
 * dim0] or, where dim1 is not 0, [T, dim0, dim1]. Then checks that all are finite. */
void fast_tap(const fast_context *c, const fast_call *call, const char *name, int64_t dim0,
              int64_t dim1, float *values);
/* The same for rows of one sequence: `rows` of them, the first being row `row` of the sequence. */
void fast_tap_rows(const fast_context *c, const fast_segment *segment, const char *name, int64_t row,
                   int64_t rows, int64_t dim0, int64_t dim1, float *values);
void fast_tap_indices(const fast_context *c, const fast_segment *segment, const char *name,
                      int64_t row, int64_t rows, int64_t dim0, int64_t *indices);

/* False, with a line in c->error unless one is there, where a value is not finite. `row` and
 * `width` place the value in the message. */
bool fast_check_finite(const fast_context *c, const char *what, int64_t row, int64_t width,
                       const float *x, int64_t count);

/* ---- spec/quant.md: quant.c ---- */

/* One stored row, or a vector (a matrix of one row), as binary32 -> values [cols]. A value that
 * is NaN or infinite is an error that names it. */
void fast_matrix_row(const fast_context *c, const dsv4_matrix *w, int64_t row, float *values);
/* The same, from c->memory. */
float *fast_vector(const fast_context *c, const dsv4_matrix *w);
int64_t fast_integer(const dsv4_matrix *w, int64_t row, int64_t col);

/* The first value of a matrix that is not finite becomes the error; false where there is none. */
bool fast_find_bad_weight(const fast_context *c, const dsv4_matrix *w, int64_t first, int64_t rows);

void fast_bf16(const fast_context *c, float *x, int64_t count); /* rounding point: EXACT changes nothing */
void fast_act_quant(const fast_context *c, float *x, int64_t count, int64_t block); /* in RELEASED */
void fast_qdq_kv(const fast_context *c, float *x, int64_t rows);    /* [rows, d] */
void fast_qdq_index(const fast_context *c, float *x, int64_t rows); /* [rows, d_i] */

/* ---- spec/linear.md: linear.c ---- */

typedef enum {
    FAST_LINEAR,  /* FP8 and FP4: input quantised in RELEASED; plain: weights rounded to bf16 there.
                     Output rounded to bf16 */
    FAST_MAP,     /* a binary32 map: weights as they are, no rounding */
    FAST_GROUPED  /* weights rounded to bf16 in RELEASED, whatever they are; output rounded */
} fast_linear_kind;

/* y[t * y_stride + o] = sum_i w[first + o, i] x[t * x_stride + i], o = 0 .. rows - 1. Strides
 * count values. */
typedef struct {
    fast_linear_kind kind;
    const dsv4_matrix *w;
    int64_t first, rows;
    const float *x;
    int64_t T, x_stride;
    float *y;
    int64_t y_stride;
} fast_linear_job;

/* Several products, with all threads at work on all of them at once. Inputs stay as they are:
 * where one must be quantised, a copy is (the same input of several jobs, once). */
void fast_linear_jobs(const fast_context *c, const fast_linear_job *jobs, int64_t count);

/* The same for jobs of several parts, those of a part side by side: part[i] is that of job i. While
 * somebody looks at the time, one part comes after the other; otherwise all are done at once. */
void fast_linear_parts(const fast_context *c, const fast_linear_job *jobs, const dsv4_part *part,
                       int64_t count);

/* x [T, cols] -> y [T, rows] */
void fast_linear(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T, float *y);
void fast_linear_f32(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T,
                     float *y);
/* x [T, groups, cols] -> y [T, rows] */
void fast_linear_grouped(const fast_context *c, const dsv4_matrix *w, int64_t groups,
                         const float *x, int64_t T, float *y);

/* ---- spec/rmsnorm.md: rmsnorm.c ---- */

void fast_rmsnorm(const fast_context *c, const dsv4_matrix *w, const float *x, int64_t T, float *y);
void fast_rmsnorm_head(const fast_context *c, float *x, int64_t count); /* [count, d] */

/* ---- spec/rope.md: rope.c ---- */

/* -> freq [R/2]; RELEASED: binary32 numbers. */
void fast_rope_frequencies(const fast_context *c, bool compressed, double *freq);
/* Cosines and sines of rows at `position` [T] -> angles [T, R]: cos 0, sin 0, cos 1, sin 1, .. */
void fast_rope_angles(const fast_context *c, const double *freq, const int64_t *position, int64_t T,
                      float *angles);
/* The last R values of `count` vectors [width] of one row are rotated by `angles` [R]; back, if
 * so told. */
void fast_rope(const fast_context *c, const float *angles, bool inverse, float *x, int64_t width,
               int64_t count);

/* ---- spec/hadamard.md, embed.md, mhc.md ---- */

void fast_hadamard(const fast_context *c, float *x, int64_t width, int64_t rows);

/* ids [T] -> e [T, D]; e -> h [T, n, D] */
void fast_embed(const fast_context *c, const dsv4_matrix *embed, const int64_t *ids, int64_t T,
                float *e);
void fast_streams(const fast_context *c, const float *e, int64_t T, float *h);

/* x [T, n, D] -> pre [T, n], post [T, n], comb [T, n, n] */
void fast_mhc_mix(const fast_context *c, const dsv4_hc *hc, const float *x, int64_t T, float *pre,
                  float *post, float *comb);
/* mean(x^2), whatever the magnitudes. */
double fast_mean_square(const fast_context *c, const float *x, int64_t count);
void fast_mhc_sinkhorn(const fast_context *c, float *comb, int64_t T);
void fast_mhc_pre(const fast_context *c, const float *pre, const float *x, int64_t T, float *u);
void fast_mhc_post(const fast_context *c, const float *post, const float *comb, const float *y,
                   int64_t T, float *x);

/* ---- spec/compressor.md: compressor.c ---- */

/* Appends the entries of the groups that the rows of a call complete. a and z [T, c head] are
 * wkv x and wgate x, without ape; they are used up. state[i] belongs to segment i. */
void fast_compress(const fast_context *c, const fast_call *call, const dsv4_compressor *w,
                   fast_compressor_state *const *state, const double *freq, float *a, float *z);
/* pooled [head] -> finished, for group g: norm, rotation, Hadamard, QDQ. */
void fast_compressor_finish(const fast_context *c, const float *norm, bool index, int64_t width,
                            const double *freq, int64_t first_token, float *entry);
int64_t fast_visible(int64_t position, int64_t ratio);

/* ---- spec/indexer.md: indexer.c ---- */

/* iq [T, n_i, d_i] holds indexer.wq_b qr: rotated, transformed, QDQ in place. angles [T, R]. */
void fast_index_query(const fast_context *c, const float *angles, int64_t T, float *iq);
/* w [T, n_i] holds weights_proj u': scaled in place. */
void fast_index_weights(const fast_context *c, int64_t T, float *w);
/* Rows that see keys of the same sequence. */
typedef struct {
    int64_t rows;
    const float *iq, *w;   /* [rows, n_i, d_i], [rows, n_i] */
    const int64_t *count;  /* [rows]: how many keys each of them scores; none, if it is not positive */
    float *score;          /* [rows, count] at `stride` */
    int64_t stride;
} fast_index_rows;

/* The scores of keys first, first + 1, .. for these rows, by one thread. `scratch`: see below. */
void fast_index_scores(const fast_context *c, const fast_index_rows *rows, const fast_entries *keys,
                       int64_t first, float *scratch);
enum { FAST_INDEX_ROWS = 8 }; /* that share what is done once for keys; more do so in several goes */
int64_t fast_index_scratch(const fast_context *c); /* values of `scratch`: a multiple of 16 */
/* The k best of `count` scores (all, if fewer), best first, of equals the lower index first ->
 * selected; returns how many. scratch [count]. */
int64_t fast_select(const float *score, int64_t count, int64_t k, int64_t *selected,
                    uint32_t *scratch);

/* ---- spec/core_attn.md: core_attn.c ---- */

/* Where a token's list is taken from. Entry j of the list is at e[j] or, where that is NULL, is
 * entry `index[j]` of `entries`. Slots as in core_attn.list.2. */
typedef struct {
    int64_t count;
    const float *const *e;
    const int64_t *index;
    const int64_t *slot;
    const fast_entries *entries; /* may be NULL where no e is */
    const uint16_t *const *row;  /* entry j as a row for tiles; there may be none, and no list of them */
} fast_list;

/* Where these are the kernels that attend: else NULL. */
const fast_row_kernels *fast_core_attn_tiles(const fast_context *c);
/* Entries first .. first + count - 1 as rows for tiles, one after another. */
void fast_core_attn_rows(const fast_context *c, const fast_entries *entries, int64_t first,
                         int64_t count, uint16_t *rows);

/* Heads [first, first + heads) of one token: q [H, d], sink [H] -> out [H, d], by one thread. */
void fast_core_attn(const fast_context *c, const float *q, const float *sink, const fast_list *list,
                    int64_t first, int64_t heads, float *out, float *scratch);
int64_t fast_core_attn_scratch(const fast_context *c, int64_t heads); /* values of `scratch` */

/* ---- spec/attention.md: attention.c ---- */

/* x [T, D] -> y [T, D]. `state[i]` belongs to segment i. */
void fast_attention(const fast_context *c, const fast_call *call, const dsv4_layer *layer,
                    fast_layer_state *const *state, const float *x, float *y);
/* core [T, H, d], which is rotated back in place -> y [T, D]. angles [T, R]. */
void fast_attention_output(const fast_context *c, const dsv4_matrix *wo_a, const dsv4_matrix *wo_b,
                           const float *angles, float *core, int64_t T, float *y);

/* ---- spec/gate.md, expert.md, moe.md ---- */

void fast_gate_scores(const fast_context *c, const dsv4_layer *layer, const float *x, int64_t T,
                      float *s); /* [T, E] */
/* s [T, E], ids [T] -> chosen [T, k] */
void fast_gate_choose(const fast_context *c, const dsv4_layer *layer, const float *s,
                      const int64_t *ids, int64_t T, int64_t *chosen);
void fast_gate_weigh(const fast_context *c, const float *s, const int64_t *chosen, int64_t T,
                     float *weight); /* [T, k] */

/* One of the experts that a call takes: `rows` rows x [rows, D] -> y [rows, D]. weight [rows],
 * or NULL for the shared expert. */
typedef struct {
    const dsv4_expert *w;
    int64_t rows;
    const float *x, *weight;
    float *y;
} fast_expert_job;

void fast_experts(const fast_context *c, const fast_expert_job *jobs, int64_t count);

/* x [T, D], ids [T] -> y [T, D]. Rows are grouped by expert. */
void fast_moe(const fast_context *c, const fast_call *call, const dsv4_layer *layer,
              const int64_t *ids, const float *x, float *y);

/* ---- spec/block.md, head.md, mtp.md, forward.md ---- */

/* h [T, n, D], the streams, in place; ids [T]. */
void fast_block(const fast_context *c, const fast_call *call, const dsv4_layer *layer,
                fast_layer_state *const *state, const int64_t *ids, float *h);

/* h [T, n, D] -> logits [T, V] */
void fast_head(const fast_context *c, const dsv4_hc *hc, const dsv4_matrix *norm,
               const dsv4_matrix *head, const float *h, int64_t T, float *logits);

/* h [T, n, D], the streams after the last layer; next_ids [T] -> x [T, n, D], the streams after
 * the MTP block. The head is for the caller. */
void fast_mtp(fast_context *c, const fast_call *call, const dsv4_model *model,
              const int64_t *next_ids, const float *h, float *x);

/* ids [T] -> h [T, n, D], the streams after the last layer. */
void fast_forward(fast_context *c, const fast_call *call, const dsv4_model *model,
                  const int64_t *ids, float *h);

/* ---- spec/muon.md: muon.c ---- */

typedef struct { double momentum, learning_rate, weight_decay, rescale; } fast_muon_options;
/* G, B, M [rows, cols]; B and M in place. */
void fast_muon_step(const fast_context *c, const fast_muon_options *options, int64_t rows,
                    int64_t cols, const float *G, float *B, float *M);

/* ---- golden cases: operators.c ---- */

int fast_answer(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);

/* ---- path.c: what dsv4_path_fast was told, for operators.c ---- */

const fast_kernels *fast_configured_kernels(void);
fast_pool *fast_configured_pool(void);
bool fast_configured_deterministic(void);

/* The state of a run of dsv4_path_fast, for those who compare caches. */
const fast_state *fast_run_state(const dsv4_run *run);

#endif
