/* The same of core attention. */
#define DSV4_EMULATE_AMX 1
#define fast_core_attn_amx emulated_core_attn_amx
#include "emulated_amx.h"
#include "fast/x86/core_attn_amx.c"
