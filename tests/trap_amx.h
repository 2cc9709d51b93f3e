/* Tile instructions (AMX) on a processor without them: each is an invalid instruction there, whose signal
 * is answered with what it does. So code is tested as it was compiled, encodings, configuration and all,
 * at some microseconds an instruction. Where the processor has them, there is nothing to answer. */
#ifndef TESTS_TRAP_AMX_H
#define TESTS_TRAP_AMX_H

#include <stdbool.h>
#include <stdint.h>

/* Under a sanitizer an answer takes several times as long: there the emulation in C has to do. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { TRAP_AMX_TOO_SLOW = 1 };
#else
enum { TRAP_AMX_TOO_SLOW = 0 };
#endif

/* Whether this processor, or its system, has no tile instructions. */
bool trap_amx_needed(void);

/* From now on, in all threads. Other invalid instructions, and wrong use of these, end the process. */
void trap_amx_install(void);

/* Instructions that this thread has had answered. */
int64_t trap_amx_count(void);

#endif
