/* The errata museum: a second evaluator of every operator, with the mistakes that implementations
 * of this model make as switches, and with the freedoms that correct ones have.
 *
 * It is written from spec/, shares no code with ref/ or fast/, and serves three ends. Without a bug and
 * in binary64 it must agree with the golden vectors: a second opinion. In binary32 or bf16, with its
 * sums in other orders, it is a correct engine: the tolerances are measured with it. With a bug it is a
 * wrong engine that the vectors must refuse, and what `dsv4 verify` compares an unknown engine's
 * output with to tell what is wrong there.
 *
 * Letters as in spec/README.md. Arrays are row-major, and binary64 whatever is emulated. */
#ifndef DSV4_MUSEUM_H
#define DSV4_MUSEUM_H

#include "host/cases.h"

/* Every exhibit, by the operator that it belongs to. vectors/museum/bugs.c tells their stories. */
typedef enum {
    BUG_NONE,
    /* quant, linear */
    E4M3_BIAS_8, E4M3_NO_SUBNORMALS, E2M1_LINEAR, E8M0_BIAS_126, E4M3_TRUNCATED, E2M1_TIES_AWAY,
    NIBBLE_ORDER, FP4_SCALE_PER_16, FP8_SCALE_TRANSPOSED, FP8_SCALE_PER_ROW, SCALE_IGNORED,
    ACT_QUANT_MISSING, ACT_QUANT_WHOLE_ROW, ACT_QUANT_EXACT_SCALE, ACT_QUANT_SCALE_FLOOR,
    ACT_QUANT_FLOOR_MISSING, KV_QDQ_IDENTITY, KV_QDQ_ROPE_TOO, KV_QDQ_BLOCK_128,
    INDEX_QDQ_MISSING, INDEX_QDQ_WHOLE_HEAD, LINEAR_TRANSPOSED, GROUPED_INTERLEAVED,
    GROUPED_QUANTISED, FP4_INPUT_NOT_QUANTISED, FP4_SCALE_PER_16_CLAMPED,
    E8M0_BIAS_128, FP8_SCALE_EVEN_SPLIT,
    /* rmsnorm */
    RMSNORM_EPS_MISSING, RMSNORM_EPS_OUTSIDE_ROOT, RMSNORM_WEIGHT_PLUS_ONE, RMSNORM_CENTRED,
    RMSNORM_SUM, HEAD_NORM_MISSING, HEAD_NORM_EPS_MISSING, HEAD_NORM_ALL_HEADS, HEAD_NORM_WEIGHTED,
    HEAD_NORM_BINARY32,
    /* rope */
    ROPE_HALF_SPLIT, ROPE_FIRST_DIMS, ROPE_FREQUENCIES_INVERTED, ROPE_DIRECTION, ROPE_HEAD_DIM,
    ROPE_NEOX_TO_GPTJ, YARN_ON_SWA, YARN_MISSING, YARN_MSCALE, YARN_RAMP_REVERSED,
    YARN_CORRECTION_NOT_ROUNDED, YARN_HIGH_CLAMPED_TO_PAIRS, LINEAR_SCALING, YARN_BETAS_SWAPPED, COMPRESS_THETA_ON_SWA,
    COMPRESS_THETA_10000,
    COMPRESS_THETA_40000, OUTPUT_NOT_ROTATED_BACK, OUTPUT_ROTATED_FORWARD,
    /* hadamard, embed */
    HADAMARD_UNSCALED, HADAMARD_SEQUENCY, EMBED_SCALED, EMBED_FIRST_STREAM,
    /* mhc */
    MHC_NORM_ONE_STREAM, MHC_NORM_MISSING, MHC_NORM_EPS_MISSING, MHC_PRE_NO_EPS,
    MHC_PRE_SOFTMAX, MHC_POST_NO_FACTOR, MHC_POST_EPS, MHC_SCALES_SWAPPED, MHC_ONE_SCALE,
    MHC_BASE_MISSING, MHC_LAYOUT_COMB_FIRST, SINKHORN_NO_SOFTMAX_EPS, SINKHORN_EPS_MISSING,
    SINKHORN_ROWS_LAST, SINKHORN_ONE_FEWER, SINKHORN_ONE_MORE, SINKHORN_SOFTMAX_COLUMNS,
    SINKHORN_PLAIN_EXP, COMB_NOT_TRANSPOSED, MHC_POST_IN_PLACE, MHC_POST_NO_RESIDUAL_MIX,
    MHC_PRE_MEAN, MHC_STATIC, MHC_POST_EPS_FOR_TWO, MHC_PRE_FACTOR_2, MHC_CHANNELS_FIRST,
    SINKHORN_COLUMN_MAJOR, SINKHORN_SIGMOID_START, MHC_NORM_EACH_STREAM,
    /* compressor */
    COMPRESSED_AT_GROUP_INDEX, COMPRESSED_AT_LAST_TOKEN, COMPRESSED_NOT_ROTATED,
    COMPRESSOR_NORM_MISSING, COMPRESSOR_NORM_AFTER_ROPE, COMPRESSOR_QDQ_MISSING,
    COMPRESSOR_HADAMARD_MISSING, OVERLAP_SWAPPED, OVERLAP_FROM_CURRENT, OVERLAP_MISSING,
    OVERLAP_GROUP_0_ZEROS, APE_MISSING, APE_FROM_CALL, APE_ON_VALUES, SOFTMAX_OVER_CHANNELS,
    SOFTMAX_PER_HALF, COMPRESSOR_MEAN, PARTIAL_GROUP, COMPRESSOR_STATE_LOST,
    COMPRESSOR_COUNTS_PADDING, COMPRESSED_THETA_MAIN, STATE_ZEROED, OVERLAP_STATE_LOST, APE_REVERSED, COMPRESSOR_POOLS_PADDING,
    /* indexer */
    INDEX_QUERY_NOT_ROTATED, INDEX_QUERY_NORMALISED, INDEX_HADAMARD_MISSING, INDEX_SCALE_MISSING,
    INDEX_RELU_MISSING, INDEX_RELU_AFTER_WEIGHT, INDEX_RELU_AFTER_SUM, INDEX_WEIGHT_SIGMOID,
    INDEX_ONE_HEAD, INDEX_NOT_CAUSAL, INDEX_LOWEST, INDEX_TOPK_MINUS_ONE, INDEX_FROM_X, INDEX_MASK_MISSING, INDEX_RECENT,
    /* core_attn, attention */
    SINK_MISSING, SINK_IN_NUMERATOR, SINK_AS_ENTRY, SINK_SCALED, SINK_OF_HEAD_0,
    ATTENTION_SCALE_MISSING, ATTENTION_SCALE_NOPE, ATTENTION_MSCALE, EMPTY_SLOTS_COUNT,
    WINDOW_127, WINDOW_129, WINDOW_PAST_ONLY, VISIBLE_EARLY, VISIBLE_LATE, HCA_WITH_INDEXER,
    CSA_WITHOUT_INDEXER, COMPRESSED_IGNORED, OUTPUT_GROUPS_INTERLEAVED, Q_NORM_MISSING, KV_NORM_MISSING,
    KV_NOT_ROTATED, KEYS_ONLY_ROTATED, POSITIONS_FROM_CALL, RING_ONE_SHORT, STATE_NOT_RESET,
    SEQUENCES_MIXED, ATTENTION_THETA_MAIN, SINK_NUMERATOR_ONLY, SINK_RAW,
    VISIBLE_GROUP_EARLY, VISIBLE_GROUP_LATE, VISIBLE_UNFINISHED, WINDOW_FROM_CALL,
    /* gate, expert, moe */
    GATE_BIAS_IN_WEIGHT, GATE_BIAS_IGNORED, GATE_NOT_NORMALISED, GATE_SCALE_MISSING, GATE_SOFTMAX,
    GATE_SIGMOID, GATE_NO_ROOT, GATE_ALWAYS_NORMALISED, GATE_BF16_SCORES, HASH_BY_SCORE, HASH_UNIFORM,
    LIMIT_MISSING, LIMIT_ON_SILU, LIMIT_G_BOTH_SIDES, LIMIT_V_ONE_SIDE, LIMIT_0_CLAMPS,
    EXPERT_W1_W3_SWAPPED, EXPERT_GELU, WEIGHT_AFTER_W2, WEIGHT_ON_INPUT, SHARED_UNCLAMPED,
    SHARED_WEIGHTED, SHARED_MISSING, MOE_HASH_IGNORED, GATE_SUM_OF_ALL, GATE_SUM_FLOOR, EXPERT_SWIGLU_OAI,
    LIMIT_ON_PRODUCT, LIMIT_G_ONLY, LIMIT_V_ONLY,
    /* block, head, mtp, forward */
    BLOCK_HC_SWAPPED, BLOCK_NORM_MISSING, HEAD_NORM_FIRST, HEAD_NO_EPS, HEAD_MEAN,
    HEAD_SINKHORN_MIX, HEAD_FIRST_STREAM, HEAD_NORM_LEFT_OUT, HEAD_SCALE_MISSING, HEAD_FACTOR_2,
    MTP_SAME_TOKEN, MTP_MAIN_NORM, MTP_H_NORM_MISSING, MTP_POSITION_PLUS_ONE,
    MTP_PROJECTIONS_SWAPPED, MTP_COLLAPSED, MTP_MAIN_HC_HEAD, MTP_HEAD_COLLAPSED,
    MTP_HASH_GATE,
    /* muon */
    MUON_NO_NESTEROV, MUON_NO_POLISH, MUON_QUINTIC_10, MUON_SCALE_MIN, MUON_NO_DECAY,
    MUON_NOT_TRANSPOSED, MUON_MOMENTUM_EMA, MUON_SCALE_ASPECT, MUON_NOT_NORMALISED,
    BUGS
} museum_bug;

