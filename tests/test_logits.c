/* dsv4 logits, as it is called, on small checkpoints of every layer kind. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <hdf5.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "command.h"
#include "host/h5.h"
#include "host/logits.h"
#include "host/path.h"
#include "make_checkpoint.h"

enum { TOKENS = 20, VOCAB = 32, LAYERS = 3 };

/* SWA, CSA, HCA with a ratio of 8, and MTP. */
#define CONFIG(mtp)                                                                                \
    "{\"architectures\": [\"DeepseekV4ForCausalLM\"], \"model_type\": \"deepseek_v4\", "           \
    "\"vocab_size\": 32, \"hidden_size\": 32, \"num_hidden_layers\": 3, "                          \
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 80, "                   \
    "\"q_lora_rank\": 32, \"qk_rope_head_dim\": 16, \"o_groups\": 2, \"o_lora_rank\": 8, "         \
    "\"sliding_window\": 4, \"compress_ratios\": [0, 4, 8, 0], \"rope_theta\": 10000.0, "          \
    "\"compress_rope_theta\": 160000.0, \"index_n_heads\": 4, \"index_head_dim\": 32, "            \
    "\"index_topk\": 3, \"moe_intermediate_size\": 16, \"n_routed_experts\": 4, "                  \
    "\"n_shared_experts\": 1, \"num_experts_per_tok\": 2, \"num_hash_layers\": 1, "                \
    "\"scoring_func\": \"sqrtsoftplus\", \"topk_method\": \"noaux_tc\", "                          \
    "\"norm_topk_prob\": true, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 10.0, "           \
    "\"hc_mult\": 2, \"hc_sinkhorn_iters\": 4, \"hc_eps\": 1e-6, \"rms_norm_eps\": 1e-6, "         \
    "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false, "                                   \
    "\"max_position_embeddings\": 300, \"num_nextn_predict_layers\": " #mtp ", "                   \
    "\"bos_token_id\": 0, \"eos_token_id\": 1}"

static const int64_t ids[TOKENS] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 31};
static const char tokens[] = "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 2 3 8 31";

/* Paths that fail where the reference cannot be made to. */
static dsv4_run *open_no_run(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                             const dsv4_tap *tap, dsv4_error *err)
{
    (void)model;
    (void)numerics;
    (void)max_tokens;
    (void)tap;
    dsv4_fail(err, "no such device");
    return NULL;
}

typedef struct { const dsv4_tap *tap; } odd_run;

static dsv4_run *open_odd_run(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                              const dsv4_tap *tap, dsv4_error *err)
{
    (void)model;
    (void)numerics;
    (void)max_tokens;
    (void)err;
    odd_run *run = dsv4_alloc(1, sizeof *run);
    run->tap = tap;
    return (dsv4_run *)(void *)run;
}

/* All logits stay 0; a trace gets a tensor that has no place in it. */
static int show_odd_tensor(dsv4_run *run, const int64_t *token_ids, int64_t n, double *logits,
                           dsv4_error *err)
{
    (void)token_ids;
    (void)n;
    (void)err;
    const dsv4_tap *tap = ((const odd_run *)(const void *)run)->tap;
    dsv4_point point = {.name = "odd", .rows = 1, .rank = 1, .dim = {1}, .values = logits};
    if (tap != NULL)
        tap->at(tap->context, &point);
    return 0;
}

static int fail_mtp(dsv4_run *run, const int64_t *next_ids, int64_t n, double *logits,
                    dsv4_error *err)
{
    (void)run;
    (void)next_ids;
    (void)n;
    (void)logits;
    return dsv4_fail(err, "MTP was called");
}

/* Routes one token to one expert. */
static int show_narrow_route(dsv4_run *run, const int64_t *token_ids, int64_t n, double *logits,
                             dsv4_error *err)
{
    (void)token_ids, (void)n, (void)logits, (void)err;
    const dsv4_tap *tap = ((const odd_run *)(const void *)run)->tap;
    int64_t expert = 0;
    dsv4_point point = {.name = "route_index", .rows = 1, .rank = 1, .dim = {1},
                        .indices = &expert};
    tap->at(tap->context, &point);
    return 0;
}

static void close_odd_run(dsv4_run *run)
{
    free(run);
}

/* As if somebody pressed Ctrl-C while it computes. */
static int be_interrupted(dsv4_run *run, const int64_t *token_ids, int64_t n, double *logits,
                          dsv4_error *err)
{
    (void)run, (void)token_ids, (void)n, (void)logits;
    if (access("no.h5.part", F_OK) == 0)
        raise(SIGTERM);
    return dsv4_fail(err, "there is nothing to interrupt");
}

/* Choices of more places than the dataset has, and scores of a layer that has no indexer. */
static int show_wide_choice(dsv4_run *run, const int64_t *token_ids, int64_t n, double *logits,
                            dsv4_error *err)
{
    (void)token_ids, (void)n, (void)logits, (void)err;
    const dsv4_tap *tap = ((const odd_run *)(const void *)run)->tap;
    int64_t places[9] = {0};
    dsv4_point point = {.name = "selected", .layer = 1, .rows = 1, .rank = 1, .dim = {9},
                        .indices = places};
    tap->at(tap->context, &point);
    return 0;
}

static int show_needless_score(dsv4_run *run, const int64_t *token_ids, int64_t n, double *logits,
                               dsv4_error *err)
{
    (void)token_ids, (void)n, (void)logits, (void)err;
    const dsv4_tap *tap = ((const odd_run *)(const void *)run)->tap;
    double score = 0;
    dsv4_point point = {.name = "index_score", .layer = 0, .rows = 1, .rank = 1, .dim = {1},
                        .values = &score};
    tap->at(tap->context, &point);
    return 0;
}

/* Selections that change the sequence, the layer and the order of rows, one each time. */
static const struct { int64_t run, layer, row; } jumps[] = {
    {0, 1, 0}, {1, 1, 1}, {1, 2, 2}, {1, 1, 3}, {1, 1, 5},
};
enum { JUMPS = sizeof jumps / sizeof *jumps };

static int show_jumps(dsv4_run *const *runs, int64_t count, const int64_t *const *token_ids,
                      const int64_t *n, double *const *logits, dsv4_error *err)
{
    (void)count, (void)token_ids, (void)n, (void)logits, (void)err;
    for (int64_t i = 0; i < JUMPS; i++) {
        const dsv4_tap *tap = ((const odd_run *)(const void *)runs[jumps[i].run])->tap;
        int64_t entry = 100 + i;
        dsv4_point point = {.name = "selected", .layer = jumps[i].layer, .row = jumps[i].row,
                            .rows = 1, .rank = 1, .dim = {1}, .indices = &entry};
        tap->at(tap->context, &point);
    }
    return 0;
}

/* The reference as a path with choices and batches. "talking" tells what it is asked for. */
static bool talks;

static int configure(const dsv4_path_options *options, dsv4_error *err)
{
    if (options->isa != NULL && strcmp(options->isa, "none") == 0)
        return dsv4_fail(err, "no such instructions");
    printf("configure %d %s %d\n", options->threads, options->isa != NULL ? options->isa : "NULL",
           options->deterministic);
    return 0;
}

static const char *level(void)
{
    return "abacus, 3 beads";
}

