/* The errata museum against the golden vectors.
 *
 *     tool_museum mutants VECTORS           every exhibit must fail, and be named; the harmless must pass
 *     tool_museum alarms VECTORS SEEDS      correct engines must pass: binary32, bf16, scores unscaled
 *     tool_museum candidate VECTORS OUT.h5 [BUG...]     an engine with these bugs, as a candidate file
 *     tool_museum errata OUT.md                         the museum's catalogue
 *
 * The first two may be followed by a pattern of operators. Exit codes: 0 good, 1 failed, 2 cannot run. */
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/diagnose.h"
#include "host/h5.h"
#include "host/judge.h"
#include "vectors/museum/museum.h"

/* All vector files: [operator][contract]. */
typedef struct { dsv4_case_file (*file)[2]; } golden;

static const char *const contract_name[2] = {"exact", "released"};
static const char *const tier_name[DSV4_TIERS] = {"fp32", "bf16"};

static int read_all(golden *g, const char *directory, const char *pattern)
{
    g->file = dsv4_alloc((size_t)dsv4_operator_count, sizeof *g->file);
    int64_t cases = 0;
    for (int i = 0; i < dsv4_operator_count; i++)
        for (int n = 0; n < 2; n++) {
            char path[4096];
            dsv4_error err = {""};
            snprintf(path, sizeof path, "%s/%s_%s.h5", directory, dsv4_operators[i].name,
                     contract_name[n]);
            if (access(path, R_OK) != 0 || fnmatch(pattern, dsv4_operators[i].name, 0) != 0)
                continue;
            if (dsv4_case_file_read(&g->file[i][n], path, &err) != 0) {
                fprintf(stderr, "tool_museum: %s\n", err.text);
                return -1;
            }
            cases += g->file[i][n].count;
        }
    if (cases == 0)
        fprintf(stderr, "tool_museum: %s: no vectors\n", directory);
    return cases > 0 ? 0 : -1;
}

static museum_engine engine_of(dsv4_tier tier, uint64_t seed, museum_bug bug)
{
    museum_engine engine = {.arithmetic = tier == DSV4_TIER_BF16 ? MUSEUM_BF16 : MUSEUM_BINARY32,
                            .seed = seed};
    if (bug != BUG_NONE)
        museum_add_bug(&engine, bug);
    return engine;
}

/* Answers and judges one case; `answer` is to be freed. */
static bool passes(const dsv4_case *c, museum_engine *engine, dsv4_tier tier, dsv4_case *answer,
                   dsv4_verdict *verdict)
{
    dsv4_error err = {""};
    *answer = (dsv4_case){.op = c->op, .numerics = c->numerics};
    if (museum_answer(engine, c, answer, &err) != 0) {
        fprintf(stderr, "tool_museum: %s/%s: %s\n", c->op->name, c->name, err.text);
        exit(2);
    }
    dsv4_judge_answer(c, c->out, c->outs, answer, (dsv4_strictness){.tier = tier}, verdict);
    return verdict->passed;
}

/* ---- mutants ---- */

/* Shared with the worker processes. */
typedef struct {
    int next;
    int wrong, caught, named, harmless, accepted;
    int faults;
} tally;