enum { MUSEUM_WORDS = 4 }; /* 256 bugs at most */

/* Where a variant is wrong. Elsewhere it changes no result by more than the freedom that the
 * contract leaves, and must be accepted. */
typedef enum {
    WRONG_NOWHERE, WRONG_EXACT = 1, WRONG_RELEASED = 2, WRONG_BOTH = 3,
    FINE_IN_BF16 = 4 /* added: an engine that declares bf16 may */
} museum_wrong;

typedef struct {
    const char *id;        /* "rope-half-split" */
    const char *operator;  /* the first of the table that shows it */
    const char *rule;      /* that it breaks */
    int wrong;             /* of museum_wrong */
    const char *story;     /* what the mistake is, how people come to it, what it does */
} museum_exhibit;

extern const museum_exhibit museum_exhibits[BUGS]; /* bugs.c; [BUG_NONE] is empty */

museum_bug museum_find(const char *id); /* BUG_NONE where there is none */

/* Whether a bug can change this operator at all: it is of the operator, or of one that it uses. */
bool museum_touches(museum_bug bug, const dsv4_operator *op);

/* How a correct engine computes. */
typedef enum {
    MUSEUM_BINARY64, /* as ref/ does */
    MUSEUM_BINARY32, /* sums and elementary functions in binary32 */
    MUSEUM_BF16      /* binary32 inside; what leaves an operator, or is named between its steps, is bf16 */
} museum_arithmetic;