static dsv4_run *open_quietly(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                              const dsv4_tap *tap, dsv4_error *err)
{
    return dsv4_path_ref.open(model, numerics, max_tokens, tap, err);
}

static dsv4_run *open_talking(const dsv4_model *model, dsv4_numerics numerics, int64_t max_tokens,
                              const dsv4_tap *tap, dsv4_error *err)
{
    talks = true;
    printf("open %" PRId64 "\n", max_tokens);
    return dsv4_path_ref.open(model, numerics, max_tokens, tap, err);
}

static int forward_alone(dsv4_run *run, const int64_t *token_ids, int64_t n, double *logits,
                         dsv4_error *err)
{
    if (talks)
        printf("forward %" PRId64 "%s\n", n, logits == NULL ? " silent" : "");
    return dsv4_path_ref.forward(run, token_ids, n, logits, err);
}

static int mtp_alone(dsv4_run *run, const int64_t *next_ids, int64_t n, double *logits,
                     dsv4_error *err)
{
    if (talks)
        printf("mtp %" PRId64 "%s\n", n, logits == NULL ? " silent" : "");
    return dsv4_path_ref.mtp(run, next_ids, n, logits, err);
}

static void tell(const char *what, int64_t count, const int64_t *n, double *const *logits)
{
    printf("%s", what);
    for (int64_t i = 0; i < count; i++)
        printf(" %" PRId64 "%s", n[i], logits[i] == NULL ? " silent" : "");
    printf("\n");
}

static int forward_together(dsv4_run *const *runs, int64_t count, const int64_t *const *token_ids,
                            const int64_t *n, double *const *logits, dsv4_error *err)
{
    int result = 0;
    if (talks)
        tell("forward together", count, n, logits);
    for (int64_t i = 0; i < count && result == 0; i++)
        result = dsv4_path_ref.forward(runs[i], token_ids[i], n[i], logits[i], err);
    return result;
}

static int mtp_together(dsv4_run *const *runs, int64_t count, const int64_t *const *next_ids,
                        const int64_t *n, double *const *logits, dsv4_error *err)
{
    int result = 0;
    if (talks)
        tell("mtp together", count, n, logits);
    for (int64_t i = 0; i < count && result == 0; i++)
        result = dsv4_path_ref.mtp(runs[i], next_ids[i], n[i], logits[i], err);
    return result;
}

static int refuse_together(dsv4_run *const *runs, int64_t count, const int64_t *const *token_ids,
                           const int64_t *n, double *const *logits, dsv4_error *err)
{
    (void)runs, (void)count, (void)token_ids, (void)n, (void)logits;
    return dsv4_fail(err, "they will not go together");
}

static void close_ref(dsv4_run *run)
{
    dsv4_path_ref.close(run);
}

static const dsv4_path batch_path = {.name = "batch", .open = open_quietly,
                                     .forward = forward_alone, .mtp = mtp_alone,
                                     .forward_batch = forward_together,
                                     .mtp_batch = mtp_together, .close = close_ref};
static const dsv4_path talking_path = {.name = "talking", .configure = configure, .level = level,
                                       .open = open_talking, .forward = forward_alone,
                                       .mtp = mtp_alone, .forward_batch = forward_together,
                                       .mtp_batch = mtp_together, .close = close_ref};
static const dsv4_path apart_path = {.name = "apart", .open = open_quietly,
                                     .forward = forward_alone, .mtp = mtp_alone,
                                     .forward_batch = refuse_together, .close = close_ref};
static const dsv4_path jumping_path = {.name = "jumping", .open = open_odd_run,
                                       .forward_batch = show_jumps, .close = close_odd_run};
static const dsv4_path wide_path = {.name = "wide", .open = open_odd_run,
                                    .forward = show_wide_choice, .close = close_odd_run};
static const dsv4_path needless_path = {.name = "needless", .open = open_odd_run,
                                        .forward = show_needless_score, .close = close_odd_run};
static const dsv4_path closed_path = {.name = "closed", .open = open_no_run};
static const dsv4_path odd_path = {.name = "odd", .open = open_odd_run, .forward = show_odd_tensor,
                                   .mtp = fail_mtp, .close = close_odd_run};
static const dsv4_path narrow_path = {.name = "narrow", .open = open_odd_run,
                                      .forward = show_narrow_route, .mtp = fail_mtp,
                                      .close = close_odd_run};
static const dsv4_path slow_path = {.name = "slow", .open = open_odd_run,
                                    .forward = be_interrupted, .mtp = fail_mtp,
                                    .close = close_odd_run};

/* The command finds its paths by these two, which stand in for those of host/path.c. */
const dsv4_path *dsv4_path_find(const char *name)
{
    const dsv4_path *const paths[] = {&dsv4_path_ref, &closed_path, &odd_path, &slow_path,
                                      &narrow_path, &batch_path, &talking_path, &apart_path,
                                      &wide_path, &needless_path, &jumping_path};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (strcmp(paths[i]->name, name) == 0)
            return paths[i];
    return NULL;
}

const char *dsv4_path_names(void)
{
    return "ref or a broken one";
}

static int make_models(void **state)
{
    if (scratch_enter(state) != 0)
        return -1;
    dsv4_error err = {""};
    const make_options options = {.style = MAKE_EXACT, .seed = 1};
    int result = make_checkpoint("model", CONFIG(1), &options, &err);
    if (result == 0)
        result = make_checkpoint("no-mtp", CONFIG(0), &options, &err);
    if (result != 0)
        print_error("%s\n", err.text);
    return result;
}

/* Runs the command and holds it to success and silence. */
#define assert_runs(...)                                                                           \
    do {                                                                                           \
        command_result result_ = command_call(dsv4_logits_main, "dsv4 logits", __VA_ARGS__);       \
        assert_string_equal(result_.err, "");                                                      \
        assert_string_equal(result_.out, "");                                                      \
        assert_int_equal(result_.code, 0);                                                         \
        command_free(&result_);                                                                    \
    } while (0)

/* Holds it to one line, nothing on stdout, exit code 2 and no file left behind. */
#define assert_refuses(expected, ...)                                                              \
    do {                                                                                           \
        command_result result_ = command_call(dsv4_logits_main, "dsv4 logits", __VA_ARGS__);       \
        assert_string_equal(result_.err, "dsv4 logits: " expected "\n");                           \
        assert_string_equal(result_.out, "");                                                      \
        assert_int_equal(result_.code, 2);                                                         \
        assert_int_not_equal(access("no.h5", F_OK), 0);                                            \
        assert_int_not_equal(access("no.h5.part", F_OK), 0);                                       \
        command_free(&result_);                                                                    \
    } while (0)

/* Holds it to a message of usage, of which the first line is given. */
#define assert_usage(expected, ...)                                                                \
    do {                                                                                           \
        command_result result_ = command_call(dsv4_logits_main, "dsv4 logits", __VA_ARGS__);       \
        assert_memory_equal(result_.err, "dsv4 logits: " expected "\nTry ",                        \
                            strlen("dsv4 logits: " expected "\nTry "));                            \
        assert_string_equal(result_.out, "");                                                      \
        assert_int_equal(result_.code, 2);                                                         \
        command_free(&result_);                                                                    \
    } while (0)

