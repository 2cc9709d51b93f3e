/* generate-vectors DIRECTORY OPERATOR: writes the vector files of an operator, or those of all, and the
 * models that they need. Without arguments it lists the operators. Called by ci/vectors.sh. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "gen.h"

static const gen_plan *const lists[] = {gen_elements, gen_mixture, gen_attention, gen_whole};

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const dsv4_case *)a)->name, ((const dsv4_case *)b)->name);
}

/* All cases of one operator in one contract -> one file. */
static int write_operator(const char *directory, const char *op, dsv4_numerics numerics,
                          int64_t *cases, dsv4_error *err)
{
    dsv4_case made[64];
    int64_t count = 0;
    int result = 0;
    struct timespec start, end;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (size_t l = 0; l < sizeof lists / sizeof *lists; l++)
        for (const gen_plan *plan = lists[l]; plan->op != NULL && result == 0; plan++) {
            if (strcmp(plan->op, op) != 0 ||
                (plan->contracts & (numerics == DSV4_EXACT ? EXACT : RELEASED)) == 0)
                continue;
            if (count == (int64_t)(sizeof made / sizeof *made))
                return dsv4_fail(err, "%s: too many cases", op);
            result = gen_case(plan, numerics, directory, &made[count], err);
            count += result == 0;
        }
    char path[4096];
    snprintf(path, sizeof path, "%s/%s_%s.h5", directory, op,
             numerics == DSV4_EXACT ? "exact" : "released");
    qsort(made, (size_t)count, sizeof *made, compare_names);
    if (result == 0 && count > 0)
        result = dsv4_case_file_write(path, made, count, err);
    for (int64_t i = 0; i < count; i++)
        dsv4_case_free(&made[i]);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (result == 0 && count > 0)
        printf("%-20s %-8s %2d cases  %5.1f s\n", op, numerics == DSV4_EXACT ? "exact" : "released",
               (int)count, (double)(end.tv_sec - start.tv_sec) +
               1e-9 * (double)(end.tv_nsec - start.tv_nsec));
    fflush(stdout);
    *cases += count;
    return result;
}

int main(int argc, char **argv)
{
    dsv4_error err = {""};
    int64_t cases = 0;
    if (argc == 1) {
        for (int i = 0; i < dsv4_operator_count; i++)
            puts(dsv4_operators[i].name);
        return 0;
    }
    if (argc > 3) {
        fprintf(stderr, "Usage: generate-vectors [DIRECTORY [OPERATOR]]\n");
        return 2;
    }
    if (mkdir(argv[1], 0777) != 0 && errno != EEXIST) {
        fprintf(stderr, "%s: cannot create: %s\n", argv[1], strerror(errno));
        return 2;
    }
    int result = 0;
    if (argc == 2 || strcmp(argv[2], "forward") == 0)
        result = gen_models(argv[1], &err);
    for (int i = 0; i < dsv4_operator_count; i++)
        for (int numerics = DSV4_EXACT; numerics <= DSV4_RELEASED && result == 0; numerics++)
            if (argc == 2 || strcmp(argv[2], dsv4_operators[i].name) == 0)
                result = write_operator(argv[1], dsv4_operators[i].name, (dsv4_numerics)numerics,
                                        &cases, &err);
    if (result != 0) {
        fprintf(stderr, "generate-vectors: %s\n", err.text);
        return 2;
    }
    if (cases == 0) {
        fprintf(stderr, "generate-vectors: %s: no such operator\n", argv[2]);
        return 2;
    }
    return 0;
}
