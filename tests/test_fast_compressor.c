/* fast/compressor.c: against the reference, and the same bits in calls of any size. */
#include "small.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fast/fast.h"

enum { SEQUENCES = 3 };

/* A compressor, and for each sequence what its maps make of the tokens. The reference computes a
 * and z itself, from an input x that is both side by side. */
typedef struct {
    small *s;
    fast_context c;
    dsv4_compressor w;
    bool index;
    int64_t ratio, halves, head, width, T; /* T: the most tokens of a sequence */
    double *freq;
    double *x[SEQUENCES];                  /* [T, 2 c head] */
    fast_state *state[SEQUENCES];
} fixture;

static dsv4_matrix selecting(small *s, int64_t width, int64_t from)
{
    double *values = small_array(s, width * 2 * width);
    for (int64_t i = 0; i < width; i++)
        values[i * 2 * width + from + i] = 1;
    return small_bf16(s, values, width, 2 * width);
}

static fast_compressor_state *compressor(const fixture *f, int sequence)
{
    fast_layer_state *layer = f->state[sequence]->layer;
    return f->index ? &layer->index : &layer->compressor;
}

/* Empty states. What has not been written yet is NaN, so that no test can pass by reading it. */
static void forget(fixture *f)
{
    for (int i = 0; i < SEQUENCES; i++) {
        fast_state_free(f->state[i]);
        f->state[i] = fast_state_new(&f->s->config, f->c.released, 0, f->T, &f->s->error);
        assert_non_null(f->state[i]);
        fast_compressor_state *state = compressor(f, i);
        for (int64_t j = 0; j < f->halves * f->ratio * f->width; j++)
            state->a[j] = state->z[j] = NAN;
    }
}

static fixture make(small *s, const fast_kernels *level, int threads, int64_t ratio, bool index,
                    int64_t T, dsv4_dtype ape)
{
    static int64_t ratios[1];
    ratios[0] = ratio;
    s->config.num_hidden_layers = 1;
    s->config.compress_ratios = ratios;
    fixture f = {.s = s, .index = index, .ratio = ratio, .halves = ratio == 4 ? 2 : 1, .T = T,
                 .head = index ? s->config.index_head_dim : s->config.head_dim};
    f.width = f.halves * f.head;
    f.c = (fast_context){.config = &s->config, .released = s->c.numerics == DSV4_RELEASED,
                         .kernels = level, .pool = fast_pool_new(threads, &s->error),
                         .memory = fast_memory_new(), .error = &s->error, .layer = 7};
    assert_non_null(f.c.pool);
    f.w = (dsv4_compressor){small_random_matrix(s, ape, ratio, f.width, 4),
                            small_random_matrix(s, DSV4_BF16, 1, f.head, 1),
                            selecting(s, f.width, 0), selecting(s, f.width, f.width)};
    f.freq = small_array(s, s->config.qk_rope_head_dim / 2);
    ref_rope_frequencies(&s->c, true, f.freq);
    for (int i = 0; i < SEQUENCES; i++) {
        f.x[i] = small_array(s, T * 2 * f.width);
        for (int64_t j = 0; j < T * 2 * f.width; j++)
            f.x[i][j] = (j / f.width % 2 == 0 ? 1 : 4) * small_random(s);
    }
    forget(&f);
    return f;
}

static void end(fixture *f)
{
    for (int i = 0; i < SEQUENCES; i++)
        fast_state_free(f->state[i]);
    fast_pool_free(f->c.pool);
    fast_memory_free(f->c.memory);
}

/* One call: rows[i] more tokens of sequence i, from position[i] on; sequences without rows have no
 * segment. */
