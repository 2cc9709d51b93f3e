#include "bench_operators.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "judge.h"
#include "memory.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Rows of activations; keys and values that a sum of no particular length has; sides of a matrix of
 * the optimiser, which no forward pass knows. */
enum { ROWS = 4, ENTRIES = 4096, ELEMENTS = 1 << 14, OPTIMISED = 256, MOST_RUNS = 25 };
static const double LONG_ENOUGH = 0.2; /* seconds of measuring */
static const double TOO_LONG = 2;      /* seconds of one answer of a path, the reference aside */

/* ---- sizes ---- */

typedef struct {
    const dsv4_config *config;
    const dsv4_case *model; /* a golden case, whose formats and flags are taken over */
    int64_t rows, entries;
} wish;

static bool has_slot(const dsv4_operator *op, const char *name)
{
    for (const dsv4_slot *slot = op->in; slot->name != NULL; slot++)
        if (strcmp(slot->name, name) == 0)
            return true;
    return false;
}

static int64_t symbol(const wish *w, const char *name, size_t length)
{
    const dsv4_config *c = w->config;
    int64_t ratio = (int64_t)dsv4_case_param(w->model, "ratio", 0);
    const struct { const char *name; int64_t value; } known[] = {
        {"T", w->rows}, {"N", has_slot(w->model->op, "sequence") ? w->rows : ELEMENTS}, {"C", 1},
        {"G", w->entries}, {"M", c->sliding_window + c->index_topk},
        {"L", c->sliding_window + c->index_topk}, {"K", c->hidden_size},
        {"O", c->moe_intermediate_size}, {"rows", OPTIMISED}, {"cols", OPTIMISED},
        {"D", c->hidden_size}, {"H", c->num_attention_heads}, {"d", c->head_dim},
        {"R", c->qk_rope_head_dim}, {"Q", c->q_lora_rank}, {"g", c->o_groups},
        {"o", c->o_lora_rank}, {"n", c->hc_mult}, {"n_i", c->index_n_heads},
        {"d_i", c->index_head_dim}, {"I", c->moe_intermediate_size}, {"E", c->n_routed_experts},
        {"k", c->num_experts_per_tok}, {"V", c->vocab_size}, {"r", ratio},
        {"c", ratio == 4 ? 2 : 1},
    };
    for (size_t i = 0; i < COUNT(known); i++)
        if (strlen(known[i].name) == length && memcmp(known[i].name, name, length) == 0)
            return known[i].value;
    return 0;
}

static int64_t factor(const wish *w, const char **at)
{
    if (**at == '(') { /* the only sum that there is */
        (*at)++;
        int64_t sum = factor(w, at);
        (*at)++;
        sum += factor(w, at);
        (*at)++;
        return sum;
    }
    if (**at >= '0' && **at <= '9') {
        char *end;
        int64_t number = strtoll(*at, &end, 10);
        *at = end;
        return number;
    }
    size_t length = strcspn(*at, "*/+) ");
    int64_t value = symbol(w, *at, length);
    *at += length;
    return value;
}

/* Of "H*d/g g*o" -> shape; returns the rank. */
static int solve(const wish *w, const char *dims, int64_t shape[DSV4_ARRAY_RANK])
{
    int rank = 0;
    for (const char *at = dims; *at != '\0'; at += strspn(at, " ")) {
        int64_t value = factor(w, &at);
        while (*at == '*' || *at == '/') {
            bool times = *at++ == '*';
            int64_t by = factor(w, &at);
            value = times ? value * by : by > 0 ? value / by : 0;
        }
        shape[rank++] = value;
    }
    return rank;
}

/* ---- a case of those sizes ---- */

static double config_param(const dsv4_config *c, const char *name, double otherwise)
{
    const struct { const char *name; double value; } known[] = {
        {"num_attention_heads", (double)c->num_attention_heads},
        {"qk_rope_head_dim", (double)c->qk_rope_head_dim}, {"o_groups", (double)c->o_groups},
        {"sliding_window", (double)c->sliding_window}, {"index_n_heads", (double)c->index_n_heads},
        {"index_head_dim", (double)c->index_head_dim}, {"index_topk", (double)c->index_topk},
        {"num_experts_per_tok", (double)c->num_experts_per_tok}, {"hc_mult", (double)c->hc_mult},
        {"hc_sinkhorn_iters", (double)c->hc_sinkhorn_iters},
        {"routed_scaling_factor", c->routed_scaling_factor}, {"swiglu_limit", c->swiglu_limit},
        {"hc_eps", c->hc_eps}, {"rms_norm_eps", c->rms_norm_eps}, {"rope_theta", c->rope_theta},
        {"compress_rope_theta", c->compress_rope_theta}, {"batch", 0},
    };
    for (size_t i = 0; i < COUNT(known); i++)
        if (strcmp(known[i].name, name) == 0)
            return known[i].value;
    return otherwise;
}