/* The exhibit as an engine on all cases of its operator: caught, and named by most of the failures. */
static void exhibit_wrong(tally *sum, const dsv4_case_file *file, museum_bug bug, int contract,
                          dsv4_tier tier)
{
    museum_engine engine = engine_of(tier, 77, bug);
    dsv4_specimen *specimen = dsv4_alloc((size_t)file->count, sizeof *specimen);
    dsv4_case *answer = dsv4_alloc((size_t)file->count, sizeof *answer);
    dsv4_verdict *verdict = dsv4_alloc((size_t)file->count, sizeof *verdict);
    int64_t failed = 0, named = 0;
    for (int64_t i = 0; i < file->count; i++) {
        failed += !passes(&file->c[i], &engine, tier, &answer[i], &verdict[i]);
        specimen[i] = (dsv4_specimen){.c = &file->c[i], .answer = &answer[i],
                                      .verdict = &verdict[i]};
    }
    dsv4_diagnosis *diagnosis = dsv4_alloc(1, sizeof *diagnosis);
    if (failed > 0)
        dsv4_diagnose(diagnosis, file->c[0].op, specimen, file->count,
                      (dsv4_strictness){.tier = tier});
    const char *other = "";
    for (int64_t i = 0; i < file->count; i++) {
        if (verdict[i].passed)
            continue;
        named += specimen[i].bugs[0] == bug;
        if (specimen[i].bugs[0] != bug && specimen[i].bugs[0] != BUG_NONE)
            other = museum_exhibits[specimen[i].bugs[0]].id;
    }
    bool first = 2 * named > failed;
    __atomic_add_fetch(&sum->wrong, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&sum->caught, failed > 0, __ATOMIC_RELAXED);
    __atomic_add_fetch(&sum->named, first, __ATOMIC_RELAXED);
    if (failed == 0 || !first) {
        printf("%-7s %-30s %-18s %-8s %s: %d of %d cases fail, %d named%s%s\n",
               failed == 0 ? "MISSED" : "unnamed", museum_exhibits[bug].id, file->c[0].op->name,
               contract_name[contract], tier_name[tier], (int)failed, (int)file->count, (int)named,
               *other != '\0' ? ", others " : "", other);
        fflush(stdout);
    }
    for (int64_t i = 0; i < file->count; i++)
        dsv4_case_free(&answer[i]);
    free(diagnosis);
    free(specimen);
    free(answer);
    free(verdict);
}

/* Where a variant is harmless no case of any operator may fail. */
static void exhibit_harmless(tally *sum, const golden *g, museum_bug bug, int contract,
                             dsv4_tier tier)
{
    museum_engine engine = engine_of(tier, 78, bug);
    bool accepted = true;
    for (int op = 0; op < dsv4_operator_count; op++)
        for (int64_t i = 0; i < g->file[op][contract].count; i++) {
            const dsv4_case *c = &g->file[op][contract].c[i];
            dsv4_case answer;
            dsv4_verdict verdict;
            if (!museum_touches(bug, c->op) || c->checkpoint[0] != '\0')
                continue;
            if (!passes(c, &engine, tier, &answer, &verdict)) {
                printf("REFUSED %-30s %s/%s %s (%g times the tolerance)\n", museum_exhibits[bug].id,
                       c->op->name, c->name, tier_name[tier], verdict.ratio);
                accepted = false;
            }
            dsv4_case_free(&answer);
        }
    __atomic_add_fetch(&sum->harmless, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&sum->accepted, accepted, __ATOMIC_RELAXED);
}

static void exhibit(tally *sum, const golden *g, museum_bug bug)
{
    const museum_exhibit *e = &museum_exhibits[bug];
    int home = (int)(dsv4_operator_find(e->operator) - dsv4_operators);
    for (int contract = 0; contract < 2; contract++)
        for (int tier = 0; tier < DSV4_TIERS; tier++) {
            bool wrong = e->wrong & (contract == DSV4_EXACT ? WRONG_EXACT : WRONG_RELEASED);
            if (tier == DSV4_TIER_BF16 && (e->wrong & FINE_IN_BF16))
                wrong = false;
            if (wrong && g->file[home][contract].count > 0)
                exhibit_wrong(sum, &g->file[home][contract], bug, contract, (dsv4_tier)tier);
            else if (!wrong)
                exhibit_harmless(sum, g, bug, contract, (dsv4_tier)tier);
        }
}

/* Runs work(context, i) for i in 0 .. count - 1 in as many processes as there are processors. */
static int in_parallel(int *next, int count, void (*work)(void *context, int i), void *context)
{
    int status, result = 0;
    long processes = sysconf(_SC_NPROCESSORS_ONLN);
    fflush(stdout);
    for (long p = 0; p < processes; p++) {
        pid_t child = fork();
        if (child < 0)
            return -1;
        if (child == 0) {
            int i;
            while ((i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < count)
                work(context, i);
            fflush(stdout);
            _exit(0);
        }
    }
    while (wait(&status) > 0)
        result = status == 0 ? result : -1;
    return result;
}

static void *shared(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        perror("tool_museum: mmap");
        exit(2);
    }
    return memory;
}

typedef struct { tally *sum; const golden *g; const char *pattern; } mutants;

static void one_exhibit(void *context, int i)
{
    const mutants *m = context;
    museum_bug bug = (museum_bug)(i + 1);
    if (fnmatch(m->pattern, museum_exhibits[bug].operator, 0) == 0)
        exhibit(m->sum, m->g, bug);
}

