/* `dsv4 synth`: what it writes opens, runs and is reproducible; what it cannot write it refuses,
 * and leaves nothing behind. Every test starts in a scratch directory with small.json. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "files.h"
#include "host/inspect.h"
#include "host/path.h"
#include "host/synth.h"

static const char geometry[] =
    "{\"hidden_size\": 256, \"num_hidden_layers\": 4, \"num_attention_heads\": 4, \"head_dim\": 80,"
    " \"q_lora_rank\": 128, \"qk_rope_head_dim\": 16, \"o_groups\": 2, \"o_lora_rank\": 64,"
    " \"sliding_window\": 7, \"index_n_heads\": 3, \"index_head_dim\": 32, \"index_topk\": 3,"
    " \"moe_intermediate_size\": 128, \"n_routed_experts\": 6, \"num_experts_per_tok\": 3,"
    " \"num_hash_layers\": 2, \"routed_scaling_factor\": 1.5, \"swiglu_limit\": 10.0,"
    " \"hc_mult\": 4, \"hc_sinkhorn_iters\": 20, \"hc_eps\": 1e-06, \"rms_norm_eps\": 1e-06,"
    " \"rope_theta\": 10000, \"compress_rope_theta\": 160000, \"max_position_embeddings\": 999,"
    " \"vocab_size\": 61, \"compress_ratios\": [0, 4, 8, 4, 0], \"num_nextn_predict_layers\": 1,"
    " \"a_key_of_its_own\": 0.1234567890123456789, \"expert_dtype\": \"bf16\","
    " \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 32, \"beta_slow\": 1,"
    "   \"original_max_position_embeddings\": 64}}";

static int enter(void **state)
{
    if (scratch_enter(state) != 0)
        return -1;
    files_write_text(".", "small.json", geometry);
    return 0;
}

#define test_in_scratch(f) cmocka_unit_test_setup_teardown(f, enter, scratch_leave)

static void change(const char *const changes[])
{
    char *json = files_json(geometry, changes);
    files_write_text(".", "small.json", json);
    free(json);
}

static void expect(command_result r, int code, const char *in_out, const char *in_err)
{
    if (r.code != code || strstr(r.out, in_out) == NULL || strstr(r.err, in_err) == NULL)
        fail_msg("expected %d, '%s', '%s'; got %d\n%s%s", code, in_out, in_err, r.code, r.out,
                 r.err);
    command_free(&r);
}

#define synth(...) command_call(dsv4_synth_main, "dsv4 synth", __VA_ARGS__)
#define synth_small(out, ...) \
    expect(synth(out, "--geometry", "small.json", __VA_ARGS__), 0, out ": ", "")

static bool exists(const char *path)
{
    struct stat information;
    return stat(path, &information) == 0;
}

/* One line on standard error, and no directory OUT. */
static void expect_refusal(command_result r, const char *in_err)
{
    const char *newline = strchr(r.err, '\n');
    if (newline == NULL || newline[1] != '\0')
        fail_msg("expected one line, got:\n%s", r.err);
    expect(r, 2, "", in_err);
    assert_false(exists("out"));
}

/* A usage error: two lines, the second a hint. */
static void expect_usage(command_result r, const char *in_err)
{
    assert_non_null(strstr(r.err, "--help"));
    expect(r, 2, "", in_err);
    assert_false(exists("out"));
}

static void expect_sound(const char *dir)
{
    expect(command_call(dsv4_inspect_main, "dsv4 inspect", dir, "--check-values"), 0, "tensors",
           "");
}

static dsv4_model open_model(const char *dir, dsv4_numerics numerics)
{
    dsv4_model model;
    dsv4_error err = {0};
    expect_sound(dir);
    if (dsv4_model_open(&model, dir, numerics, true, &err) != 0)
        fail_msg("%s", err.text);
    return model;
}

static uint64_t hash_of(const char *dir)
{
    char *path = files_path(dir, "model.safetensors");
    size_t size;
    unsigned char *data = (unsigned char *)files_read(path, &size);
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ data[i]) * 0x100000001b3u;
    free(data);
    free(path);
    return hash;
}

/* ---- values ---- */

