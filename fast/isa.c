/* Which instructions the machine has, and the kernels that go with them. */
#include "fast/kernels.h"

#include <string.h>

#define ROW(level) \
    {#level, &fast_linear_##level, &fast_quant_##level, &fast_rmsnorm_##level, \
     &fast_rope_##level, &fast_hadamard_##level, &fast_mhc_##level, &fast_compressor_##level, \
     &fast_indexer_##level, &fast_core_attn_##level, &fast_expert_##level}

static const fast_kernels portable = ROW(portable);

#ifdef __x86_64__

#include <cpuid.h>

static const fast_kernels avx2 = ROW(avx2), avx512 = ROW(avx512);

/* Bits of cpuid, and of the register that says which states the system saves. */
enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };                     /* 1: ecx */
enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 }; /* 7: ebx */
static const unsigned AVX512VL = 1u << 31;
enum { YMM = 0x06, ZMM = 0xe6 };

static unsigned saved_states(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int find_levels(const fast_kernels *found[])
{
    unsigned a, b, c, d, one, seven = 0;
    int count = 0;
    found[count++] = &portable;
    if (!__get_cpuid(1, &a, &b, &one, &d) || (one & OSXSAVE) == 0)
        return count;
    if (__get_cpuid_count(7, 0, &a, &seven, &c, &d) == 0)
        return count;
    unsigned states = saved_states(), wanted = AVX512F | AVX512DQ | AVX512BW | AVX512VL;
    if ((states & YMM) != YMM || (one & FMA) == 0 || (one & F16C) == 0 || (seven & AVX2) == 0)
        return count;
    found[count++] = &avx2;
    if ((states & ZMM) == ZMM && (seven & wanted) == wanted)
        found[count++] = &avx512;
    return count;
}

#else

static int find_levels(const fast_kernels *found[])
{
    found[0] = &portable;
    return 1;
}

#endif

const fast_kernels *const *fast_levels(int *count)
{
    static _Thread_local const fast_kernels *found[3];
    *count = find_levels(found);
    return found;
}

const fast_kernels *fast_level(const char *cap, dsv4_error *err)
{
    static const char *const names[] = {"portable", "avx2", "avx512", "amx"};
    int count, rank = -1;
    const fast_kernels *const *levels = fast_levels(&count);
    if (cap == NULL || cap[0] == '\0')
        return levels[count - 1];
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (strcmp(cap, names[i]) == 0)
            rank = i;
    if (rank < 0) {
        dsv4_fail(err, "instruction set '%s': expected portable, avx2, avx512 or amx", cap);
        return NULL;
    }
    return levels[rank < count ? rank : count - 1]; /* the levels stand in the order of the names */
}