/* What the path gives when called as a whole, for comparison. */
typedef struct {
    double logits[TOKENS * VOCAB], mtp_logits[TOKENS * VOCAB];
    double mid[TOKENS * 2 * 32];   /* of layer 2 */
    double score[TOKENS][TOKENS];  /* index_score of layer 1 */
    int64_t selected[TOKENS][3], visible[TOKENS], selections[TOKENS]; /* of layer 1 */
    int64_t mtp_route[TOKENS * 2];
} expectation;

static void record(void *context, const dsv4_point *point)
{
    expectation *e = context;
    if (point->layer == 2 && strcmp(point->name, "mid") == 0)
        memcpy(e->mid, point->values, sizeof e->mid);
    if (point->layer == LAYERS && strcmp(point->name, "route_index") == 0)
        memcpy(e->mtp_route, point->indices, sizeof e->mtp_route);
    if (point->layer == 1 && strcmp(point->name, "index_score") == 0) {
        e->visible[point->row] = point->dim[0];
        memcpy(e->score[point->row], point->values, (size_t)point->dim[0] * sizeof(double));
    }
    if (point->layer == 1 && strcmp(point->name, "selected") == 0)
        for (int64_t r = 0; r < point->rows; r++) {
            e->selections[point->row + r] = point->dim[0];
            memcpy(e->selected[point->row + r], point->indices + r * point->dim[0],
                   (size_t)point->dim[0] * sizeof(int64_t));
        }
}

static expectation *expect(dsv4_numerics numerics)
{
    dsv4_error err = {""};
    dsv4_model model;
    expectation *e = dsv4_alloc(1, sizeof *e);
    dsv4_tap tap = {record, e};
    int64_t next[TOKENS];
    for (int t = 0; t < TOKENS; t++)
        next[t] = ids[(t + 1) % TOKENS];
    assert_int_equal(dsv4_model_open(&model, "model", numerics, true, &err), 0);
    dsv4_run *run = dsv4_path_ref.open(&model, numerics, TOKENS, &tap, &err);
    assert_int_equal(dsv4_path_ref.forward(run, ids, TOKENS, e->logits, &err), 0);
    assert_int_equal(dsv4_path_ref.mtp(run, next, TOKENS, e->mtp_logits, &err), 0);
    dsv4_path_ref.close(run);
    dsv4_model_close(&model);
    return e;
}

static dsv4_h5 *open_file(const char *path)
{
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_open(path, &err);
    assert_non_null(file);
    return file;
}

static dsv4_h5_data read_set(dsv4_h5 *file, const char *name)
{
    dsv4_error err = {""};
    dsv4_h5_data data;
    assert_int_equal(dsv4_h5_read(file, name, &data, &err), 0);
    return data;
}

static void assert_set(dsv4_h5 *file, const char *name, const double *values,
                       const int64_t *indices, int64_t count)
{
    dsv4_h5_data data = read_set(file, name);
    assert_int_equal(data.count, count);
    assert_int_equal(data.integer, indices != NULL);
    for (int64_t i = 0; i < count; i++)
        assert_true(indices != NULL ? data.indices[i] == indices[i] : data.values[i] == values[i]);
    dsv4_h5_data_free(&data);
}

static void all_values_are_written(void **state)
{
    (void)state;
    expectation *e = expect(DSV4_EXACT);
    assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "-o", "all.h5");
    dsv4_h5 *file = open_file("all.h5");
    int64_t next[TOKENS];
    for (int t = 0; t < TOKENS; t++)
        next[t] = ids[(t + 1) % TOKENS];
    assert_set(file, "token_ids", NULL, ids, TOKENS);
    assert_set(file, "mtp_token_ids", NULL, next, TOKENS);
    assert_set(file, "logits", e->logits, NULL, TOKENS * VOCAB);
    assert_set(file, "mtp_logits", e->mtp_logits, NULL, TOKENS * VOCAB);
    assert_set(file, "trace/layers/2/mid", e->mid, NULL, TOKENS * 2 * 32);
    assert_set(file, "trace/mtp/0/route_index", NULL, e->mtp_route, TOKENS * 2);

    dsv4_h5_data score = read_set(file, "trace/layers/1/index_score");
    dsv4_h5_data selected = read_set(file, "trace/layers/1/selected");
    for (int64_t t = 0; t < TOKENS; t++) {
        assert_int_equal(e->visible[t], (t + 1) / 4);
        for (int64_t g = 0; g < TOKENS / 4; g++)
            assert_true(score.values[t * (TOKENS / 4) + g] ==
                        (g < e->visible[t] ? e->score[t][g] : -INFINITY));
        for (int64_t i = 0; i < 3; i++)
            assert_int_equal(selected.indices[t * 3 + i],
                             i < e->selections[t] ? e->selected[t][i] : -1);
    }
    dsv4_h5_data_free(&score);
    dsv4_h5_data_free(&selected);
    dsv4_h5_close(file, NULL);
    free(e);
}

/* Names and shapes are those of the trace files of the specification. */
static void datasets_have_their_names_and_shapes(void **state)
{
    (void)state;
    static const struct {
        const char *name, *shape;
    } expected[] = {
        {"logits", "20 32"}, {"mtp_logits", "20 32"}, {"mtp_token_ids", "20"}, {"token_ids", "20"},
        {"trace/layers/0/attn_core", "20 2 80"}, {"trace/layers/0/attn_in", "20 32"},
        {"trace/layers/0/attn_out", "20 32"}, {"trace/layers/0/ffn_in", "20 32"},
        {"trace/layers/0/ffn_out", "20 32"}, {"trace/layers/0/kv", "20 80"},
        {"trace/layers/0/mid", "20 2 32"}, {"trace/layers/0/out", "20 2 32"},
        {"trace/layers/0/q", "20 2 80"}, {"trace/layers/0/route_index", "20 2"},
        {"trace/layers/0/route_weight", "20 2"},
        {"trace/layers/1/attn_core", "20 2 80"}, {"trace/layers/1/attn_in", "20 32"},
        {"trace/layers/1/attn_out", "20 32"}, {"trace/layers/1/compressed", "5 80"},
        {"trace/layers/1/ffn_in", "20 32"}, {"trace/layers/1/ffn_out", "20 32"},
        {"trace/layers/1/index_k", "5 32"}, {"trace/layers/1/index_q", "20 4 32"},
        {"trace/layers/1/index_score", "20 5"}, {"trace/layers/1/kv", "20 80"},
        {"trace/layers/1/mid", "20 2 32"}, {"trace/layers/1/out", "20 2 32"},
        {"trace/layers/1/q", "20 2 80"}, {"trace/layers/1/route_index", "20 2"},
        {"trace/layers/1/route_weight", "20 2"}, {"trace/layers/1/selected", "20 3"},
        {"trace/layers/2/attn_core", "20 2 80"}, {"trace/layers/2/attn_in", "20 32"},
        {"trace/layers/2/attn_out", "20 32"}, {"trace/layers/2/compressed", "2 80"},
        {"trace/layers/2/ffn_in", "20 32"}, {"trace/layers/2/ffn_out", "20 32"},
        {"trace/layers/2/kv", "20 80"}, {"trace/layers/2/mid", "20 2 32"},
        {"trace/layers/2/out", "20 2 32"}, {"trace/layers/2/q", "20 2 80"},
        {"trace/layers/2/route_index", "20 2"}, {"trace/layers/2/route_weight", "20 2"},
        {"trace/layers/2/selected", "20 2"},
        {"trace/mtp/0/attn_core", "20 2 80"}, {"trace/mtp/0/attn_in", "20 32"},
        {"trace/mtp/0/attn_out", "20 32"}, {"trace/mtp/0/ffn_in", "20 32"},
        {"trace/mtp/0/ffn_out", "20 32"}, {"trace/mtp/0/in", "20 2 32"},
        {"trace/mtp/0/kv", "20 80"}, {"trace/mtp/0/mid", "20 2 32"},
        {"trace/mtp/0/out", "20 2 32"}, {"trace/mtp/0/q", "20 2 80"},
        {"trace/mtp/0/route_index", "20 2"}, {"trace/mtp/0/route_weight", "20 2"},
    };
    assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "--output", "shapes.h5");
    dsv4_h5 *file = open_file("shapes.h5");
    dsv4_error err = {""};
    int64_t count;
    char **names = dsv4_h5_names(file, &count, &err);
    for (int64_t i = 0; i < count; i++) {
        assert_true(i < (int64_t)(sizeof expected / sizeof *expected));
        assert_string_equal(names[i], expected[i].name);
        dsv4_h5_data data = read_set(file, names[i]);
        char shape[64] = "";
        for (int d = 0; d < data.rank; d++)
            sprintf(shape + strlen(shape), "%s%" PRId64, d > 0 ? " " : "", data.shape[d]);
        assert_string_equal(shape, expected[i].shape);
        dsv4_h5_data_free(&data);
    }
    assert_int_equal(count, sizeof expected / sizeof *expected);
    dsv4_h5_names_free(names, count);
    dsv4_h5_close(file, NULL);
}

