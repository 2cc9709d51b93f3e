/* dsv4 logits --replay: choices of a trace file instead of a run's own. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "command.h"
#include "host/diff.h"
#include "host/h5.h"
#include "host/logits.h"
#include "make_checkpoint.h"

enum { TOKENS = 20, VOCAB = 32, K = 2, TOPK = 3 };

/* A hash layer of CSA, an HCA and a CSA layer that route by score, and MTP. */
static const char config[] =
    "{\"architectures\": [\"DeepseekV4ForCausalLM\"], \"model_type\": \"deepseek_v4\", "
    "\"vocab_size\": 32, \"hidden_size\": 32, \"num_hidden_layers\": 3, "
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 80, "
    "\"q_lora_rank\": 32, \"qk_rope_head_dim\": 16, \"o_groups\": 2, \"o_lora_rank\": 8, "
    "\"sliding_window\": 4, \"compress_ratios\": [4, 8, 4, 0], \"rope_theta\": 10000.0, "
    "\"compress_rope_theta\": 160000.0, \"index_n_heads\": 4, \"index_head_dim\": 32, "
    "\"index_topk\": 3, \"moe_intermediate_size\": 16, \"n_routed_experts\": 4, "
    "\"n_shared_experts\": 1, \"num_experts_per_tok\": 2, \"num_hash_layers\": 1, "
    "\"scoring_func\": \"sqrtsoftplus\", \"topk_method\": \"noaux_tc\", "
    "\"norm_topk_prob\": true, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 10.0, "
    "\"hc_mult\": 2, \"hc_sinkhorn_iters\": 4, \"hc_eps\": 1e-6, \"rms_norm_eps\": 1e-6, "
    "\"hidden_act\": \"silu\", \"tie_word_embeddings\": false, "
    "\"max_position_embeddings\": 300, \"num_nextn_predict_layers\": 1, "
    "\"bos_token_id\": 0, \"eos_token_id\": 1}";

static const char tokens[] = "3 1 4 1 5 9 2 6 5 3 5 8 9 7 9 3 2 3 8 31";

/* Changes the stored bytes of one tensor of DIR/model.safetensors, which are handed to `change`. */
static void edit(const char *dir, const char *name, void (*change)(void *data, size_t size))
{
    static char header[1 << 16], data[1 << 16];
    char path[64], key[96];
    uint64_t length = 0;
    long begin, end;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    snprintf(key, sizeof key, "\"%s\"", name);
    FILE *file = fopen(path, "r+b");
    assert_non_null(file);
    assert_int_equal(fread(&length, sizeof length, 1, file), 1);
    assert_true(length < sizeof header);
    assert_int_equal(fread(header, 1, length, file), length);
    const char *entry = strstr(header, key);
    assert_non_null(entry);
    assert_int_equal(sscanf(strstr(entry, "\"data_offsets\":["), "\"data_offsets\":[%ld,%ld",
                            &begin, &end), 2);
    const size_t size = (size_t)(end - begin);
    assert_true(size <= sizeof data);
    fseek(file, 8 + (long)length + begin, SEEK_SET);
    assert_int_equal(fread(data, 1, size, file), size);
    change(data, size);
    fseek(file, 8 + (long)length + begin, SEEK_SET);
    assert_int_equal(fwrite(data, 1, size, file), size);
    fclose(file);
}

/* Each of these changes choices and nothing else: a bias chooses and never weighs, an indexer
 * scores and no more. */
static void prefer_expert_1(void *data, size_t size)
{
    float bias[4] = {0};
    assert_int_equal(size, sizeof bias);
    memcpy(bias, data, size);
    bias[1] += 100;
    memcpy(data, bias, size);
}

static void prefer_the_worst(void *data, size_t size)
{
    for (size_t i = 0; i < size; i += sizeof(float)) {
        float x;
        memcpy(&x, (char *)data + i, sizeof x);
        x = -x;
        memcpy((char *)data + i, &x, sizeof x);
    }
}

/* Token id 6 stands once in the text, at position 7. */
static void send_6_to_experts_1_and_2(void *data, size_t size)
{
    assert_int_equal(size, VOCAB * K * sizeof(int64_t));
    memcpy((int64_t *)data + 6 * K, (int64_t[]){1, 2}, 2 * sizeof(int64_t));
}

