/* The fast path against the oracle, with every set of instructions that the machine has. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "oracle.h"

/* Binary32 has a unit of 6e-8: through a few layers of sums it grows to some 1e-5 of the scale. Chunks
 * change no bit. */
#define FAST(test, isa, name) \
    {isa ": " #test " " name, oracle_##test, NULL, NULL, \
     &(subject){&dsv4_path_fast, isa, name, 2e-4, 0}}
#if defined __SANITIZE_ADDRESS__ /* slow */
#define EVERY_LEVEL(test, name) FAST(test, "portable", name), FAST(test, "avx512", name)
#else
#define EVERY_LEVEL(test, name) \
    FAST(test, "portable", name), FAST(test, "avx2", name), FAST(test, "avx512", name)
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        EVERY_LEVEL(exact, "tiny-exact"),
        EVERY_LEVEL(exact, "long-exact"),
        FAST(exact_in_chunks, "amx", "tiny-exact"), /* the best there is */
        FAST(exact_in_chunks, "amx", "long-exact"),
        EVERY_LEVEL(released_by_steps, "tiny-released"),
        EVERY_LEVEL(released_by_steps, "mild-released"),
        EVERY_LEVEL(released_end_to_end, "mild-released"),
        FAST(released_by_steps, "amx", "tiny-released"), /* products of bf16 numbers, if there are any */
        FAST(released_by_steps, "amx", "mild-released"),
        FAST(released_end_to_end, "amx", "mild-released"),
    };
    return cmocka_run_group_tests_name("oracle_fast", tests, NULL, NULL) != 0;
}