static void call(fixture *f, int64_t position[SEQUENCES], const int64_t rows[SEQUENCES],
                 const dsv4_tap *tap)
{
    fast_segment segment[SEQUENCES];
    fast_compressor_state *state[SEQUENCES];
    int64_t T = rows[0] + rows[1] + rows[2], row = 0;
    int64_t *places = calloc((size_t)T + 1, sizeof *places);
    float *a = calloc((size_t)(T * f->width) + 1, sizeof *a);
    float *z = calloc((size_t)(T * f->width) + 1, sizeof *z);
    assert_true(places != NULL && a != NULL && z != NULL);
    fast_call now = {.T = T, .segment = segment, .position = places};
    for (int i = 0; i < SEQUENCES; i++) {
        if (rows[i] == 0)
            continue;
        segment[now.segments] = (fast_segment){f->state[i], row, rows[i], position[i], tap};
        state[now.segments++] = compressor(f, i);
        for (int64_t t = position[i]; t < position[i] + rows[i]; t++, row++) {
            places[row] = t;
            for (int64_t j = 0; j < f->width; j++) {
                a[row * f->width + j] = (float)f->x[i][t * 2 * f->width + j];
                z[row * f->width + j] = (float)f->x[i][t * 2 * f->width + f->width + j];
            }
        }
        position[i] += rows[i];
    }
    fast_compress(&f->c, &now, &f->w, state, f->freq, a, z);
    free(places);
    free(a);
    free(z);
}

/* ---- against the reference ---- */

/* EXACT: of at most 2r items, each is a product of a and an exponential (with z to 2^-24 of its 8
 * and the function to 2 units), summed in binary32. The norm's factor, 1 / rms, enlarges the error
 * of the pooled value as it does the value, and the norm, the angle and the transform add some
 * roundings of their own. RELEASED: a flip to the next bf16 number moves an entry of the norm by
 * 2^-8 of itself, which can move a code by one: 32 of 448 at most, or 2 of 6, where the scale is at
 * most twice what the largest needs. */
static void compare(fixture *f, int sequence, int64_t groups, const double *want)
{
    small *s = f->s;
    int64_t head = f->head, R = s->config.qk_rope_head_dim, flips = 0;
    int64_t values = f->index ? head : head - R;
    fast_entries *e = &compressor(f, sequence)->entries;
    float *entry = small_alloc(s, head, sizeof *entry);
    double *got = small_array(s, head);
    assert_int_equal(e->count, groups);
    for (int64_t g = 0; g < groups; g++, want += head) {
        fast_entries_get(&f->c, e, g, 1, entry);
        double top = 0;
        for (int64_t i = 0; i < head; i++) {
            got[i] = entry[i];
            top = fmax(top, fabs(want[i]));
            flips += got[i] != want[i];
        }
        if (!f->c.released) {
            double pooled = (double)(2 * f->ratio + 16) * 0x1p-24;
            double rms = 1 / sqrt(3.0 * (double)f->ratio);
            small_near(s, got, want, head, 2 * (pooled / rms + 16 * 0x1p-24) * fmax(1, top));
        } else {
            small_near(s, got, want, values, (f->index ? 2.0 / 3 : 1.0 / 7) * top);
            small_near(s, got + values, want + values, head - values, 0x1p-7 * top);
        }
    }
    if (f->c.released)
        assert_true(flips <= 1 + groups * head / 50);
}

static void against_ref(small *s, const fast_kernels *level, int64_t ratio, bool index, int64_t T,
                        dsv4_dtype ape)
{
    fixture f = make(s, level, 2, ratio, index, T, ape);
    int64_t rows[SEQUENCES] = {T, T / 2, 1 < T ? T - 1 : 1}, position[SEQUENCES] = {0};
    call(&f, position, rows, NULL);
    for (int i = 0; i < SEQUENCES; i++) {
        int64_t items = f.halves * ratio * f.width;
        ref_compressor_state want = {
            .index = index, .ratio = ratio, .head = f.head, .halves = f.halves,
            .a = small_array(s, items), .z = small_array(s, items),
            .entries = small_array(s, T / ratio * f.head + 1)};
        ref_compress(&s->c, &f.w, &want, f.freq, 0, f.x[i], rows[i]);
        compare(&f, i, want.count, want.entries);
        const fast_compressor_state *state = compressor(&f, i);
        for (int64_t t = 0; t < f.halves * ratio && t < rows[i]; t++)
            for (int64_t j = t * f.width; j < (t + 1) * f.width; j++) {
                assert_true(state->a[j] == want.a[j]);
                assert_true(fabs(state->z[j] - want.z[j]) <= 8 * 0x1p-24);
            }
    }
    assert_string_equal(s->error.text, "");
    end(&f);
}