/* One engine: a contract comes with the case. */
typedef struct {
    uint64_t bugs[MUSEUM_WORDS];
    museum_arithmetic arithmetic;
    uint64_t seed;  /* other orders of summation, other last bits of exp and the like; 0: plain */
    double jitter;  /* relative noise on every binary32 sum: makes rare flips frequent. 0: none */
} museum_engine;

void museum_add_bug(museum_engine *engine, museum_bug bug);

/* A dsv4_answer_function; `context` is a museum_engine. */
int museum_answer(void *engine, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);

/* The same; `choices`, unless NULL, becomes a hash of every discrete choice on the way (routings,
 * selections): engines that took the same ones have equal hashes. */
int museum_run(const museum_engine *engine, const dsv4_case *c, dsv4_case *answer,
               uint64_t *choices, dsv4_error *err);

/* ---- inside ---- */

typedef struct {
    const museum_engine *engine;
    const dsv4_config *config;
    dsv4_numerics numerics;
    uint64_t random;  /* state of the generator behind orders and last bits */
    uint64_t choices; /* the hash */
} museum;

static inline bool bug(const museum *m, museum_bug b)
{
    return m->engine->bugs[b / 64] >> (b % 64) & 1;
}

static inline bool released(const museum *m)
{
    return m->numerics == DSV4_RELEASED;
}