static size_t bytes_per_value(const char *path, const char *name, H5T_class_t class)
{
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t set = H5Dopen2(file, name, H5P_DEFAULT);
    hid_t type = H5Dget_type(set);
    size_t size = H5Tget_size(type);
    assert_int_equal(H5Tget_class(type), class);
    H5Tclose(type);
    H5Dclose(set);
    H5Fclose(file);
    return size;
}

static void types_follow_the_numerics(void **state)
{
    (void)state;
    static const char *const floats[] = {"logits", "mtp_logits", "trace/layers/1/q",
                                         "trace/layers/1/index_score"};
    assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "-o", "exact.h5", "--numerics",
                "exact");
    assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "-o", "released.h5", "--numerics",
                "released", "--path", "ref");
    for (int i = 0; i < 4; i++) {
        assert_int_equal(bytes_per_value("exact.h5", floats[i], H5T_FLOAT), 8);
        assert_int_equal(bytes_per_value("released.h5", floats[i], H5T_FLOAT), 4);
    }
    assert_int_equal(bytes_per_value("exact.h5", "token_ids", H5T_INTEGER), 4);
    assert_int_equal(bytes_per_value("released.h5", "trace/layers/2/selected", H5T_INTEGER), 4);

    expectation *e = expect(DSV4_RELEASED);
    for (int i = 0; i < TOKENS * VOCAB; i++)
        e->logits[i] = (float)e->logits[i];
    dsv4_h5 *file = open_file("released.h5");
    assert_set(file, "logits", e->logits, NULL, TOKENS * VOCAB);
    dsv4_h5_close(file, NULL);
    free(e);
}

static void assert_same_bytes(const char *a, const char *b)
{
    FILE *files[] = {fopen(a, "rb"), fopen(b, "rb")};
    assert_non_null(files[0]);
    assert_non_null(files[1]);
    int x, y;
    do {
        x = getc(files[0]);
        y = getc(files[1]);
        assert_int_equal(x, y);
    } while (x != EOF);
    fclose(files[0]);
    fclose(files[1]);
}

static void chunks_make_no_difference(void **state)
{
    (void)state;
    static const char *const chunks[] = {"1", "3", "7", "1000000"};
    assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "-o", "whole.h5");
    for (int i = 0; i < 4; i++) {
        assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "-o", "chunks.h5", "--chunk",
                    chunks[i]);
        assert_same_bytes("whole.h5", "chunks.h5");
    }
    /* More tokens than are taken at once where nothing is said. */
    FILE *text = fopen("many.txt", "w");
    for (int t = 0; t < 300; t++)
        fprintf(text, "%d\n", t * 7 % VOCAB);
    fclose(text);
    assert_runs("model", "--ids", "many.txt", "-o", "whole.h5");
    assert_runs("model", "--ids", "many.txt", "-o", "chunks.h5", "--chunk", "300");
    assert_same_bytes("whole.h5", "chunks.h5");
    /* And more scores than are written at once. */
    assert_runs("model", "--ids", "many.txt", "--trace", "-o", "whole.h5", "--chunk", "300");
    assert_runs("model", "--ids", "many.txt", "--trace", "-o", "chunks.h5", "--chunk", "1");
    assert_same_bytes("whole.h5", "chunks.h5");
}

static void sources_of_ids_are_equal(void **state)
{
    (void)state;
    FILE *text = fopen("ids.txt", "w");
    fprintf(text, "[%s]\n", tokens);
    fclose(text);
    assert_runs("model", "--tokens", tokens, "-o", "tokens.h5");
    assert_runs("model", "--ids", "ids.txt", "-o", "text.h5");
    assert_same_bytes("tokens.h5", "text.h5");
    assert_runs("model", "--ids-h5", "tokens.h5", "-o", "text.h5");
    assert_same_bytes("tokens.h5", "text.h5");
    dsv4_h5 *file = open_file("text.h5");
    assert_false(dsv4_h5_has(file, "mtp_logits"));
    assert_false(dsv4_h5_has(file, "mtp_token_ids"));
    dsv4_h5_close(file, NULL);
}

/* The lines that are printed for one row of logits, found the slow way. */
static void print_expected(char *text, const double *logits)
{
    bool taken[VOCAB] = {false};
    double sum = 0;
    for (int i = 0; i < VOCAB; i++)
        sum += exp(logits[i]);
    strcpy(text, "      id         logit  log-probability\n");
    for (int place = 0; place < 5; place++) {
        int best = -1;
        for (int i = 0; i < VOCAB; i++)
            if (!taken[i] && (best < 0 || logits[i] > logits[best]))
                best = i;
        taken[best] = true;
        sprintf(text + strlen(text), "%8d  %12.6f  %15.6f\n", best, logits[best],
                logits[best] - log(sum));
    }
}

static void assert_prints(const char *expected, int count, const char *const *words)
{
    command_result result = command_run(dsv4_logits_main, count, words);
    assert_string_equal(result.err, "");
    assert_string_equal(result.out, expected);
    assert_int_equal(result.code, 0);
    command_free(&result);
}

