/* The fast path as a whole: against the reference, and against itself in other chunks, batches,
 * threads. Every level of instructions that the machine has. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fast/fast.h"
#include "trace.h"
#include "whole.h"

static const dsv4_path *const fast = &dsv4_path_fast;

static void use(const char *isa, int threads, bool deterministic)
{
    const dsv4_path_options options = {threads, isa, deterministic};
    dsv4_error err = {{0}};
    if (fast->configure(&options, &err) != 0)
        fail_msg("%s", err.text);
}

static void same_bits(const char *what, int64_t size, const double *got, const double *want,
                      int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            fail_msg("%s, %lld: value %lld is %.9g, expected %.9g", what, (long long)size,
                     (long long)i, got[i], want[i]);
}

/* Models that differ in what fast/ treats differently. */
static const struct { dsv4_numerics numerics; make_style style; const char *name; } kinds[] = {
    {DSV4_EXACT, MAKE_EXACT, "F32"},   {DSV4_EXACT, MAKE_MIXED, "mixed dtypes"},
    {DSV4_EXACT, MAKE_BF16, "BF16"},   {DSV4_RELEASED, MAKE_RELEASED, "released"},
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static void open_kind(whole *w, size_t kind, const char *const changes[])
{
    whole_open(w, kinds[kind].numerics, kinds[kind].style, changes);
}

/* Step by step: every operator is fed with the reference's tensor, so that a difference is its own. EXACT:
 * binary32 against binary64, in sums of at most 320 terms: 1e-5 of the scale is generous to roundings
 * (320 2^-24 = 2e-5 if all went one way) and small against any mistake. RELEASED: a sum in another
 * order may flip a rounding, and so move a code by one; the widest step of E2M1 is 2 of 6. */
static void steps(void **state)
{
    (void)state;
    enum { n = 40 };
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (size_t kind = 0; kind < KINDS; kind++) {
        whole w;
        trace t = {0};
        open_kind(&w, kind, NULL);
        int64_t V = w.model.config.vocab_size, *ids = whole_ids(&w, n, 3);
        double *logits = dsv4_alloc(2 * n * (size_t)V, sizeof *logits);
        const dsv4_tap keeper = trace_keeper(&t);
        whole_pass(&w, ids, n, n, &keeper, logits, logits + n * V);
        for (int i = 0; i < levels; i++) {
            use(level[i]->name, 2, false);
            const dsv4_tap feeder = trace_feeder(&t);
            whole_pass_by(fast, &w, ids, n, 7, &feeder, logits, logits + n * V);
            if (kinds[kind].numerics == DSV4_EXACT)
                trace_within(&t, level[i]->name, 1e-5);
            else
                trace_mostly(&t, level[i]->name, 0.97, 0.34);
        }
        trace_free(&t);
        free(logits);
        free(ids);
        whole_close(&w);
    }
}

/* EXACT, without feeding: the end results. */
static void logits_against_ref(void **state)
{
    (void)state;
    enum { n = 60 };
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (size_t kind = 0; kind < KINDS; kind++) {
        if (kinds[kind].numerics != DSV4_EXACT)
            continue;
        whole w;
        open_kind(&w, kind, NULL);
        int64_t V = w.model.config.vocab_size, count = 2 * n * V, *ids = whole_ids(&w, n, 4);
        double *want = dsv4_alloc((size_t)(2 * count), sizeof *want), *got = want + count;
        whole_pass(&w, ids, n, n, NULL, want, want + n * V);
        double scale = 0;
        for (int64_t i = 0; i < count; i++)
            scale = fmax(scale, fabs(want[i]));
        for (int l = 0; l < levels; l++) {
            use(level[l]->name, 2, false);
            whole_pass_by(fast, &w, ids, n, 11, NULL, got, got + n * V);
            for (int64_t i = 0; i < count; i++)
                if (!(fabs(got[i] - want[i]) <= 2e-4 * scale))
                    fail_msg("%s, %s: logit %lld is %.9g, expected %.9g", kinds[kind].name,
                             level[l]->name, (long long)i, got[i], want[i]);
        }
        free(want);
        free(ids);
        whole_close(&w);
    }
}

/* Under a sanitizer or an emulator. */
static bool is_slow(void)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    return true;
#else
    return getenv("DSV4_EMULATED") != NULL;
#endif
}

