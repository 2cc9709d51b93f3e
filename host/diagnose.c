#include "diagnose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* What a comparison of one specimen with one mistake, or with two at once, said. */
typedef enum { UNTRIED, NO_EFFECT, DIFFERS, NEARLY, EXPLAINS } finding;

typedef struct {
    museum_bug bug;
    finding *of;      /* [count]: findings on the specimens */
    double *distance; /* [count]: between the answer and the museum's, where it explains */
    int64_t explained, nearly, contradicted;
    double worst;     /* largest distance where it explains */
} suspect;

typedef struct {
    dsv4_diagnosis *diagnosis;
    const dsv4_operator *op;
    dsv4_specimen *specimen;
    int64_t count;
    dsv4_strictness strictness;
    double deadline;
    double rate;     /* seconds per unit of size, of the slowest run so far */
    int64_t *order;  /* [count]: specimens, cheap ones first */
    suspect *suspects;
    int suspect_count;
} session;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Grows as the work of a case does: its data times its rows. */
static double size_of(const dsv4_case *c)
{
    double data = 1000, rows = 1;
    for (int i = 0; i < c->ins; i++)
        data += (double)c->in[i].count;
    if (c->outs > 0 && c->out[0].rank > 0)
        rows += (double)c->out[0].shape[0];
    return data * rows;
}

static bool failed(const dsv4_specimen *s)
{
    return !s->verdict->passed;
}

static bool diagnosable(const dsv4_specimen *s)
{
    for (int i = 0; i < s->verdict->slots; i++)
        if (s->verdict->slot[i].misshaped)
            return false;
    return failed(s);
}

static bool explained(const dsv4_specimen *s)
{
    return s->bugs[0] != BUG_NONE;
}

static bool out_of_time(const session *s, const dsv4_case *c)
{
    return now() + s->rate * size_of(c) > s->deadline;
}

/* The museum's answer with these mistakes; to be freed. False where there is none. */
static bool make_mistake(session *s, museum_bug a, museum_bug b, const dsv4_case *c,
                         dsv4_case *mistaken)
{
    museum_engine engine = {.arithmetic = MUSEUM_BINARY64};
    if (a != BUG_NONE)
        museum_add_bug(&engine, a);
    if (b != BUG_NONE)
        museum_add_bug(&engine, b);
    *mistaken = (dsv4_case){.op = c->op, .numerics = c->numerics};
    dsv4_error ignored = {""};
    double began = now();
    int result = museum_answer(&engine, c, mistaken, &ignored);
    s->rate = fmax(s->rate, (now() - began) / size_of(c));
    return result == 0;
}

/* How near the answer has to be to a mistake's, in units of how far it is from the expected one.
 * Within tolerance half is enough. Beyond it, an early rounding that flipped may have changed every
 * value a little. */
static const double near_enough = 0.5, nearly_enough = 1.0 / 32;

static finding likeness_of(const session *s, const dsv4_case *mistaken,
                           const dsv4_specimen *specimen, double *distance)
{
    dsv4_verdict likeness;
    dsv4_judge_answer(specimen->c, mistaken->out, mistaken->outs, specimen->answer, s->strictness,
                      &likeness);
    *distance = likeness.distance;
    double far = specimen->verdict->distance;
    if (likeness.slots != specimen->verdict->slots || isnan(likeness.distance))
        return DIFFERS;
    if (likeness.passed && !(likeness.distance > near_enough * far))
        return EXPLAINS;
    return isfinite(likeness.distance) && likeness.distance <= nearly_enough * far ? NEARLY
                                                                                   : DIFFERS;
}

/* Whether the specimen is what mistakes `a` and `b` make of it. They have to make something wrong
 * of it. */
static finding compare(session *s, museum_bug a, museum_bug b, const dsv4_specimen *specimen,
                       double *distance)
{
    const dsv4_case *c = specimen->c;
    finding found = NO_EFFECT;
    dsv4_case mistaken;
    if (make_mistake(s, a, b, c, &mistaken)) {
        dsv4_verdict mistake;
        dsv4_judge_answer(c, c->out, c->outs, &mistaken, s->strictness, &mistake);
        if (!mistake.passed)
            found = likeness_of(s, &mistaken, specimen, distance);
    }
    dsv4_case_free(&mistaken);
    return found;
}

static void try_suspect(session *s, suspect *k, int64_t i)
{
    const dsv4_specimen *specimen = &s->specimen[i];
    if (k->of[i] != UNTRIED || out_of_time(s, specimen->c))
        return;
    k->of[i] = compare(s, k->bug, BUG_NONE, specimen, &k->distance[i]);
    if (!failed(specimen)) { /* the mistake would have shown here, and did not */
        k->contradicted += k->of[i] != NO_EFFECT;
    } else if (k->of[i] >= NEARLY) {
        k->explained += k->of[i] == EXPLAINS;
        k->nearly += k->of[i] == NEARLY;
        k->worst = fmax(k->worst, k->distance[i]);
    }
}

