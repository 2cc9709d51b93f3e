#include "make_checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "host/model.h"

/* A tensor as it will lie in a file. */
typedef struct {
    char *name;
    dsv4_dtype dtype;
    int rank;
    int64_t shape[2];
    int64_t bytes;
    unsigned char *data;
} stored;

typedef struct {
    const make_options *options;
    const dsv4_config *config;
    stored *tensors;
    int64_t count, room;
    int64_t turn; /* of the mixed style */
} maker;

static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Number `i` of the splitmix64 sequence that starts at `key`. */
static uint64_t random_bits(uint64_t key, uint64_t i)
{
    return mix(key + (i + 1) * 0x9e3779b97f4a7c15u);
}

static uint64_t key_of(uint64_t seed, const char *name)
{
    uint64_t key = mix(seed + 1);
    for (; *name != '\0'; name++)
        key = mix(key ^ (unsigned char)*name);
    return key;
}

/* Mean 0, variance 1, within 3.5: the sum of four uniform numbers, so that no library's log or cos
 * decides the last bit. */
static double random_normal(uint64_t key, int64_t i)
{
    uint64_t a = random_bits(key, 2 * (uint64_t)i), b = random_bits(key, 2 * (uint64_t)i + 1);
    uint64_t sum = (a >> 32) + (a & 0xffffffffu) + (b >> 32) + (b & 0xffffffffu);
    return ((double)sum - 2 * 4294967295.0) / 4294967296.0 * 1.7320508075688772;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), end_length = strlen(end);
    return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* Values are offset + gain x normal. */
typedef struct {
    uint64_t key;
    double offset, gain;
} recipe;

static recipe recipe_of(const make_options *options, const char *name, int64_t cols)
{
    static const struct {
        const char *end;
        double offset, gain;
    } special[] = {
        {"norm.weight", 1, 0.1}, {"_scale", 0.75, 0.07}, {"_base", 0, 0.2}, {".ape", 0, 0.3},
        {".attn_sink", 0, 0.3},  {".bias", 0, 0.1},      {"embed.weight", 0, 1},
    };
    recipe r = {key_of(options->seed, name), 0, 1 / sqrt((double)cols)};
    if (options->mild && (ends_with(name, "wo_b.weight") || ends_with(name, ".w2.weight")))
        r.gain /= 4;
    for (size_t i = 0; i < sizeof special / sizeof *special; i++)
        if (ends_with(name, special[i].end)) {
            r.offset = special[i].offset;
            r.gain = special[i].gain;
        }
    return r;
}

static double value(const recipe *r, int64_t i)
{
    return r->offset + r->gain * random_normal(r->key, i);
}

/* The small float formats: exponent and mantissa bits, and the code of the largest finite value. */
typedef struct { int exponent, mantissa, largest; } format;

static const format bf16 = {8, 7, 0x7f7f}, f16 = {5, 10, 0x7bff}, e4m3 = {4, 3, 0x7e},
                    e2m1 = {2, 1, 7};

static double decode(const format *f, int code)
{
    int exponent = code >> f->mantissa, fraction = code & ((1 << f->mantissa) - 1);
    int bias = (1 << (f->exponent - 1)) - 1;
    return exponent == 0 ? ldexp(fraction, 1 - bias - f->mantissa)
                         : ldexp((1 << f->mantissa) + fraction, exponent - bias - f->mantissa);
}

/* The code nearest to x, sign bit included; values grow with their codes. */
static unsigned encode(const format *f, double x)
{
    int low = 0, high = f->largest; /* value(low) <= |x| */
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (decode(f, middle) <= fabs(x))
            low = middle;
        else
            high = middle - 1;
    }
    if (low < f->largest && decode(f, low + 1) - fabs(x) < fabs(x) - decode(f, low))
        low++;
    return (unsigned)low | (x < 0 ? 1u << (f->exponent + f->mantissa) : 0);
}

static void put(unsigned char *bytes, uint64_t bits, int64_t size)
{
    for (int64_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)(bits >> (8 * i));
}

static stored *add(maker *m, const char *name, dsv4_dtype dtype, int rank, int64_t first,
                   int64_t second)
{
    if (m->count == m->room) {
        m->room = 2 * m->room + 64;
        stored *grown = dsv4_alloc((size_t)m->room, sizeof *grown);
        if (m->count > 0)
            memcpy(grown, m->tensors, (size_t)m->count * sizeof *grown);
        free(m->tensors);
        m->tensors = grown;
    }
    const char *scale = m->options->scale_inv && ends_with(name, ".scale") ? ".scale" : "";
    char *full = dsv4_alloc(strlen(name) + 32, 1);
    sprintf(full, "%s%.*s%s", m->options->model_prefix ? "model." : "",
            (int)(strlen(name) - strlen(scale)), name, *scale != '\0' ? ".weight_scale_inv" : "");
    stored *t = &m->tensors[m->count++];
    *t = (stored){.name = full, .dtype = dtype, .rank = rank, .shape = {first, second}};
    t->bytes = first * (rank == 2 ? second : 1) * dsv4_dtype_size(dtype);
    t->data = dsv4_alloc((size_t)t->bytes, 1);
    return t;
}

