/* fast/state.c: memory that is reserved and taken as it is written; entries as codes and back. */
#include "small.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fast/fast.h"

/* ---- memory ---- */

typedef struct { int64_t reserved, resident; } memory_use;

static memory_use memory_in_use(void)
{
    long long pages[2] = {0};
    FILE *file = fopen("/proc/self/statm", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%lld %lld", &pages[0], &pages[1]), 2);
    fclose(file);
    return (memory_use){pages[0] * sysconf(_SC_PAGESIZE), pages[1] * sysconf(_SC_PAGESIZE)};
}

/* An emulator's process says what the emulator takes. */
static void needs_own_process(void)
{
    if (getenv("DSV4_EMULATED") == NULL)
        return;
    printf("skipped: memory in use cannot be seen under an emulator\n");
    skip();
}

static void flash(dsv4_config *config)
{
    const char *text = dsv4_geometry("flash");
    dsv4_error err = {{0}};
    if (dsv4_config_parse(config, text, strlen(text), "flash", &err) != 0)
        fail_msg("%s", err.text);
}

/* The bytes that a state of `max_tokens` tokens reserves. */
static int64_t reserved(const dsv4_config *config, bool released, int64_t max_tokens)
{
    dsv4_error err = {{0}};
    int64_t before = memory_in_use().reserved;
    fast_state *state = fast_state_new(config, released, 0, max_tokens, &err);
    if (state == NULL)
        fail_msg("%s", err.text);
    int64_t bytes = memory_in_use().reserved - before;
    fast_state_free(state);
    return bytes;
}

/* One layer of Flash takes so many bytes per entry, main and index together. */
static void bytes_of_an_entry(void **state)
{
    static const struct { int64_t ratio, exact, released; } want[3] = {
        {4, 4 * (512 + 128), 583 + 68}, {128, 4 * 512, 583}, {0, 0, 0}};
    (void)state;
    needs_own_process();
    dsv4_config config;
    flash(&config);
    config.num_hidden_layers = 1;
    config.num_nextn_predict_layers = 0;
    for (int i = 0; i < 3; i++) {
        enum { entries = 1 << 18 };
        int64_t ratio = want[i].ratio, tokens = entries * (ratio > 0 ? ratio : 1);
        config.compress_ratios[0] = ratio;
        for (int released = 0; released < 2; released++) {
            int64_t twice = reserved(&config, released, 2 * tokens);
            double each = (double)(twice - reserved(&config, released, tokens)) / entries;
            assert_true(fabs(each - (double)(released ? want[i].released : want[i].exact)) < 0.1);
        }
    }
    dsv4_config_free(&config);
}

static void a_million_tokens(void **state)
{
    (void)state;
    needs_own_process();
    enum { tokens = 1048576 };
    dsv4_config config;
    dsv4_error err = {{0}};
    flash(&config);
    memory_use before = memory_in_use();
    fast_state *s = fast_state_new(&config, true, 1, tokens, &err);
    if (s == NULL)
        fail_msg("%s", err.text);
    memory_use after = memory_in_use();
    assert_true(after.reserved - before.reserved > 3600000000);
    assert_true(after.reserved - before.reserved < 4000000000);
    assert_true(after.resident - before.resident < 4 << 20);
    fast_layer_state *last = &s->layer[config.num_hidden_layers - 1];
    last->index.entries.scales[tokens / 4 * 4 - 1] = 1; /* the very last byte of the entries */
    s->mtp[0].window[128 * 512 - 1] = 1;
    assert_true(memory_in_use().resident - before.resident < 8 << 20);
    fast_state_free(s);
    assert_true(memory_in_use().reserved - before.reserved < 1 << 20);
    dsv4_config_free(&config);
}

static void refused(const dsv4_config *config, int64_t max_tokens, const char *text)
{
    for (int released = 0; released < 2; released++) {
        dsv4_error err = {{0}};
        assert_null(fast_state_new(config, released, 0, max_tokens, &err));
        if (strstr(err.text, text) == NULL || strchr(err.text, '\n') != NULL)
            fail_msg("%lld tokens: '%s'", (long long)max_tokens, err.text);
    }
}

static void impossible_requests(void **state)
{
    (void)state;
    dsv4_config config;
    flash(&config);
    refused(&config, 0, "a run of 0 tokens");
    refused(&config, -5, "a run of -5 tokens");
    refused(&config, INT64_C(1) << 46, "no room for its state");
    refused(&config, INT64_C(1) << 60, "more memory than there are addresses");
    refused(&config, INT64_MAX, "more memory than there are addresses");
    dsv4_config_free(&config);
    fast_state_free(NULL);
}

/* ---- layout ---- */

typedef struct { unsigned char *data; int64_t size; } array;

static int64_t list_entries(const fast_entries *e, bool released, int64_t R, int64_t max,
                            array *arrays)
{
    int64_t n = 0, head = e->head;
    assert_int_equal(e->count, 0);
    if (!released) {
        arrays[n++] = (array){(unsigned char *)e->values, 4 * max * head};
        return n;
    }
    assert_null(e->values);
    arrays[n++] = (array){e->codes, max * (e->index ? head / 2 : head - R)};
    arrays[n++] = (array){e->scales, max * (e->index ? head / 32 : (head - R) / 64)};
    if (!e->index)
        arrays[n++] = (array){(unsigned char *)e->rope, 2 * max * R};
    return n;
}

static int64_t list_compressor(const fast_compressor_state *c, bool released, int64_t R,
                               int64_t tokens, array *arrays)
{
    if (c->entries.head == 0)
        return 0;
    int64_t items = c->halves * c->ratio * c->halves * c->entries.head;
    arrays[0] = (array){(unsigned char *)c->a, 4 * items};
    arrays[1] = (array){(unsigned char *)c->z, 4 * items};
    return 2 + list_entries(&c->entries, released, R, tokens / c->ratio, arrays + 2);
}

/* Every array begins as zeros, and none lies in another, nor do those of two sequences. */
static void arrays_lie_apart(void **state)
{
    small *s = *state;
    static int64_t ratios[5] = {0, 4, 6, 4, 0};
    int64_t R = s->config.qk_rope_head_dim;
    s->config.num_hidden_layers = 4;
    s->config.num_nextn_predict_layers = 1;
    s->config.head_dim = 64 + R;
    s->config.compress_ratios = ratios;
    for (int released = 0; released < 2; released++) {
        static const int64_t lengths[2] = {5, 50}; /* one of them shorter than the window */
        fast_state *states[2];
        array arrays[2 * 5 * 11];
        int64_t count = 0;
        for (int i = 0; i < 2; i++) {
            states[i] = fast_state_new(&s->config, released, 1, lengths[i], &s->error);
            assert_non_null(states[i]);
            assert_int_equal(states[i]->max_tokens, lengths[i]);
            assert_int_equal(states[i]->layers, 4);
            assert_int_equal(states[i]->mtp_layers, 1);
            for (int64_t j = 0; j < 5; j++) {
                const fast_layer_state *l = j < 4 ? &states[i]->layer[j] : states[i]->mtp;
                int64_t d = s->config.head_dim, d_i = s->config.index_head_dim;
                assert_int_equal(l->compressor.entries.head, ratios[j] > 0 ? d : 0);
                assert_int_equal(l->index.entries.head, ratios[j] == 4 ? d_i : 0);
                assert_int_equal(l->compressor.halves, ratios[j] == 4 ? 2 : ratios[j] > 0 ? 1 : 0);
                assert_false(l->compressor.entries.index);
                assert_int_equal(l->index.entries.index, ratios[j] == 4);
                int64_t rows = lengths[i] < 9 ? lengths[i] : 9;
                arrays[count++] = (array){(unsigned char *)l->window, 4 * rows * d};
                count += list_compressor(&l->compressor, released, R, lengths[i], arrays + count);
                count += list_compressor(&l->index, released, R, lengths[i], arrays + count);
            }
        }
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < arrays[i].size; j++) {
                assert_int_equal(arrays[i].data[j], 0);
                arrays[i].data[j] = (unsigned char)(i + 1);
            }
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < arrays[i].size; j++)
                assert_int_equal(arrays[i].data[j], i + 1);
        fast_state_free(states[0]);
        fast_state_free(states[1]);
    }
}

