#include "plugin.h"

#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "child.h"
#include "vectors/dsv4_plugin.h"

/* What an output holds before the plugin writes it: NaN, also when read as floats; no index. Words
 * of another kind stand around it. */
static const uint64_t UNWRITTEN_VALUE = 0x7fffffff7fffffff, UNWRITTEN_INDEX = (uint64_t)INT64_MIN,
                      FENCE = 0xa5c3f00d5eedface;
enum { FENCE_WORDS = 8 }; /* in front and behind; keeps the data aligned to 64 bytes */

typedef struct {
    char *path;
    double timeout;
    dsv4_child *child;
    /* in the child */
    void *library;
    int (*run)(struct dsv4_plugin_call *call);
    const char *(*error)(void);
} plugin;

/* ---- in the child ---- */

/* ISO C has no conversion from dlsym's pointer to that of a function. */
#define LOOK_UP(function, library, name) \
    do { \
        void *symbol = dlsym(library, name); \
        memcpy(&(function), &symbol, sizeof symbol); \
    } while (0)

static int load(void *context, char **text, dsv4_error *err)
{
    plugin *p = context;
    int (*version)(void) = NULL;
    const char *(*name)(void) = NULL;
    p->library = dlopen(p->path, RTLD_NOW | RTLD_LOCAL);
    if (p->library == NULL)
        return dsv4_fail(err, "%s", dlerror());
    LOOK_UP(version, p->library, "dsv4_plugin_version");
    LOOK_UP(p->run, p->library, "dsv4_plugin_run");
    LOOK_UP(p->error, p->library, "dsv4_plugin_error");
    LOOK_UP(name, p->library, "dsv4_plugin_name");
    if (version == NULL || p->run == NULL)
        return dsv4_fail(err, "%s: no plugin: it has no function %s", p->path,
                         version == NULL ? "dsv4_plugin_version" : "dsv4_plugin_run");
    int number = version();
    if (number != DSV4_PLUGIN_VERSION)
        return dsv4_fail(err, "%s: written for version %d of the plugin interface, expected %d",
                         p->path, number, DSV4_PLUGIN_VERSION);
    const char *given = name != NULL ? name() : NULL;
    *text = given != NULL ? strndup(given, 200) : NULL;
    return 0;
}

static struct dsv4_plugin_array describe(const dsv4_array *array)
{
    struct dsv4_plugin_array described = {.name = array->name, .format = (int32_t)array->format,
                                          .rank = array->rank, .shape = {1, 1, 1, 1},
                                          .count = array->count, .data = array->data};
    for (int i = 0; i < array->rank; i++)
        described.shape[i] = array->shape[i];
    return described;
}

/* An output's memory between its fences. All formats that may be written take at most 8 bytes. */
static uint64_t *new_output(int64_t count, uint64_t unwritten)
{
    size_t words = (size_t)count + 2 * FENCE_WORDS;
    uint64_t *memory = aligned_alloc(64, (words + 7) / 8 * 8 * sizeof *memory);
    if (memory == NULL) {
        fprintf(stderr, "dsv4: out of memory for %" PRId64 " values\n", count);
        exit(2);
    }
    for (size_t i = 0; i < words; i++)
        memory[i] = i < FENCE_WORDS || i >= words - FENCE_WORDS ? FENCE : unwritten;
    return memory;
}

static bool overrun(const uint64_t *memory, int64_t count)
{
    for (int i = 0; i < FENCE_WORDS; i++)
        if (memory[i] != FENCE || memory[FENCE_WORDS + count + i] != FENCE)
            return true;
    return false;
}

static bool untouched(const uint64_t *data, int64_t count, uint64_t unwritten)
{
    for (int64_t i = 0; i < count; i++)
        if (data[i] != unwritten)
            return false;
    return count > 0;
}

/* One output as the plugin left it. */
static int take_output(const dsv4_array *want, const struct dsv4_plugin_array *got,
                       const uint64_t *memory, bool optional, dsv4_case *answer, dsv4_error *err)
{
    bool integer = want->format == DSV4_FORMAT_I64;
    if (overrun(memory, want->count))
        return dsv4_fail(err, "wrote outside the memory of out/%s", want->name);
    if (got->absent) /* the judge misses it where it is required */
        return 0;
    if (integer ? got->format != DSV4_PLUGIN_I64
                : got->format != DSV4_PLUGIN_F64 && got->format != DSV4_PLUGIN_F32 &&
                      got->format != DSV4_PLUGIN_BF16)
        return dsv4_fail(err, "out/%s: format %d, expected %s", want->name, (int)got->format,
                         integer ? "I64" : "F64 or F32");
    if (untouched(memory + FENCE_WORDS, want->count,
                  integer ? UNWRITTEN_INDEX : UNWRITTEN_VALUE))
        return optional ? 0 : dsv4_fail(err, "out/%s was not written", want->name);
    dsv4_array *out = dsv4_case_add_out(answer, want->name,
                                        integer ? DSV4_FORMAT_I64 : DSV4_FORMAT_F64, want->rank,
                                        want->shape);
    if (integer || got->format == DSV4_PLUGIN_F64) {
        memcpy(out->data, memory + FENCE_WORDS, (size_t)want->count * sizeof *memory);
        return 0;
    }
    const char *floats = (const char *)(memory + FENCE_WORDS);
    for (int64_t i = 0; i < want->count; i++) {
        float value;
        memcpy(&value, floats + (size_t)i * sizeof value, sizeof value);
        ((double *)out->data)[i] = (double)value;
    }
    return 0;
}