static void add_plain(maker *m, const dsv4_expected *e, dsv4_dtype dtype)
{
    recipe r = recipe_of(m->options, e->name, e->cols);
    stored *t = add(m, e->name, dtype, e->rank, e->rank == 2 ? e->rows : e->cols, e->cols);
    int64_t size = dsv4_dtype_size(dtype);
    for (int64_t i = 0; i < e->rows * e->cols; i++) {
        double x = value(&r, i);
        if (m->options->style == MAKE_BF16)
            x = copysign(decode(&bf16, (int)(encode(&bf16, x) & 0x7fff)), x);
        float single = (float)x;
        uint32_t bits;
        memcpy(&bits, &single, sizeof bits);
        if (dtype != DSV4_F32)
            bits = encode(dtype == DSV4_BF16 ? &bf16 : &f16, x);
        put(t->data + i * size, bits, size);
    }
}

/* FP8 in blocks of 128 x 128, FP4 in blocks of 1 x 32: the values of add_plain() rounded to the
 * format. Neighbouring blocks get different scales, so that a wrong one shows. */
static void add_quantised(maker *m, const dsv4_expected *e, bool fp4)
{
    const int64_t height = fp4 ? 1 : 128, width = fp4 ? 32 : 128;
    const int64_t across = (e->cols + width - 1) / width;
    recipe r = recipe_of(m->options, e->name, e->cols);
    int exponent;
    frexp(r.gain, &exponent);
    exponent -= fp4 ? 1 : 7; /* 3.5 gain is then at most 7 and 448: the largest codes are used */

    char *name = dsv4_alloc(strlen(e->name) + 1, 1);
    sprintf(name, "%.*s.scale", (int)(strlen(e->name) - strlen(".weight")), e->name);
    stored *weight = add(m, e->name, fp4 ? DSV4_I8 : DSV4_F8_E4M3, 2, e->rows,
                         fp4 ? e->cols / 2 : e->cols);
    unsigned char *codes = weight->data;
    stored *scale = add(m, name, DSV4_F8_E8M0, 2, (e->rows + height - 1) / height, across);
    for (int64_t i = 0; i < scale->bytes; i++) {
        int more = (int)(random_bits(~r.key, (uint64_t)i) & 1);
        scale->data[i] = (unsigned char)(127 + exponent + more);
    }
    for (int64_t i = 0; i < e->rows * e->cols; i++) {
        int power = scale->data[i / e->cols / height * across + i % e->cols / width] - 127;
        unsigned code = encode(fp4 ? &e2m1 : &e4m3, ldexp(value(&r, i), -power));
        if (fp4)
            codes[i / 2] |= (unsigned char)(code << (i % 2 * 4));
        else
            codes[i] = (unsigned char)code;
    }
    free(name);
}

/* tid2eid: k distinct experts in every row. */
static void add_experts(maker *m, const dsv4_expected *e)
{
    uint64_t key = key_of(m->options->seed, e->name), drawn = 0;
    uint64_t experts = (uint64_t)m->config->n_routed_experts;
    dsv4_dtype dtype = m->options->tid2eid_i32 ? DSV4_I32 : DSV4_I64;
    stored *t = add(m, e->name, dtype, 2, e->rows, e->cols);
    int64_t size = dsv4_dtype_size(dtype);
    for (int64_t i = 0; i < e->rows * e->cols; i++) {
        unsigned char *row = t->data + i / e->cols * e->cols * size;
        bool taken = true;
        while (taken) {
            put(t->data + i * size, random_bits(key, drawn++) % experts, size);
            taken = false;
            for (int64_t j = 0; j < i % e->cols; j++)
                taken = taken || memcmp(row + j * size, t->data + i * size, (size_t)size) == 0;
        }
    }
}

/* What the style makes of a tensor of the released layout. */
static dsv4_dtype choose_dtype(maker *m, const dsv4_expected *e)
{
    static const dsv4_dtype turns[] = {DSV4_F32, DSV4_BF16, DSV4_F16, DSV4_F8_E4M3, DSV4_I8};
    bool quantised = e->dtype == DSV4_F8_E4M3 || e->dtype == DSV4_I8;
    if (m->options->style == MAKE_RELEASED)
        return e->dtype;
    if (m->options->style == MAKE_EXACT)
        return DSV4_F32;
    if (m->options->style == MAKE_BF16)
        return quantised ? DSV4_BF16 : e->dtype;
    dsv4_dtype dtype = turns[m->turn++ % (quantised ? 5 : 3)];
    return dtype == DSV4_I8 && e->cols % 32 != 0 ? DSV4_F8_E4M3 : dtype;
}