/* ---- entries ---- */

/* Entries as RELEASED makes them: blocks of very different size, some zero. */
static double *random_entries(small *s, bool index, int64_t count)
{
    int64_t head = index ? s->config.index_head_dim : s->config.head_dim;
    double *x = small_array(s, count * head);
    for (int64_t i = 0; i < count * head; i++) {
        int power = (int)((uint64_t)(i / 32) * 7 % 40) - 20;
        x[i] = i / 32 % 9 == 5 ? 0 : small_to_bf16(ldexp(small_random(s), power));
    }
    for (int64_t g = 0; g < count; g++)
        if (index)
            ref_qdq_index(&s->c, x + g * head);
        else
            ref_qdq_kv(&s->c, x + g * head);
    return x;
}

static void round_trip(small *s, const fast_kernels *level, bool index)
{
    enum { count = 40 };
    static int64_t ratios[1] = {4};
    bool released = s->c.numerics == DSV4_RELEASED;
    fast_context c = {.config = &s->config, .released = released, .kernels = level,
                      .error = &s->error};
    s->config.num_hidden_layers = 1;
    s->config.compress_ratios = ratios;
    fast_state *state = fast_state_new(&s->config, released, 0, 4 * count, &s->error);
    assert_non_null(state);
    fast_entries *e = index ? &state->layer->index.entries : &state->layer->compressor.entries;
    double *x = random_entries(s, index, count);
    float *entry = small_alloc(s, e->head, sizeof *entry);
    float *out = small_alloc(s, count * e->head, sizeof *out);
    double *got = small_array(s, count * e->head);
    for (int64_t g = 0; g < count; g++) {
        for (int64_t i = 0; i < e->head; i++)
            entry[i] = (float)x[g * e->head + i];
        fast_entries_push(&c, e, entry);
        assert_int_equal(e->count, g + 1);
    }
    static const int64_t ranges[][2] = {{0, count}, {0, 1}, {7, 1}, {3, 30}, {count - 1, 1},
                                        {5, 0}};
    for (size_t r = 0; r < sizeof ranges / sizeof *ranges; r++) {
        int64_t first = ranges[r][0], n = ranges[r][1];
        memset(out, 0x55, (size_t)(count * e->head) * sizeof *out);
        float untouched = out[0];
        fast_entries_get(&c, e, first, n, out);
        for (int64_t i = 0; i < n * e->head; i++)
            got[i] = out[i];
        small_same(s, got, x + first * e->head, n * e->head);
        for (int64_t i = n * e->head; i < count * e->head; i++)
            assert_memory_equal(&out[i], &untouched, sizeof untouched);
    }
    fast_state_free(state);
}

