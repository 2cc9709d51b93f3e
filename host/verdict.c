#include "verdict.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"

enum { SHOWN = 8, CSA_RATIO = 4 };

typedef struct {
    dsv4_h5 *const *file; /* A, B */
    const dsv4_compared *sets;
    int64_t count;
    long last_layer;
} verdict;

static const char *const letters[] = {"A", "B"};

static bool is(const dsv4_trace_place *place, const char *tensor)
{
    return place->tensor != NULL && strcmp(place->tensor, tensor) == 0;
}

static bool is_choice(const dsv4_trace_place *place)
{
    return is(place, "selected") || is(place, "route_index");
}

static bool is_input(const dsv4_trace_place *place)
{
    return place->stage == DSV4_TRACE_IDS || place->stage == DSV4_TRACE_MTP_IDS;
}

static bool parted(const dsv4_compared *set)
{
    return set->misshaped || set->beyond > 0;
}

/* The name of another tensor of the same layer. */
static void name_of(char name[DSV4_TRACE_NAME], const dsv4_trace_place *layer, const char *tensor)
{
    snprintf(name, DSV4_TRACE_NAME, "trace/%s/%ld/%s",
             layer->stage == DSV4_TRACE_MTP ? "mtp" : "layers", layer->layer, tensor);
}

/* How many of the two files have that tensor of the layer: bit 0 for A, bit 1 for B. */
static int who_has(const verdict *v, const dsv4_trace_place *layer, const char *tensor)
{
    char name[DSV4_TRACE_NAME];
    name_of(name, layer, tensor);
    return (dsv4_h5_has(v->file[0], name) ? 1 : 0) + (dsv4_h5_has(v->file[1], name) ? 2 : 0);
}

static bool has_indexer(const verdict *v, const dsv4_trace_place *layer)
{
    return (who_has(v, layer, "index_q") | who_has(v, layer, "index_k") |
            who_has(v, layer, "index_score")) != 0;
}

/* An HCA layer compresses and has no indexer. */
static bool is_hca(const verdict *v, const dsv4_trace_place *layer)
{
    return !has_indexer(v, layer) && who_has(v, layer, "compressed") != 0;
}

/* Whether the layer makes this choice without both files having it. A layer without an indexer
 * selects nothing, if its attention is in a file at all. */
static bool is_missing(const verdict *v, const dsv4_trace_place *choice)
{
    if (who_has(v, choice, choice->tensor) == 3)
        return false;
    return is(choice, "route_index") || has_indexer(v, choice) || who_has(v, choice, "kv") == 0;
}

/* The first choice between two places that is not in both files; `from` may be NULL. */
static bool find_missing(const verdict *v, const dsv4_trace_place *from,
                         const dsv4_trace_place *to, char name[DSV4_TRACE_NAME], int *who)
{
    static const char *const choices[] = {"selected", "route_index"};
    const long last = v->last_layer > 0 ? v->last_layer : 0;
    dsv4_trace_place layer = {.stage = DSV4_TRACE_LAYERS};
    if (from != NULL && from->tensor != NULL)
        layer = *from;
    while (dsv4_trace_order(&layer, to) < 0) {
        for (int i = 0; i < 2; i++) {
            name_of(name, &layer, choices[i]);
            dsv4_trace_place choice = dsv4_trace_place_of(name);
            bool between = (from == NULL || dsv4_trace_order(from, &choice) < 0) &&
                           dsv4_trace_order(&choice, to) < 0;
            if (between && is_missing(v, &choice)) {
                *who = who_has(v, &choice, choices[i]);
                return true;
            }
        }
        bool behind = layer.stage == DSV4_TRACE_LAYERS && layer.layer >= last;
        layer = (dsv4_trace_place){.stage = behind ? DSV4_TRACE_MTP : layer.stage,
                                   .layer = behind ? 0 : layer.layer + 1};
        if (layer.stage == DSV4_TRACE_MTP && layer.layer > 0)
            break; /* mtp.0 is all there is */
    }
    return false;
}

/* The last streams before set `end` that agree: whatever was before them has made no difference. */
static bool find_streams(const verdict *v, int64_t end, dsv4_trace_place *streams)
{
    for (int64_t i = end - 1; i >= 0; i--) {
        *streams = dsv4_trace_place_of(v->sets[i].name);
        if (is(streams, "in") || is(streams, "mid") || is(streams, "out"))
            return true;
    }
    return false;
}

static bool in_common(const verdict *v, const char *name)
{
    for (int64_t i = 0; i < v->count; i++)
        if (strcmp(v->sets[i].name, name) == 0)
            return true;
    return false;
}