static double value_at(const dsv4_matrix *m, int64_t row, int64_t col)
{
    static const double e2m1[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
    const uint8_t *data = m->data;
    int64_t i = row * m->cols + col;
    if (m->dtype == DSV4_I8) {
        int code = data[i / 2] >> (i % 2 * 4) & 15;
        return (code & 8 ? -1 : 1) * e2m1[code & 7] * ldexp(1, m->scale[i / 32] - 127);
    }
    if (m->dtype == DSV4_F8_E4M3) {
        int exponent = data[i] >> 3 & 15, fraction = data[i] & 7;
        double magnitude = exponent == 0 ? ldexp(fraction, -9) : ldexp(8 + fraction, exponent - 10);
        int64_t across = (m->cols + 127) / 128;
        return (data[i] & 0x80 ? -1 : 1) * magnitude *
               ldexp(1, m->scale[row / 128 * across + col / 128] - 127);
    }
    uint32_t bits = 0;
    int64_t size = dsv4_dtype_size(m->dtype);
    memcpy((char *)&bits + 4 - size, data + size * i, (size_t)size);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The rms of M x for an x of rms 1 is about `gain`. */
static void expect_gain(const dsv4_matrix *m, double gain)
{
    double sum = 0;
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t col = 0; col < m->cols; col++)
            sum += value_at(m, row, col) * value_at(m, row, col);
    double got = sqrt(sum / (double)m->rows);
    if (!(got > 0.6 * gain && got < 1.7 * gain))
        fail_msg("%s: expected a gain of about %g, got %g", m->name, gain, got);
    int64_t scales = m->dtype == DSV4_I8 ? m->rows * m->cols / 32 : m->rows * m->cols / 128 / 128;
    bool seen[256] = {false};
    int different = 0;
    for (int64_t i = 0; m->scale != NULL && i < scales; i++) {
        different += !seen[m->scale[i]];
        seen[m->scale[i]] = true;
    }
    assert_int_equal(different, m->scale != NULL ? 4 : 0);
}

static void expect_between(const dsv4_matrix *m, double low, double high)
{
    double least = INFINITY, most = -INFINITY;
    for (int64_t row = 0; row < m->rows; row++)
        for (int64_t col = 0; col < m->cols; col++) {
            least = fmin(least, value_at(m, row, col));
            most = fmax(most, value_at(m, row, col));
        }
    if (!(least >= low && most <= high && (m->cols < 4 || most - least > 0.3 * (high - low))))
        fail_msg("%s: expected values of %g to %g, got %g to %g", m->name, low, high, least, most);
}

static void expect_experts(const dsv4_matrix *m, int64_t experts)
{
    int64_t sum = 0, changed = 0;
    for (int64_t row = 0; row < m->rows; row++) {
        bool seen[64] = {false};
        for (int64_t col = 0; col < m->cols; col++) {
            int64_t expert, above = -1;
            memcpy(&expert, (const char *)m->data + 8 * (row * m->cols + col), 8);
            if (row > 0)
                memcpy(&above, (const char *)m->data + 8 * ((row - 1) * m->cols + col), 8);
            assert_in_range(expert, 0, experts - 1);
            assert_false(seen[expert]);
            seen[expert] = true;
            sum += expert;
            changed += expert != above;
        }
    }
    double mean = (double)sum / (double)(m->rows * m->cols);
    assert_true(fabs(mean - (double)(experts - 1) / 2) < 0.15 * (double)experts);
    assert_true(changed > m->rows * m->cols / 2);
}

/* ---- bytes ---- */

static void same_bytes(void **state)
{
    (void)state;
    synth_small("a", "--seed", "1");
    assert_int_equal(hash_of("a"), 0x2b53740731cdd634); /* on every machine */
    assert_true(exists("a/config.json") && !exists("a/config.json.part"));

    /* Several batches, one of which ends within the 9 MB of tid2eid. */
    change(CHANGES("vocab_size", "40000", "hidden_size", "128", "n_routed_experts", "8",
                   "num_experts_per_tok", "7", "num_hash_layers", "4"));
    synth_small("one", "--seed", "1", "--threads", "1");
    synth_small("five", "--seed", "1", "--threads", "5");
    synth_small("other", "--seed", "18446744073709551615", "--threads", "2");
    uint64_t hash = hash_of("one");
    assert_int_equal(hash, 0xe5a5b3d2d0b1e5d4);
    assert_int_equal(hash_of("five"), hash);
    assert_int_not_equal(hash_of("other"), hash);
    dsv4_model model = open_model("five", DSV4_RELEASED);
    for (int layer = 0; layer < 4; layer++)
        expect_experts(&model.layers[layer].ffn.gate.tid2eid, 8);
    dsv4_model_close(&model);
}

static void layout(void **state)
{
    (void)state;
    synth_small("a", "--seed", "1");
    size_t size;
    char *file = files_read("a/model.safetensors", &size);
    uint64_t length;
    memcpy(&length, file, 8);
    assert_int_equal((8 + length) % 4096, 0);

    dsv4_model model = open_model("a", DSV4_RELEASED);
    json_t *header = json_loadb(file + 8, length, 0, NULL);
    free(file);
    assert_int_equal(json_object_size(header), dsv4_checkpoint_count(model.checkpoint));
    void *first = json_object_iter(header);
    assert_string_equal(json_object_iter_key(first), "embed.weight"); /* the order of the table */
    json_decref(header);
    for (int64_t i = 0; i < dsv4_checkpoint_count(model.checkpoint); i++) {
        const dsv4_tensor *t = dsv4_checkpoint_at(model.checkpoint, i);
        int64_t alignment = t->bytes % 4096 == 0 ? 4096 : dsv4_dtype_size(t->dtype);
        const char *start = dsv4_checkpoint_at(model.checkpoint, 0)->data;
        assert_int_equal(((const char *)t->data - start) % alignment, 0);
    }
    dsv4_model_close(&model);
}

static void values(void **state)
{
    (void)state;
    change(CHANGES("q_lora_rank", "1024", "hidden_size", "512", "moe_intermediate_size", "1024",
                   "o_lora_rank", "512", "index_n_heads", "16", "n_routed_experts", "4"));
    synth_small("a", "--seed", "3");
    dsv4_model model = open_model("a", DSV4_RELEASED);
    const dsv4_layer *csa = &model.layers[1];
    expect_gain(&model.embed, sqrt(512));
    expect_gain(&model.head, 1);
    expect_gain(&csa->attn.wq_a, 1);
    expect_gain(&csa->attn.wq_b, 1);
    expect_gain(&csa->attn.wo_b, 0.5);
    expect_gain(&csa->attn.compressor.wkv, 1);
    expect_gain(&csa->attn.indexer.wq_b, 1);
    expect_gain(&csa->ffn.gate.weight, 1);
    expect_gain(&csa->ffn.shared_experts.w1, 1);
    expect_gain(&csa->ffn.shared_experts.w2, 0.25);
    expect_gain(&csa->ffn.experts[3].w1, 1);
    expect_gain(&csa->ffn.experts[3].w2, 0.25);
    expect_gain(&model.mtp[0].e_proj, 1);
    expect_gain(&csa->hc_attn.fn, 1);
    expect_between(&csa->hc_attn.base, -0.3, 0.3);
    expect_between(&csa->hc_ffn.scale, 0.2, 0.4);
    expect_between(&model.hc_head.scale, 0.2, 0.4);
    expect_between(&csa->attn_norm, 0.875, 1.25);
    expect_between(&csa->attn.indexer.compressor.norm, 0.875, 1.25);
    expect_between(&csa->attn.compressor.ape, -0.3, 0.3);
    expect_between(&csa->attn.attn_sink, -1, 1);
    expect_between(&model.layers[2].ffn.gate.bias, -0.05, 0.05);
    expect_experts(&model.layers[0].ffn.gate.tid2eid, 4);
    dsv4_model_close(&model);

    synth_small("b", "--experts", "50");
    model = open_model("b", DSV4_RELEASED);
    expect_experts(&model.layers[1].ffn.gate.tid2eid, 50);
    dsv4_model_close(&model);
}

/* ---- the forward pass ---- */

typedef struct {
    double least, most;
    int64_t outputs;
} extent;

static void watch(void *context, const dsv4_point *point)
{
    extent *e = context;
    if (strcmp(point->name, "out") != 0)
        return;
    int64_t width = point->dim[0] * point->dim[1];
    for (int64_t row = 0; row < point->rows; row++) {
        double sum = 0;
        for (int64_t i = 0; i < width; i++)
            sum += point->values[row * width + i] * point->values[row * width + i];
        e->least = fmin(e->least, sqrt(sum / (double)width));
        e->most = fmax(e->most, sqrt(sum / (double)width));
        e->outputs++;
    }
}

/* 20 tokens, and the MTP layer's where there is one: all finite, or the path would refuse. */
static extent forward(const char *dir, dsv4_numerics numerics)
{
    enum { TOKENS = 20 };
    dsv4_model model = open_model(dir, numerics);
    extent e = {INFINITY, 0, 0};
    const dsv4_tap tap = {watch, &e};
    dsv4_error err = {0};
    dsv4_run *run = dsv4_path_ref.open(&model, numerics, TOKENS, &tap, &err);
    int64_t ids[TOKENS], count = TOKENS * model.config.vocab_size;
    double *logits = dsv4_alloc((size_t)count, sizeof *logits);
    for (int64_t i = 0; i < TOKENS; i++)
        ids[i] = i * 7 % model.config.vocab_size;
    if (run == NULL || dsv4_path_ref.forward(run, ids, TOKENS, logits, &err) != 0 ||
        (model.mtp != NULL && dsv4_path_ref.mtp(run, ids, TOKENS, NULL, &err) != 0))
        fail_msg("%s", err.text);
    for (int64_t i = 0; i < count; i++)
        assert_true(isfinite(logits[i]) && fabs(logits[i]) < 50);
    assert_int_equal(e.outputs, TOKENS * (model.config.num_hidden_layers + (model.mtp != NULL)));
    dsv4_path_ref.close(run);
    free(logits);
    dsv4_model_close(&model);
    return e;
}

static void runs(void **state)
{
    (void)state;
    synth_small("a", "--seed", "1");
    for (int numerics = DSV4_EXACT; numerics <= DSV4_RELEASED; numerics++) {
        extent e = forward("a", (dsv4_numerics)numerics);
        if (!(e.least > 0.05 && e.most < 50))
            fail_msg("layers give %g to %g", e.least, e.most);
    }
    synth_small("deep", "--layers", "24", "--experts", "4", "--mtp");
    extent e = forward("deep", DSV4_EXACT);
    if (!(e.least > 0.05 && e.most < 50))
        fail_msg("24 layers give %g to %g", e.least, e.most);
}

static void sparse_runs(void **state)
{
    (void)state;
    expect(synth("a", "--geometry", "small.json", "--sparse"), 0, "bytes of zeros", "");
    forward("a", DSV4_EXACT);
    extent e = forward("a", DSV4_RELEASED);
    assert_true(e.most == 0);
}

/* ---- the published inventory ---- */

static void flash_sparse(void **state)
{
    (void)state;
    expect(synth("a", "--geometry", "flash", "--sparse"), 0,
           "a: 69187 tensors, 159609485896 bytes of zeros, ", "");
    struct stat information;
    assert_int_equal(stat("a/model.safetensors", &information), 0);
    assert_true(information.st_blocks * 512 < 16 << 20); /* the header has 8 MB */
    size_t header = (size_t)(information.st_size - 159609485896);
    assert_true(header % 4096 == 0 && header < 16 << 20);

    dsv4_config config;
    dsv4_error err = {0};
    assert_int_equal(dsv4_config_read(&config, "a/config.json", &err), 0);
    assert_int_equal(config.num_hidden_layers, 43);
    assert_int_equal(config.num_nextn_predict_layers, 1);
    dsv4_config_free(&config);
    expect(command_call(dsv4_inspect_main, "dsv4 inspect", "a"), 0, "unexpected       0", "");

    expect(synth("b", "--geometry", "flash", "--sparse", "--ratios", "0,4,128", "--experts", "8"),
           0, "b: 252 tensors, ", "");
    dsv4_model model = open_model("b", DSV4_RELEASED);
    dsv4_model_close(&model);
}

/* ---- options ---- */

static void expect_ratios(const dsv4_config *config, const int64_t *ratios, int64_t layers,
                          int64_t mtp)
{
    assert_int_equal(config->num_hidden_layers, layers);
    assert_int_equal(config->num_nextn_predict_layers, mtp);
    for (int64_t i = 0; i < layers + mtp; i++)
        assert_int_equal(config->compress_ratios[i], ratios[i]);
}

#define RATIOS(...) (const int64_t[]){__VA_ARGS__}

/* Opens and removes `out`; the caller frees the configuration. */
static dsv4_config config_of_out(void)
{
    dsv4_config config;
    dsv4_error err = {0};
    expect_sound("out");
    if (dsv4_config_read(&config, "out/config.json", &err) != 0)
        fail_msg("%s", err.text);
    unlink("out/config.json");
    unlink("out/model.safetensors");
    assert_int_equal(rmdir("out"), 0);
    return config;
}

static void layers_and_ratios(void **state)
{
    (void)state;
    synth_small("out", "--sparse");
    dsv4_config config = config_of_out();
    expect_ratios(&config, RATIOS(0, 4, 8, 4, 0), 4, 1);
    dsv4_config_free(&config);

    synth_small("out", "--sparse", "--layers", "3");
    config = config_of_out();
    expect_ratios(&config, RATIOS(0, 4, 8), 3, 0);
    assert_int_equal(config.num_hash_layers, 2);
    dsv4_config_free(&config);

    synth_small("out", "--sparse", "--layers", "6", "--mtp");
    config = config_of_out();
    expect_ratios(&config, RATIOS(0, 4, 8, 4, 0, 4, 0), 6, 1);
    dsv4_config_free(&config);

    synth_small("out", "--sparse", "--ratios", "4,128,0,0,12");
    config = config_of_out();
    expect_ratios(&config, RATIOS(4, 128, 0, 0, 12), 5, 0);
    dsv4_config_free(&config);

    synth_small("out", "--sparse", "--ratios", "4,128,4", "--layers", "2", "--mtp");
    config = config_of_out();
    expect_ratios(&config, RATIOS(4, 128, 4), 2, 1);
    dsv4_config_free(&config);

    change(CHANGES("num_nextn_predict_layers", NULL));
    synth_small("out", "--sparse", "--mtp");
    config = config_of_out();
    expect_ratios(&config, RATIOS(0, 4, 8, 4, 0), 4, 1);
    dsv4_config_free(&config);
}

static void experts_and_hash_layers(void **state)
{
    (void)state;
    synth_small("out", "--sparse", "--experts", "9", "--hash-layers", "4");
    dsv4_config config = config_of_out();
    assert_int_equal(config.n_routed_experts, 9);
    assert_int_equal(config.num_experts_per_tok, 3);
    assert_int_equal(config.num_hash_layers, 4);
    dsv4_config_free(&config);

    synth_small("out", "--sparse", "--hash-layers", "0");
    config = config_of_out();
    assert_int_equal(config.n_routed_experts, 6);
    assert_int_equal(config.num_hash_layers, 0);
    dsv4_config_free(&config);

    expect(synth("out", "--geometry", "small.json", "--experts", "2", "--layers", "1"), 0, "out: ",
           "dsv4 synth: num_experts_per_tok: 3 lowered to 2, the number of experts\n"
           "dsv4 synth: num_hash_layers: 2 lowered to 1, the number of layers\n");
    config = config_of_out();
    assert_int_equal(config.num_experts_per_tok, 2);
    assert_int_equal(config.num_hash_layers, 1);
    dsv4_config_free(&config);
}

/* Keys that no option changes are as they were; the storage is described as it is. */
static void other_keys(void **state)
{
    (void)state;
    synth_small("out", "--sparse", "--layers", "2");
    json_t *before = json_loads(geometry, 0, NULL);
    json_t *after = json_load_file("out/config.json", 0, NULL);
    assert_non_null(after);
    static const char *const changed[] = {"num_hidden_layers", "num_nextn_predict_layers",
                                          "compress_ratios", "expert_dtype"};
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++)
        json_object_del(before, changed[i]);
    const char *key;
    json_t *value;
    json_object_foreach(before, key, value)
        if (!json_equal(value, json_object_get(after, key)))
            fail_msg("%s has changed", key);
    assert_string_equal(json_string_value(json_object_get(after, "expert_dtype")), "fp4");
    assert_true(json_is_object(json_object_get(after, "quantization_config")));
    json_decref(before);
    json_decref(after);
}