static int add_expected(void *context, const dsv4_expected *e)
{
    maker *m = context;
    if (e->dtype == DSV4_F8_E8M0)
        return 0; /* add_quantised() makes the scales */
    if (e->dtype == DSV4_I64) {
        add_experts(m, e);
        return 0;
    }
    dsv4_dtype dtype = choose_dtype(m, e);
    if (dtype == DSV4_F8_E4M3 || dtype == DSV4_I8)
        add_quantised(m, e, dtype == DSV4_I8);
    else
        add_plain(m, e, dtype);
    return 0;
}

static FILE *create(const char *dir, const char *name, dsv4_error *err)
{
    char *path = dsv4_alloc(strlen(dir) + strlen(name) + 2, 1);
    sprintf(path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL)
        dsv4_fail(err, "%s: cannot create: %s", path, strerror(errno));
    free(path);
    return file;
}

static int finish(FILE *file, const char *dir, const char *name, dsv4_error *err)
{
    bool bad = ferror(file) != 0;
    return fclose(file) != 0 || bad ? dsv4_fail(err, "%s/%s: cannot write", dir, name) : 0;
}

static void print_header(FILE *out, const stored *tensors, int64_t count)
{
    int64_t offset = 0;
    for (int64_t i = 0; i < count; i++) {
        const stored *t = &tensors[i];
        fprintf(out, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%" PRId64, i > 0 ? "," : "{", t->name,
                dsv4_dtype_name(t->dtype), t->shape[0]);
        if (t->rank == 2)
            fprintf(out, ",%" PRId64, t->shape[1]);
        fprintf(out, "],\"data_offsets\":[%" PRId64 ",%" PRId64 "]}", offset, offset + t->bytes);
        offset += t->bytes;
    }
    fputc('}', out);
}

static int write_safetensors(const char *dir, const char *name, const stored *tensors,
                             int64_t count, dsv4_error *err)
{
    FILE *file = create(dir, name, err);
    if (file == NULL)
        return -1;
    char *header = NULL;
    size_t length = 0;
    FILE *memory = open_memstream(&header, &length);
    print_header(memory, tensors, count);
    fclose(memory);
    size_t padding = -length % 8; /* the payload begins at a multiple of 8 */
    unsigned char size[8];
    put(size, length + padding, sizeof size);
    fwrite(size, sizeof size, 1, file);
    fprintf(file, "%s%*s", header, (int)padding, "");
    free(header);
    for (int64_t i = 0; i < count; i++)
        fwrite(tensors[i].data, 1, (size_t)tensors[i].bytes, file);
    return finish(file, dir, name, err);
}

static int write_shards(const maker *m, const char *dir, int shards, dsv4_error *err)
{
    static const char index_name[] = "model.safetensors.index.json";
    if (shards > m->count)
        return dsv4_fail(err, "%s: %d shards for %" PRId64 " tensors", dir, shards, m->count);
    FILE *index = create(dir, index_name, err);
    if (index == NULL)
        return -1;
    int64_t total = 0;
    for (int64_t i = 0; i < m->count; i++)
        total += m->tensors[i].bytes;
    fprintf(index, "{\"metadata\":{\"total_size\":%" PRId64 "},\n\"weight_map\":{", total);
    int result = 0;
    for (int s = 0; s < shards && result == 0; s++) {
        int64_t first = m->count * s / shards, end = m->count * (s + 1) / shards;
        char name[64];
        snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", s + 1, shards);
        for (int64_t i = first; i < end; i++)
            fprintf(index, "%s\n\"%s\":\"%s\"", i > 0 ? "," : "", m->tensors[i].name, name);
        result = write_safetensors(dir, name, m->tensors + first, end - first, err);
    }
    fprintf(index, "}}\n");
    return finish(index, dir, index_name, err) != 0 ? -1 : result;
}

static int write_all(const maker *m, const char *dir, const char *config_json, dsv4_error *err)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return dsv4_fail(err, "%s: cannot create: %s", dir, strerror(errno));
    FILE *file = create(dir, "config.json", err);
    if (file == NULL)
        return -1;
    fputs(config_json, file);
    if (finish(file, dir, "config.json", err) != 0)
        return -1;
    if (m->options->shards > 1)
        return write_shards(m, dir, m->options->shards, err);
    return write_safetensors(dir, "model.safetensors", m->tensors, m->count, err);
}

int make_checkpoint(const char *dir, const char *config_json, const make_options *options,
                    dsv4_error *err)
{
    dsv4_config config;
    if (dsv4_config_parse(&config, config_json, strlen(config_json), "config.json", err) != 0)
        return -1;
    maker m = {.options = options, .config = &config};
    dsv4_model_each(&config, add_expected, &m);
    int result = write_all(&m, dir, config_json, err);
    for (int64_t i = 0; i < m.count; i++) {
        free(m.tensors[i].name);
        free(m.tensors[i].data);
    }
    free(m.tensors);
    dsv4_config_free(&config);
    return result;
}