static void set_params(const wish *w, dsv4_case *c)
{
    for (int i = 0; i < w->model->params; i++) {
        const dsv4_param *p = &w->model->param[i];
        dsv4_case_set(c, p->name, config_param(w->config, p->name, p->value));
    }
}

/* A few megabytes that look random, then the same again: a generator would take longer than the
 * operators. */
static void fill_values(dsv4_array *array, uint64_t seed)
{
    enum { FRESH = 1 << 22 };
    dsv4_array head = *array;
    size_t size = (size_t)dsv4_format_size(array->format), bytes = (size_t)array->count * size;
    head.count = array->count < FRESH ? array->count : FRESH;
    head.recipe_seed = seed;
    dsv4_recipe_fill(&head);
    for (size_t done = (size_t)head.count * size, some; done < bytes; done += some) {
        some = done < bytes - done ? done : bytes - done;
        memcpy((char *)array->data + done, array->data, some);
    }
}

static void fill_indices(const wish *w, dsv4_array *array)
{
    const dsv4_config *c = w->config;
    int64_t *index = array->data, last = array->rank > 0 ? array->shape[array->rank - 1] : 1;
    const char *name = array->name;
    for (int64_t i = 0; i < array->count; i++) {
        uint64_t mixed = (uint64_t)(i + 1) * 0x9e3779b97f4a7c15 >> 20;
        if (strstr(name, "tid2eid") != NULL) /* different ones in a row */
            index[i] = (int64_t)((uint64_t)(i / last * 7 + i % last) % (uint64_t)c->n_routed_experts);
        else if (strstr(name, "_ids") != NULL)
            index[i] = (int64_t)(mixed % (uint64_t)c->vocab_size);
        else if (strcmp(name, "calls") == 0)
            index[i] = w->rows;
        else if (strcmp(name, "positions") == 0)
            index[i] = 100000 + i;
        else
            index[i] = strcmp(name, "sequence") == 0 ? 0 : i % last;
    }
}

/* Values as QDQ to FP4 leaves them: others would not be stored as codes, and scored another way. */
static void round_to_fp4(dsv4_array *array)
{
    static const float grid[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    float *x = array->data;
    for (int64_t i = 0; i < array->count; i++)
        x[i] = copysignf(grid[(int)(fabsf(x[i]) * 128) % 8], x[i]);
}

static void add(const wish *w, dsv4_case *c, const char *name, dsv4_format format, int rank,
                const int64_t *shape)
{
    dsv4_array *array = dsv4_case_add_in(c, name, format, rank, shape);
    if (format == DSV4_FORMAT_I64)
        fill_indices(w, array);
    else
        fill_values(array, (uint64_t)c->ins);
    bool index = strcmp(c->op->name, "indexer_score") == 0 && strcmp(name, "w") != 0;
    if (index && (format == DSV4_FORMAT_BF16 || format == DSV4_FORMAT_F32))
        round_to_fp4(array);
}

static void part_name(char name[DSV4_NAME], const char *slot, int64_t number, const char *part)
{
    const char *star = strchr(slot, '*');
    if (star == NULL)
        snprintf(name, DSV4_NAME, "%s%s", slot, part);
    else
        snprintf(name, DSV4_NAME, "%.*s%" PRId64 "%s%s", (int)(star - slot), slot, number, star + 1,
                 part);
}

static void add_matrix(const wish *w, dsv4_case *c, const char *slot, int64_t number,
                       dsv4_format format, int64_t rows, int64_t cols)
{
    char name[DSV4_NAME];
    bool fp4 = format == DSV4_FORMAT_E2M1;
    part_name(name, slot, number, ".weight");
    add(w, c, name, format, 2, (int64_t[]){rows, fp4 ? cols / 2 : cols});
    part_name(name, slot, number, ".scale");
    if (fp4)
        add(w, c, name, DSV4_FORMAT_E8M0, 2, (int64_t[]){rows, cols / 32});
    else if (format == DSV4_FORMAT_E4M3)
        add(w, c, name, DSV4_FORMAT_E8M0, 2, (int64_t[]){(rows + 127) / 128, (cols + 127) / 128});
}

/* The operator's inputs, as many of them as the golden case has. With `c` NULL only their size. */
static double add_inputs(const wish *w, dsv4_case *c)
{
    double bytes = 0;
    for (const dsv4_slot *slot = w->model->op->in; slot->name != NULL; slot++) {
        char name[DSV4_NAME];
        int64_t shape[DSV4_ARRAY_RANK], count = 1;
        bool matrix = slot->kind == DSV4_SLOT_MATRIX, all = strchr(slot->name, '*') != NULL;
        part_name(name, slot->name, 0, matrix ? ".weight" : "");
        const dsv4_array *given = dsv4_case_in(w->model, name);
        if (given == NULL)
            continue;
        int rank = solve(w, slot->dims, shape);
        int64_t copies = all ? w->config->n_routed_experts : 1;
        for (int i = 0; i < rank; i++)
            count *= shape[i];
        bytes += (double)(count * copies * dsv4_format_size(given->format)) *
                 (given->format == DSV4_FORMAT_E2M1 && matrix ? 0.5 : 1);
        for (int64_t i = 0; i < copies && c != NULL; i++)
            if (matrix)
                add_matrix(w, c, slot->name, i, given->format, shape[0], shape[1]);
            else
                add(w, c, name, given->format, rank, shape);
    }
    return bytes;
}

/* The first inputs, for the table. */
static void describe(const dsv4_case *c, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int i = 0; i < c->ins && i < 3; i++) {
        const dsv4_array *a = &c->in[i];
        int n = snprintf(text + used, size - used, "%s%s [", i > 0 ? ", " : "", a->name);
        for (int j = 0; j < a->rank && n > 0 && (size_t)n < size - used; j++)
            n += snprintf(text + used + n, size - used - (size_t)n, "%s%" PRId64,
                          j > 0 ? ", " : "", a->shape[j]);
        if (n < 0 || (size_t)n + 2 > size - used) {
            text[used] = '\0';
            return;
        }
        used += (size_t)n;
        text[used++] = ']';
        text[used] = '\0';
    }
}

