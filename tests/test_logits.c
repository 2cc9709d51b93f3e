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
                                      &narrow_path};
    for (int i = 0; i < 5; i++)
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

/* Fewer tokens than a group has, and fewer groups than index_topk. */
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
        cmocka_unit_test(usage_is_checked),
    };
    return cmocka_run_group_tests_name("logits", tests, make_models, scratch_leave) != 0;
}
