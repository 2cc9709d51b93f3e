/* The interface between `dsv4 verify --plugin libmine.so` and an engine under test.
 *
 * This header needs nothing else: C99, C++, or any language with C's calling convention. An engine
 * builds a shared library that exports
 *
 *     int dsv4_plugin_version(void);                  returns DSV4_PLUGIN_VERSION
 *     int dsv4_plugin_run(struct dsv4_plugin_call *); answers one case of one operator
 *     const char *dsv4_plugin_error(void);            optional: why the last run failed
 *     const char *dsv4_plugin_name(void);             optional: for the report
 *
 * vectors/FORMAT.md lists the operators with their inputs, outputs and parameters; spec/ says what
 * they compute; docs/examples/plugin.c is a whole plugin.
 *
 * The library is loaded in a process of its own, which answers the cases of a vector file one after
 * another. A crash, an exit or a hang fails its case and no other. What it prints goes to standard
 * error. */
#ifndef DSV4_PLUGIN_H
#define DSV4_PLUGIN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DSV4_PLUGIN_VERSION 1

/* The element types of arrays. */
enum {
    DSV4_PLUGIN_F64 = 0,  /* double */
    DSV4_PLUGIN_F32 = 1,  /* float */
    DSV4_PLUGIN_BF16 = 2, /* float, every value a bf16 number */
    DSV4_PLUGIN_E4M3 = 3, /* uint8_t, one FP8 code each */
    DSV4_PLUGIN_E2M1 = 4, /* uint8_t, two FP4 codes each, the low nibble first */
    DSV4_PLUGIN_E8M0 = 5, /* uint8_t, one scale each */
    DSV4_PLUGIN_I64 = 6   /* int64_t */
};

/* What dsv4_plugin_run returns. Anything else: the case failed. */
enum { DSV4_PLUGIN_ANSWERED = 0, DSV4_PLUGIN_NOT_OFFERED = 1 };

struct dsv4_plugin_array {
    const char *name;
    int32_t format;   /* one of the enumeration above */
    int32_t rank;
    int64_t shape[4]; /* row-major; sizes beyond `rank` are 1 */
    int64_t count;    /* elements of `data` */
    void *data;       /* of an input: not to be written */
    int32_t optional; /* of an output: it may be left out */
    int32_t absent;   /* of an output: set to 1 to leave it out */
};

struct dsv4_plugin_param {
    const char *name;
    double value;
};

struct dsv4_plugin_call {
    uint32_t size;           /* of this structure, as dsv4 knows it */
    uint32_t version;        /* DSV4_PLUGIN_VERSION of dsv4 */
    const char *op;          /* the operator: "rmsnorm" */
    const char *case_name;
    const char *numerics;    /* "exact" or "released" */
    const char *checkpoint;  /* a model's directory, where the operator takes one; else NULL */
    const struct dsv4_plugin_param *params;
    int32_t param_count;
    int32_t in_count;
    const struct dsv4_plugin_array *in;
    /* Memory of dsv4, to be filled: F64 for values, I64 for indices. An engine that has floats sets
     * `format` to DSV4_PLUGIN_F32 and writes floats. */
    struct dsv4_plugin_array *out;
    int32_t out_count;
    int32_t reserved;
};

#if defined(_WIN32)
#define DSV4_PLUGIN_EXPORT __declspec(dllexport)
#elif defined(__GNUC__)
#define DSV4_PLUGIN_EXPORT __attribute__((visibility("default")))
#else
#define DSV4_PLUGIN_EXPORT
#endif

DSV4_PLUGIN_EXPORT int dsv4_plugin_version(void);
DSV4_PLUGIN_EXPORT int dsv4_plugin_run(struct dsv4_plugin_call *call);
DSV4_PLUGIN_EXPORT const char *dsv4_plugin_error(void);
DSV4_PLUGIN_EXPORT const char *dsv4_plugin_name(void);

/* ---- aids for those who write in C or C++ ---- */

/* NULL where the case has none of that name. */
static inline const struct dsv4_plugin_array *dsv4_plugin_in(const struct dsv4_plugin_call *call,
                                                             const char *name)
{
    for (int32_t i = 0; i < call->in_count; i++)
        if (strcmp(call->in[i].name, name) == 0)
            return &call->in[i];
    return NULL;
}

static inline struct dsv4_plugin_array *dsv4_plugin_out(const struct dsv4_plugin_call *call,
                                                        const char *name)
{
    for (int32_t i = 0; i < call->out_count; i++)
        if (strcmp(call->out[i].name, name) == 0)
            return &call->out[i];
    return NULL;
}

static inline double dsv4_plugin_value(const struct dsv4_plugin_call *call, const char *param,
                                       double otherwise)
{
    for (int32_t i = 0; i < call->param_count; i++)
        if (strcmp(call->params[i].name, param) == 0)
            return call->params[i].value;
    return otherwise;
}

/* The values of an input of floats as float: what F32 and BF16 are stored as. NULL where there is
 * none of that name, or it is of another format. */
static inline const float *dsv4_plugin_floats(const struct dsv4_plugin_call *call,
                                              const char *name)
{
    const struct dsv4_plugin_array *array = dsv4_plugin_in(call, name);
    if (array == NULL || (array->format != DSV4_PLUGIN_F32 && array->format != DSV4_PLUGIN_BF16))
        return NULL;
    return (const float *)array->data;
}

static inline const int64_t *dsv4_plugin_indices(const struct dsv4_plugin_call *call,
                                                 const char *name)
{
    const struct dsv4_plugin_array *array = dsv4_plugin_in(call, name);
    if (array == NULL || array->format != DSV4_PLUGIN_I64)
        return NULL;
    return (const int64_t *)array->data;
}

/* An output to be written as float; NULL where the case has none of that name. */
static inline float *dsv4_plugin_float_out(const struct dsv4_plugin_call *call, const char *name)
{
    struct dsv4_plugin_array *array = dsv4_plugin_out(call, name);
    if (array == NULL || array->format == DSV4_PLUGIN_I64)
        return NULL;
    array->format = DSV4_PLUGIN_F32;
    return (float *)array->data;
}

#ifdef __cplusplus
}
#endif
#endif