static void print_arithmetic_first(const verdict *v, int64_t first)
{
    static const char *const who_lacks[] = {"neither file has", "B has no", "A has no"};
    dsv4_trace_place streams, place = dsv4_trace_place_of(v->sets[first].name);
    bool found = find_streams(v, first, &streams);
    char missing[DSV4_TRACE_NAME];
    int who;
    if (find_missing(v, found ? &streams : NULL, &place, missing, &who)) {
        printf("parted first: cannot be told: %s %s, a choice that may have parted before\n",
               who_lacks[who], missing);
        return;
    }
    printf("parted first: arithmetic");
    bool behind = place.stage >= DSV4_TRACE_LOGITS;
    if (behind && (!found || streams.stage == DSV4_TRACE_LAYERS))
        printf(", if layer %ld is the last of the model", v->last_layer);
    putchar('\n');
}

static void print_choice_first(const verdict *v, const dsv4_trace_place *place)
{
    char input[DSV4_TRACE_NAME];
    name_of(input, place, is(place, "selected") ? "index_score" : "ffn_in");
    printf("parted first: a discrete choice");
    if (!in_common(v, input) && !(is(place, "selected") && is_hca(v, place)))
        printf(", or unseen arithmetic before it: %s is not in both files", input);
    putchar('\n');
}

static void print_first(const verdict *v, int64_t first)
{
    const dsv4_compared *set = &v->sets[first];
    dsv4_trace_place place = dsv4_trace_place_of(set->name);
    if (set->misshaped)
        printf("parted first: the shape of %s: not the same tokens or not the same model\n",
               set->name);
    else if (is_input(&place))
        printf("parted first: the input: %s is not the same from token %" PRId64 " on\n",
               set->name, set->first);
    else if (is_choice(&place))
        print_choice_first(v, &place);
    else
        print_arithmetic_first(v, first);
}

/* One row of two datasets of the same shape, and what only one of them names. */
typedef struct {
    int64_t row, width;
    const int64_t *chosen[2];
    int64_t *only[2];
    int64_t only_count[2];
} choice_row;

