#include "judge.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One slot on its way through the judge. */
typedef struct {
    const dsv4_case *c;
    const dsv4_array *expected; /* [outs] */
    int outs;
    const dsv4_case *answer;
    dsv4_strictness strictness;
    const dsv4_array *want, *got;
    const dsv4_array *given; /* the case's own output: NaN is free */
    dsv4_slot_verdict *verdict;
} hearing;

static const dsv4_array *find(const dsv4_array *array, int count, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(array[i].name, name) == 0)
            return &array[i];
    return NULL;
}

static int64_t row_length(const dsv4_array *array)
{
    return array->rank > 0 ? array->shape[array->rank - 1] : 1;
}

static bool same_shape(const dsv4_array *a, const dsv4_array *b)
{
    return a->rank == b->rank && a->count == b->count &&
           memcmp(a->shape, b->shape, (size_t)a->rank * sizeof *a->shape) == 0;
}

void dsv4_index_text(char *text, size_t size, int rank, const int64_t *index)
{
    size_t length = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < rank && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%" PRId64, i > 0 ? "," : "",
                                   index[i]);
    if (length < size)
        snprintf(text + length, size - length, "]");
}

/* No value is to blame: the whole slot is wrong. */
static void reject(dsv4_slot_verdict *v, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static void reject(dsv4_slot_verdict *v, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(v->note, sizeof v->note, format, arguments);
    va_end(arguments);
    v->passed = false;
    v->ratio = v->distance = INFINITY;
    v->rank = -1;
    v->wrong = v->count;
}

static dsv4_tolerance tolerance_of(const hearing *h, const char *name)
{
    dsv4_tolerance of_case = {0};
    for (int i = 0; i < h->c->outs && h->c->tolerance != NULL; i++)
        if (strcmp(h->c->out[i].name, name) == 0)
            of_case = h->c->tolerance[i][h->strictness.tier];
    if (!h->strictness.identical)
        return of_case;
    /* Where a row's largest value is no measure for the others, it is none here either. */
    bool by_element = h->c->tolerance != NULL && of_case.row == 0;
    return (dsv4_tolerance){.row = by_element ? 0 : 1e-12, .element = by_element ? 1e-12 : 0,
                            .rms = 1e-12};
}

static double deviation(double want, double got)
{
    if (want == got || (isnan(want) && isnan(got)))
        return 0;
    double error = fabs(got - want);
    return isnan(error) ? INFINITY : error;
}

static double in_tolerances(double error, double allowed)
{
    if (error == 0)
        return 0;
    return isfinite(error) && allowed > 0 ? error / allowed : INFINITY;
}

/* Blames value `i` of the slot, if it is the first. */
static void blame(hearing *h, int64_t i, double want, double got, double error, double allowed)
{
    dsv4_slot_verdict *v = h->verdict;
    v->passed = false;
    if (v->wrong++ > 0)
        return;
    v->rank = h->want->rank;
    for (int d = v->rank - 1; d >= 0; d--) {
        v->index[d] = i % h->want->shape[d];
        i /= h->want->shape[d];
    }
    v->expected = want;
    v->got = got;
    v->error = error;
    v->tolerance = allowed;
}

/* ---- values ---- */

static bool is_free(const hearing *h, int64_t i)
{
    return isnan(dsv4_array_value(h->given, i));
}

static double largest_finite(const hearing *h, int64_t start, int64_t count)
{
    double largest = 0;
    for (int64_t i = start; i < start + count; i++) {
        double want = fabs(dsv4_array_value(h->want, i));
        if (isfinite(want) && !is_free(h, i))
            largest = fmax(largest, want);
    }
    return largest;
}

/* Every value for itself; `got` is the answer, aligned and scaled. */
static void judge_elements(hearing *h, const double *got, const dsv4_tolerance *tolerance)
{
    int64_t length = row_length(h->want);
    double largest = 0;
    for (int64_t i = 0; i < h->want->count; i++) {
        if (i % length == 0)
            largest = largest_finite(h, i, length);
        if (is_free(h, i))
            continue;
        double want = dsv4_array_value(h->want, i);
        double error = deviation(want, got[i]);
        double allowed = isfinite(want) ? tolerance->row * largest + tolerance->element * fabs(want)
                                        : 0;
        double ratio = in_tolerances(error, allowed);
        h->verdict->ratio = fmax(h->verdict->ratio, ratio);
        if (ratio > 1)
            blame(h, i, want, got[i], error, allowed);
    }
}

/* All values together. Division by the largest keeps the squares in range. */
static void judge_rms(hearing *h, const double *got, const dsv4_tolerance *tolerance)
{
    dsv4_slot_verdict *v = h->verdict;
    double largest = largest_finite(h, 0, h->want->count), unit = largest > 0 ? largest : 1;
    double errors = 0, wants = 0;
    int64_t judged = 0;
    for (int64_t i = 0; i < h->want->count; i++) {
        double want = dsv4_array_value(h->want, i);
        if (is_free(h, i))
            continue;
        double error = deviation(want, got[i]) / unit;
        errors += error * error;
        if (isfinite(want))
            wants += want / unit * (want / unit);
        judged++;
    }
    if (errors == 0)
        return;
    v->distance = wants > 0 ? sqrt(errors / wants) : INFINITY;
    double ratio = in_tolerances(v->distance, tolerance->rms);
    v->ratio = fmax(v->ratio, ratio);
    if (ratio > 1 && v->passed) {
        v->passed = false;
        v->wrong = 0;
        v->rank = -1;
        v->error = v->distance;
        v->tolerance = tolerance->rms;
        snprintf(v->note, sizeof v->note,
                 "out/%s: each of %" PRId64 " values is within its tolerance, "
                 "but the rms error, %.3g of the rms expected, is %.3g times its tolerance",
                 v->slot->name, judged, v->distance, ratio);
    }
}

static void judge_values(hearing *h, const double *got)
{
    const dsv4_tolerance tolerance = tolerance_of(h, h->want->name);
    judge_elements(h, got, &tolerance);
    judge_rms(h, got, &tolerance);
}

static double *values_of(const dsv4_array *array)
{
    double *values = dsv4_alloc((size_t)array->count, sizeof *values);
    for (int64_t i = 0; i < array->count; i++)
        values[i] = dsv4_array_value(array, i);
    return values;
}

/* Indices that have one right value each. Compared as integers. */
static void judge_integers(hearing *h)
{
    const int64_t *want = h->want->data, *got = h->got->data;
    for (int64_t i = 0; i < h->want->count; i++)
        if (want[i] != got[i]) {
            blame(h, i, (double)want[i], (double)got[i], INFINITY, 0);
            h->verdict->ratio = INFINITY;
        }
    if (h->verdict->wrong > 0)
        h->verdict->distance = (double)h->verdict->wrong / (double)h->want->count;
}

/* ---- up to a factor ---- */

/* The factor that brings `got` closest to what is expected. Where either is all zeros there is none
 * to find: 1. */
static double best_factor(const hearing *h, const double *got)
{
    double want_unit = largest_finite(h, 0, h->want->count), got_unit = 0;
    for (int64_t i = 0; i < h->want->count; i++)
        if (!is_free(h, i) && isfinite(got[i]))
            got_unit = fmax(got_unit, fabs(got[i]));
    if (want_unit == 0 || got_unit == 0)
        return 1;
    double both = 0, squares = 0;
    for (int64_t i = 0; i < h->want->count; i++) {
        double want = dsv4_array_value(h->want, i);
        if (is_free(h, i) || !isfinite(want) || !isfinite(got[i]))
            continue;
        both += want / want_unit * (got[i] / got_unit);
        squares += got[i] / got_unit * (got[i] / got_unit);
    }
    return squares > 0 ? both / squares * (want_unit / got_unit) : NAN;
}

static void judge_scaled(hearing *h, double *got)
{
    double factor = best_factor(h, got);
    if (!isfinite(factor) || factor <= 0) {
        reject(h->verdict,
               "out/%s: no positive factor makes the values the expected ones (the best is "
               "%.3g)",
               h->verdict->slot->name, factor);
        return;
    }
    for (int64_t i = 0; i < h->want->count; i++)
        got[i] *= factor;
    judge_values(h, got);
    if (!h->verdict->passed && h->verdict->note[0] == '\0' && fabs(factor - 1) > 1e-3)
        snprintf(h->verdict->note, sizeof h->verdict->note,
                 "(values times their best factor, %.6g)", factor);
}

/* ---- selections ---- */

/* A row of a selection, and the scores behind it. */
typedef struct {
    const int64_t *want, *got;
    int64_t length;
    const dsv4_array *scores; /* or NULL */
    int64_t first_score;      /* of the row */
    int64_t candidates;       /* indices are below it */
    double margin;            /* scores that differ by no more are equal */
} ballot;

static int compare_integers(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int64_t members(const int64_t *row, int64_t length)
{
    int64_t count = 0;
    while (count < length && row[count] != -1)
        count++;
    return count;
}

static bool has_duplicates(const int64_t *sorted, int64_t count)
{
    for (int64_t i = 1; i < count; i++)
        if (sorted[i] == sorted[i - 1])
            return true;
    return false;
}

/* Members of `a` that `b` has not, of sorted rows; returns how many. */
static int64_t difference(const int64_t *a, const int64_t *b, int64_t count, int64_t *only)
{
    int64_t found = 0;
    for (int64_t i = 0, j = 0; i < count;) {
        if (j < count && b[j] < a[i]) {
            j++;
        } else if (j < count && b[j] == a[i]) {
            i++;
            j++;
        } else {
            only[found++] = a[i++];
        }
    }
    return found;
}

/* How far apart the scores of the members are that only one of the two rows has. */
static double spread(const ballot *b, const int64_t *only_want, const int64_t *only_got,
                     int64_t count)
{
    double low = INFINITY, high = -INFINITY;
    for (int64_t i = 0; i < 2 * count; i++) {
        int64_t member = i < count ? only_want[i] : only_got[i - count];
        if (member < 0 || member >= row_length(b->scores))
            return INFINITY;
        double score = dsv4_array_value(b->scores, b->first_score + member);
        if (isnan(score))
            return INFINITY;
        low = fmin(low, score);
        high = fmax(high, score);
    }
    return high == low ? 0 : high - low;
}

static int64_t position_of(const int64_t *row, int64_t length, int64_t member)
{
    for (int64_t i = 0; i < length; i++)
        if (row[i] == member)
            return i;
    return 0;
}

/* What is wrong with the form of a row: the place of the offender, with a note; or -1. */
static int64_t malformed(const ballot *b, int64_t count, char *note, size_t size)
{
    for (int64_t i = 0; i < b->length; i++) {
        if (i < count && (b->got[i] < 0 || b->got[i] >= b->candidates)) {
            snprintf(note, size, "an index outside 0..%" PRId64, b->candidates - 1);
            return i;
        }
        if (i >= count && b->got[i] != -1) {
            snprintf(note, size, "an index behind -1");
            return i;
        }
    }
    int64_t expected = members(b->want, b->length);
    if (count != expected) {
        snprintf(note, size, "%" PRId64 " members, expected %" PRId64, count, expected);
        return count < expected ? count : expected;
    }
    return -1;
}

/* The place in the row that is wrong, or -1. `ratio`: how much of the tie margin was needed. */
static int64_t judge_ballot(const ballot *b, int64_t *scratch, double *ratio, int64_t *expected,
                            char *note, size_t size)
{
    *ratio = INFINITY;
    int64_t count = members(b->got, b->length);
    int64_t place = malformed(b, count, note, size);
    if (place >= 0) {
        *expected = b->want[place];
        return place;
    }
    int64_t *want = scratch, *got = want + b->length, *only_want = got + b->length,
            *only_got = only_want + b->length;
    memcpy(want, b->want, (size_t)count * sizeof *want);
    memcpy(got, b->got, (size_t)count * sizeof *got);
    qsort(want, (size_t)count, sizeof *want, compare_integers);
    qsort(got, (size_t)count, sizeof *got, compare_integers);
    int64_t differing = difference(want, got, count, only_want);
    difference(got, want, count, only_got);
    if (differing == 0) {
        *ratio = 0;
        return -1;
    }
    *expected = only_want[0];
    if (has_duplicates(got, count) && !has_duplicates(want, count)) {
        snprintf(note, size, "an index twice in a row");
        for (int64_t i = 1; i < count; i++)
            for (int64_t j = 0; j < i; j++)
                if (b->got[i] == b->got[j])
                    return i;
    }
    place = position_of(b->got, count, only_got[0]);
    if (b->scores == NULL) {
        snprintf(note, size, "not a member of the expected row");
        return place;
    }
    double apart = spread(b, only_want, only_got, differing);
    *ratio = in_tolerances(apart, b->margin);
    if (*ratio <= 1)
        return -1;
    snprintf(note, size, "members that differ from the expected ones have scores that are %.3g "
             "apart, with a tie margin of %.3g", apart, b->margin);
    return place;
}

/* How many entries row `row` may choose from: where positions and a ratio say so, only the visible
 * groups. What a mistake makes of a case need not keep to that. */
static int64_t candidates(const hearing *h, const dsv4_array *scores, int64_t row)
{
    int64_t limit = scores != NULL ? row_length(scores) : INT64_MAX;
    if (h->expected != h->c->out)
        return limit;
    const dsv4_array *positions = dsv4_case_in(h->c, "positions");
    double ratio = dsv4_case_param(h->c, "ratio", 0);
    if (positions == NULL || positions->format != DSV4_FORMAT_I64 || row >= positions->count ||
        !(ratio >= 1 && ratio <= 1e9))
        return limit;
    int64_t position = ((const int64_t *)positions->data)[row];
    int64_t visible = position < 0 ? 0 : position / (int64_t)ratio +
                                         (position % (int64_t)ratio == (int64_t)ratio - 1);
    return visible < limit ? visible : limit;
}

static double tie_margin(const hearing *h, const dsv4_array *scores, int64_t first)
{
    double largest = 0;
    for (int64_t i = first; i < first + row_length(scores); i++)
        if (isfinite(dsv4_array_value(scores, i)))
            largest = fmax(largest, fabs(dsv4_array_value(scores, i)));
    bool has_own = find(h->c->out, h->c->outs, scores->name) != NULL;
    return tolerance_of(h, has_own ? scores->name : h->want->name).row * largest;
}

/* The slot `beside`, if it has one row for each of the selection's. */
static const dsv4_array *scores_of(const hearing *h, int64_t rows)
{
    if (h->verdict->slot->beside == NULL)
        return NULL;
    const dsv4_array *scores = dsv4_case_in(h->c, h->verdict->slot->beside);
    if (scores == NULL)
        scores = find(h->expected, h->outs, h->verdict->slot->beside);
    if (scores == NULL || scores->rank < 1 || row_length(scores) < 1 ||
        scores->count / row_length(scores) != rows)
        return NULL;
    return scores;
}

static void judge_selection(hearing *h)
{
    dsv4_slot_verdict *v = h->verdict;
    int64_t length = row_length(h->want);
    if (length == 0)
        return;
    int64_t rows = h->want->count / length;
    const dsv4_array *scores = scores_of(h, rows);
    int64_t *scratch = dsv4_alloc(4 * (size_t)length, sizeof *scratch);
    v->count = rows;
    for (int64_t r = 0; r < rows; r++) {
        ballot b = {.want = (const int64_t *)h->want->data + r * length,
                    .got = (const int64_t *)h->got->data + r * length,
                    .length = length, .scores = scores, .candidates = candidates(h, scores, r)};
        if (scores != NULL) {
            b.first_score = r * row_length(scores);
            b.margin = tie_margin(h, scores, b.first_score);
        }
        char note[sizeof v->note];
        double ratio;
        int64_t expected = -1, place = judge_ballot(&b, scratch, &ratio, &expected, note,
                                                    sizeof note);
        v->ratio = fmax(v->ratio, ratio);
        if (place < 0)
            continue;
        if (v->wrong == 0)
            memcpy(v->note, note, sizeof note);
        blame(h, r * length + place, (double)expected, (double)b.got[place], INFINITY, 0);
    }
    free(scratch);
    if (rows > 0)
        v->distance = (double)v->wrong / (double)rows;
}

/* ---- values that go with a selection ---- */

/* Brings a row of the answer into the expected order of indices. What replaces a member (a tie)
 * stands in its place. */
static void align_row(const int64_t *want_index, const int64_t *got_index, int64_t length,
                      const double *got, double *aligned, bool *taken)
{
    bool *placed = taken + length;
    memset(taken, 0, 2 * (size_t)length * sizeof *taken);
    for (int64_t i = 0; i < length; i++)
        for (int64_t j = 0; j < length; j++)
            if (!taken[j] && got_index[j] == want_index[i]) {
                aligned[i] = got[j];
                taken[j] = placed[i] = true;
                break;
            }
    for (int64_t i = 0, j = 0; i < length; i++) {
        if (placed[i])
            continue;
        while (taken[j])
            j++;
        aligned[i] = got[j++];
    }
}

static void judge_weights(hearing *h, double *got)
{
    const dsv4_array *want_index = find(h->expected, h->outs, h->verdict->slot->beside);
    const dsv4_array *got_index = find(h->answer->out, h->answer->outs, h->verdict->slot->beside);
    if (want_index != NULL && got_index != NULL && want_index->format == DSV4_FORMAT_I64 &&
        got_index->format == DSV4_FORMAT_I64 && same_shape(want_index, h->want) &&
        same_shape(got_index, h->want)) {
        int64_t length = row_length(h->want);
        double *aligned = dsv4_alloc((size_t)length, sizeof *aligned);
        bool *taken = dsv4_alloc(2 * (size_t)length, sizeof *taken);
        for (int64_t start = 0; start < h->want->count; start += length) {
            align_row((const int64_t *)want_index->data + start,
                      (const int64_t *)got_index->data + start, length, got + start, aligned,
                      taken);
            memcpy(got + start, aligned, (size_t)length * sizeof *got);
        }
        free(aligned);
        free(taken);
    }
    judge_values(h, got);
}

/* ---- the whole answer ---- */

static void reject_shape(dsv4_slot_verdict *v, const dsv4_array *want, const dsv4_array *got)
{
    char expected[96], found[96];
    dsv4_index_text(expected, sizeof expected, want->rank, want->shape);
    dsv4_index_text(found, sizeof found, got->rank, got->shape);
    v->misshaped = true;
    reject(v, "out/%s: shape %s, expected %s", v->slot->name, found, expected);
}

static void judge_slot(hearing *h)
{
    dsv4_slot_verdict *v = h->verdict;
    *v = (dsv4_slot_verdict){.slot = v->slot, .passed = true, .rank = -1, .count = h->want->count,
                             .integer = h->want->format == DSV4_FORMAT_I64};
    if (h->got == NULL) {
        v->misshaped = true;
        reject(v, "missing out/%s", v->slot->name);
        return;
    }
    bool integer = h->got->format == DSV4_FORMAT_I64;
    if (integer != v->integer) {
        v->misshaped = true;
        reject(v, "out/%s: %s, expected %s", v->slot->name, integer ? "integers" : "floats",
               v->integer ? "integers" : "floats");
        return;
    }
    if (!same_shape(h->want, h->got) || !same_shape(h->given, h->got)) {
        reject_shape(v, h->given, h->got);
        return;
    }
    if (v->integer) {
        if (v->slot->judge == DSV4_JUDGE_SELECTION)
            judge_selection(h);
        else
            judge_integers(h);
        return;
    }
    double *got = values_of(h->got);
    if (v->slot->judge == DSV4_JUDGE_SCALE)
        judge_scaled(h, got);
    else if (v->slot->judge == DSV4_JUDGE_WEIGHTS)
        judge_weights(h, got);
    else
        judge_values(h, got);
    free(got);
}

void dsv4_judge_answer(const dsv4_case *c, const dsv4_array *expected, int outs,
                       const dsv4_case *answer, dsv4_strictness strictness, dsv4_verdict *verdict)
{
    *verdict = (dsv4_verdict){.passed = true};
    for (const dsv4_slot *slot = c->op->out; slot->name != NULL; slot++) {
        hearing h = {.c = c, .expected = expected, .outs = outs, .answer = answer,
                     .strictness = strictness, .want = find(expected, outs, slot->name),
                     .got = find(answer->out, answer->outs, slot->name),
                     .given = find(c->out, c->outs, slot->name)};
        if (h.want == NULL || h.given == NULL || (h.got == NULL && slot->optional) ||
            verdict->slots == DSV4_MAX_OUTS)
            continue;
        h.verdict = &verdict->slot[verdict->slots++];
        h.verdict->slot = slot;
        judge_slot(&h);
        verdict->passed = verdict->passed && h.verdict->passed;
        verdict->ratio = fmax(verdict->ratio, h.verdict->ratio);
        verdict->distance = fmax(verdict->distance, h.verdict->distance);
    }
}

const dsv4_slot_verdict *dsv4_verdict_failure(const dsv4_verdict *verdict)
{
    for (int i = 0; i < verdict->slots; i++)
        if (!verdict->slot[i].passed)
            return &verdict->slot[i];
    return NULL;
}
