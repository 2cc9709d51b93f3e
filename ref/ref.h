/* The reference forward pass: one function or two per chapter of spec/, in the chapters' order.
 *
 * Everything is computed in binary64, on plain row-major arrays, by loops that follow the formulas.
 * Both contracts of spec/numerics.md go through the same code: ref_bf16() and ref_f32() are the
 * rounding points, and in DSV4_EXACT they return their argument.
 *
 * Letters: T tokens of this call, D hidden_size, H heads, d head_dim, R qk_rope_head_dim, n hc_mult,
 * W sliding_window, E experts, k chosen experts, I moe_intermediate_size, V vocabulary,
 * r compression ratio. A comment such as [T, n, D] gives an array's shape, last index fastest. */
#ifndef DSV4_REF_H
#define DSV4_REF_H

#include "host/model.h"
#include "host/path.h"

/* What every operator knows besides its operands. */
typedef struct {
    const dsv4_config *config;
    dsv4_numerics numerics;
    const dsv4_tap *tap; /* sees the named tensors; may be NULL */
    dsv4_error *error;   /* the first bad weight or overflow; empty while all is well */
    int64_t layer;       /* in progress, for the tap */
} ref_context;

double *ref_new(int64_t count); /* zeros; release with free() */

/* Shows `rows` rows of a named tensor, the first being row `row` of the whole run, to the tap, which
 * may overwrite them, and checks what it left (ref_check_finite). A row has shape [dim0], or [dim0, dim1] where dim1 is not 0. */
void ref_tap(const ref_context *c, const char *name, int64_t row, int64_t rows, int64_t dim0,
             int64_t dim1, double *values);
void ref_tap_indices(const ref_context *c, const char *name, int64_t row, int64_t rows,
                     int64_t dim0, int64_t *indices);

/* spec/numerics.md */
double ref_round_to(double x, int precision, int min_exponent);  /* nearest, ties to even */
double ref_f32(const ref_context *c, double x);                  /* rounding points */
double ref_bf16(const ref_context *c, double x);
bool ref_check_finite(const ref_context *c, const char *what, int64_t row, int64_t width,
                      const double *x, int64_t count);
void ref_f32_all(const ref_context *c, double *x, int64_t count);
void ref_bf16_all(const ref_context *c, double *x, int64_t count);

/* spec/quant.md */
double ref_decode_e2m1(int code);                                /* code 0..15 */
double ref_decode_e4m3(int code);                                /* code 0..255 */
double ref_decode_e8m0(int code);
double ref_encode_e4m3(double x);                                /* the nearest value, not its code */
double ref_encode_e2m1(double x);
void ref_matrix_row(const ref_context *c, const dsv4_matrix *w, int64_t row, double *values);
double *ref_vector(const ref_context *c, const dsv4_matrix *w);  /* [cols], release with free() */
int64_t ref_integer(const dsv4_matrix *w, int64_t row, int64_t col);
void ref_act_quant(double *x, int64_t count, int64_t block);
void ref_qdq_kv(const ref_context *c, double *entry);            /* [d] */
void ref_qdq_index(const ref_context *c, double *x);             /* [d_i] */

/* spec/linear.md */
void ref_linear(const ref_context *c, const dsv4_matrix *w, const double *x, int64_t T, double *y);
void ref_linear_f32(const ref_context *c, const dsv4_matrix *w, const double *x, int64_t T,
                    double *y);
void ref_linear_grouped(const ref_context *c, const dsv4_matrix *w, int64_t groups, const double *x,
                        int64_t T, double *y);

/* spec/rmsnorm.md */
void ref_rmsnorm(const ref_context *c, const dsv4_matrix *w, const double *x, int64_t T, double *y);
void ref_rmsnorm_head(const ref_context *c, double *x, int64_t count);

/* spec/rope.md */
void ref_rope_frequencies(const ref_context *c, bool compressed, double *freq); /* [R/2] */
void ref_rope(const ref_context *c, const double *freq, int64_t position, double *x, int64_t width);
void ref_rope_inverse(const ref_context *c, const double *freq, int64_t position, double *x,
                      int64_t width);

/* spec/hadamard.md */
void ref_hadamard(const ref_context *c, double *x, int64_t count);

/* spec/embed.md */
void ref_embed(const ref_context *c, const dsv4_matrix *embed, const int64_t *ids, int64_t T,
               double *e);
void ref_streams(const ref_context *c, const double *e, int64_t T, double *h);

/* spec/mhc.md */
void ref_mhc_mix(const ref_context *c, const dsv4_hc *hc, const double *x, double *pre,
                 double *post, double *comb);
void ref_mhc_sinkhorn(const ref_context *c, double *comb);
void ref_mhc_pre(const ref_context *c, const double *pre, const double *x, double *u);
void ref_mhc_post(const ref_context *c, const double *post, const double *comb, const double *y,
                  double *x);