/* One pass in pieces of 64 by one thread, and others in pieces of each size by one, two or three; of
 * many sizes, where that takes long, every other one, and the rest with the next kind of model. */
static void same_in_pieces(size_t kind, const char *isa, int64_t n, const char *window,
                           const int64_t sizes[], size_t count_of_sizes)
{
    whole w;
    trace t = {0};
    open_kind(&w, kind, CHANGES("sliding_window", window));
    int64_t V = w.model.config.vocab_size, count = 2 * n * V, *ids = whole_ids(&w, n, 5);
    double *want = dsv4_alloc((size_t)(2 * count), sizeof *want), *got = want + count;
    use(isa, 1, true);
    const dsv4_tap keeper = trace_keeper(&t);
    whole_pass_by(fast, &w, ids, n, 64, &keeper, want, want + n * V);
    for (size_t s = 0; s < count_of_sizes; s++) {
        if (is_slow() && count_of_sizes > 3 && (s + kind) % 2 != 0)
            continue;
        use(isa, 1 + (int)(s % 3), true);
        const dsv4_tap comparer = trace_comparer(&t);
        bool traced = s < 2 || sizes[s] >= n;
        whole_pass_by(fast, &w, ids, n, sizes[s], traced ? &comparer : NULL, got, got + n * V);
        same_bits(kinds[kind].name, sizes[s], got, want, count);
        if (traced)
            trace_within(&t, kinds[kind].name, 0);
    }
    trace_free(&t);
    free(want);
    free(ids);
    whole_close(&w);
}

/* Chunks and threads change no bit, of no tensor. */
static void chunks_and_threads(void **state)
{
    (void)state;
    static const int64_t few[] = {1, 3, 40}, all[] = {1, 2, 3, 5, 7, 8, 127, 128, 129, 140},
                         long_ones[] = {128, 600};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    const char *best = level[levels - 1]->name;
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (int l = 0; l + 1 < levels; l++)
            same_in_pieces(kind, level[l]->name, 40, "7", few, sizeof few / sizeof *few);
        same_in_pieces(kind, best, 140, kind % 2 == 0 ? "128" : "7", all,
                       sizeof all / sizeof *all);
    }
    /* More than pass the layers at once. */
    same_in_pieces(KINDS - 1, best, 600, "128", long_ones, sizeof long_ones / sizeof *long_ones);
}

/* Several sequences of other lengths at once, in calls that mix prefill and single tokens, MTP included:
 * each is what it is alone, and so are its named tensors. */
static void batches(void **state)
{
    (void)state;
    enum { B = 5 };
    static const int64_t length[B] = {33, 1, 18, 300, 7}, first_call[B] = {33, 1, 4, 290, 7};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (size_t kind = 0; kind < KINDS; kind++) {
        whole w;
        open_kind(&w, kind, NULL);
        int64_t V = w.model.config.vocab_size;
        use(level[levels - 1]->name, 2, true);
        int64_t *ids[B], *next[B];
        double *alone[B], *got[B];
        trace t[B] = {{0}};
        dsv4_tap tap[B];
        dsv4_run *run[B];
        dsv4_error err = {{0}};
        for (int i = 0; i < B; i++) {
            ids[i] = whole_ids(&w, length[i], 10 + i);
            next[i] = dsv4_alloc((size_t)length[i], sizeof *next[i]);
            for (int64_t j = 0; j < length[i]; j++)
                next[i][j] = ids[i][(j + 1) % length[i]];
            alone[i] = dsv4_alloc((size_t)(4 * length[i] * V), sizeof *alone[i]);
            got[i] = alone[i] + 2 * length[i] * V;
            tap[i] = trace_keeper(&t[i]);
            whole_pass_by(fast, &w, ids[i], length[i], length[i], &tap[i], alone[i],
                          alone[i] + length[i] * V);
            tap[i] = trace_comparer(&t[i]);
            run[i] = fast->open(&w.model, w.numerics, length[i], &tap[i], &err);
            assert_non_null(run[i]);
        }
        int64_t done[B] = {0};
        for (int call = 0; ; call++) {
            dsv4_run *runs[B];
            const int64_t *some[B], *after[B];
            double *logits[B], *mtp[B];
            int64_t n[B], count = 0;
            for (int i = B - 1; i >= 0; i--) {
                if (done[i] == length[i])
                    continue;
                runs[count] = run[i];
                some[count] = ids[i] + done[i];
                after[count] = next[i] + done[i];
                logits[count] = got[i] + done[i] * V;
                mtp[count] = got[i] + (length[i] + done[i]) * V;
                n[count] = call == 0 ? first_call[i] : i == 2 ? 3 : 1;
                if (n[count] > length[i] - done[i])
                    n[count] = length[i] - done[i];
                done[i] += n[count++];
            }
            if (count == 0)
                break;
            if (fast->forward_batch(runs, count, some, n, logits, &err) != 0 ||
                fast->mtp_batch(runs, count, after, n, mtp, &err) != 0)
                fail_msg("%s", err.text);
        }
        for (int i = 0; i < B; i++) {
            same_bits(kinds[kind].name, i, got[i], alone[i], 2 * length[i] * V);
            trace_within(&t[i], kinds[kind].name, 0);
            trace_free(&t[i]);
            fast->close(run[i]);
            free(alone[i]);
            free(ids[i]);
            free(next[i]);
        }
        whole_close(&w);
    }
}