static void send_6_to_expert_2_twice(void *data, size_t size)
{
    assert_int_equal(size, VOCAB * K * sizeof(int64_t));
    memcpy((int64_t *)data + 6 * K, (int64_t[]){2, 2}, 2 * sizeof(int64_t));
}

static const char *const names[] = {
    "trace/layers/0/route_index", "trace/layers/0/selected", "trace/layers/1/route_index",
    "trace/layers/2/route_index", "trace/layers/2/selected", "trace/mtp/0/route_index", NULL};

static int make_model(const char *dir)
{
    dsv4_error err = {""};
    const make_options options = {.style = MAKE_EXACT, .seed = 3};
    int result = make_checkpoint(dir, config, &options, &err);
    if (result != 0)
        print_error("%s\n", err.text);
    return result;
}

/* `model`, and `other`, which is the same but for what it chooses. */
static int make_models(void **state)
{
    if (scratch_enter(state) != 0 || make_model("model") != 0 || make_model("other") != 0)
        return -1;
    edit("other", "layers.0.attn.indexer.weights_proj.weight", prefer_the_worst);
    edit("other", "layers.0.ffn.gate.tid2eid", send_6_to_experts_1_and_2);
    edit("other", "layers.1.ffn.gate.bias", prefer_expert_1);
    edit("other", "layers.2.attn.indexer.weights_proj.weight", prefer_the_worst);
    edit("other", "layers.2.ffn.gate.bias", prefer_expert_1);
    edit("other", "mtp.0.ffn.gate.bias", prefer_expert_1);
    return 0;
}