/* ---- measuring ---- */

/* Seconds of one answer, or -1 with one line. */
static double answer_once(const dsv4_path *path, const dsv4_case *c, dsv4_error *err)
{
    dsv4_case answer = {.op = c->op, .numerics = c->numerics};
    double inside = 0, began = dsv4_now();
    int status = path->answer(&inside, c, &answer, err);
    double took = inside > 0 ? inside : dsv4_now() - began;
    dsv4_case_free(&answer);
    if (status == 1)
        dsv4_fail(err, "not offered by path %s", path->name);
    return status == 0 ? took : -1;
}

/* The median; the first one warms up, and counts only where it took long. */
static double time_answer(const dsv4_path *path, const dsv4_case *c, dsv4_error *err)
{
    double sample[MOST_RUNS], sum = 0, began = dsv4_now();
    int count = 0;
    double most = path == dsv4_path_find("ref") ? LONG_ENOUGH : TOO_LONG;
    double first = answer_once(path, c, err);
    if (first < 0 || dsv4_now() - began >= most)
        return first;
    while (count < MOST_RUNS && (count < 3 || sum < LONG_ENOUGH)) {
        began = dsv4_now();
        sample[count] = answer_once(path, c, err);
        sum += dsv4_now() - began;
        if (sample[count++] < 0)
            return -1;
    }
    return dsv4_median(sample, count);
}

static void time_operator(const dsv4_path *path, dsv4_numerics numerics, const wish *w,
                          dsv4_operator_time *time)
{
    dsv4_case c = {.op = w->model->op, .name = "bench", .numerics = numerics};
    dsv4_error err = {""};
    double bytes = add_inputs(w, NULL), room = dsv4_memory_available() / 2;
    if (bytes > room) {
        snprintf(time->untimed, sizeof time->untimed, "needs %.1f GB, more than half of what is free",
                 bytes / 1e9);
        return;
    }
    set_params(w, &c);
    add_inputs(w, &c);
    describe(&c, time->sizes, sizeof time->sizes);
    if (dsv4_case_check_inputs(&c, &err) == 0)
        time->seconds = time_answer(path, &c, &err);
    if (err.text[0] == '\0' && path != dsv4_path_find("ref"))
        time->ref_seconds = time_answer(dsv4_path_find("ref"), &c, &err);
    if (err.text[0] != '\0')
        snprintf(time->untimed, sizeof time->untimed, "%.*s", (int)sizeof time->untimed - 1,
                 err.text);
    dsv4_case_free(&c);
}

/* ---- golden cases ---- */

static int read_cases(const char *vectors, const dsv4_operator *op, dsv4_numerics numerics,
                      dsv4_case_file *file, dsv4_error *err)
{
    size_t size = strlen(vectors) + 2 * DSV4_NAME;
    char *path = dsv4_alloc(size, 1);
    snprintf(path, size, "%s/%s_%s.h5", vectors, op->name,
             numerics == DSV4_EXACT ? "exact" : "released");
    *file = (dsv4_case_file){0};
    int result = access(path, F_OK) != 0 ? 1 : dsv4_case_file_read(file, path, err);
    free(path);
    return result;
}