static void likely_tokens_are_printed(void **state)
{
    (void)state;
    static const char *const words[] = {"dsv4 logits", "model", "--tokens", tokens};
    expectation *e = expect(DSV4_EXACT);
    char expected[1000], lines[400];
    print_expected(lines, e->logits + (TOKENS - 1) * VOCAB);
    sprintf(expected, "after position 19:\n%s", lines);
    assert_prints(expected, 4, words);

    char with_mtp[2000];
    print_expected(lines, e->mtp_logits + (TOKENS - 2) * VOCAB);
    sprintf(with_mtp, "after position 19, by MTP at position 18:\n%s%s", lines, expected);
    static const char *const chunks[] = {"256", "1", "10", "19"};
    for (int i = 0; i < 4; i++) {
        const char *const more[] = {"dsv4 logits", "model", "--tokens", tokens, "--mtp", "--chunk",
                                    chunks[i]};
        assert_prints(with_mtp, 7, more);
    }
    print_expected(lines, e->logits);
    sprintf(expected, "after position 0:\n%s", lines);
    const char *const one[] = {"dsv4 logits", "model", "--tokens", "3", "--mtp"};
    assert_prints(expected, 5, one);
    free(e);

    const double equal[VOCAB] = {0}; /* by id, then */
    print_expected(lines, equal);
    sprintf(expected, "after position 0:\n%s", lines);
    const char *const odd[] = {"dsv4 logits", "model", "--tokens", "3", "--path", "odd"};
    assert_prints(expected, 6, odd);
}

static void bad_ids_are_refused(void **state)
{
    (void)state;
    assert_refuses("--tokens: the token at position 1 has id 32: the model has vocab_size 32", "model",
                   "--tokens", "31 32", "-o", "no.h5");
    assert_refuses("--tokens: the token at position 0 has id -1: the model has vocab_size 32", "model",
                   "--tokens", "-1", "-o", "no.h5");
    assert_refuses("--tokens: no token ids", "model", "--tokens", "", "-o", "no.h5");
    assert_refuses("none: cannot open: No such file or directory", "model", "--ids", "none");
    assert_refuses("none: cannot open: No such file or directory", "model", "--ids-h5", "none");
    char many[1000] = "";
    for (int t = 0; t < 301; t++)
        strcat(many, "1 ");
    assert_refuses("--tokens: 301 token ids: the model has max_position_embeddings 300", "model",
                   "--tokens", many, "-o", "no.h5");
    /* Refused before they are read: a small file can declare more than there is memory. */
    hid_t declared = H5Fcreate("huge.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, (hsize_t[]){(hsize_t)1 << 40}, NULL);
    H5Dclose(H5Dcreate2(declared, "token_ids", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT,
                        H5P_DEFAULT));
    H5Sclose(space);
    H5Fclose(declared);
    assert_refuses("huge.h5: 1099511627776 token ids: the model has max_position_embeddings 300", "model",
                   "--ids-h5", "huge.h5", "-o", "no.h5");
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("few.h5", &err);
    assert_int_equal(dsv4_h5_define(file, "token_ids", DSV4_H5_I32, 1, (int64_t[]){3}, 1, &err), 0);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_refuses("few.h5: is the file of the token ids: not overwritten", "model", "--ids-h5",
                   "few.h5", "-o", "few.h5");
}

static void interrupted_runs_leave_nothing(void **state)
{
    (void)state;
    command_result result = command_call(dsv4_logits_main, "dsv4 logits", "model", "--tokens", "1 2",
                                         "--path", "slow", "-o", "no.h5");
    assert_int_equal(result.code, -SIGTERM);
    assert_string_equal(result.err, "");
    assert_int_not_equal(access("no.h5", F_OK), 0);
    assert_int_not_equal(access("no.h5.part", F_OK), 0);
    command_free(&result);
}

/* A main() that may write only small files. */
static int small_disk(int argc, char **argv)
{
    struct rlimit usual, limit;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &usual);
    limit = (struct rlimit){8192, usual.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    int code = dsv4_logits_main(argc, argv);
    setrlimit(RLIMIT_FSIZE, &usual); /* for what a coverage build writes at the end */
    return code;
}

static void unwritable_output_is_refused(void **state)
{
    (void)state;
    assert_refuses("none/no.h5.part: cannot create: No such file or directory", "model",
                   "--tokens", "1 2", "-o", "none/no.h5");
    assert_refuses("'model': cannot write: not the name of a regular file", "model", "--tokens",
                   "1 2", "-o", "model");
    command_result result = command_call(small_disk, "dsv4 logits", "model", "--tokens", tokens,
                                         "--mtp", "-o", "no.h5");
    assert_string_equal(result.err, "dsv4 logits: no.h5: mtp_logits: cannot create the dataset: "
                        "File too large\n");
    assert_int_equal(result.code, 2);
    command_free(&result);
    result = command_call(small_disk, "dsv4 logits", "model", "--tokens", tokens, "--trace", "-o",
                          "no.h5");
    assert_string_equal(result.err, "dsv4 logits: no.h5: trace/layers/0/attn_in: cannot create the "
                        "dataset: File too large\n");
    assert_int_equal(result.code, 2);
    assert_int_not_equal(access("no.h5", F_OK), 0);
    assert_int_not_equal(access("no.h5.part", F_OK), 0);
    command_free(&result);
}

/* Overwrites the first value of head.weight in DIR/model.safetensors by a NaN. */
static void spoil_head(const char *path)
{
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    static char header[65536];
    uint64_t length = 0;
    assert_int_equal(fread(&length, sizeof length, 1, file), 1);
    assert_true(length < sizeof header);
    assert_int_equal(fread(header, 1, length, file), length);
    const char *entry = strstr(header, "\"head.weight\"");
    assert_non_null(entry);
    long offset = 0;
    assert_int_equal(sscanf(strstr(entry, "\"data_offsets\":["), "\"data_offsets\":[%ld", &offset),
                     1);
    assert_int_equal(fseek(file, 8 + (long)length + offset, SEEK_SET), 0);
    const float nan_value = NAN;
    fwrite(&nan_value, sizeof nan_value, 1, file);
    fclose(file);
}

static void failed_runs_leave_the_old_file(void **state)
{
    (void)state;
    dsv4_error err = {""};
    const make_options options = {.style = MAKE_EXACT, .seed = 1};
    assert_int_equal(make_checkpoint("spoilt", CONFIG(1), &options, &err), 0);
    spoil_head("spoilt/model.safetensors");
    assert_runs("model", "--tokens", tokens, "-o", "old.h5");
    assert_runs("model", "--tokens", tokens, "-o", "copy.h5");
    command_result result = command_call(dsv4_logits_main, "dsv4 logits", "spoilt", "--tokens",
                                         tokens, "-o", "old.h5");
    assert_memory_equal(result.err, "dsv4 logits: ", 13);
    assert_ptr_equal(strchr(result.err, '\n'), result.err + strlen(result.err) - 1);
    assert_string_equal(result.out, "");
    assert_int_equal(result.code, 2);
    command_free(&result);
    assert_same_bytes("old.h5", "copy.h5");
    assert_int_not_equal(access("old.h5.part", F_OK), 0);
}

static void paths_may_fail(void **state)
{
    (void)state;
    assert_refuses("no such device", "model", "--tokens", "1", "--path", "closed", "-o", "no.h5");
    assert_refuses("no.h5: no dataset trace/layers/0/odd", "model", "--tokens", "1", "--path",
                   "odd", "--trace", "--mtp", "-o", "no.h5");
    assert_refuses("no.h5: trace/layers/1/selected: 1 rows of 9 values from row 0 are outside the "
                   "dataset", "model", "--tokens", "1 2 3 4 5 6 7 8", "--path", "wide", "--trace",
                   "-o", "no.h5");
    assert_refuses("no.h5: no dataset trace/layers/0/index_score", "model", "--tokens", "1",
                   "--path", "needless", "--trace", "-o", "no.h5");
    assert_refuses("--mtp: no-mtp has num_nextn_predict_layers 0", "no-mtp", "--tokens", "1",
                   "--mtp", "-o", "no.h5");
    assert_refuses("none/config.json: No such file or directory", "none", "--tokens",
                   "1", "-o", "no.h5");
    assert_refuses("MTP was called", "model", "--tokens", "1", "--path", "odd", "--mtp", "-o",
                   "no.h5");
}

static void assert_shape(dsv4_h5 *file, const char *name, int64_t rows, int64_t cols)
{
    dsv4_h5_data data = read_set(file, name);
    assert_int_equal(data.rank, 2);
    assert_int_equal(data.shape[0], rows);
    assert_int_equal(data.shape[1], cols);
    dsv4_h5_data_free(&data);
}

/* A path that does not take the choices that it is given must not pass for one that does. */
static void paths_have_to_replay(void **state)
{
    (void)state;
    assert_runs("model", "--tokens", "1", "--trace", "-o", "choices.h5");
    assert_refuses("choices.h5: trace/layers/0/route_index: the path asked for 0 of 1 rows: it "
                   "does not replay", "model", "--tokens", "1", "--path", "odd", "--replay",
                   "choices.h5", "-o", "no.h5");
    assert_refuses("choices.h5: trace/layers/0/route_index: the path shows 1 places of row 0, "
                   "which does not fit", "model", "--tokens", "1", "--path", "narrow", "--replay",
                   "choices.h5", "-o", "no.h5");
}

/* Fewer tokens than a group has, and fewer groups than index_topk. */
static void short_runs_are_traced(void **state)
{
    (void)state;
    assert_runs("no-mtp", "--tokens", "1 2 3", "--trace", "-o", "short.h5");
    dsv4_h5 *file = open_file("short.h5");
    assert_shape(file, "trace/layers/1/compressed", 0, 80);
    assert_shape(file, "trace/layers/1/index_score", 3, 0);
    assert_shape(file, "trace/layers/1/selected", 3, 0);
    assert_shape(file, "trace/layers/2/selected", 3, 0);
    assert_false(dsv4_h5_has(file, "trace/mtp/0/q"));
    dsv4_h5_close(file, NULL);
    assert_runs("model", "--tokens", "1 2 3 4 5 6 7 8", "--trace", "-o", "short.h5");
    file = open_file("short.h5");
    assert_shape(file, "trace/layers/1/selected", 8, 2);
    assert_shape(file, "trace/layers/2/selected", 8, 1);
    assert_false(dsv4_h5_has(file, "trace/mtp/0/q"));
    dsv4_h5_close(file, NULL);
}

/* ---- several sequences ---- */

static void put_integers(dsv4_h5 *file, const char *name, int rank, const int64_t *shape,
                         const int64_t *values)
{
    dsv4_error err = {""};
    if (dsv4_h5_put(file, name, DSV4_H5_I64, rank, shape, values, &err) != 0)
        fail_msg("%s", err.text);
}

/* Sequences that are rotations of the ids, and 99 behind the end of the shorter ones. */
static void put_batch(const char *path, int64_t B, int64_t S, const int64_t *lengths)
{
    dsv4_error err = {""};
    int64_t *all = dsv4_alloc((size_t)(B * S), sizeof *all);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < S; t++)
            all[b * S + t] = lengths == NULL || t < lengths[b] ? ids[(t + 3 * b) % TOKENS] : 99;
    dsv4_h5 *file = dsv4_h5_create(path, &err);
    put_integers(file, "token_ids", 2, (const int64_t[]){B, S}, all);
    if (lengths != NULL)
        put_integers(file, "lengths", 1, &B, lengths);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    free(all);
}