/* Runs the command and holds it to success and these lines on standard error. */
#define assert_runs(said, ...)                                                                     \
    do {                                                                                           \
        command_result result_ = command_call(dsv4_logits_main, "dsv4 logits", __VA_ARGS__);       \
        assert_string_equal(result_.err, said);                                                    \
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

static dsv4_h5_data read_set(const char *path, const char *name)
{
    dsv4_error err = {""};
    dsv4_h5_data data = {0};
    dsv4_h5 *file = dsv4_h5_open(path, &err);
    assert_non_null(file);
    assert_int_equal(dsv4_h5_read(file, name, &data, &err), 0);
    dsv4_h5_close(file, NULL);
    return data;
}

/* Bit for bit, without the last row of MTP, which is free. */
static bool same_set(const char *a, const char *b, const char *name)
{
    dsv4_h5_data x = read_set(a, name), y = read_set(b, name);
    assert_int_equal(x.count, y.count);
    assert_int_equal(x.integer, y.integer);
    int64_t count = x.count - (strstr(name, "mtp") != NULL ? x.count / x.shape[0] : 0);
    bool same = memcmp(x.integer ? (void *)x.indices : (void *)x.values,
                       y.integer ? (void *)y.indices : (void *)y.values, (size_t)count * 8) == 0;
    dsv4_h5_data_free(&x);
    dsv4_h5_data_free(&y);
    return same;
}

static void put(dsv4_h5 *file, const char *name, const dsv4_h5_data *data)
{
    dsv4_error err = {""};
    int64_t width = 1;
    for (int i = 1; i < data->rank; i++)
        width *= data->shape[i];
    assert_int_equal(dsv4_h5_define(file, name, data->integer ? DSV4_H5_I64 : DSV4_H5_F64,
                                    data->rank, data->shape, 0, &err), 0);
    assert_int_equal(dsv4_h5_write(file, name, 0, data->shape[0], width, data->values,
                                   data->indices, &err), 0);
}

/* Copies some datasets of a file into a new one. */
static void copy_sets(const char *from, const char *to, const char *const *wanted)
{
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create(to, &err);
    assert_non_null(file);
    for (; *wanted != NULL; wanted++) {
        dsv4_h5_data data = read_set(from, *wanted);
        put(file, *wanted, &data);
        dsv4_h5_data_free(&data);
    }
    assert_int_equal(dsv4_h5_close(file, &err), 0);
}

/* One dataset of integers in a new file. */
static void put_one(const char *path, const char *name, int rank, const int64_t *shape,
                    int64_t *indices)
{
    dsv4_error err = {""};
    dsv4_h5_data data = {.rank = rank, .integer = true, .indices = indices};
    memcpy(data.shape, shape, (size_t)rank * sizeof *shape);
    dsv4_h5 *file = dsv4_h5_create(path, &err);
    assert_non_null(file);
    put(file, name, &data);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
}

/* How many of the rows that are bound to agree are other sets in the two files. */
static int64_t count_different(const char *a, const char *b, const char *name, int64_t rows)
{
    dsv4_h5_data x = read_set(a, name), y = read_set(b, name);
    int64_t count = 0, width = x.shape[1];
    for (int64_t row = 0; row < rows; row++) {
        bool same = true;
        for (int64_t i = 0; i < width; i++) { /* no member twice here */
            bool found = false;
            for (int64_t j = 0; j < width; j++)
                found = found || x.indices[row * width + i] == y.indices[row * width + j];
            same = same && found;
        }
        count += !same;
    }
    dsv4_h5_data_free(&x);
    dsv4_h5_data_free(&y);
    return count;
}

/* The other model's choices in this one make the other model. */
static void other_choices_make_the_other_model(void **state)
{
    (void)state;
    static const char *const numerics[] = {"exact", "released"};
    static const char *const same[] = {
        "logits", "mtp_logits", "trace/layers/0/selected", "trace/layers/0/route_weight",
        "trace/layers/2/selected", "trace/layers/2/route_index", "trace/layers/2/route_weight",
        "trace/layers/2/out", "trace/mtp/0/route_index", "trace/mtp/0/route_weight"};
    for (int i = 0; i < 2; i++) {
        assert_runs("", "other", "--tokens", tokens, "--mtp", "--trace", "--numerics",
                    numerics[i], "-o", "theirs.h5");
        assert_runs("", "model", "--tokens", tokens, "--mtp", "--trace", "--numerics",
                    numerics[i], "-o", "own.h5");
        copy_sets("theirs.h5", "choices.h5", names);
        command_result first = command_call(dsv4_logits_main, "dsv4 logits", "model", "--tokens",
                                            tokens, "--mtp", "--trace", "--numerics", numerics[i],
                                            "--replay", "choices.h5", "-o", "whole.h5");
        assert_int_equal(first.code, 0);
        /* A layer selects before it routes. */
        assert_non_null(strstr(first.err, "choice, first trace/layers/0/selected of token 1"));
        for (size_t s = 0; s < sizeof same / sizeof *same; s++)
            if (!same_set("theirs.h5", "whole.h5", same[s]))
                fail_msg("%s: %s", numerics[i], same[s]);
        assert_false(same_set("theirs.h5", "own.h5", "logits"));
        assert_false(same_set("theirs.h5", "own.h5", "mtp_logits"));
        assert_false(same_set("theirs.h5", "whole.h5", "trace/layers/2/index_score"));
        static const char *const chunks[] = {"1", "7"};
        for (int n = 0; n < 2; n++) {
            assert_runs(first.err, "model", "--tokens", tokens, "--mtp", "--trace", "--numerics",
                        numerics[i], "--replay", "theirs.h5", "--chunk", chunks[n], "-o",
                        "chunks.h5");
            assert_true(same_set("theirs.h5", "chunks.h5", "logits"));
            assert_true(same_set("theirs.h5", "chunks.h5", "mtp_logits"));
            assert_true(same_set("theirs.h5", "chunks.h5", "trace/layers/2/out"));
        }
        command_free(&first);
    }
}

/* One routing and one selection flipped by hand in the run's own trace. */
static void one_flipped_routing(void **state)
{
    (void)state;
    static const char *const numerics[] = {"exact", "released"};
    assert_int_equal(make_model("flipped"), 0);
    edit("flipped", "layers.0.ffn.gate.tid2eid", send_6_to_experts_1_and_2);
    assert_int_equal(make_model("doubled"), 0);
    edit("doubled", "layers.0.ffn.gate.tid2eid", send_6_to_expert_2_twice);
    for (int i = 0; i < 2; i++) {
        assert_runs("", "model", "--tokens", tokens, "--trace", "--numerics", numerics[i], "-o",
                    "own.h5");
        for (int twice = 0; twice < 2; twice++) {
            dsv4_h5_data route = read_set("own.h5", names[0]);
            assert_true(route.indices[7 * K] != 2 || route.indices[7 * K + 1] != 2);
            memcpy(route.indices + 7 * K, twice ? (int64_t[]){2, 2} : (int64_t[]){2, 1},
                   2 * sizeof(int64_t));
            put_one("edited.h5", names[0], 2, route.shape, route.indices);
            dsv4_h5_data_free(&route);
            assert_runs("", twice ? "doubled" : "flipped", "--tokens", tokens, "--numerics",
                        numerics[i], "-o", "want.h5");
            assert_runs("dsv4 logits: replayed 1 of the 5 datasets of choices; 1 of 20 routings "
                        "and 0 of 0 selections differ from the run's own choice, first "
                        "trace/layers/0/route_index of token 7\n", "model", "--tokens", tokens,
                        "--numerics", numerics[i], "--replay", "edited.h5", "-o", "got.h5");
            assert_true(same_set("want.h5", "got.h5", "logits"));
            assert_false(same_set("own.h5", "got.h5", "logits"));
        }
    }
}

static void own_choices_change_nothing(void **state)
{
    (void)state;
    assert_runs("", "model", "--tokens", tokens, "--mtp", "--trace", "-o", "own.h5");
    assert_runs("dsv4 logits: replayed 6 of the 6 datasets of choices; 0 of 79 routings and 0 of "
                "40 selections differ from the run's own choice\n", "model", "--ids-h5", "own.h5",
                "--mtp", "--trace", "--replay", "own.h5", "-o", "again.h5");
    command_result result = command_call(dsv4_diff_main, "dsv4 diff", "own.h5", "again.h5");
    assert_int_equal(result.code, 0);
    command_free(&result);
    /* Without --mtp, its choices are none of the run's. */
    assert_runs("dsv4 logits: replayed 5 of the 5 datasets of choices; 0 of 60 routings and 0 of "
                "40 selections differ from the run's own choice\n", "model", "--tokens", tokens,
                "--replay", "own.h5");
}

/* Each alone, and what the report counts. */
static void parts_of_traces(void **state)
{
    (void)state;
    static const struct { const char *name, *weight; } parts[] = {
        {"trace/layers/0/selected", "layers.0.attn.indexer.weights_proj.weight"},
        {"trace/layers/1/route_index", "layers.1.ffn.gate.bias"},
        {"trace/layers/2/selected", "layers.2.attn.indexer.weights_proj.weight"},
        {"trace/layers/2/route_index", "layers.2.ffn.gate.bias"},
        {"trace/mtp/0/route_index", "mtp.0.ffn.gate.bias"}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const bool selection = strstr(parts[i].name, "selected") != NULL;
        const char *const one[] = {parts[i].name, NULL};
        assert_int_equal(make_model("single"), 0);
        edit("single", parts[i].weight, selection ? prefer_the_worst : prefer_expert_1);
        assert_runs("", "single", "--tokens", tokens, "--mtp", "--trace", "-o", "theirs.h5");
        assert_runs("", "model", "--tokens", tokens, "--mtp", "--trace", "-o", "own.h5");
        copy_sets("theirs.h5", "part.h5", one);
        int64_t rows = strstr(one[0], "mtp") != NULL ? TOKENS - 1 : TOKENS;
        int64_t different = count_different("own.h5", "theirs.h5", one[0], rows), first = 0;
        while (count_different("own.h5", "theirs.h5", one[0], first + 1) == 0)
            first++;
        char said[300];
        snprintf(said, sizeof said, "dsv4 logits: replayed 1 of the 6 datasets of choices; %" PRId64
                 " of %" PRId64 " routings and %" PRId64 " of %d selections differ from the run's "
                 "own choice, first %s of token %" PRId64 "\n", selection ? 0 : different,
                 selection ? 0 : rows, selection ? different : 0, selection ? TOKENS : 0, one[0],
                 first);
        assert_runs(said, "model", "--tokens", tokens, "--mtp", "--replay", "part.h5", "-o",
                    "got.h5");
        assert_true(same_set("theirs.h5", "got.h5", "logits"));
        assert_true(same_set("theirs.h5", "got.h5", "mtp_logits"));
        bool mtp = strstr(one[0], "mtp") != NULL;
        assert_int_equal(same_set("own.h5", "got.h5", "logits"), mtp);
        assert_false(same_set("own.h5", "got.h5", "mtp_logits"));
    }
}

/* What is no choice in a trace is not used, whatever it says. */
static void only_choices_are_used(void **state)
{
    (void)state;
    assert_runs("", "model", "--tokens", tokens, "--mtp", "--trace", "-o", "own.h5");
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("odd.h5", &err);
    dsv4_h5_data route = read_set("own.h5", names[5]), weight = {.rank = 1, .shape = {1}};
    memcpy(route.indices + (TOKENS - 1) * K, (int64_t[]){-7, -7}, 2 * sizeof(int64_t));
    put(file, names[5], &route); /* the last row of MTP is anything */
    weight.values = (double[]){5};
    put(file, "trace/layers/2/route_weight", &weight);
    put(file, "trace/layers/1/selected", &weight); /* of an HCA layer */
    put(file, "trace/layers/9/route_index", &weight);
    dsv4_h5_data_free(&route);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_runs("dsv4 logits: replayed 1 of the 6 datasets of choices; 0 of 19 routings and 0 of 0 "
                "selections differ from the run's own choice\n", "model", "--tokens", tokens,
                "--mtp", "--replay", "odd.h5", "-o", "got.h5");
    assert_true(same_set("own.h5", "got.h5", "logits"));
    assert_true(same_set("own.h5", "got.h5", "mtp_logits"));
    /* And such a file has nothing else. */
    assert_refuses("odd.h5: nothing to replay: expected one or more of trace/layers/L/route_index "
                   "and, of CSA layers, trace/layers/L/selected", "model", "--tokens", tokens,
                   "--replay", "odd.h5", "-o", "no.h5");
}

/* Changes one value of a good dataset in a file of its own. */
static void spoil(const char *name, int64_t row, int64_t i, int64_t value)
{
    dsv4_h5_data data = read_set("good.h5", name);
    data.indices[row * data.shape[1] + i] = value;
    put_one("bad.h5", name, 2, data.shape, data.indices);
    dsv4_h5_data_free(&data);
}

#define assert_bad(expected)                                                                       \
    assert_refuses("bad.h5: " expected, "model", "--tokens", tokens, "--mtp", "--replay",          \
                   "bad.h5", "-o", "no.h5")

static void bad_choices_are_refused(void **state)
{
    (void)state;
    assert_runs("", "model", "--tokens", tokens, "--mtp", "--trace", "-o", "good.h5");
    spoil(names[2], 5, 1, 4);
    assert_bad("trace/layers/1/route_index: value [5,1] is 4, expected an expert 0..3");
    spoil(names[2], 0, 0, -1);
    assert_bad("trace/layers/1/route_index: value [0,0] is -1, expected an expert 0..3");
    spoil(names[0], 19, 1, INT64_MAX); /* a hash layer may have one twice, and no other */
    assert_bad("trace/layers/0/route_index: value [19,1] is 9223372036854775807, expected an "
               "expert 0..3");
    dsv4_h5_data route = read_set("good.h5", names[3]);
    int64_t first = route.indices[4 * K];
    dsv4_h5_data_free(&route);
    spoil(names[3], 4, 1, first);
    char expected[200];
    snprintf(expected, sizeof expected, "dsv4 logits: bad.h5: trace/layers/2/route_index: row 4 "
             "has %" PRId64 " twice, expected 2 different experts\n", first);
    command_result result = command_call(dsv4_logits_main, "dsv4 logits", "model", "--tokens",
                                         tokens, "--replay", "bad.h5");
    assert_string_equal(result.err, expected);
    assert_int_equal(result.code, 2);
    command_free(&result);
    spoil(names[5], 18, 0, 4);
    assert_bad("trace/mtp/0/route_index: value [18,0] is 4, expected an expert 0..3");

    spoil(names[1], 6, 0, 1); /* the group of tokens 4 to 7 */
    assert_bad("trace/layers/0/selected: value [6,0] is 1, expected an entry that token 6 may see, "
               "0..0");
    spoil(names[1], 6, 0, -1);
    assert_bad("trace/layers/0/selected: value [6,0] is -1, expected an entry that token 6 may "
               "see, 0..0");
    spoil(names[1], 6, 2, 0);
    assert_bad("trace/layers/0/selected: value [6,2] is 0, expected -1: token 6 may see 1 entries");
    spoil(names[1], 2, 0, 0);
    assert_bad("trace/layers/0/selected: value [2,0] is 0, expected -1: token 2 may see 0 entries");
    spoil(names[4], 19, 0, 5);
    assert_bad("trace/layers/2/selected: value [19,0] is 5, expected an entry that token 19 may "
               "see, 0..4");
    dsv4_h5_data selected = read_set("good.h5", names[4]);
    memcpy(selected.indices + 19 * TOPK, (int64_t[]){4, 0, 4}, 3 * sizeof(int64_t));
    put_one("bad.h5", names[4], 2, selected.shape, selected.indices);
    dsv4_h5_data_free(&selected);
    assert_bad("trace/layers/2/selected: row 19 has 4 twice, expected 3 different entries");
}

static void bad_files_are_refused(void **state)
{
    (void)state;
    static int64_t zeros[TOKENS * 8];
    assert_runs("", "model", "--tokens", tokens, "--trace", "-o", "good.h5");
    put_one("bad.h5", names[2], 2, (int64_t[]){TOKENS - 1, K}, zeros);
    assert_bad("trace/layers/1/route_index: shape [19,2], expected [20,2] for this run and model");
    put_one("bad.h5", names[2], 1, (int64_t[]){TOKENS * K}, zeros);
    assert_bad("trace/layers/1/route_index: shape [40], expected [20,2] for this run and model");
    put_one("bad.h5", names[4], 2, (int64_t[]){TOKENS, 5}, zeros);
    assert_bad("trace/layers/2/selected: shape [20,5], expected [20,3] for this run and model");
    put_one("bad.h5", "token_ids", 1, (int64_t[]){TOKENS - 1}, zeros);
    assert_bad("token_ids: a trace of 19 tokens, expected the 20 of this run");
    put_one("bad.h5", "token_ids", 1, (int64_t[]){TOKENS}, zeros);
    assert_bad("token_ids: token 0 is 0, expected 3 as in this run");
    put_one("bad.h5", "token_ids", 2, (int64_t[]){TOKENS, 1}, zeros);
    assert_bad("token_ids: expected integers of rank 1, got integers of rank 2");
    put_one("bad.h5", "logits", 1, (int64_t[]){TOKENS}, zeros);
    assert_bad("nothing to replay: expected one or more of trace/layers/L/route_index and, of CSA "
               "layers, trace/layers/L/selected");

    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("bad.h5", &err);
    dsv4_h5_data floats = {.rank = 2, .shape = {TOKENS, K}, .values = (double[TOKENS * K]){0}};
    put(file, names[2], &floats);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_bad("trace/layers/1/route_index: expected integers, got floats");
    assert_refuses("none.h5: cannot open: No such file or directory", "model", "--tokens", tokens,
                   "--replay", "none.h5", "-o", "no.h5");
    assert_refuses("good.h5: is the file to replay: not overwritten", "model", "--tokens", tokens,
                   "--replay", "good.h5", "-o", "good.h5");
    assert_runs("", "model", "--tokens", "3 1", "--trace", "-o", "short.h5");
    assert_runs("dsv4 logits: replayed 5 of the 5 datasets of choices; 0 of 6 routings and 0 of 4 "
                "selections differ from the run's own choice\n", "model", "--tokens", "3 1",
                "--replay", "short.h5");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(other_choices_make_the_other_model),
        cmocka_unit_test(one_flipped_routing),
        cmocka_unit_test(own_choices_change_nothing),
        cmocka_unit_test(parts_of_traces),
        cmocka_unit_test(only_choices_are_used),
        cmocka_unit_test(bad_choices_are_refused),
        cmocka_unit_test(bad_files_are_refused),
    };
    return cmocka_run_group_tests_name("replay", tests, make_models, scratch_leave) != 0;
}