/* ---- refusals ---- */

static void usage(void **state)
{
    (void)state;
    expect_usage(synth("--geometry", "flash"), "expected OUT");
    expect_usage(synth("out"), "expected --geometry");
    expect_usage(synth("out", "more", "--geometry", "flash"), "got a second: 'more'");
    expect_usage(synth("out", "--frobnicate"), "unrecognized");
    static const struct {
        const char *option, *value, *message;
    } cases[] = {
        {"--layers", "0", "--layers: expected a number from 1 to 4096, got '0'"},
        {"--layers", "4097", "got '4097'"},
        {"--layers", "-1", "got '-1'"},
        {"--layers", " 1", "got ' 1'"},
        {"--layers", "1x", "got '1x'"},
        {"--layers", "", "got ''"},
        {"--layers", "18446744073709551617", "got '18446744073709551617'"},
        {"--hash-layers", "-1", "--hash-layers: expected a number from 0 to 4096, got '-1'"},
        {"--experts", "65537", "--experts: expected a number from 1 to 65536, got '65537'"},
        {"--seed", "18446744073709551616", "--seed: expected a number below 2^64"},
        {"--threads", "0", "--threads: expected a number from 1 to 256, got '0'"},
        {"--ratios", "0,2", "--ratios: expected numbers, 0, 4 or larger"},
        {"--ratios", "0,4,", "got '0,4,'"},
        {"--ratios", "", "got ''"},
        {"--ratios", "0;4", "got '0;4'"},
        {"--ratios", "16777217", "got '16777217'"},
        {"--ratios", "0,1000000000000000000000000000000", "0, 4 or larger"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_usage(synth("out", "--geometry", "small.json", cases[i].option, cases[i].value),
                     cases[i].message);
    char many[2 * 4098 + 1];
    for (size_t i = 0; i < sizeof many; i++)
        many[i] = i % 2 == 0 ? '0' : ',';
    many[sizeof many - 1] = '0';
    many[sizeof many - 2] = '\0';
    expect_usage(synth("out", "--geometry", "small.json", "--ratios", many), "at most 4097");
}

static void bad_geometry(void **state)
{
    (void)state;
    expect_refusal(synth("out", "--geometry", "flsh"),
                   "--geometry: expected flash, pro or a config.json: flsh: No such file");
    expect_refusal(synth("out", "--geometry", "."), ".: not a regular file");
    files_write_text(".", "bad.json", "[1]");
    expect_refusal(synth("out", "--geometry", "bad.json"), "bad.json: expected a JSON object");
    expect_refusal(synth("out", "--geometry", "small.json", "--hash-layers", "5"),
                   "small.json: num_hash_layers: expected at most num_hidden_layers = 4, got 5");
    expect_refusal(synth("out", "--geometry", "small.json", "--ratios", "0,4", "--layers", "3"),
                   "--ratios: expected 3 entries, one per layer, got 2");
    expect_refusal(synth("out", "--geometry", "small.json", "--ratios", "0,4,4,0", "--layers", "3"),
                   "--ratios: expected 3 entries, one per layer, got 4");
    expect_refusal(synth("out", "--geometry", "small.json", "--ratios", "0", "--layers", "2",
                         "--mtp"),
                   "--ratios: expected 2 entries, one per layer (and one more for MTP), got 1");
    change(CHANGES("compress_ratios", "[0, 8, 8, 0, 0]", "index_n_heads", NULL));
    expect_refusal(synth("out", "--geometry", "small.json", "--ratios", "4"),
                   "small.json: index_n_heads: expected an integer");
}

/* Widths that the released layout cannot have. */
static void bad_widths(void **state)
{
    (void)state;
    change(CHANGES("hidden_size", "160"));
    expect_refusal(synth("out", "--geometry", "small.json"),
                   "small.json: not possible in the released layout: out/model.safetensors: tensor "
                   "layers.0.attn.wq_a.weight: expected a multiple of 128 columns");
    change(CHANGES("moe_intermediate_size", "72"));
    expect_refusal(synth("out", "--geometry", "small.json"), "expected a multiple of 128 columns");
    change(CHANGES("head_dim", "96"));
    expect_refusal(synth("out", "--geometry", "small.json"),
                   "head_dim - qk_rope_head_dim: expected a multiple of 64");
    change(CHANGES("index_head_dim", "16"));
    expect_refusal(synth("out", "--geometry", "small.json"),
                   "index_head_dim: expected a multiple of 32");
}

static void existing_output(void **state)
{
    (void)state;
    assert_int_equal(mkdir("full", 0777), 0);
    files_write_text("full", "config.json", "mine");
    expect(synth("full", "--geometry", "small.json"), 2, "", "full: not empty");
    size_t size;
    char *text = files_read("full/config.json", &size);
    assert_string_equal(text, "mine");
    free(text);
    assert_false(exists("full/model.safetensors"));

    expect(synth("small.json", "--geometry", "small.json"), 2, "", "small.json: Not a directory");
    assert_true(exists("small.json"));
    expect(synth("no/such/place", "--geometry", "small.json"), 2, "",
           "no/such/place: cannot create: No such file");

    assert_int_equal(mkdir("empty", 0777), 0);
    change(CHANGES("hidden_size", "160"));
    expect(synth("empty", "--geometry", "small.json"), 2, "", "not possible");
    assert_true(exists("empty") && !exists("empty/config.json"));
    assert_false(exists("empty/model.safetensors"));
    change(CHANGES("hidden_size", "256"));
    synth_small("empty/", "--seed", "1");
    expect_sound("empty");
}

static void no_space(void **state)
{
    (void)state;
    change(CHANGES("vocab_size", "2147483647", "hidden_size", "1048576", "num_hash_layers", "0",
                   "hc_mult", "1")); /* 8 PiB */
    expect_refusal(synth("out", "--geometry", "small.json"), "out: not enough space: expected ");
}

/* The command with a limit to the size of a file. */
static int limited(int argc, char **argv)
{
    const struct rlimit limit = {1 << 20, 1 << 20};
    setrlimit(RLIMIT_FSIZE, &limit);
    return dsv4_synth_main(argc, argv);
}

#define BIG CHANGES("vocab_size", "65536", "num_hash_layers", "0") /* 64 MiB of embed and head */

/* Calls one of these once the weights are being written, which is when config.json waits. */
static void lower_limit(void)
{
    const struct rlimit limit = {1 << 20, RLIM_INFINITY};
    setrlimit(RLIMIT_FSIZE, &limit);
}

static void interrupt(void)
{
    kill(getpid(), SIGTERM);
}

static void *wait_for_weights(void *disturb)
{
    while (!exists("out/config.json.part"))
        usleep(100);
    ((void (*)(void))(uintptr_t)disturb)();
    return NULL;
}

static int disturbed(void (*disturb)(void), int argc, char **argv)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, wait_for_weights, (void *)(uintptr_t)disturb) != 0)
        return 99;
    int code = dsv4_synth_main(argc, argv);
    pthread_join(thread, NULL);
    return code;
}