static void same_memory(const char *what, const void *a, const void *b, int64_t bytes)
{
    if (bytes > 0 && memcmp(a, b, (size_t)bytes) != 0)
        fail_msg("%s differs", what);
}

static void same_entries(const fast_entries *a, const fast_entries *b, int64_t R)
{
    assert_int_equal(a->count, b->count);
    assert_int_equal(a->head, b->head);
    if (a->values != NULL) {
        same_memory("values", a->values, b->values, a->count * a->head * (int64_t)sizeof(float));
        return;
    }
    int64_t codes = a->index ? a->head / 2 : a->head - R;
    same_memory("codes", a->codes, b->codes, a->count * codes);
    same_memory("scales", a->scales, b->scales,
                a->count * (a->index ? a->head / 32 : (a->head - R) / 64));
    if (!a->index)
        same_memory("rope", a->rope, b->rope, a->count * R * 2);
}

/* Items that the next entries will pool: those of the unfinished group, and in CSA of the one before. */
static void same_items(const fast_compressor_state *a, const fast_compressor_state *b, int64_t tokens)
{
    int64_t r = a->ratio, slots = a->halves * r, width = a->halves * a->entries.head;
    int64_t first = tokens / r * r - (a->halves - 1) * r;
    for (int64_t t = first > 0 ? first : 0; t < tokens; t++) {
        same_memory("a", a->a + t % slots * width, b->a + t % slots * width,
                    width * (int64_t)sizeof(float));
        same_memory("z", a->z + t % slots * width, b->z + t % slots * width,
                    width * (int64_t)sizeof(float));
    }
}

/* A cache that prefill filled and one that decoding filled hold the same bytes. */
static void caches(void **state)
{
    (void)state;
    static const int64_t lengths[] = {1, 6, 7, 8, 31, 130};
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    use(level[levels - 1]->name, 2, true);
    for (size_t kind = 0; kind < KINDS; kind++) {
        whole w;
        open_kind(&w, kind, NULL);
        const dsv4_config *config = &w.model.config;
        int64_t R = config->qk_rope_head_dim, W = config->sliding_window, d = config->head_dim;
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            int64_t n = lengths[i], *ids = whole_ids(&w, n, 6);
            double *logits = dsv4_alloc((size_t)(n * config->vocab_size), sizeof *logits);
            dsv4_error err = {{0}};
            dsv4_run *whole_run = fast->open(&w.model, w.numerics, n, NULL, &err);
            dsv4_run *steps_run = fast->open(&w.model, w.numerics, n, NULL, &err);
            assert_int_equal(fast->forward(whole_run, ids, n, logits, &err), 0);
            assert_int_equal(fast->mtp(whole_run, ids, n, logits, &err), 0);
            for (int64_t t = 0; t < n; t++) {
                assert_int_equal(fast->forward(steps_run, ids + t, 1, NULL, &err), 0);
                assert_int_equal(fast->mtp(steps_run, ids + t, 1, NULL, &err), 0);
            }
            const fast_state *a = fast_run_state(whole_run), *b = fast_run_state(steps_run);
            assert_int_equal(a->position, n);
            assert_int_equal(b->position, n);
            for (int64_t l = 0; l <= a->layers; l++) {
                const fast_layer_state *x = l < a->layers ? &a->layer[l] : &a->mtp[0];
                const fast_layer_state *y = l < b->layers ? &b->layer[l] : &b->mtp[0];
                same_memory("window", x->window, y->window,
                            (n < W ? n : W) * d * (int64_t)sizeof(float));
                same_entries(&x->compressor.entries, &y->compressor.entries, R);
                same_entries(&x->index.entries, &y->index.entries, R);
                if (x->compressor.ratio > 0)
                    same_items(&x->compressor, &y->compressor, n);
                if (x->index.ratio > 0)
                    same_items(&x->index, &y->index, n);
            }
            fast->close(whole_run);
            fast->close(steps_run);
            free(logits);
            free(ids);
        }
        whole_close(&w);
    }
}

