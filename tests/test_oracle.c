/* The reference against the oracle. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/h5.h"
#include "oracle.h"
#include "ref/ref.h"

/* covers: muon.transpose.1 muon.momentum.1 muon.nesterov.1 muon.orthogonal.1 muon.orthogonal.2
 * covers: muon.orthogonal.3 muon.update.1 */
static void muon(void **state)
{
    char path[512], name[64];
    const char *shape = *state;
    dsv4_error err = {{0}};
    dsv4_h5 *file = dsv4_h5_open(oracle_path(path, "muon", ".h5"), &err);
    if (file == NULL)
        fail_msg("%s", err.text);
    dsv4_h5_data M, G, want;
    snprintf(name, sizeof name, "%s/M0", shape);
    assert_int_equal(dsv4_h5_read(file, name, &M, &err), 0);
    double *B = calloc((size_t)M.count, sizeof *B);
    const ref_muon_options options = {0.95, 0.02, 0.1, 0.18};
    for (int step = 1; step <= 3; step++) {
        snprintf(name, sizeof name, "%s/G%d", shape, step);
        assert_int_equal(dsv4_h5_read(file, name, &G, &err), 0);
        ref_muon_step(&options, M.shape[0], M.shape[1], G.values, B, M.values);
        dsv4_h5_data_free(&G);
        for (int which = 0; which < 2; which++) {
            snprintf(name, sizeof name, "%s/%c%d", shape, "BM"[which], step);
            assert_int_equal(dsv4_h5_read(file, name, &want, &err), 0);
            const double *got = which == 0 ? B : M.values;
            double scale = 0;
            for (int64_t i = 0; i < want.count; i++)
                scale = fmax(scale, fabs(want.values[i]));
            for (int64_t i = 0; i < want.count; i++)
                if (!(fabs(got[i] - want.values[i]) <= 1e-11 * scale))
                    fail_msg("%s [%lld]: %.17g, expected %.17g", name, (long long)i, got[i],
                             want.values[i]);
            dsv4_h5_data_free(&want);
        }
    }
    free(B);
    dsv4_h5_data_free(&M);
    dsv4_h5_close(file, &err);
}

#define REF(test, name) \
    {#test " " name, oracle_##test, NULL, NULL, &(subject){&dsv4_path_ref, NULL, name, 1e-9, 1e-12}}
#define MUON(shape) {"muon " shape, muon, NULL, NULL, shape}

int main(void)
{
    const struct CMUnitTest tests[] = {
        REF(exact, "tiny-exact"),
        REF(exact, "long-exact"),
        REF(exact_in_chunks, "tiny-exact"),
        REF(exact_in_chunks, "long-exact"),
        REF(released_by_steps, "tiny-released"),
        REF(released_by_steps, "mild-released"),
        REF(released_end_to_end, "mild-released"),
        MUON("wide"), MUON("tall"), MUON("square"),
    };
    return cmocka_run_group_tests_name("oracle", tests, NULL, NULL) != 0;
}