/* Sequence `b` alone, in a text file. */
static void put_single(const char *path, int64_t b, int64_t length)
{
    FILE *text = fopen(path, "w");
    for (int64_t t = 0; t < length; t++)
        fprintf(text, "%" PRId64 "\n", ids[(t + 3 * b) % TOKENS]);
    fclose(text);
}

/* Value `i` of a row of a single run that has `width` values. Scores and selections of a batch are
 * as wide as those of its longest sequence may be. */
static double single_value(const dsv4_h5_data *one, const char *name, int64_t row, int64_t width,
                           int64_t i)
{
    if (i >= width)
        return strstr(name, "index_score") != NULL ? -INFINITY : -1;
    int64_t at = row * width + i;
    return one->integer ? (double)one->indices[at] : one->values[at];
}

/* Dataset `name` of sequence `b` in a batch, against that of its single run. */
static void assert_entry(const char *name, const dsv4_h5_data *all, int64_t b,
                         const dsv4_h5_data *one)
{
    const bool ragged = strstr(name, "index_score") != NULL || strstr(name, "selected") != NULL;
    const int64_t rows = all->shape[1];
    const int64_t width = rows > 0 ? all->count / all->shape[0] / rows : 0;
    const int64_t own = one->shape[0] > 0 ? one->count / one->shape[0] : width;
    assert_int_equal(all->rank, one->rank + 1);
    assert_int_equal(all->integer, one->integer);
    assert_true(ragged ? own <= width : own == width);
    assert_true(one->shape[0] <= rows);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < width; i++) {
            const int64_t at = (b * rows + row) * width + i;
            const double value = all->integer ? (double)all->indices[at] : all->values[at];
            if (row >= one->shape[0] && all->integer)
                assert_true(value == -1);
            else if (row >= one->shape[0])
                assert_true(isnan(value));
            else if (value != single_value(one, name, row, own, i))
                fail_msg("%s: sequence %d, row %d, value %d", name, (int)b, (int)row, (int)i);
        }
}

/* batch.h5 of `lengths`, against single.h5 of sequence `b`. */
static void assert_sequence(int64_t b, int64_t B, const int64_t *lengths, int64_t sets)
{
    dsv4_error err = {""};
    dsv4_h5 *batch = open_file("batch.h5"), *single = open_file("single.h5");
    int64_t count;
    char **names = dsv4_h5_names(batch, &count, &err);
    assert_int_equal(count, sets + 1);
    for (int64_t i = 0; i < count; i++) {
        if (strcmp(names[i], "lengths") == 0) {
            assert_set(batch, "lengths", NULL, lengths, B);
            continue;
        }
        dsv4_h5_data all = read_set(batch, names[i]), one = read_set(single, names[i]);
        assert_int_equal(all.shape[0], B);
        assert_entry(names[i], &all, b, &one);
        dsv4_h5_data_free(&all);
        dsv4_h5_data_free(&one);
    }
    dsv4_h5_names_free(names, count);
    dsv4_h5_close(batch, NULL);
    dsv4_h5_close(single, NULL);
}

static int64_t sets_in(const char *path)
{
    dsv4_error err = {""};
    int64_t count;
    dsv4_h5 *file = open_file(path);
    char **names = dsv4_h5_names(file, &count, &err);
    dsv4_h5_names_free(names, count);
    dsv4_h5_close(file, NULL);
    return count;
}