static void entries_come_back(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int i = 0; i < levels; i++)
        for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
            static const int64_t widths[3][3] = {{64 + 8, 32, 8}, {512, 128, 64}, {192 + 6, 64, 6}};
            for (int j = 0; j < 3; j++) {
                s->config.head_dim = widths[j][0];
                s->config.index_head_dim = widths[j][1];
                s->config.qk_rope_head_dim = widths[j][2];
                round_trip(s, level[i], false);
                round_trip(s, level[i], true);
            }
        }
}

/* CSA keeps two groups, HCA one. */
static void items(void **state)
{
    small *s = *state;
    for (int64_t halves = 1; halves <= 2; halves++) {
        enum { head = 5, tokens = 30 };
        int64_t r = halves == 2 ? 4 : 6, width = head * halves, slots = halves * r;
        fast_compressor_state c = {.ratio = r, .halves = halves, .entries.head = head,
                                   .a = small_alloc(s, slots * width, sizeof *c.a),
                                   .z = small_alloc(s, slots * width, sizeof *c.z)};
        ref_compressor_state want = {.ratio = r, .head = head, .halves = halves,
                                     .a = small_array(s, slots * width),
                                     .z = small_array(s, slots * width)};
        for (int64_t t = 0; t < tokens; t++) {
            double *a = small_randoms(s, width, 1), *z = small_randoms(s, width, 1);
            float fa[2 * head], fz[2 * head];
            for (int64_t i = 0; i < width; i++) {
                fa[i] = (float)a[i];
                fz[i] = (float)z[i];
            }
            ref_compressor_push(&want, t, a, z);
            fast_compressor_push(&c, t, fa, fz);
            for (int64_t i = 0; i < slots * width; i++) {
                assert_true(c.a[i] == want.a[i]);
                assert_true(c.z[i] == want.z[i]);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(bytes_of_an_entry), small_test(a_million_tokens),
        small_test(impossible_requests), small_test(arrays_lie_apart),
        small_test(entries_come_back), small_test(items),
    };
    return cmocka_run_group_tests_name("fast_state", tests, NULL, NULL) != 0;
}