static int run_mutants(const golden *g, const char *pattern)
{
    mutants m = {shared(sizeof *m.sum), g, pattern};
    if (in_parallel(&m.sum->next, BUGS - 1, one_exhibit, &m) != 0) {
        fprintf(stderr, "tool_museum: a worker failed\n");
        return 2;
    }
    const tally *sum = m.sum;
    printf("%d exhibits. Wrong variants (exhibit x contract x tier): %d, caught %d, named first %d "
           "(%.1f %%). Harmless: %d, accepted %d.\n", BUGS - 1, sum->wrong, sum->caught, sum->named,
           sum->wrong > 0 ? 100. * sum->named / sum->wrong : 0, sum->harmless, sum->accepted);
    int failed = sum->wrong - sum->caught + sum->harmless - sum->accepted;
    bool few = 10 * sum->named < 9 * sum->wrong;
    if (few)
        printf("FAILED: fewer than 90 %% are named\n");
    printf("%d passed, %d failed\n", sum->caught + sum->accepted, failed + few);
    return failed + few > 0;
}

/* ---- alarms ---- */

typedef struct { int next; int64_t runs, alarms; } alarm_tally;
typedef struct { alarm_tally *sum; const golden *g; } alarms;

/* Large cases take nine tenths of the time: the first seeds do for them. */
enum { SEEDS_FOR_LARGE = 8 };

static bool is_large(const dsv4_case *c)
{
    int64_t values = 0;
    for (int o = 0; o < c->outs; o++)
        values += c->out[o].count;
    return values >= 4096 || strstr(c->flags, "real-size") != NULL || c->checkpoint[0] != '\0';
}

static void one_seed(void *context, int i)
{
    const alarms *a = context;
    int64_t runs = 0, count = 0;
    for (int op = 0; op < dsv4_operator_count; op++)
        for (int contract = 0; contract < 2; contract++)
            for (int64_t k = 0; k < a->g->file[op][contract].count; k++)
                for (int kind = 0; kind < 3; kind++) {
                    const dsv4_case *c = &a->g->file[op][contract].c[k];
                    bool unscaled = kind == 2;
                    dsv4_tier tier = kind == 1 ? DSV4_TIER_BF16 : DSV4_TIER_FP32;
                    if (unscaled && !museum_touches(INDEX_SCALE_MISSING, c->op))
                        continue;
                    if (i >= SEEDS_FOR_LARGE && is_large(c))
                        continue;
                    museum_engine engine = engine_of(tier, (uint64_t)(100000 + i),
                                                     unscaled ? INDEX_SCALE_MISSING : BUG_NONE);
                    dsv4_case answer;
                    dsv4_verdict verdict;
                    runs++;
                    if (!passes(c, &engine, tier, &answer, &verdict)) {
                        const dsv4_slot_verdict *slot = dsv4_verdict_failure(&verdict);
                        printf("ALARM %s/%s %s %s, seed %d%s: %g times the tolerance %s\n",
                               c->op->name, c->name, slot->slot->name, tier_name[tier], i,
                               unscaled ? ", scores unscaled" : "", slot->ratio, slot->note);
                        fflush(stdout);
                        count++;
                    }
                    dsv4_case_free(&answer);
                }
    __atomic_add_fetch(&a->sum->runs, runs, __ATOMIC_RELAXED);
    __atomic_add_fetch(&a->sum->alarms, count, __ATOMIC_RELAXED);
}

static int run_alarms(const golden *g, int seeds)
{
    alarms a = {shared(sizeof *a.sum), g};
    if (in_parallel(&a.sum->next, seeds, one_seed, &a) != 0) {
        fprintf(stderr, "tool_museum: a worker failed\n");
        return 2;
    }
    printf("%lld runs of correct engines over %d seeds, %lld false alarms\n",
           (long long)a.sum->runs, seeds, (long long)a.sum->alarms);
    printf("%lld passed, %lld failed\n", (long long)(a.sum->runs - a.sum->alarms),
           (long long)a.sum->alarms);
    return a.sum->alarms > 0;
}

/* ---- errata ---- */