/* Rounding. Each takes the exact (binary64) result of one operation. */
double m_to_f32(double x);
double m_to_bf16(double x);
double m_op(museum *m, double x);  /* after an elementwise operation: binary32, unless BINARY64 */
double m_f32(museum *m, double x); /* a point where released names binary32: there always rounded */
double m_bf16(museum *m, double x); /* a point where released rounds to bf16: there, and in an engine
                                       of BF16, rounded */
double m_mid(museum *m, double x);  /* a named intermediate that the contract keeps in binary32: bf16 in
                                       every second engine of BF16 (by seed), else m_op */
void m_bf16_all(museum *m, double *x, int64_t count);
double m_fn(museum *m, double x);  /* after exp, log, cos, sqrt, 1/x ...: up to 2 ulp of binary32 off */

/* Sums in an order of the engine's, and jittered: `stride` steps between the terms. */
double m_sum(museum *m, const double *x, int64_t count, int64_t stride);
double m_dot(museum *m, const double *a, const double *b, int64_t count);

void m_choose(museum *m, int64_t index); /* one discrete choice, for the hash */

/* quant, linear: vectors/museum/elements.c. A matrix decoded by the museum's own code. */
double *m_matrix(museum *m, const dsv4_matrix *w);        /* [rows, cols], free() it */
double *m_vector(museum *m, const dsv4_matrix *w);        /* [cols] */
int64_t m_integer(const dsv4_matrix *w, int64_t row, int64_t col);
void m_act_quant(museum *m, double *x, int64_t rows, int64_t cols, int64_t block);
void m_qdq_kv(museum *m, double *entry, int64_t d);       /* nothing in exact, as the next */
void m_qdq_index(museum *m, double *x, int64_t d_i);
void m_linear(museum *m, const dsv4_matrix *w, const double *x, int64_t T, double *y);
void m_linear_f32(museum *m, const dsv4_matrix *w, const double *x, int64_t T, double *y);
void m_linear_grouped(museum *m, const dsv4_matrix *w, int64_t groups, const double *x, int64_t T,
                      double *y);
void m_rmsnorm(museum *m, const dsv4_matrix *w, const double *x, int64_t T, double *y);
void m_rmsnorm_head(museum *m, double *x, int64_t T, int64_t H, int64_t d);
void m_frequencies(museum *m, bool compressed, double *freq);
/* direction 1, or -1 for the inverse; in place. `compressed` as for the frequencies (YARN_MSCALE). */
void m_rope(museum *m, const double *freq, bool compressed, int64_t position, int direction,
            double *x, int64_t width);
void m_hadamard(museum *m, double *x, int64_t count);
void m_embed(museum *m, const dsv4_matrix *embed, const int64_t *ids, int64_t T, double *h);
void m_muon(museum *m, const dsv4_case *c, int64_t rows, int64_t cols, const double *G, double *B,
            double *M);

/* mhc, gate, expert, moe, head: vectors/museum/mixture.c. One token each. */
void m_mhc_mix(museum *m, const dsv4_hc *hc, const double *x, double *pre, double *post,
               double *comb);
