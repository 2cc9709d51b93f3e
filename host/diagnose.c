#include "diagnose.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Several mistakes at once. */
typedef struct {
    museum_bug bug[DSV4_MISTAKES];
    int count;
} mistakes;

/* What a comparison of one specimen with one mistake, or with several at once, said. */
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
    bool only_mtp; /* a whole model whose main logits are right: MTP is to blame */
} session;

/* Of the processor, so that a busy machine does not change a diagnosis. */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
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

/* Seconds for an operator's next stage: a few, and fewer when many operators have been wrong. */
static double allowance(const dsv4_diagnosis *diagnosis)
{
    return fmax(0.5, fmin(4, (60 - diagnosis->seconds) / 8));
}

static bool out_of_time(const session *s, const dsv4_case *c)
{
    return now() + s->rate * size_of(c) > s->deadline;
}

/* The museum's answer with these mistakes; to be freed. False where there is none. */
static bool make_mistake(session *s, const mistakes *made, const dsv4_case *c,
                         dsv4_case *mistaken)
{
    museum_engine engine = {.arithmetic = MUSEUM_BINARY64};
    for (int i = 0; i < made->count; i++)
        museum_add_bug(&engine, made->bug[i]);
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

/* Whether the specimen is what these mistakes make of it. They have to make something wrong of
 * it. */
static finding compare(session *s, const mistakes *made, const dsv4_specimen *specimen,
                       double *distance)
{
    const dsv4_case *c = specimen->c;
    finding found = NO_EFFECT;
    dsv4_case mistaken;
    if (make_mistake(s, made, c, &mistaken)) {
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
    k->of[i] = compare(s, &(mistakes){{k->bug}, 1}, specimen, &k->distance[i]);
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
    if (s->only_mtp && strcmp(museum_exhibits[bug].operator, "mtp") == 0)
        return 0;
    return s->diagnosis->explained[bug] > 0 ? 0 : is_primary(s, bug) ? 1 : 2;
}

static bool fails_in_mtp_only(const session *s)
{
    for (int64_t i = 0; i < s->count; i++)
        for (int j = 0; j < s->specimen[i].verdict->slots; j++) {
            const dsv4_slot_verdict *v = &s->specimen[i].verdict->slot[j];
            if (!v->passed && strcmp(v->slot->name, "mtp_logits") != 0)
                return false;
        }
    return true;
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

/* The likely ones against all failures. */
static void try_likely(session *s)
{
    for (int64_t o = 0; o < s->count; o++)
        for (int k = 0; k < s->suspect_count && diagnosable(&s->specimen[s->order[o]]); k++)
            if (suspicious(&s->suspects[k]) || rank_of(s, s->suspects[k].bug) < 2)
                try_suspect(s, &s->suspects[k], s->order[o]);
}

/* All against the cheapest, and against those that are still unexplained; what explains one is
 * tried with the others. */
static void try_all(session *s)
{
    bool first = true;
    for (int64_t o = 0; o < s->count; o++) {
        int64_t i = s->order[o];
        if (!diagnosable(&s->specimen[i]) || explained(&s->specimen[i]))
            continue;
        for (int k = 0; k < s->suspect_count; k++)
            if (first || suspicious(&s->suspects[k]) || !any_explains(s, i))
                try_suspect(s, &s->suspects[k], i);
        first = false;
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
static int64_t familiar(const session *s, const mistakes *pair)
{
    return (s->diagnosis->explained[pair->bug[0]] > 0) +
           (s->diagnosis->explained[pair->bug[1]] > 0);
}

/* The best pair for specimen `i`, which no single mistake explains. */
static bool find_pair(session *s, int64_t i, mistakes *pair)
{
    bool found = false;
    double best = INFINITY;
    for (int a = 0; a < s->suspect_count; a++)
        for (int b = a + 1; b < s->suspect_count && s->suspects[a].of[i] >= DIFFERS; b++) {
            const mistakes both = {{s->suspects[a].bug, s->suspects[b].bug}, 2};
            if (s->suspects[b].of[i] < DIFFERS || (found && familiar(s, &both) < familiar(s, pair)))
                continue;
            if (out_of_time(s, s->specimen[i].c))
                return found;
            double distance;
            if (compare(s, &both, &s->specimen[i], &distance) != EXPLAINS ||
                (found && familiar(s, &both) == familiar(s, pair) && !much_smaller(distance, best)))
                continue;
            found = true;
            best = distance;
            *pair = both;
        }
    return found;
}

static void try_pairs(session *s)
{
    for (int64_t o = 0; o < s->count; o++) {
        dsv4_specimen *first = &s->specimen[s->order[o]];
        mistakes pair;
        if (!diagnosable(first) || explained(first) || !find_pair(s, s->order[o], &pair))
            continue;
        memcpy(first->bugs, pair.bug, sizeof pair.bug);
        for (int64_t rest = o + 1; rest < s->count; rest++) {
            dsv4_specimen *other = &s->specimen[s->order[rest]];
            double distance;
            if (diagnosable(other) && !explained(other) && !out_of_time(s, other->c) &&
                compare(s, &pair, other, &distance) == EXPLAINS)
                memcpy(other->bugs, pair.bug, sizeof pair.bug);
        }
    }
}

/* ---- many mistakes at once ---- */

static bool contains(const mistakes *set, museum_bug bug)
{
    for (int i = 0; i < set->count; i++)
        if (set->bug[i] == bug)
            return true;
    return false;
}

static mistakes with(mistakes set, museum_bug bug)
{
    if (set.count < DSV4_MISTAKES && !contains(&set, bug))
        set.bug[set.count++] = bug;
    return set;
}

/* All but the n-th. */
static mistakes without(mistakes set, int n)
{
    set.count--;
    memmove(&set.bug[n], &set.bug[n + 1], (size_t)(set.count - n) * sizeof *set.bug);
    set.bug[set.count] = BUG_NONE;
    return set;
}

/* Those found in earlier operators and in this one so far, as far as they touch this one. */
static mistakes known_mistakes(const session *s)
{
    mistakes set = {.count = 0};
    for (int b = BUG_NONE + 1; b < BUGS; b++)
        if (s->diagnosis->explained[b] > 0 && museum_touches((museum_bug)b, s->op))
            set = with(set, (museum_bug)b);
    for (int64_t i = 0; i < s->count; i++)
        for (int n = 0; n < DSV4_MISTAKES && s->specimen[i].bugs[n] != BUG_NONE; n++)
            set = with(set, s->specimen[i].bugs[n]);
    return set;
}

static bool set_explains(session *s, const mistakes *set, int64_t i)
{
    double distance;
    return set->count > 0 && !out_of_time(s, s->specimen[i].c) &&
           compare(s, set, &s->specimen[i], &distance) == EXPLAINS;
}

/* Where the set explains the specimen, those that it takes become the diagnosis. */
static bool try_set(session *s, mistakes set, int64_t i)
{
    if (!set_explains(s, &set, i))
        return false;
    double deadline = s->deadline;
    s->deadline += allowance(s->diagnosis); /* what is found is worth it */
    for (int n = set.count - 1; n >= 0 && set.count > 1; n--) {
        mistakes fewer = without(set, n);
        if (set_explains(s, &fewer, i))
            set = fewer;
    }
    s->deadline = deadline;
    memcpy(s->specimen[i].bugs, set.bug, sizeof set.bug);
    return true;
}

/* The known ones together; or all of them but one, which may be a misjudgement. */
static bool try_known(session *s, int64_t i)
{
    mistakes known = known_mistakes(s);
    bool found = try_set(s, known, i);
    for (int n = 0; n < known.count && known.count > 2 && !found; n++)
        found = try_set(s, without(known, n), i);
    return found;
}

/* The known ones and one or two others of operator `part`. */
static bool try_others(session *s, mistakes known, const dsv4_operator *part, int64_t i)
{
    museum_bug other[BUGS];
    int count = 0;
    bool found = false;
    for (int k = 0; k < s->suspect_count; k++)
        if (strcmp(museum_exhibits[s->suspects[k].bug].operator, part->name) == 0 &&
            !contains(&known, s->suspects[k].bug))
            other[count++] = s->suspects[k].bug;
    for (int a = 0; a < count && !found; a++)
        found = try_set(s, with(known, other[a]), i);
    for (int a = 0; a < count; a++)
        for (int b = 0; b < a && !found; b++)
            found = try_set(s, with(with(known, other[b]), other[a]), i);
    return found;
}

/* Parts that the engine does not offer by themselves are most likely among the last operators. */
static bool try_more(session *s, int64_t i)
{
    mistakes known = known_mistakes(s);
    bool found = known.count == 0;
    for (const dsv4_operator *part = s->op; part >= dsv4_operators && !found; part--)
        found = try_others(s, known, part, i);
    return found;
}

static void try_each(session *s, bool try(session *, int64_t))
{
    s->deadline = now() + allowance(s->diagnosis);
    for (int64_t o = 0; o < s->count; o++) {
        int64_t i = s->order[o];
        if (diagnosable(&s->specimen[i]) && !explained(&s->specimen[i]) && !any_explains(s, i))
            try(s, i);
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

static void count_explained(const session *s)
{
    for (int64_t i = 0; i < s->count; i++)
        for (int b = 0; b < DSV4_MISTAKES; b++)
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
    s.only_mtp = fails_in_mtp_only(&s);
    list_suspects(&s);
    try_likely(&s);
    try_each(&s, try_known);
    s.deadline = now() + allowance(diagnosis);
    try_all(&s);
    try_passes(&s);
    conclude(&s, EXPLAINS);
    s.deadline = now() + allowance(diagnosis) / 2;
    try_pairs(&s);
    try_each(&s, try_known);
    try_each(&s, try_more);
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
