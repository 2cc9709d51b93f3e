/* The products by tiles with the tile instructions emulated, in every build. */
#define DSV4_EMULATE_AMX 1
#define fast_linear_amx emulated_amx
#include "emulated_amx.h"
#include "fast/x86/linear_amx.c"