/* Widths of the contracts' kinds: EXACT may have any. */
static void size(small *s, int64_t head, int64_t index_head, int64_t R)
{
    s->config.head_dim = head;
    s->config.index_head_dim = index_head;
    s->config.qk_rope_head_dim = R;
}

static void as_the_reference(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
            size(s, 64 + 6, 32, 6);
            against_ref(s, level[l], 4, false, 23, DSV4_F32);
            against_ref(s, level[l], 4, true, 42, DSV4_BF16);
            against_ref(s, level[l], 4, true, 3, DSV4_F16);
            against_ref(s, level[l], 6, false, 25, DSV4_F8_E4M3);
            against_ref(s, level[l], 128, false, 2 * 128 + 1, DSV4_BF16);
            if (s->c.numerics == DSV4_RELEASED)
                continue;
            size(s, 17, 8, 2);
            against_ref(s, level[l], 4, false, 30, DSV4_F32);
            against_ref(s, level[l], 4, true, 30, DSV4_F32);
            against_ref(s, level[l], 5, false, 11, DSV4_F32);
            against_ref(s, level[l], 1, false, 3, DSV4_F32);
        }
}

/* ---- calls of any size ---- */

/* All that the states hold, entries as they are stored, as one string of bytes. */
static unsigned char *contents(const fixture *f, int64_t *size_)
{
    int64_t R = f->s->config.qk_rope_head_dim, length = 0, slots = f->halves * f->ratio;
    unsigned char *all = NULL;
    for (int i = 0; i < SEQUENCES; i++) {
        const fast_compressor_state *state = compressor(f, i);
        const fast_entries *e = &state->entries;
        int64_t n = e->count, head = f->head;
        const struct { const void *data; int64_t bytes; } parts[] = {
            {&e->count, sizeof e->count},
            {state->a, slots * f->width * 4},
            {state->z, slots * f->width * 4},
            {e->values, e->values != NULL ? n * head * 4 : 0},
            {e->codes, e->codes == NULL ? 0 : n * (e->index ? head / 2 : head - R)},
            {e->scales, e->codes == NULL ? 0 : n * (e->index ? head / 32 : (head - R) / 64)},
            {e->rope, e->rope == NULL ? 0 : n * R * 2}};
        for (size_t j = 0; j < sizeof parts / sizeof *parts; j++) {
            if (parts[j].bytes == 0)
                continue;
            all = realloc(all, (size_t)(length + parts[j].bytes));
            assert_non_null(all);
            memcpy(all + length, parts[j].data, (size_t)parts[j].bytes);
            length += parts[j].bytes;
        }
    }
    *size_ = length;
    return all;
}

/* Sequence i advances by pieces[i] tokens a call, up to length[i]. */
static void in_pieces(fixture *f, const int64_t pieces[SEQUENCES], const int64_t length[SEQUENCES])
{
    int64_t position[SEQUENCES] = {0};
    forget(f);
    for (bool more = true; more;) {
        int64_t rows[SEQUENCES];
        more = false;
        for (int i = 0; i < SEQUENCES; i++) {
            rows[i] = length[i] - position[i] < pieces[i] ? length[i] - position[i] : pieces[i];
            more |= position[i] + rows[i] < length[i];
        }
        call(f, position, rows, NULL);
    }
    for (int i = 0; i < SEQUENCES; i++)
        assert_int_equal(compressor(f, i)->entries.count, length[i] / f->ratio);
}

static void same_in_pieces(small *s, const fast_kernels *level, int64_t ratio, bool index,
                           int64_t T)
{
    static const int64_t pieces[][SEQUENCES] = {{1, 1, 1},     {2, 3, 5},   {3, 5, 1},
                                                {5, 127, 128}, {127, 1, 2}, {128, 128, 127}};
    const int64_t length[SEQUENCES] = {T, T - 1, T / 2};
    fixture f = make(s, level, 1, ratio, index, T, DSV4_F32);
    int64_t bytes, again_bytes;
    in_pieces(&f, length, length);
    unsigned char *want = contents(&f, &bytes);
    for (int threads = 1; threads <= 3; threads += 2) {
        fast_pool_free(f.c.pool);
        f.c.pool = fast_pool_new(threads, &s->error);
        assert_non_null(f.c.pool);
        for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
            in_pieces(&f, pieces[i], length);
            unsigned char *again = contents(&f, &again_bytes);
            assert_int_equal(bytes, again_bytes);
            assert_memory_equal(want, again, (size_t)bytes);
            free(again);
        }
    }
    free(want);
    assert_string_equal(s->error.text, "");
    end(&f);
}