/* ---- which suspect it is ---- */

static bool is_primary(const session *s, museum_bug bug)
{
    return strcmp(museum_exhibits[bug].operator, s->op->name) == 0;
}

/* Distances within a factor of each other are those of two equal suspects. */
static bool much_smaller(double a, double b)
{
    return a < b / 4 && b > 1e-13;
}

static bool better(const session *s, const suspect *a, const suspect *b)
{
    if (a->explained + a->nearly != b->explained + b->nearly)
        return a->explained + a->nearly > b->explained + b->nearly;
    if (a->explained != b->explained)
        return a->explained > b->explained;
    if ((a->contradicted == 0) != (b->contradicted == 0))
        return a->contradicted == 0;
    if (much_smaller(a->worst, b->worst) || much_smaller(b->worst, a->worst))
        return a->worst < b->worst;
    bool a_known = s->diagnosis->explained[a->bug] > 0,
         b_known = s->diagnosis->explained[b->bug] > 0;
    if (a_known != b_known)
        return a_known;
    if (is_primary(s, a->bug) != is_primary(s, b->bug))
        return is_primary(s, a->bug);
    return a->bug < b->bug;
}

/* The likely ones first, for when time is short: those found in earlier operators, then this
 * operator's own. */
static int rank_of(const session *s, museum_bug bug)
{
    return s->diagnosis->explained[bug] > 0 ? 0 : is_primary(s, bug) ? 1 : 2;
}

static void list_suspects(session *s)
{
    s->suspects = dsv4_alloc(BUGS, sizeof *s->suspects);
    for (int rank = 0; rank <= 2; rank++)
        for (int b = BUG_NONE + 1; b < BUGS; b++) {
            if (museum_exhibits[b].id == NULL || museum_exhibits[b].wrong == WRONG_NOWHERE ||
                rank_of(s, (museum_bug)b) != rank || !museum_touches((museum_bug)b, s->op))
                continue;
            s->suspects[s->suspect_count++] = (suspect){
                .bug = (museum_bug)b,
                .of = dsv4_alloc((size_t)s->count, sizeof(finding)),
                .distance = dsv4_alloc((size_t)s->count, sizeof(double)),
            };
        }
}

static bool any_explains(const session *s, int64_t i)
{
    for (int k = 0; k < s->suspect_count; k++)
        if (s->suspects[k].of[i] == EXPLAINS)
            return true;
    return false;
}

static bool suspicious(const suspect *k)
{
    return k->explained + k->nearly > 0;
}

/* The likely ones against all failures. Then all against the cheapest, and against those that are
 * still unexplained; what explains one is tried with the others. */
static void try_failures(session *s)
{
    for (int thorough = 0; thorough <= 1; thorough++) {
        bool first = true;
        for (int64_t o = 0; o < s->count; o++) {
            int64_t i = s->order[o];
            if (!diagnosable(&s->specimen[i]))
                continue;
            for (int k = 0; k < s->suspect_count; k++)
                if (suspicious(&s->suspects[k]) || rank_of(s, s->suspects[k].bug) < 2)
                    try_suspect(s, &s->suspects[k], i);
            bool all = thorough && (first || !any_explains(s, i));
            for (int k = 0; k < s->suspect_count && all; k++)
                try_suspect(s, &s->suspects[k], i);
            first = false;
        }
    }
}

/* What passed speaks against suspects. */
static void try_passes(session *s)
{
    for (int64_t o = 0; o < s->count; o++)
        for (int k = 0; k < s->suspect_count && !failed(&s->specimen[s->order[o]]); k++)
            if (suspicious(&s->suspects[k]))
                try_suspect(s, &s->suspects[k], s->order[o]);
}

/* The best suspect of those with this finding. */
static const suspect *best_of(const session *s, int64_t i, finding of)
{
    const suspect *best = NULL;
    for (int k = 0; k < s->suspect_count; k++)
        if (s->suspects[k].of[i] == of && (best == NULL || better(s, &s->suspects[k], best)))
            best = &s->suspects[k];
    return best;
}

static void conclude(session *s, finding of)
{
    for (int64_t i = 0; i < s->count; i++) {
        const suspect *best = best_of(s, i, of);
        if (best == NULL || !failed(&s->specimen[i]) || explained(&s->specimen[i]))
            continue;
        s->specimen[i].bugs[0] = best->bug;
        s->specimen[i].nearly = of == NEARLY;
    }
}