static int write_errata(const char *path)
{
    FILE *out = fopen(path, "w");
    if (out == NULL) {
        perror(path);
        return 2;
    }
    fprintf(out, "# Errata of others\n\nThe %d exhibits of the museum "
            "([vectors/museum](../vectors/museum/museum.h)): mistakes that implementations of this "
            "model make,\nwith the operator that shows each first and the rule that it breaks. "
            "`dsv4 verify` names them; `make mutants` proves\nthat the vectors catch them. This page "
            "is made from `vectors/museum/bugs.c` by `make errata`.\n", BUGS - 1);
    for (int op = 0; op < dsv4_operator_count; op++) {
        bool any = false;
        for (int b = BUG_NONE + 1; b < BUGS; b++) {
            const museum_exhibit *e = &museum_exhibits[b];
            if (strcmp(e->operator, dsv4_operators[op].name) != 0)
                continue;
            if (!any)
                fprintf(out, "\n## %s\n\n%s. Chapter [%s](../spec/%s.md).\n\n",
                        dsv4_operators[op].name, dsv4_operators[op].summary,
                        dsv4_operators[op].chapter, dsv4_operators[op].chapter);
            any = true;
            int wrong = e->wrong & WRONG_BOTH;
            fprintf(out, "- **%s** (%s%s%s) %s\n", e->id, e->rule,
                    wrong == WRONG_BOTH ? "" : wrong == WRONG_NOWHERE ? "; harmless, accepted"
                    : wrong == WRONG_EXACT ? "; wrong in exact only" : "; wrong in released only",
                    e->wrong & FINE_IN_BF16 ? "; a bf16 engine may" : "", e->story);
        }
    }
    return fclose(out) == 0 ? 0 : 2;
}

/* ---- candidate ---- */

static int write_candidate(const golden *g, const char *path, char **bugs, int count)
{
    museum_engine engine = {.arithmetic = MUSEUM_BINARY32, .seed = 1};
    dsv4_error err = {""};
    for (int i = 0; i < count; i++) {
        if (museum_find(bugs[i]) == BUG_NONE) {
            fprintf(stderr, "tool_museum: %s: no such exhibit\n", bugs[i]);
            return 2;
        }
        museum_add_bug(&engine, museum_find(bugs[i]));
    }
    dsv4_h5 *file = dsv4_h5_create(path, &err);
    for (int op = 0; op < dsv4_operator_count && file != NULL; op++)
        for (int contract = 0; contract < 2; contract++)
            for (int64_t i = 0; i < g->file[op][contract].count && err.text[0] == '\0'; i++) {
                dsv4_case answer;
                dsv4_verdict verdict;
                const dsv4_case *c = &g->file[op][contract].c[i];
                passes(c, &engine, DSV4_TIER_FP32, &answer, &verdict);
                dsv4_case_write_answer(file, c, answer.out, answer.outs, &err);
                dsv4_case_free(&answer);
            }
    if (file != NULL && (err.text[0] != '\0' || dsv4_h5_close(file, &err) != 0))
        dsv4_h5_abandon(err.text[0] != '\0' ? file : NULL);
    if (err.text[0] != '\0')
        fprintf(stderr, "tool_museum: %s\n", err.text);
    return err.text[0] != '\0' ? 2 : 0;
}

int main(int argc, char **argv)
{
    golden g;
    int result = 2;
    const char *what = argc > 2 ? argv[1] : "";
    if (strcmp(what, "mutants") == 0) {
        if (read_all(&g, argv[2], "*") == 0)
            result = run_mutants(&g, argc > 3 ? argv[3] : "*");
    } else if (strcmp(what, "alarms") == 0 && argc > 3 && atoi(argv[3]) > 0) {
        if (read_all(&g, argv[2], argc > 4 ? argv[4] : "*") == 0)
            result = run_alarms(&g, atoi(argv[3]));
    } else if (strcmp(what, "candidate") == 0 && argc > 3) {
        if (read_all(&g, argv[2], "*") == 0)
            result = write_candidate(&g, argv[3], argv + 4, argc - 4);
    } else if (strcmp(what, "errata") == 0) {
        return write_errata(argv[2]);
    } else {
        fprintf(stderr, "Usage: tool_museum errata OUT.md | mutants VECTORS [OPERATORS] | alarms VECTORS SEEDS "
                "[OPERATORS] | candidate VECTORS OUT.h5 [BUG...]\n");
        return 2;
    }
    for (int i = 0; i < dsv4_operator_count; i++)
        for (int n = 0; n < 2; n++)
            dsv4_case_file_free(&g.file[i][n]);
    free(g.file);
    return result;
}