/* Rows without wanted logits, and a batch of which only some are wanted. */
static void unwanted_logits(void **state)
{
    (void)state;
    enum { n = 9 };
    whole w;
    use(NULL, 2, false);
    open_kind(&w, 0, NULL);
    int64_t V = w.model.config.vocab_size, *ids = whole_ids(&w, n, 7);
    double *want = dsv4_alloc((size_t)(2 * n * V), sizeof *want), *got = want + n * V;
    const dsv4_path *paths[] = {&dsv4_path_ref, fast};
    for (int p = 0; p < 2; p++) {
        dsv4_error err = {{0}};
        whole_pass_by(paths[p], &w, ids, n, n, NULL, want, NULL);
        dsv4_run *run = paths[p]->open(&w.model, w.numerics, n, NULL, &err);
        assert_int_equal(paths[p]->forward(run, ids, n - 1, NULL, &err), 0);
        assert_int_equal(paths[p]->mtp(run, ids + 1, n - 1, NULL, &err), 0);
        assert_int_equal(paths[p]->forward(run, ids + n - 1, 1, got, &err), 0);
        same_bits(paths[p]->name, 1, got, want + (n - 1) * V, V);
        paths[p]->close(run);
    }
    free(want);
    free(ids);
    whole_close(&w);
}

