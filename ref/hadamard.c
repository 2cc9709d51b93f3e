/* spec/hadamard.md: the Walsh-Hadamard transform of indexer queries and keys. */
#include "ref.h"

#include <math.h>

/* x [count], in place; count is a power of two. */
void ref_hadamard(const ref_context *c, double *x, int64_t count)
{
    /* hadamard.order.1: y = H x with the Walsh-Hadamard matrix in Sylvester order: H_1 = [1], and
     * H_2m = [[H_m, H_m], [H_m, -H_m]]. Element [i, j] is +1 or -1 by the parity of the bits of (i
     * and j). */
    for (int64_t half = 1; half < count; half *= 2)
        for (int64_t first = 0; first < count; first += 2 * half)
            for (int64_t i = first; i < first + half; i++) {
                double a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
    /* hadamard.scale.1: The result is multiplied with width^(-1/2). Released: sum and factor in
     * binary32, one rounding to bf16. */
    for (int64_t i = 0; i < count; i++)
        x[i] = ref_bf16(c, x[i] / sqrt((double)count));
}