void m_mhc_sinkhorn(museum *m, double *comb);
void m_mhc_pre(museum *m, const double *pre, const double *x, double *u);
void m_mhc_post(museum *m, const double *post, const double *comb, const double *y, double *x);
/* biased [E] may be NULL */
void m_gate(museum *m, const dsv4_layer *layer, const double *x, int64_t token, int64_t *chosen,
            double *weight, double *biased);
void m_expert(museum *m, const dsv4_expert *w, const double *weight, const double *x, double *y);
void m_moe(museum *m, const dsv4_layer *layer, const int64_t *ids, const double *x, int64_t T,
           double *y);
/* h [T, n, D] -> in [T, D], what the head matrix is applied to. */
void m_head_input(museum *m, const dsv4_hc *hc, const dsv4_matrix *norm, const double *h, int64_t T,
                  double *in);
void m_head(museum *m, const dsv4_hc *hc, const dsv4_matrix *norm, const dsv4_matrix *head,
            const double *h, int64_t T, double *logits);

/* compressor, indexer, core_attn, attention: vectors/museum/attention.c. They take all rows of a
 * schedule at once: there is no state, only bugs that behave as if there were a wrong one. */
void m_compressor_entry(museum *m, const dsv4_matrix *norm, bool index, int64_t ratio,
                        const double *freq, int64_t group, double *entry);
/* -> entries, malloced [*count, d], sequence after sequence; first[s] (malloced, [sequences + 1])
 * is the row at which those of sequence s begin. */
double *m_compress(museum *m, const dsv4_compressor *w, bool index, int64_t ratio,
                   const double *freq, const dsv4_schedule *schedule, const double *x,
                   int64_t **first, int64_t *count);
void m_index_query(museum *m, const dsv4_matrix *wq_b, const double *freq, int64_t position,
                   const double *qr, double *iq); /* one token */
void m_index_weights(museum *m, const dsv4_matrix *weights_proj, const double *x, int64_t T,
                     double *w);
void m_index_scores(museum *m, const double *iq, const double *w, const double *keys, int64_t G,
                    double *score); /* one token */
/* score [count], of which `visible` may be seen -> selected; returns how many. */
int64_t m_select(museum *m, const double *score, int64_t count, int64_t visible, int64_t k,
                 int64_t *selected);
/* list [count]: rows of entries [.., d], -1 an empty slot, in the order of slots. */
void m_core_attn(museum *m, const double *q, const double *entries, const int64_t *list,
                 int64_t count, const double *sink, double *out); /* one token */
void m_attention_output(museum *m, const dsv4_layer *layer, const double *freq, bool compressed,
                        int64_t position, double *core, double *y); /* one token */
/* x [N, D] -> y [N, D] and, unless NULL, q [N, H, d], kv [N, d]; padding rows become NaN. */
void m_attention(museum *m, const dsv4_layer *layer, const dsv4_schedule *schedule,
                 const double *x, double *y, double *q, double *kv);

/* Whether rows of padding go through the layers as tokens do. */
bool m_takes_padding(const museum *m);

/* block, mtp, forward: vectors/museum/whole.c */
void m_block(museum *m, const dsv4_layer *layer, const dsv4_schedule *schedule, const int64_t *ids,
             double *h, double *q, double *kv); /* h [N, n, D] in place; q, kv as above */
void m_mtp(museum *m, const dsv4_layer *layer, const dsv4_matrix *embed, const dsv4_matrix *head,
           const dsv4_hc *main_hc_head, const dsv4_matrix *main_norm,
           const dsv4_schedule *schedule, const int64_t *ids, const int64_t *next_ids,
           const double *h, double *logits, double *q, double *kv);

/* Operators of a case: each file answers its own. 0, 1 (not one of mine), -1. */
int m_answer_elements(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);
int m_answer_mixture(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);
int m_answer_attention(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);
int m_answer_whole(museum *m, const dsv4_case *c, dsv4_case *answer, dsv4_error *err);

#endif