/* ---- two mistakes at once ---- */

/* Which of two mistakes were met before: the likelier pair has more of them. */
static int64_t familiar(const session *s, const museum_bug bugs[2])
{
    return (s->diagnosis->explained[bugs[0]] > 0) + (s->diagnosis->explained[bugs[1]] > 0);
}

/* The best pair for specimen `i`, which no single mistake explains. */
static bool find_pair(session *s, int64_t i, museum_bug pair[2])
{
    bool found = false;
    double best = INFINITY;
    for (int a = 0; a < s->suspect_count; a++)
        for (int b = a + 1; b < s->suspect_count && s->suspects[a].of[i] >= DIFFERS; b++) {
            const museum_bug bugs[2] = {s->suspects[a].bug, s->suspects[b].bug};
            if (s->suspects[b].of[i] < DIFFERS || (found && familiar(s, bugs) < familiar(s, pair)))
                continue;
            if (out_of_time(s, s->specimen[i].c))
                return found;
            double distance;
            if (compare(s, bugs[0], bugs[1], &s->specimen[i], &distance) != EXPLAINS ||
                (found && familiar(s, bugs) == familiar(s, pair) && !much_smaller(distance, best)))
                continue;
            found = true;
            best = distance;
            memcpy(pair, bugs, sizeof bugs);
        }
    return found;
}

static void try_pairs(session *s)
{
    for (int64_t o = 0; o < s->count; o++) {
        dsv4_specimen *first = &s->specimen[s->order[o]];
        museum_bug pair[2];
        if (!diagnosable(first) || explained(first) || !find_pair(s, s->order[o], pair))
            continue;
        memcpy(first->bugs, pair, sizeof pair);
        for (int64_t rest = o + 1; rest < s->count; rest++) {
            dsv4_specimen *other = &s->specimen[s->order[rest]];
            double distance;
            if (diagnosable(other) && !explained(other) && !out_of_time(s, other->c) &&
                compare(s, pair[0], pair[1], other, &distance) == EXPLAINS)
                memcpy(other->bugs, pair, sizeof pair);
        }
    }
}

/* ---- one operator ---- */

static void sort_by_size(session *s)
{
    s->order = dsv4_alloc((size_t)s->count, sizeof *s->order);
    for (int64_t n = 0; n < s->count; n++) {
        int64_t at = n;
        for (; at > 0 && size_of(s->specimen[s->order[at - 1]].c) > size_of(s->specimen[n].c); at--)
            s->order[at] = s->order[at - 1];
        s->order[at] = n;
    }
}

/* Seconds for an operator's next stage: a few, and fewer when many operators have been wrong. */
static double allowance(const dsv4_diagnosis *diagnosis)
{
    return fmax(0.5, fmin(4, (60 - diagnosis->seconds) / 8));
}

static void count_explained(const session *s)
{
    for (int64_t i = 0; i < s->count; i++)
        for (int b = 0; b < 2; b++)
            if (s->specimen[i].bugs[b] != BUG_NONE)
                s->diagnosis->explained[s->specimen[i].bugs[b]]++;
}

void dsv4_diagnose(dsv4_diagnosis *diagnosis, const dsv4_operator *op, dsv4_specimen *specimen,
                   int64_t count, dsv4_strictness strictness)
{
    bool needed = false;
    for (int64_t i = 0; i < count; i++)
        needed = needed || diagnosable(&specimen[i]);
    if (!needed)
        return;
    double began = now();
    session s = {.diagnosis = diagnosis, .op = op, .specimen = specimen, .count = count,
                 .strictness = strictness, .deadline = began + allowance(diagnosis)};
    sort_by_size(&s);
    list_suspects(&s);
    try_failures(&s);
    try_passes(&s);
    conclude(&s, EXPLAINS);
    s.deadline = now() + allowance(diagnosis) / 2;
    try_pairs(&s);
    conclude(&s, NEARLY);
    count_explained(&s);
    for (int k = 0; k < s.suspect_count; k++) {
        free(s.suspects[k].of);
        free(s.suspects[k].distance);
    }
    free(s.suspects);
    free(s.order);
    diagnosis->seconds += now() - began;
}

bool dsv4_operator_uses(const dsv4_operator *op, const dsv4_operator *part)
{
    for (int b = BUG_NONE + 1; b < BUGS; b++)
        if (museum_exhibits[b].id != NULL &&
            strcmp(museum_exhibits[b].operator, part->name) == 0 &&
            museum_touches((museum_bug)b, op))
            return op != part;
    return false;
}