static void judge(const dsv4_path *path, const dsv4_case_file *file, dsv4_operator_time *time)
{
    const dsv4_strictness strictness = {.tier = DSV4_TIER_FP32,
                                        .identical = path == dsv4_path_find("ref")};
    for (int64_t i = 0; i < file->count; i++) {
        const dsv4_case *c = &file->c[i];
        dsv4_case answer = {.op = c->op, .numerics = c->numerics};
        dsv4_verdict verdict = {.passed = false};
        dsv4_error err = {""};
        if (path->answer(NULL, c, &answer, &err) == 0)
            dsv4_judge_answer(c, c->out, c->outs, &answer, strictness, &verdict);
        if (!verdict.passed && time->failed++ == 0)
            snprintf(time->untimed, sizeof time->untimed, "golden case %s failed%s%.100s", c->name,
                     err.text[0] != '\0' ? ": " : "", err.text);
        time->cases++;
        dsv4_case_free(&answer);
    }
}

/* Of real size, if there is one; a case of a main compressor, not of an indexer's. */
static const dsv4_case *choose(const dsv4_case_file *file)
{
    const dsv4_case *best = NULL;
    for (int64_t i = 0; i < file->count; i++) {
        const dsv4_case *c = &file->c[i];
        if (dsv4_case_param(c, "index", 0) != 0)
            continue;
        if (strstr(c->flags, "real-size") != NULL)
            return c;
        best = best == NULL ? c : best;
    }
    return best;
}

/* By the cases of the contract; some operators are the same in both and have cases of one only. */
static int find_cases(const char *vectors, dsv4_numerics *numerics, dsv4_operator_time *time,
                      dsv4_case_file *file)
{
    dsv4_error err = {""};
    int status = read_cases(vectors, time->op, *numerics, file, &err);
    if (status == 1) {
        *numerics = *numerics == DSV4_EXACT ? DSV4_RELEASED : DSV4_EXACT;
        status = read_cases(vectors, time->op, *numerics, file, &err);
    }
    if (status != 0)
        snprintf(time->untimed, sizeof time->untimed, "%.*s", (int)sizeof time->untimed - 1,
                 status == 1 ? "no golden cases" : err.text);
    return status;
}

/* The scan of a long context: one row over many keys. */
static void bench_scan(const dsv4_path *path, dsv4_numerics numerics, const wish *w,
                       const dsv4_operator_time *short_one,
                       void (*show)(void *context, const dsv4_operator_time *time), void *context)
{
    const dsv4_config *c = w->config;
    wish scan = {w->config, w->model, 1, DSV4_SCANNED_KEYS};
    dsv4_operator_time time = {.op = short_one->op, .numerics = numerics, .keys = scan.entries,
                               .cases = short_one->cases, .failed = short_one->failed};
    time.flops = 2.0 * (double)c->index_n_heads * (double)(c->index_head_dim + 1) *
                 (double)scan.entries;
    if (time.failed > 0)
        memcpy(time.untimed, short_one->untimed, sizeof time.untimed);
    else
        time_operator(path, numerics, &scan, &time);
    show(context, &time);
}

static int64_t bench_operator(const dsv4_path *path, dsv4_numerics numerics,
                              const dsv4_config *config, const char *vectors,
                              const dsv4_operator *op,
                              void (*show)(void *context, const dsv4_operator_time *time),
                              void *context)
{
    dsv4_case_file file, formats;
    dsv4_error err = {""};
    dsv4_operator_time time = {.op = op};
    if (find_cases(vectors, &numerics, &time, &file) != 0) {
        time.numerics = numerics;
        show(context, &time);
        dsv4_case_file_free(&file);
        return 0;
    }
    time.numerics = numerics;
    judge(path, &file, &time);
    /* Released cases store what a released checkpoint stores. */
    if (read_cases(vectors, op, DSV4_RELEASED, &formats, &err) != 0)
        formats = (dsv4_case_file){0};
    const wish w = {config, choose(formats.count > 0 ? &formats : &file), ROWS, ENTRIES};
    if (time.failed == 0 && (w.model == NULL || w.model->checkpoint[0] != '\0'))
        snprintf(time.untimed, sizeof time.untimed, "a whole model: see the runs");
    else if (time.failed == 0)
        time_operator(path, numerics, &w, &time);
    show(context, &time);
    if (strcmp(op->name, "indexer_score") == 0)
        bench_scan(path, numerics, &w, &time, show, context);
    dsv4_case_file_free(&formats);
    dsv4_case_file_free(&file);
    return time.cases;
}

int dsv4_bench_operators(const dsv4_path *path, dsv4_numerics numerics, const dsv4_config *config,
                         const char *vectors,
                         void (*show)(void *context, const dsv4_operator_time *time),
                         void *context, dsv4_error *err)
{
    int64_t cases = 0;
    for (int i = 0; i < dsv4_operator_count; i++)
        cases += bench_operator(path, numerics, config, vectors, &dsv4_operators[i], show, context);
    return cases > 0 ? 0 : dsv4_fail(err, "%s: no vector file could be read", vectors);
}