/* Around the ends of chunks of 5, around groups of 4 and 8, and less than one. */
static const int64_t lengths[] = {20, 5, 10, 4, 6, 1, 11, 15};
enum { SEQUENCES = sizeof lengths / sizeof *lengths };

static void batches_are_single_runs(void **state)
{
    (void)state;
    static const struct { const char *path, *chunk, *numerics; } runs[] = {
        {"ref", "5", "exact"},     {"batch", "5", "exact"}, {"batch", "1", "exact"},
        {"batch", "256", "exact"}, {"ref", "3", "released"},
    };
    put_batch("sequences.h5", SEQUENCES, TOKENS, lengths);
    for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
        assert_runs("model", "--ids-h5", "sequences.h5", "--path", runs[r].path, "--chunk",
                    runs[r].chunk, "--numerics", runs[r].numerics, "--mtp", "--trace", "-o",
                    "batch.h5");
        for (int64_t b = 0; b < SEQUENCES; b++) {
            put_single("single.txt", b, lengths[b]);
            assert_runs("model", "--ids", "single.txt", "--numerics", runs[r].numerics, "--mtp",
                        "--trace", "-o", "single.h5");
            assert_sequence(b, SEQUENCES, lengths, sets_in("single.h5"));
        }
    }
    /* What was written can be read. */
    assert_runs("model", "--ids-h5", "batch.h5", "--numerics", "released", "--mtp", "--trace",
                "-o", "again.h5");
    assert_same_bytes("batch.h5", "again.h5");
}

/* Padding of more rows than are written at once. */
static void long_padding_is_written(void **state)
{
    (void)state;
    const int64_t uneven[] = {2, 300};
    put_batch("sequences.h5", 2, 300, uneven);
    assert_runs("model", "--ids-h5", "sequences.h5", "--trace", "-o", "batch.h5");
    for (int64_t b = 0; b < 2; b++) {
        put_single("single.txt", b, uneven[b]);
        assert_runs("model", "--ids", "single.txt", "--trace", "-o", "single.h5");
        assert_sequence(b, 2, uneven, sets_in("single.h5"));
    }
}

/* Rows that are written together are of one sequence and one layer, and follow each other. */
static void rows_find_their_places(void **state)
{
    (void)state;
    const int64_t width[] = {0, 2, 1}; /* of the layers */
    int64_t expected[3][2 * 8 * 2];
    memset(expected, -1, sizeof expected);
    for (int64_t i = 0; i < JUMPS; i++) {
        const int64_t layer = jumps[i].layer;
        expected[layer][(jumps[i].run * 8 + jumps[i].row) * width[layer]] = 100 + i;
    }
    put_batch("sequences.h5", 2, 8, NULL);
    assert_runs("model", "--ids-h5", "sequences.h5", "--trace", "--path", "jumping", "-o",
                "batch.h5");
    dsv4_h5 *file = open_file("batch.h5");
    assert_set(file, "trace/layers/1/selected", NULL, expected[1], 2 * 8 * 2);
    assert_set(file, "trace/layers/2/selected", NULL, expected[2], 2 * 8 * 1);
    dsv4_h5_close(file, NULL);
}

static void batches_may_be_even(void **state)
{
    (void)state;
    const int64_t even[] = {7, 7};
    put_batch("even.h5", 2, 7, NULL);
    put_batch("sequences.h5", 2, 7, even);
    assert_runs("model", "--ids-h5", "even.h5", "-o", "batch.h5");
    assert_runs("model", "--ids-h5", "sequences.h5", "-o", "again.h5");
    assert_same_bytes("batch.h5", "again.h5");
    /* One of rank 2 is a batch as well. */
    put_batch("one.h5", 1, TOKENS, NULL);
    assert_runs("model", "--ids-h5", "one.h5", "--mtp", "--trace", "-o", "batch.h5");
    assert_runs("model", "--tokens", tokens, "--mtp", "--trace", "-o", "single.h5");
    assert_sequence(0, 1, (const int64_t[]){TOKENS}, sets_in("single.h5"));
    /* Of rank 1 it is none, whatever lengths may be. */
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("flat.h5", &err);
    put_integers(file, "token_ids", 1, (const int64_t[]){TOKENS}, ids);
    put_integers(file, "lengths", 1, (const int64_t[]){2}, even);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_runs("model", "--ids-h5", "flat.h5", "--mtp", "--trace", "-o", "batch.h5");
    assert_same_bytes("batch.h5", "single.h5");
}

static void likely_tokens_of_all_are_printed(void **state)
{
    (void)state;
    const int64_t uneven[] = {1, TOKENS, 6};
    put_batch("sequences.h5", 3, TOKENS, uneven);
    char expected[6000] = "";
    for (int64_t b = 0; b < 3; b++) {
        put_single("single.txt", b, uneven[b]);
        command_result single = command_call(dsv4_logits_main, "dsv4 logits", "model", "--ids",
                                             "single.txt", "--mtp");
        sprintf(expected + strlen(expected), "%ssequence %d\n%s", b > 0 ? "\n" : "", (int)b,
                single.out);
        command_free(&single);
    }
    static const char *const chunks[] = {"256", "1", "5"}, *const paths[] = {"ref", "batch"};
    for (int i = 0; i < 6; i++) {
        const char *const words[] = {"dsv4 logits", "model", "--ids-h5", "sequences.h5", "--mtp",
                                     "--chunk", chunks[i % 3], "--path", paths[i / 3]};
        assert_prints(expected, 9, words);
    }
}

#define assert_tells(expected, ...)                                                                \
    do {                                                                                           \
        command_result result_ = command_call(dsv4_logits_main, "dsv4 logits", __VA_ARGS__,        \
                                              "--path", "talking");                                \
        assert_string_equal(result_.err, "");                                                      \
        assert_memory_equal(result_.out, expected, strlen(expected));                              \
        assert_int_equal(result_.code, 0);                                                         \
        command_free(&result_);                                                                    \
    } while (0)

/* All that go on are in one call; logits are asked for where they are used. */
static void paths_are_asked_for_what_is_used(void **state)
{
    (void)state;
    put_batch("sequences.h5", 3, 11, (const int64_t[]){5, 11, 1});
    assert_tells("configure 0 NULL 0\nopen 5\nopen 11\nopen 1\n"
                 "forward together 5 5 1\nmtp together 5 5 1\n"
                 "forward together 5\nmtp together 5\nforward together 1\nmtp together 1\n",
                 "model", "--ids-h5", "sequences.h5", "--chunk", "5", "--mtp", "-o", "told.h5");
    assert_tells("configure 0 NULL 0\nopen 5\nopen 11\nopen 1\n"
                 "forward together 3 silent 5 silent 1\nmtp together 3 silent 5 silent 1\n"
                 "forward together 2 4 silent\nmtp together 2 4 silent\n"
                 "forward together 2\nmtp together 2\nsequence 0\n",
                 "model", "--ids-h5", "sequences.h5", "--chunk", "5", "--mtp");
    assert_tells("configure 0 NULL 0\nopen 20\nforward 8 silent\nforward 8 silent\n"
                 "forward 3 silent\nforward 1\nafter position 19:\n",
                 "model", "--tokens", tokens, "--chunk", "8");
    assert_tells("configure 0 NULL 0\nopen 20\nforward 8\nforward 8\nforward 4\n",
                 "model", "--tokens", tokens, "--chunk", "8", "-o", "told.h5");
    assert_tells("configure 3 abacus 1\nopen 1\nforward 1\nafter position 0:\n", "model",
                 "--tokens", "3", "--threads", "3", "--isa", "abacus", "--deterministic");
}