/* spec/compressor.md; the state is described in spec/state.md */
typedef struct {
    bool index;      /* the indexer's compressor: head size d_i, Hadamard and FP4 */
    int64_t ratio;   /* r */
    int64_t head;    /* d, or d_i */
    int64_t halves;  /* c: 2 in CSA, 1 in HCA */
    double *a, *z;   /* [c r, c head]: items of the unfinished group (CSA: of the one before too),
                        token t in row t mod c r */
    double *entries; /* [.., head]: one per complete group */
    int64_t count;   /* entries emitted so far */
} ref_compressor_state;

void ref_compress(ref_context *c, const dsv4_compressor *w, ref_compressor_state *state,
                  const double *freq, int64_t position, const double *x, int64_t T);
int64_t ref_visible(int64_t position, int64_t ratio);

/* spec/indexer.md */
void ref_index_query(const ref_context *c, const dsv4_layer *layer, const double *freq,
                     int64_t position, const double *qr, int64_t T, double *iq);
void ref_index_weights(const ref_context *c, const dsv4_layer *layer, const double *x, int64_t T,
                       double *w);
void ref_index_scores(const ref_context *c, const double *iq, const double *w, const double *keys,
                      int64_t visible, double *score);
int64_t ref_select(const double *score, int64_t count, int64_t k, int64_t *selected);

/* spec/core_attn.md; the window is described in spec/state.md */
typedef struct {
    double *window; /* [W, d]: token t in row t mod W */
    ref_compressor_state compressor, index;
} ref_layer_state;

typedef struct {
    const double *e; /* [d] */
    int64_t slot;    /* its place in the list that is taken in blocks of 64 */
} ref_entry;

int64_t ref_list_entries(const ref_context *c, const ref_layer_state *state, int64_t t,
                         const int64_t *selected, int64_t n_selected, ref_entry *list);
void ref_core_attn(const ref_context *c, const double *q, const double *sink, const ref_entry *list,
                   int64_t count, double *out);

/* spec/attention.md */
void ref_attention(ref_context *c, const dsv4_layer *layer, ref_layer_state *state,
                   int64_t position, const double *x, int64_t T, double *y);

/* spec/gate.md: the three steps, for one token; ref_gate() takes them all */
void ref_gate_scores(const ref_context *c, const dsv4_layer *layer, const double *x, double *s);
void ref_gate_choose(const ref_context *c, const dsv4_layer *layer, const double *s, int64_t token,
                     int64_t *chosen);
void ref_gate_weigh(const ref_context *c, const double *s, const int64_t *chosen, double *weight);
void ref_gate(const ref_context *c, const dsv4_layer *layer, const double *x, int64_t token,
              int64_t *chosen, double *weight);

/* spec/expert.md */
void ref_expert(const ref_context *c, const dsv4_expert *w, const double *weight, const double *x,
                double *y);

/* spec/moe.md */
void ref_moe(ref_context *c, const dsv4_layer *layer, const int64_t *ids, int64_t position,
             const double *x, int64_t T, double *y);

/* spec/block.md */
void ref_block(ref_context *c, const dsv4_layer *layer, ref_layer_state *state, const int64_t *ids,
               int64_t position, double *h, int64_t T);

/* spec/head.md */
void ref_head(const ref_context *c, const dsv4_hc *hc, const dsv4_matrix *norm,
              const dsv4_matrix *head, const double *h, int64_t T, double *logits);

/* spec/state.md */
typedef struct {
    int64_t max_tokens, position; /* room for, and seen so far */
    int64_t mtp_position;
    int64_t layers, mtp_layers;
    ref_layer_state *layer, *mtp;
} ref_state;

ref_state *ref_state_new(const dsv4_config *config, int64_t mtp_layers, int64_t max_tokens);
void ref_state_free(ref_state *state);
void ref_compressor_push(ref_compressor_state *state, int64_t t, const double *a, const double *z);
void ref_window_push(const ref_context *c, ref_layer_state *state, int64_t t, const double *kv);

/* spec/mtp.md */
void ref_mtp(ref_context *c, const dsv4_model *model, ref_state *state, const int64_t *next_ids,
             const double *h, int64_t T, double *logits);

/* spec/forward.md */
void ref_forward(ref_context *c, const dsv4_model *model, ref_state *state, const int64_t *ids,
                 int64_t T, double *h, double *logits);

/* spec/muon.md */
typedef struct { double momentum, learning_rate, weight_decay, rescale; } ref_muon_options;
void ref_muon_step(const ref_muon_options *options, int64_t rows, int64_t cols, const double *G,
                   double *B, double *M);

/* Golden cases: operators.c */
int ref_answer(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);

#endif