static int with_lower_limit(int argc, char **argv)
{
    return disturbed(lower_limit, argc, argv);
}

static int interrupted(int argc, char **argv)
{
    return disturbed(interrupt, argc, argv);
}

static void failing_writes(void **state)
{
    (void)state;
    change(BIG);
    expect_refusal(command_call(limited, "dsv4 synth", "out", "--geometry", "small.json"),
                   "out/model.safetensors: cannot write: File too large");
    expect_refusal(command_call(with_lower_limit, "dsv4 synth", "out", "--geometry", "small.json"),
                   "out/model.safetensors: cannot write: File too large");
}

static void interruption(void **state)
{
    (void)state;
    change(BIG);
    expect(command_call(interrupted, "dsv4 synth", "out", "--geometry", "small.json"), -SIGTERM, "",
           "");
    assert_false(exists("out"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_in_scratch(same_bytes),
        test_in_scratch(layout),
        test_in_scratch(values),
        test_in_scratch(runs),
        test_in_scratch(sparse_runs),
        test_in_scratch(flash_sparse),
        test_in_scratch(layers_and_ratios),
        test_in_scratch(experts_and_hash_layers),
        test_in_scratch(other_keys),
        test_in_scratch(usage),
        test_in_scratch(bad_geometry),
        test_in_scratch(bad_widths),
        test_in_scratch(existing_output),
        test_in_scratch(no_space),
        test_in_scratch(failing_writes),
        test_in_scratch(interruption),
    };
    return cmocka_run_group_tests_name("synth", tests, NULL, NULL) != 0;
}