static void batch_refusals(void **state)
{
    (void)state;
    whole w, other;
    dsv4_error err = {{0}};
    use(NULL, 1, false);
    open_kind(&w, 0, NULL);
    open_kind(&other, 0, NULL);
    const int64_t id[1] = {3}, bad_id[1] = {31}, one = 1;
    dsv4_run *a = fast->open(&w.model, DSV4_EXACT, 4, NULL, &err);
    dsv4_run *b = fast->open(&other.model, DSV4_EXACT, 4, NULL, &err);
    dsv4_run *c = fast->open(&w.model, DSV4_EXACT, 4, NULL, &err);
    const struct {
        dsv4_run *runs[2];
        int64_t count;
        const int64_t *ids[2];
        const char *message;
    } cases[] = {
        {{a, a}, 2, {id, id}, "run 1 of a batch is run 0 again"},
        {{a, b}, 2, {id, id}, "different models"},
        {{a, c}, 2, {id, bad_id}, "token 0 has id 31, expected 0..30"},
        {{a, c}, 0, {id, id}, "a batch of 0 sequences"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dsv4_error why = {{0}};
        assert_int_equal(fast->forward_batch(cases[i].runs, cases[i].count, cases[i].ids,
                                             (int64_t[]){one, one}, NULL, &why), -1);
        if (strstr(why.text, cases[i].message) == NULL)
            fail_msg("\"%s\" is not in \"%s\"", cases[i].message, why.text);
    }
    assert_int_equal(fast_run_state(a)->position, 0);
    assert_int_equal(fast_run_state(c)->position, 0);

    dsv4_error why = {{0}};
    const dsv4_path_options options = {1, "portable", false};
    assert_int_equal(fast->configure(&options, &why), -1);
    assert_non_null(strstr(why.text, "while 3 runs are open"));
    fast->close(a);
    fast->close(b);
    fast->close(c);
    whole_close(&w);
    whole_close(&other);
}

static bool made_by_amd(void)
{
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    bool found = false;
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        found |= strstr(line, "AuthenticAMD") != NULL;
    if (file != NULL)
        fclose(file);
    return found;
}

/* The level that runs is the one asked for, or the best below it. */
static void levels(void **state)
{
    (void)state;
    int count;
    const fast_kernels *const *level = fast_levels(&count);
    dsv4_error err = {{0}};
    assert_string_equal(level[0]->name, "portable");
    for (int i = 0; i < count; i++) {
        use(level[i]->name, 3, false);
        char want[64];
        snprintf(want, sizeof want, "%s, 3 threads", level[i]->name);
        assert_string_equal(fast->level(), want);
        assert_ptr_equal(fast_configured_kernels(), level[i]);
        setenv("DSV4_ISA", level[i]->name, 1);
        use(NULL, 1, true);
        snprintf(want, sizeof want, "%s, 1 thread", level[i]->name);
        assert_string_equal(fast->level(), want);
        assert_true(fast_configured_deterministic());
        unsetenv("DSV4_ISA");
    }
    /* What runs unasked is the last one, unless that is slower here than the one before. */
    const bool slower = strcmp(level[count - 1]->name, "avx512bf16") == 0 && !made_by_amd();
    assert_ptr_equal(fast_level("amx", &err), level[count - 1 - slower]);
    assert_ptr_equal(fast_level("", &err), level[count - 1 - slower]);
    assert_ptr_equal(fast_level(NULL, &err), level[count - 1 - slower]);
    assert_null(fast_level("sse9", &err));
    assert_string_equal(err.text, "instruction set 'sse9': expected portable, avx2, "
                                  "avx512, avx512bf16 or amx");

    dsv4_error why = {{0}};
    assert_int_equal(fast->configure(&(dsv4_path_options){.threads = -1}, &why), -1);
    assert_non_null(strstr(why.text, "-1 threads: expected 1 to"));
    why = (dsv4_error){{0}};
    setenv("DSV4_ISA", "bogus", 1);
    assert_int_equal(fast->configure(&(dsv4_path_options){0}, &why), -1);
    assert_non_null(strstr(why.text, "DSV4_ISA: instruction set 'bogus'"));
    unsetenv("DSV4_ISA");
}

/* ---- the pool and the memory ---- */

typedef struct { int64_t done[1000]; int most; } counters;

static void count_item(void *context, int64_t item, int worker)
{
    counters *c = context;
    c->done[item]++; /* each item belongs to one thread */
    assert_true(worker >= 0 && worker < c->most);
}

static void pool_does_each_item_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        dsv4_error err = {{0}};
        fast_pool *pool = fast_pool_new(threads, &err);
        assert_non_null(pool);
        assert_int_equal(fast_pool_threads(pool), threads);
        for (int64_t items = 0; items < 1000; items += 1 + items / 7) {
            counters c = {.most = threads};
            fast_pool_run(pool, items, count_item, &c);
            for (int64_t i = 0; i < 1000; i++)
                assert_int_equal(c.done[i], i < items);
        }
        fast_pool_free(pool);
    }
    fast_pool_free(NULL);
}

static void memory_is_reused(void **state)
{
    (void)state;
    fast_memory *memory = fast_memory_new();
    for (int round = 0; round < 3; round++) {
        fast_place start = fast_mark(memory);
        char *a = fast_take(memory, 1, 100);
        fast_place mark = fast_mark(memory);
        char *b = fast_take(memory, 1, 5000000), *c = fast_take(memory, 1, 0), *d = fast_take(memory, 1, 1);
        assert_true((uintptr_t)a % 64 == 0 && (uintptr_t)b % 64 == 0 && (uintptr_t)d % 64 == 0);
        assert_non_null(c);
        memset(a, 1, 100);
        memset(b, 2, 5000000);
        *d = 3;
        assert_true(a[99] == 1 && b[0] == 2 && b[4999999] == 2);
        fast_release(memory, mark);
        b = fast_take(memory, 1, 6000000);
        memset(b, 4, 6000000);
        assert_true(a[0] == 1 && a[99] == 1);
        fast_release(memory, start);
    }
    fast_memory_free(memory);
    fast_memory_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels), cmocka_unit_test(pool_does_each_item_once),
        cmocka_unit_test(memory_is_reused), cmocka_unit_test(steps),
        cmocka_unit_test(logits_against_ref), cmocka_unit_test(chunks_and_threads),
        cmocka_unit_test(batches), cmocka_unit_test(caches), cmocka_unit_test(unwanted_logits),
        cmocka_unit_test(batch_refusals),
    };
    return cmocka_run_group_tests_name("fast_path", tests, NULL, NULL) != 0;
}