static void what_runs_is_said(void **state)
{
    (void)state;
    command_result result = command_call(dsv4_logits_main, "dsv4 logits", "model", "--tokens", "1",
                                         "-v", "--path", "talking");
    assert_string_equal(result.err, "dsv4 logits: path talking: abacus, 3 beads\n");
    assert_int_equal(result.code, 0);
    command_free(&result);
    result = command_call(dsv4_logits_main, "dsv4 logits", "model", "--tokens", "1", "--verbose");
    assert_string_equal(result.err, "dsv4 logits: path ref\n");
    assert_int_equal(result.code, 0);
    command_free(&result);
    assert_refuses("no such instructions", "model", "--tokens", "1", "--isa", "none", "--path",
                   "talking", "-o", "no.h5");
}

static void bad_batches_are_refused(void **state)
{
    (void)state;
    put_batch("sequences.h5", 3, TOKENS, (const int64_t[]){1, 20, 2});
    assert_runs("model", "--ids-h5", "sequences.h5", "--trace", "-o", "batch.h5");
    assert_refuses("--replay takes one sequence: token_ids of sequences.h5 has shape [3,20], "
                   "expected rank 1", "model", "--ids-h5", "sequences.h5", "--replay", "batch.h5",
                   "-o", "no.h5");
    assert_refuses("sequences.h5: is the file of the token ids: not overwritten", "model",
                   "--ids-h5", "sequences.h5", "-o", "sequences.h5");
    assert_refuses("they will not go together", "model", "--ids-h5", "sequences.h5", "--path",
                   "apart", "-o", "no.h5");
    assert_refuses("sequence 0: MTP was called", "model", "--ids-h5", "sequences.h5", "--path",
                   "odd", "--mtp", "-o", "no.h5");
    put_batch("long.h5", 1, 301, NULL);
    assert_refuses("long.h5: sequences of 301 token ids: the model has max_position_embeddings 300",
                   "model", "--ids-h5", "long.h5", "-o", "no.h5");

    const int64_t wrong[] = {1, 2, 3, 4, 32, 6, -1, 8, 9};
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("wrong.h5", &err);
    put_integers(file, "token_ids", 2, (const int64_t[]){3, 3}, wrong);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_refuses("wrong.h5: the token at position 1 of sequence 1 has id 32: the model has "
                   "vocab_size 32", "model", "--ids-h5", "wrong.h5", "-o", "no.h5");
    file = dsv4_h5_create("wrong.h5", &err);
    put_integers(file, "token_ids", 2, (const int64_t[]){3, 3}, wrong);
    put_integers(file, "lengths", 1, (const int64_t[]){3}, (const int64_t[]){3, 1, 1});
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_refuses("wrong.h5: the token at position 0 of sequence 2 has id -1: the model has "
                   "vocab_size 32", "model", "--ids-h5", "wrong.h5", "-o", "no.h5");
}

static void usage_is_checked(void **state)
{
    (void)state;
    assert_usage("expected MODEL_DIR, a checkpoint directory", "--tokens", "1");
    assert_usage("expected one MODEL_DIR, got a second: 'b'", "a", "b", "--tokens", "1");
    assert_usage("expected one of --tokens, --ids and --ids-h5, got none", "model");
    assert_usage("expected one of --tokens, --ids and --ids-h5, got several", "model", "--tokens",
                 "1", "--ids", "ids.txt");
    assert_usage("expected one of --tokens, --ids and --ids-h5, got several", "model", "--ids-h5",
                 "a.h5", "--ids", "ids.txt");
    assert_usage("--trace needs -o OUT.h5", "model", "--tokens", "1", "--trace");
    assert_usage("--path: expected ref or a broken one, got 'x'", "model", "--path", "x");
    assert_usage("--numerics: expected exact or released, got 'fast'", "--numerics", "fast");
    assert_usage("--chunk: expected a number of tokens, 1 or more, got '0'", "--chunk", "0");
    assert_usage("--chunk: expected a number of tokens, 1 or more, got '-1'", "--chunk", "-1");
    assert_usage("--chunk: expected a number of tokens, 1 or more, got '1x'", "--chunk", "1x");
    assert_usage("--chunk: expected a number of tokens, 1 or more, got ''", "--chunk", "");
    assert_usage("--chunk: expected a number of tokens, 1 or more, got '9999999999999999999'",
                 "--chunk", "9999999999999999999");
    assert_usage("--threads: expected a number from 1 to 1024, got '0'", "--threads", "0");
    assert_usage("--threads: expected a number from 1 to 1024, got 'two'", "--threads", "two");
    assert_usage("--threads: expected a number from 1 to 1024, got '2147483648'", "--threads",
                 "2147483648");
    assert_usage("--isa: expected a level of instructions, got ''", "--isa", "");
    assert_refuses("--threads: path ref computes in one way only", "model", "--tokens", "1",
                   "--threads", "1");
    assert_refuses("--isa: path ref computes in one way only", "--isa", "avx2", "model",
                   "--tokens", "1", "--path", "ref");
    assert_refuses("--deterministic: path batch computes in one way only", "model", "--tokens", "1",
                   "--deterministic", "--path", "batch");
    assert_usage("unrecognized option '--none'", "--none");
    command_result result = command_call(dsv4_logits_main, "dsv4 logits", "--help");
    assert_non_null(strstr(result.out, "Usage: dsv4 logits [OPTION...] MODEL_DIR\n"));
    assert_int_equal(result.code, 0);
    command_free(&result);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_values_are_written),
        cmocka_unit_test(datasets_have_their_names_and_shapes),
        cmocka_unit_test(types_follow_the_numerics),
        cmocka_unit_test(chunks_make_no_difference),
        cmocka_unit_test(sources_of_ids_are_equal),
        cmocka_unit_test(likely_tokens_are_printed),
        cmocka_unit_test(interrupted_runs_leave_nothing),
        cmocka_unit_test(bad_ids_are_refused),
        cmocka_unit_test(unwritable_output_is_refused),
        cmocka_unit_test(failed_runs_leave_the_old_file),
        cmocka_unit_test(paths_may_fail),
        cmocka_unit_test(paths_have_to_replay),
        cmocka_unit_test(short_runs_are_traced),
        cmocka_unit_test(batches_are_single_runs),
        cmocka_unit_test(long_padding_is_written),
        cmocka_unit_test(rows_find_their_places),
        cmocka_unit_test(batches_may_be_even),
        cmocka_unit_test(likely_tokens_of_all_are_printed),
        cmocka_unit_test(paths_are_asked_for_what_is_used),
        cmocka_unit_test(what_runs_is_said),
        cmocka_unit_test(bad_batches_are_refused),
        cmocka_unit_test(usage_is_checked),
    };
    return cmocka_run_group_tests_name("logits", tests, make_models, scratch_leave) != 0;
}
