/* Which instructions the machine has, and the kernels that go with them. */
#include "fast/kernels.h"
#include "fast/limits.h"

#include <stdatomic.h>
#include <string.h>

enum { MOST_LEVELS = 5 };

#define KERNELS(level) \
    .linear = &fast_linear_##level, .quant = &fast_quant_##level, \
    .rmsnorm = &fast_rmsnorm_##level, .rope = &fast_rope_##level, \
    .hadamard = &fast_hadamard_##level, .mhc = &fast_mhc_##level, \
    .compressor = &fast_compressor_##level, .indexer = &fast_indexer_##level, \
    .core_attn = &fast_core_attn_##level, .expert = &fast_expert_##level

static const fast_kernels portable = {.name = "portable", KERNELS(portable)};

#ifdef __x86_64__

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

static const fast_kernels
    avx2 = {.name = "avx2", KERNELS(avx2)},
    avx512 = {.name = "avx512", KERNELS(avx512)},
    avx512_vnni = {.name = "avx512", KERNELS(avx512), .few_fp4 = &fast_linear_avx512vnni},
    avx512bf16 = {.name = "avx512bf16", KERNELS(avx512), .few_fp4 = &fast_linear_avx512vnni,
                  .few_fp8 = &fast_linear_avx512vbmi, .tiles = &fast_linear_avx512bf16,
                  .core_attn_tiles = &fast_core_attn_avx512bf16},
    amx = {.name = "amx", KERNELS(avx512), .few_fp4 = &fast_linear_avx512vnni,
           .tiles = &fast_linear_amx, .index_tiles = &fast_indexer_amx,
           .core_attn_tiles = &fast_core_attn_amx};

/* Bits of cpuid, and of the register that says which states the system saves. */
enum { FMA = 1 << 12, OSXSAVE = 1 << 27, F16C = 1 << 29 };                     /* 1: ecx */
enum { AVX2 = 1 << 5, AVX512F = 1 << 16, AVX512DQ = 1 << 17, AVX512BW = 1 << 30 }; /* 7: ebx */
static const unsigned AVX512VL = 1u << 31;
enum { AVX512_VBMI = 1 << 1, AVX512_VNNI = 1 << 11 };                            /* 7: ecx */
enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };             /* 7: edx */
enum { AVX512_BF16 = 1 << 5 };                                                    /* 7, 1: eax */
enum { YMM = 0x06, ZMM = 0xe6, TILES = 0x60000 };

static unsigned saved_states(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

#ifndef DSV4_EMULATE_AMX
/* Linux lets a process use the tile registers, which are large, only if it asks: once, for all of its
 * threads, those that exist already too. It says no if one of them has a signal stack too small for the
 * state that a signal saves from then on. What shapes the tiles have, each thread says for itself, in every
 * piece of work. */
static bool tiles_granted(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
}
#endif

static bool tiles_exist(unsigned seven_edx)
{
#ifdef DSV4_EMULATE_AMX
    (void)seven_edx;
    return true;
#else
    unsigned wanted = AMX_BF16 | AMX_TILE | AMX_INT8;
    return (seven_edx & wanted) == wanted && (saved_states() & TILES) == TILES && tiles_granted();
#endif
}

static bool bf16_exists(unsigned seven_ecx)
{
    const unsigned wanted = AVX512_VBMI | AVX512_VNNI;
    unsigned a, b, c, d;
    return (seven_ecx & wanted) == wanted && __get_cpuid_count(7, 1, &a, &b, &c, &d) &&
           (a & AVX512_BF16) != 0;
}

/* Few machines have tiles: what they compute is looked at, once in a process. */
static bool tiles_work(unsigned seven_edx)
{
    static atomic_int known; /* 1: no, 2: yes */
    if (known == 0)
        known = tiles_exist(seven_edx) && fast_linear_amx.works() && fast_indexer_amx.works() &&
                        fast_core_attn_amx.works()
                    ? 2
                    : 1;
    return known == 2;
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
    if ((states & ZMM) != ZMM || (seven & wanted) != wanted)
        return count;
    found[count++] = c & AVX512_VNNI ? &avx512_vnni : &avx512;
    if (bf16_exists(c))
        found[count++] = &avx512bf16;
    if ((c & AVX512_VNNI) != 0 && tiles_work(d))
        found[count++] = &amx;
    return count;
}

static int find_limits(const fast_limits *found[])
{
    static const fast_limits *const of_level[] = {&fast_limits_portable, &fast_limits_avx2,
                                                  &fast_limits_avx512};
    unsigned a, b, c, d;
    const fast_kernels *levels[MOST_LEVELS];
    int count = find_levels(levels);
    for (int i = 0; i < count && i < 3; i++)
        found[i] = of_level[i];
    if (count < 3)
        return count;
    count = 3;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX512_BF16) != 0)
        found[count++] = &fast_limits_avx512bf16;
#ifndef DSV4_EMULATE_AMX
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && tiles_exist(d))
        found[count++] = &fast_limits_amx;
#endif
    return count;
}

#else

static int find_limits(const fast_limits *found[])
{
    found[0] = &fast_limits_portable;
    return 1;
}

static int find_levels(const fast_kernels *found[])
{
    found[0] = &portable;
    return 1;
}

#endif

const fast_kernels *const *fast_levels(int *count)
{
    static _Thread_local const fast_kernels *found[MOST_LEVELS];
    *count = find_levels(found);
    return found;
}

const fast_limits *const *fast_machine_limits(int *count)
{
    static _Thread_local const fast_limits *found[5];
    *count = find_limits(found);
    return found;
}

/* Its products are the point of avx512bf16. The vectors of other makers' processors take twice as long for
 * them as for as many products of binary32, or longer. */
static bool is_default(const fast_kernels *level)
{
#ifdef __x86_64__
    unsigned a, maker[3];
    return level != &avx512bf16 || (__get_cpuid(0, &a, &maker[0], &maker[2], &maker[1]) &&
                                    memcmp(maker, "AuthenticAMD", sizeof maker) == 0);
#else
    return level != NULL;
#endif
}

static int rank_of(const char *name)
{
    static const char *const names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
    for (int i = 0; i < (int)(sizeof names / sizeof *names); i++)
        if (strcmp(name, names[i]) == 0)
            return i;
    return -1;
}

const fast_kernels *fast_level(const char *cap, dsv4_error *err)
{
    int count;
    const fast_kernels *const *levels = fast_levels(&count);
    if (cap == NULL || cap[0] == '\0')
        return levels[is_default(levels[count - 1]) ? count - 1 : count - 2];
    if (rank_of(cap) < 0) {
        dsv4_fail(err, "instruction set '%s': expected portable, avx2, avx512, avx512bf16 or amx", cap);
        return NULL;
    }
    while (rank_of(levels[count - 1]->name) > rank_of(cap) ||
           (strcmp(levels[count - 1]->name, cap) != 0 && !is_default(levels[count - 1])))
        count--;
    return levels[count - 1];
}