static int compare_indices(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Without the -1 behind the last. */
static void find_only(choice_row *r)
{
    int64_t *sorted[2];
    for (int f = 0; f < 2; f++) {
        sorted[f] = dsv4_alloc((size_t)r->width, sizeof **sorted);
        r->only[f] = dsv4_alloc((size_t)r->width, sizeof **sorted);
        memcpy(sorted[f], r->chosen[f], (size_t)r->width * sizeof **sorted);
        qsort(sorted[f], (size_t)r->width, sizeof **sorted, compare_indices);
    }
    int64_t i = 0, j = 0;
    while (i < r->width || j < r->width) {
        if (i < r->width && j < r->width && sorted[0][i] == sorted[1][j]) {
            i++;
            j++;
            continue;
        }
        int f = j == r->width || (i < r->width && sorted[0][i] < sorted[1][j]) ? 0 : 1;
        int64_t member = f == 0 ? sorted[0][i++] : sorted[1][j++];
        if (member != -1)
            r->only[f][r->only_count[f]++] = member;
    }
    free(sorted[0]);
    free(sorted[1]);
}

static void print_only(const choice_row *r)
{
    printf("    ");
    for (int f = 0; f < 2; f++) {
        printf("%sonly in %s:", f > 0 ? "; " : "", letters[f]);
        for (int64_t i = 0; i < r->only_count[f] && i < SHOWN; i++)
            printf(" %" PRId64, r->only[f][i]);
        if (r->only_count[f] == 0)
            printf(" none");
        if (r->only_count[f] > SHOWN)
            printf(" and %" PRId64 " more", r->only_count[f] - SHOWN);
    }
    putchar('\n');
}

/* The same dataset of both files. False where it does not have the form that is asked for. */
static bool read_both(const verdict *v, const char *name, bool integer, dsv4_h5_data data[2])
{
    bool good = in_common(v, name);
    for (int f = 0; f < 2; f++) {
        dsv4_error ignored = {""};
        data[f] = (dsv4_h5_data){0};
        good = good && dsv4_h5_read(v->file[f], name, &data[f], &ignored) == 0 &&
               data[f].integer == integer && data[f].rank == 2;
    }
    good = good && data[0].shape[0] == data[1].shape[0] && data[0].shape[1] == data[1].shape[1];
    for (int f = 0; f < 2 && !good; f++)
        dsv4_h5_data_free(&data[f]);
    return good;
}

/* What makes the selection of one side wrong by its own scores: true, and said, where there is
 * something. */
static bool print_wrong(int side, const choice_row *r, const double *score, int64_t visible)
{
    const int64_t *chosen = r->chosen[side], due = visible < r->width ? visible : r->width;
    bool *in = dsv4_alloc((size_t)visible, sizeof *in);
    int64_t count = 0, worst = -1, best = -1, foreign = -1, twice = -1;
    for (int64_t i = 0; i < r->width; i++) {
        const int64_t g = chosen[i];
        if (g == -1)
            continue;
        count++;
        if (g < 0 || g >= visible) {
            foreign = g;
            continue;
        }
        twice = in[g] ? g : twice;
        in[g] = true;
        worst = worst < 0 || score[g] < score[worst] ? g : worst;
    }
    for (int64_t g = 0; g < visible; g++)
        if (!in[g] && (best < 0 || score[g] > score[best]))
            best = g;
    free(in);
    if (foreign != -1)
        printf("    %s takes entry %" PRId64 ", of %" PRId64 " that are visible: a wrong rule\n",
               letters[side], foreign, visible);
    else if (twice != -1)
        printf("    %s takes entry %" PRId64 " twice: a wrong rule\n", letters[side], twice);
    else if (count != due)
        printf("    %s takes %" PRId64 " of the %" PRId64 " entries that are due: a wrong rule\n",
               letters[side], count, due);
    else if (best >= 0 && worst >= 0 && score[best] > score[worst])
        printf("    %s leaves out entry %" PRId64 " for %" PRId64 ", by its own scores %.9g for "
               "%.9g: a wrong rule\n", letters[side], best, worst, score[best], score[worst]);
    else
        return false;
    return true;
}

/* How far the members that only side `own` takes lie above those that only the other takes. */
static double margin(const choice_row *r, const double *score, int own)
{
    double least = INFINITY, most = -INFINITY;
    for (int64_t i = 0; i < r->only_count[own]; i++)
        least = fmin(least, score[r->only[own][i]]);
    for (int64_t i = 0; i < r->only_count[1 - own]; i++)
        most = fmax(most, score[r->only[1 - own][i]]);
    return least - most;
}

/* Both sides keep what is best by their own scores. */
static void print_margins(const verdict *v, const choice_row *r, const char *score_name,
                          const double *const score[2], int64_t visible)
{
    double margins[2] = {margin(r, score[0], 0), margin(r, score[1], 1)}, apart = 0;
    for (int64_t g = 0; g < visible; g++)
        apart = fmax(apart, fabs(score[0][g] - score[1][g]));
    bool within = true;
    for (int64_t i = 0; i < v->count; i++)
        if (strcmp(v->sets[i].name, score_name) == 0)
            within = v->sets[i].within;
    printf("    by their own scores A decides by %.3g and B by %.3g; the scores of this token are "
           "up to %.3g apart: %s\n", margins[0], margins[1], apart,
           margins[0] == 0 && margins[1] == 0 ? "a legal tie"
           : within ? "a near-tie" : "the scores had parted before");
}

static void print_scores(const verdict *v, const char *name, const dsv4_h5_data score[2],
                         const choice_row *r)
{
    const int64_t G = score[0].shape[1], seen = (r->row + 1) / CSA_RATIO;
    const int64_t visible = seen < G ? seen : G;
    const double *const of[2] = {score[0].values + r->row * G, score[1].values + r->row * G};
    bool wrong = false;
    for (int f = 0; f < 2; f++)
        wrong = print_wrong(f, r, of[f], visible) || wrong;
    if (!wrong)
        print_margins(v, r, name, of, visible);
}

static void print_selection(const verdict *v, const dsv4_trace_place *place, const choice_row *r)
{
    char name[DSV4_TRACE_NAME];
    dsv4_h5_data score[2] = {{0}, {0}};
    name_of(name, place, "index_score");
    if (is_hca(v, place))
        printf("    HCA takes all that is visible: a wrong rule\n");
    else if (read_both(v, name, false, score) && r->row < score[0].shape[0])
        print_scores(v, name, score, r);
    else
        printf("    how close it was cannot be told: no %s in both files\n", name);
    for (int f = 0; f < 2; f++)
        dsv4_h5_data_free(&score[f]);
}

/* A trace has no scores of experts: only how near the gate's inputs are can be told. */
static void print_routing(const verdict *v, const dsv4_trace_place *place, const choice_row *r)
{
    char name[DSV4_TRACE_NAME];
    dsv4_h5_data input[2] = {{0}, {0}};
    name_of(name, place, "ffn_in");
    printf("    how close it was is not in a trace");
    if (read_both(v, name, false, input) && r->row < input[0].shape[0]) {
        const int64_t D = input[0].shape[1];
        double apart = 0, largest = 0;
        for (int64_t i = 0; i < D; i++) {
            double a = input[0].values[r->row * D + i], b = input[1].values[r->row * D + i];
            apart = fmax(apart, fabs(a - b));
            largest = fmax(largest, fabs(a));
        }
        if (apart == 0)
            printf("; its input, ffn_in of this token, is identical");
        else
            printf("; its input, ffn_in of this token, differs by max rel %.3g", apart / largest);
    }
    putchar('\n');
    for (int f = 0; f < 2; f++)
        dsv4_h5_data_free(&input[f]);
}

static void print_choice(const verdict *v, const dsv4_compared *set)
{
    dsv4_trace_place place = dsv4_trace_place_of(set->name);
    dsv4_h5_data data[2];
    if (set->misshaped || !read_both(v, set->name, true, data))
        return;
    choice_row r = {.row = set->first, .width = data[0].shape[1]};
    for (int f = 0; f < 2; f++)
        r.chosen[f] = data[f].indices + r.row * r.width;
    find_only(&r);
    print_only(&r);
    if (is(&place, "selected"))
        print_selection(v, &place, &r);
    else
        print_routing(v, &place, &r);
    for (int f = 0; f < 2; f++) {
        free(r.only[f]);
        dsv4_h5_data_free(&data[f]);
    }
}

/* "trace/layers/3/kv, token 17; 2 of 20 tokens differ" */
static void print_place(const dsv4_compared *set, const char *verb)
{
    dsv4_trace_place place = dsv4_trace_place_of(set->name);
    const char *row = is(&place, "compressed") || is(&place, "index_k") ? "group" : "token";
    printf("%s", set->name);
    if (set->misshaped)
        printf(", which has another shape");
    else
        printf(", %s %" PRId64 "; %" PRId64 " of %" PRId64 " %ss %s", row, set->first, set->beyond,
               set->rows, row, verb);
}

/* The first choice, or the first arithmetic, that differs. */
static void print_first_of(const verdict *v, bool choice)
{
    bool known = false;
    printf("first %s to differ: ", choice ? "discrete choice" : "arithmetic");
    for (int64_t i = 0; i < v->count; i++) {
        dsv4_trace_place place = dsv4_trace_place_of(v->sets[i].name);
        if (place.stage == DSV4_TRACE_OTHER || is_input(&place) || is_choice(&place) != choice)
            continue;
        known = true;
        if (!parted(&v->sets[i]))
            continue;
        print_place(&v->sets[i], choice ? "differ" : "are beyond the tolerance");
        if (!choice && !v->sets[i].misshaped)
            printf(", max rel %.3g", v->sets[i].max_relative);
        putchar('\n');
        if (choice)
            print_choice(v, &v->sets[i]);
        return;
    }
    printf("%s\n", known ? "none" : "none is in both files");
}

/* What rounding had made of the run until then. */
static void print_before(const verdict *v, int64_t first)
{
    int64_t count = 0;
    const dsv4_compared *largest = NULL;
    for (int64_t i = 0; i < first; i++) {
        dsv4_trace_place place = dsv4_trace_place_of(v->sets[i].name);
        if (is_input(&place) || is_choice(&place) || !v->sets[i].within) /* what is free */
            continue;
        count++;
        if (largest == NULL || v->sets[i].max_relative > largest->max_relative)
            largest = &v->sets[i];
    }
    if (largest == NULL)
        printf("before it: no arithmetic is in both files\n");
    else if (largest->max_relative == 0)
        printf("before it: all arithmetic is identical (datasets: %" PRId64 ")\n", count);
    else
        printf("before it: the largest error is max rel %.3g, in %s\n", largest->max_relative,
               largest->name);
}

void dsv4_verdict_print(dsv4_h5 *const file[2], const dsv4_compared *sets, int64_t count,
                        long last_layer)
{
    const verdict v = {.file = file, .sets = sets, .count = count, .last_layer = last_layer};
    int64_t first = -1;
    bool layers = false, differs = false;
    for (int64_t i = 0; i < count; i++) {
        dsv4_trace_stage stage = dsv4_trace_place_of(sets[i].name).stage;
        if (stage == DSV4_TRACE_OTHER)
            break; /* the last */
        layers = layers || stage == DSV4_TRACE_LAYERS || stage == DSV4_TRACE_MTP;
        differs = differs || sets[i].misshaped || !sets[i].within;
        if (first < 0 && parted(&sets[i]))
            first = i;
    }
    if (!layers || !differs)
        return;
    if (first < 0) {
        printf("parted first: nothing: only the last row of MTP differs, which is free\n");
        return;
    }
    print_first(&v, first);
    print_first_of(&v, true);
    print_first_of(&v, false);
    dsv4_trace_place place = dsv4_trace_place_of(sets[first].name);
    if (!is_input(&place))
        print_before(&v, first);
}