static void calls_of_any_size(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    size(s, 64 + 6, 32, 6);
    for (int l = 0; l < levels; l++)
        for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++) {
            same_in_pieces(s, level[l], 4, false, 150);
            same_in_pieces(s, level[l], 4, true, 150);
            same_in_pieces(s, level[l], 128, false, 3 * 128 + 7);
            same_in_pieces(s, level[l], 7, false, 30);
        }
}

/* One entry after its pooling, at positions far and near, against the chapters' own functions. */
static void finishing(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    size(s, 64 + 6, 32, 6);
    for (int l = 0; l < levels; l++)
        for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++)
            for (int index = 0; index < 2; index++) {
                static const int64_t position[3] = {0, 132, 1048572};
                fixture f = make(s, level[l], 1, 4, index, 12, DSV4_F32);
                double *norm = small_values(s, &f.w.norm), *want = small_array(s, 3 * f.head);
                float weight[70], entry[70];
                for (int64_t i = 0; i < f.head; i++)
                    weight[i] = (float)norm[i];
                for (int g = 0; g < 3; g++) {
                    double *x = want + g * f.head;
                    for (int64_t i = 0; i < f.head; i++) {
                        x[i] = small_random(s);
                        entry[i] = (float)x[i];
                        x[i] = small_bf16_point(s, x[i]);
                    }
                    ref_rmsnorm(&s->c, &f.w.norm, x, 1, x);
                    ref_rope(&s->c, f.freq, position[g], x, f.head);
                    if (index)
                        ref_hadamard(&s->c, x, f.head);
                    if (index)
                        ref_qdq_index(&s->c, x);
                    else
                        ref_qdq_kv(&s->c, x);
                    fast_compressor_finish(&f.c, weight, index, f.head, f.freq, position[g], entry);
                    fast_entries_push(&f.c, &compressor(&f, 0)->entries, entry);
                }
                compare(&f, 0, 3, want);
                end(&f);
            }
}

static void visible(void **state)
{
    (void)state;
    for (int64_t r = 1; r < 10; r++)
        for (int64_t t = 0; t < 40; t++)
            assert_int_equal(fast_visible(t, r), ref_visible(t, r));
}

/* ---- pooling ---- */

/* One channel by the definition, and how far binary32 may be from it: the exponents, of at most
 * `top`, to 2^-24 of themselves, the exponential to 2 units, and two sums of so many items. */
static void pooling(void **state)
{
    static const int64_t heads[] = {1, 3, 17, 48, 72, 100, 512}, items[] = {1, 4, 8, 9, 128, 256};
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    for (int l = 0; l < levels; l++)
        for (int h = 0; h < 7; h++)
            for (int n = 0; n < 6; n++) {
                int64_t head = heads[h], count = items[n];
                double top = (h + n) % 2 == 0 ? 2 : 200;
                float *a = small_alloc(s, count * head, sizeof *a), entry[513];
                float *z = small_alloc(s, count * head, sizeof *z);
                const float *rows_a[256], *rows_z[256];
                for (int64_t i = 0; i < count * head; i++) {
                    a[i] = (float)small_random(s);
                    z[i] = (float)(top * small_random(s));
                    rows_a[i / head] = a + i / head * head;
                    rows_z[i / head] = z + i / head * head;
                }
                entry[head] = -7;
                level[l]->compressor->pool(rows_a, rows_z, count, head, entry);
                assert_true(entry[head] == -7);
                for (int64_t i = 0; i < head; i++) {
                    long double sum = 0, pooled = 0;
                    for (int64_t j = 0; j < count; j++) {
                        long double p = expl((long double)z[j * head + i]);
                        sum += p;
                        pooled += p * a[j * head + i];
                    }
                    double bound = (2 * (double)count + 4 * top + 8) * 0x1p-24;
                    small_about(s, entry[i], (double)(pooled / sum), bound);
                }
            }
}

/* ---- tap and errors ---- */