static bool is_optional(const dsv4_operator *op, const char *name)
{
    for (const dsv4_slot *slot = op->out; slot->name != NULL; slot++)
        if (strcmp(slot->name, name) == 0)
            return slot->optional;
    return true;
}

static int failed_run(const plugin *p, int status, dsv4_error *err)
{
    const char *why = p->error != NULL ? p->error() : NULL;
    return dsv4_fail(err, "dsv4_plugin_run returned %d%s%s", status,
                     why != NULL && why[0] != '\0' ? ": " : "", why != NULL ? why : "");
}

static int run(void *context, const dsv4_case *c, dsv4_case *answer, dsv4_error *err)
{
    const plugin *p = context;
    struct dsv4_plugin_param *params = dsv4_alloc((size_t)c->params, sizeof *params);
    struct dsv4_plugin_array *in = dsv4_alloc((size_t)c->ins, sizeof *in);
    struct dsv4_plugin_array *out = dsv4_alloc((size_t)c->outs, sizeof *out);
    uint64_t **memory = dsv4_alloc((size_t)c->outs, sizeof *memory);
    char *checkpoint = NULL;
    if (c->checkpoint[0] != '\0' &&
        asprintf(&checkpoint, "%s/%s", c->directory, c->checkpoint) < 0)
        checkpoint = NULL;
    for (int i = 0; i < c->params; i++)
        params[i] = (struct dsv4_plugin_param){c->param[i].name, c->param[i].value};
    for (int i = 0; i < c->ins; i++)
        in[i] = describe(&c->in[i]);
    for (int i = 0; i < c->outs; i++) {
        bool integer = c->out[i].format == DSV4_FORMAT_I64;
        memory[i] = new_output(c->out[i].count, integer ? UNWRITTEN_INDEX : UNWRITTEN_VALUE);
        out[i] = describe(&c->out[i]);
        out[i].format = integer ? DSV4_PLUGIN_I64 : DSV4_PLUGIN_F64;
        out[i].data = memory[i] + FENCE_WORDS;
        out[i].optional = is_optional(c->op, c->out[i].name);
    }
    struct dsv4_plugin_call call = {
        .size = sizeof call, .version = DSV4_PLUGIN_VERSION, .op = c->op->name,
        .case_name = c->name, .numerics = c->numerics == DSV4_EXACT ? "exact" : "released",
        .checkpoint = checkpoint, .params = params, .param_count = c->params, .in_count = c->ins,
        .in = in, .out = out, .out_count = c->outs,
    };
    int status = p->run(&call);
    int result = status == DSV4_PLUGIN_NOT_OFFERED ? 1 : 0;
    if (status != DSV4_PLUGIN_ANSWERED && status != DSV4_PLUGIN_NOT_OFFERED)
        result = failed_run(p, status, err);
    for (int i = 0; i < c->outs; i++) {
        if (result == 0)
            result = take_output(&c->out[i], &out[i], memory[i], is_optional(c->op, c->out[i].name),
                                 answer, err);
        free(memory[i]);
    }
    free(checkpoint);
    free(memory);
    free(out);
    free(in);
    free(params);
    return result;
}

/* ---- in the parent ---- */

static dsv4_child_work work_of(plugin *p)
{
    return (dsv4_child_work){.open = load, .answer = run, .context = p, .timeout = p->timeout};
}

static int begin(void *context, const dsv4_case_file *file, dsv4_error *err)
{
    plugin *p = context;
    const dsv4_child_work work = work_of(p);
    p->child = dsv4_child_start(&work, file, NULL, err);
    return p->child != NULL ? 0 : -1;
}

static int answer(void *context, const dsv4_case *c, dsv4_case *given, dsv4_error *err)
{
    return dsv4_child_answer(((plugin *)context)->child, c, given, err);
}

static void end(void *context)
{
    plugin *p = context;
    dsv4_child_stop(p->child);
    p->child = NULL;
}

static void close_plugin(void *context)
{
    plugin *p = context;
    end(p);
    free(p->path);
    free(p);
}

int dsv4_plugin_engine(dsv4_engine *engine, const char *path, double timeout, dsv4_error *err)
{
    plugin *p = dsv4_alloc(1, sizeof *p);
    p->timeout = timeout;
    p->path = dsv4_alloc(strlen(path) + 3, 1);
    /* Without a slash, dlopen would look in the system's directories instead of this one. */
    strcat(strcpy(p->path, strchr(path, '/') == NULL ? "./" : ""), path);
    const dsv4_child_work work = work_of(p);
    char *name = NULL;
    dsv4_error why = {""};
    dsv4_child *child = dsv4_child_start(&work, NULL, &name, &why);
    if (child == NULL) {
        close_plugin(p);
        return strstr(why.text, path) != NULL ? dsv4_fail(err, "%s", why.text)
                                              : dsv4_fail(err, "%s: %s", path, why.text);
    }
    dsv4_child_stop(child);
    *engine = (dsv4_engine){.context = p, .begin = begin, .answer = answer, .end = end,
                            .close = close_plugin};
    const char *last = strrchr(path, '/');
    snprintf(engine->name, sizeof engine->name, "plugin %.60s%s%.180s",
             last != NULL ? last + 1 : path, name != NULL && name[0] != '\0' ? ": " : "",
             name != NULL ? name : "");
    free(name);
    return 0;
}
