/* What the machine can do at most, an instruction set at a time: kernels that do nothing but read, or
 * multiply and add. host/limits.c runs them and looks at the time. */
#ifndef DSV4_FAST_LIMITS_H
#define DSV4_FAST_LIMITS_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *key, *name;    /* "fma_f32", "FP32 FMA" */
    double operations;         /* multiplications and additions of one round */
    void (*run)(int64_t rounds);
} fast_peak;

typedef struct {
    const char *level;
    uint64_t (*read)(const void *p, size_t bytes); /* NULL: as the level below does */
    int peaks;
    const fast_peak *peak;
} fast_limits;

/* Those that this machine can run, in ascending order: isa.c. */
const fast_limits *const *fast_machine_limits(int *count);

extern const fast_limits fast_limits_portable, fast_limits_avx2, fast_limits_avx512,
    fast_limits_avx512bf16, fast_limits_amx;

#endif