typedef struct {
    int calls;
    dsv4_point last;
    double write; /* into every value, unless 0 */
    double first; /* value seen */
} spying;

static void spy(void *context, const dsv4_point *point)
{
    spying *seen = context;
    seen->calls++;
    seen->last = *point;
    seen->first = point->rows > 0 ? point->values[0] : 0;
    for (int64_t i = 0; i < point->rows * point->dim[0] && seen->write != 0; i++)
        point->values[i] = seen->write;
}

static void the_tap(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    size(s, 64 + 6, 32, 6);
    for (s->c.numerics = DSV4_EXACT; s->c.numerics <= DSV4_RELEASED; s->c.numerics++)
        for (int index = 0; index < 2; index++) {
            fixture f = make(s, level[levels - 1], 1, 4, index, 30, DSV4_F32);
            spying seen = {0};
            dsv4_tap tap = {spy, &seen};
            int64_t position[SEQUENCES] = {0};
            float entry[128];
            call(&f, position, (int64_t[]){5, 0, 0}, &tap);
            assert_int_equal(seen.calls, 1);
            assert_string_equal(seen.last.name, index ? "index_k" : "compressed");
            assert_int_equal(seen.last.layer, 7);
            assert_int_equal(seen.last.row, 0);
            assert_int_equal(seen.last.rows, 1);
            assert_int_equal(seen.last.rank, 1);
            assert_int_equal(seen.last.dim[0], f.head);
            fast_entries_get(&f.c, &compressor(&f, 0)->entries, 0, 1, entry);
            assert_true(entry[0] == seen.first);
            call(&f, position, (int64_t[]){2, 0, 0}, &tap); /* completes nothing */
            assert_int_equal(seen.calls, 2);
            assert_int_equal(seen.last.row, 1);
            assert_int_equal(seen.last.rows, 0);
            seen.write = 1.5; /* what the tap leaves is what stays */
            call(&f, position, (int64_t[]){9, 0, 6}, &tap);
            assert_int_equal(seen.calls, 4);
            assert_int_equal(seen.last.row, 0);
            assert_int_equal(seen.last.rows, 1);
            assert_int_equal(compressor(&f, 0)->entries.count, 4);
            for (int g = 1; g < 4; g++) {
                fast_entries_get(&f.c, &compressor(&f, 0)->entries, g, 1, entry);
                for (int64_t i = 0; i < f.head; i++)
                    assert_true(entry[i] == 1.5f);
            }
            assert_string_equal(s->error.text, "");
            end(&f);
        }
}

/* A row of ape is read when a token needs it. */
static void bad_weights(void **state)
{
    small *s = *state;
    int levels;
    const fast_kernels *const *level = fast_levels(&levels);
    size(s, 64 + 6, 32, 6);
    fixture f = make(s, level[levels - 1], 1, 4, false, 30, DSV4_F32);
    double *ape = small_values(s, &f.w.ape), norm[70] = {0};
    int64_t position[SEQUENCES] = {0};
    ape[2 * f.width + 5] = NAN;
    f.w.ape = small_f32(s, ape, 4, f.width);
    call(&f, position, (int64_t[]){2, 1, 0}, NULL);
    assert_string_equal(s->error.text, "");
    call(&f, position, (int64_t[]){1, 0, 0}, NULL);
    assert_non_null(strstr(s->error.text, "small.safetensors: small.weight: value [2, 5] is NaN"));

    s->error.text[0] = '\0';
    ape[2 * f.width + 5] = 0;
    norm[9] = INFINITY;
    f.w.ape = small_f32(s, ape, 4, f.width);
    f.w.norm = small_f32(s, norm, 1, 70);
    call(&f, position, (int64_t[]){0, 0, 3}, NULL);
    assert_string_equal(s->error.text, "");
    call(&f, position, (int64_t[]){0, 0, 1}, NULL);
    assert_non_null(strstr(s->error.text, "value [0, 9] is infinite"));
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        small_test(as_the_reference), small_test(calls_of_any_size), small_test(finishing),
        small_test(visible), small_test(pooling), small_test(the_tap), small_test(bad_weights),
    };
    return cmocka_run_group_tests_name("fast_compressor", tests, NULL, NULL) != 0;
}
