/* Vector files, vectors/FORMAT.md: cases in HDF5. What is read is checked before it is believed. */
#include "cases.h"
#include "h5.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char format_name[] = "dsv4-vectors-1";
static const char readme[] =
    "Golden vectors of dsv4. /OPERATOR/CASE/in/SLOT is what goes in, /OPERATOR/CASE/out/SLOT what "
    "must come out. Attribute `format` says what the bytes of a slot mean; a dataset with the "
    "attribute `recipe` is to be computed; the other attributes of a case are its parameters. See "
    "vectors/FORMAT.md.";

/* "OPERATOR/CASE/out/SLOT", each at most DSV4_NAME. */
enum { PLACE_SIZE = 4 * DSV4_NAME, SHA256_TEXT = 65, MAX_CASE_ARRAYS = 4096 };

static const int64_t max_recipe_bytes = (int64_t)1 << 30; /* of a whole file */

static const char *const numerics_names[] = {[DSV4_EXACT] = "exact", [DSV4_RELEASED] = "released"};

static const dsv4_h5_type stored_types[DSV4_FORMATS] = {
    [DSV4_FORMAT_F64] = DSV4_H5_F64,  [DSV4_FORMAT_F32] = DSV4_H5_F32,
    [DSV4_FORMAT_BF16] = DSV4_H5_F32, [DSV4_FORMAT_E4M3] = DSV4_H5_U8,
    [DSV4_FORMAT_E2M1] = DSV4_H5_U8,  [DSV4_FORMAT_E8M0] = DSV4_H5_U8,
    [DSV4_FORMAT_I64] = DSV4_H5_I64,
};

static const char *const tier_names[DSV4_TIERS] = {
    [DSV4_TIER_FP32] = "tolerance_fp32", [DSV4_TIER_BF16] = "tolerance_bf16",
};

/* Of the bytes as the file would store them: little-endian, as memory is on all machines that this
 * runs on. */
static int sha256(const dsv4_array *array, char text[SHA256_TEXT])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    size_t size = (size_t)(array->count * dsv4_format_size(array->format));
    if (EVP_Digest(array->data, size, digest, &length, EVP_sha256(), NULL) != 1 || length != 32)
        return -1;
    for (unsigned i = 0; i < length; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    return 0;
}

/* ---- writing ---- */

static int write_recipe(dsv4_h5 *file, const char *place, const dsv4_array *array, dsv4_error *err)
{
    dsv4_array again = *array;
    again.data = dsv4_alloc((size_t)array->count, (size_t)dsv4_format_size(array->format));
    dsv4_recipe_fill(&again);
    bool same = memcmp(again.data, array->data,
                       (size_t)(array->count * dsv4_format_size(array->format))) == 0;
    free(again.data);
    if (!same)
        return dsv4_fail(err, "%s: expected the values of its recipe, got others", place);
    char digest[SHA256_TEXT];
    if (sha256(array, digest) != 0)
        return dsv4_fail(err, "%s: libcrypto could not compute SHA-256", place);
    const int64_t nothing[] = {0};
    if (dsv4_h5_put(file, place, stored_types[array->format], 1, nothing, NULL, err) != 0 ||
        dsv4_h5_put_text(file, place, "recipe", array->recipe, err) != 0 ||
        dsv4_h5_put_numbers(file, place, "recipe_seed", DSV4_H5_U64, DSV4_H5_SCALAR,
                            &array->recipe_seed, err) != 0 ||
        dsv4_h5_put_numbers(file, place, "shape", DSV4_H5_I64, array->rank, array->shape, err) != 0)
        return -1;
    return dsv4_h5_put_text(file, place, "sha256", digest, err);
}

static int write_array(dsv4_h5 *file, const dsv4_case *c, const char *group,
                       const dsv4_array *array, const dsv4_tolerance *tolerance, dsv4_error *err)
{
    char place[PLACE_SIZE];
    snprintf(place, sizeof place, "%s/%s/%s/%s", c->op->name, c->name, group, array->name);
    int status = array->recipe[0] != '\0'
                     ? write_recipe(file, place, array, err)
                     : dsv4_h5_put(file, place, stored_types[array->format], array->rank,
                                   array->shape, array->data, err);
    if (status == 0)
        status = dsv4_h5_put_text(file, place, "format", dsv4_format_name(array->format), err);
    for (int tier = 0; status == 0 && tolerance != NULL && tier < DSV4_TIERS; tier++) {
        const double numbers[] = {tolerance[tier].row, tolerance[tier].element,
                                  tolerance[tier].rms};
        status = dsv4_h5_put_numbers(file, place, tier_names[tier], DSV4_H5_F64, 3, numbers, err);
    }
    return status;
}

static int compare_arrays(const void *a, const void *b)
{
    return strcmp((*(const dsv4_array *const *)a)->name, (*(const dsv4_array *const *)b)->name);
}

/* In the order of the names, whatever the order in memory. */
static int write_arrays(dsv4_h5 *file, const dsv4_case *c, const char *group,
                        const dsv4_array *arrays, int count,
                        dsv4_tolerance (*tolerance)[DSV4_TIERS], dsv4_error *err)
{
    const dsv4_array **sorted = dsv4_alloc((size_t)count, sizeof *sorted);
    for (int i = 0; i < count; i++)
        sorted[i] = &arrays[i];
    qsort(sorted, (size_t)count, sizeof *sorted, compare_arrays);
    int status = 0;
    for (int i = 0; status == 0 && i < count; i++)
        status = write_array(file, c, group, sorted[i],
                             tolerance != NULL ? tolerance[sorted[i] - arrays] : NULL, err);
    free(sorted);
    return status;
}

/* Parameters in the order of the operator's table. */
static int write_params(dsv4_h5 *file, const dsv4_case *c, const char *place, dsv4_error *err)
{
    const char *at = c->op->params;
    while (*(at += strspn(at, " ")) != '\0') {
        char name[DSV4_NAME];
        size_t length = strcspn(at, " ");
        snprintf(name, sizeof name, "%.*s", (int)length, at);
        at += length;
        for (int i = 0; i < c->params; i++)
            if (strcmp(c->param[i].name, name) == 0 &&
                dsv4_h5_put_numbers(file, place, name, DSV4_H5_F64, DSV4_H5_SCALAR,
                                    &c->param[i].value, err) != 0)
                return -1;
    }
    return 0;
}

static int write_case(dsv4_h5 *file, const dsv4_case *c, dsv4_error *err)
{
    char place[PLACE_SIZE], inputs[PLACE_SIZE + 8];
    snprintf(place, sizeof place, "%s/%s", c->op->name, c->name);
    snprintf(inputs, sizeof inputs, "%s/in", place);
    if (dsv4_h5_make_group(file, inputs, err) != 0 ||
        dsv4_h5_put_text(file, place, "numerics", numerics_names[c->numerics], err) != 0 ||
        dsv4_h5_put_text(file, place, "reason", c->reason, err) != 0 ||
        dsv4_h5_put_text(file, place, "flags", c->flags, err) != 0 ||
        (c->checkpoint[0] != '\0' &&
         dsv4_h5_put_text(file, place, "checkpoint", c->checkpoint, err) != 0) ||
        write_params(file, c, place, err) != 0 ||
        write_arrays(file, c, "in", c->in, c->ins, NULL, err) != 0)
        return -1;
    return write_arrays(file, c, "out", c->out, c->outs, c->tolerance, err);
}

static int compare_cases(const void *a, const void *b)
{
    return strcmp((*(const dsv4_case *const *)a)->name, (*(const dsv4_case *const *)b)->name);
}

/* What every case of a file has in common, and what a reader would refuse. */
static int check_cases(const char *path, const dsv4_case *const *sorted, int64_t count,
                       dsv4_error *err)
{
    if (count < 1)
        return dsv4_fail(err, "%s: expected at least one case, got none", path);
    for (int64_t i = 0; i < count; i++) {
        const dsv4_case *c = sorted[i];
        if (dsv4_case_check(c, err) != 0)
            return -1;
        if (c->tolerance == NULL)
            return dsv4_fail(err, "%s/%s: expected tolerances, got none", c->op->name, c->name);
        if (c->op != sorted[0]->op || c->numerics != sorted[0]->numerics)
            return dsv4_fail(err, "%s/%s: expected a case of %s in %s numerics, as %s is",
                             c->op->name, c->name, sorted[0]->op->name,
                             numerics_names[sorted[0]->numerics], sorted[0]->name);
        if (i > 0 && strcmp(c->name, sorted[i - 1]->name) == 0)
            return dsv4_fail(err, "%s/%s: expected one case of that name, got two", c->op->name,
                             c->name);
    }
    return 0;
}

static int write_all(dsv4_h5 *file, const dsv4_case *const *sorted, int64_t count, dsv4_error *err)
{
    if (dsv4_h5_put_text(file, "", "format", format_name, err) != 0 ||
        dsv4_h5_put_text(file, "", "operator", sorted[0]->op->name, err) != 0 ||
        dsv4_h5_put_text(file, "", "numerics", numerics_names[sorted[0]->numerics], err) != 0 ||
        dsv4_h5_put_text(file, "", "licence", "MIT", err) != 0 ||
        dsv4_h5_put_text(file, "", "readme", readme, err) != 0)
        return -1;
    for (int64_t i = 0; i < count; i++)
        if (write_case(file, sorted[i], err) != 0)
            return -1;
    return 0;
}

int dsv4_case_file_write(const char *path, const dsv4_case *cases, int64_t count, dsv4_error *err)
{
    const dsv4_case **sorted = dsv4_alloc((size_t)count, sizeof *sorted);
    for (int64_t i = 0; i < count; i++)
        sorted[i] = &cases[i];
    qsort(sorted, (size_t)count, sizeof *sorted, compare_cases);
    int status = check_cases(path, sorted, count, err);
    dsv4_h5 *file = status == 0 ? dsv4_h5_create(path, err) : NULL;
    if (file != NULL && (status = write_all(file, sorted, count, err)) == 0)
        status = dsv4_h5_close(file, err);
    else
        dsv4_h5_abandon(file);
    free(sorted);
    return file != NULL ? status : -1;
}

int dsv4_case_write_answer(struct dsv4_h5 *file, const dsv4_case *c, const dsv4_array *out,
                           int outs, dsv4_error *err)
{
    return write_arrays(file, c, "out", out, outs, NULL, err);
}

/* ---- reading ---- */

typedef struct {
    dsv4_h5 *file;
    const char *path;
    const dsv4_operator *op;
    dsv4_numerics numerics;
    int64_t stored_left; /* datasets may claim any size: together not more than the file has */
    int64_t recipe_left;
    dsv4_error *err;
} reader;

/* The attribute's text is one of `names`: its index, or -1. */
static int read_choice(const reader *r, const char *place, const char *attribute,
                       const char *const *names, int count)
{
    char text[DSV4_NAME], all[128] = "";
    if (dsv4_h5_get_text(r->file, place, attribute, text, sizeof text, r->err) != 0)
        return -1;
    for (int i = 0; i < count; i++) {
        if (strcmp(names[i], text) == 0)
            return i;
        size_t used = strlen(all);
        snprintf(all + used, sizeof all - used, "%s%s", i > 0 ? ", " : "", names[i]);
    }
    return dsv4_fail(r->err, "%s: %s: attribute %s: expected %s, got '%s'", r->path,
                     place[0] != '\0' ? place : "/", attribute, all, text);
}

static int read_format(const reader *r, const char *place, dsv4_format *format)
{
    const char *names[DSV4_FORMATS];
    for (int i = 0; i < DSV4_FORMATS; i++)
        names[i] = dsv4_format_name((dsv4_format)i);
    int choice = read_choice(r, place, "format", names, DSV4_FORMATS);
    *format = choice >= 0 ? (dsv4_format)choice : DSV4_FORMAT_F64;
    return choice >= 0 ? 0 : -1;
}

static int take_bytes(const reader *r, const char *place, const char *what, int64_t count,
                      int64_t size, int64_t *left)
{
    if (count > *left / size)
        return dsv4_fail(r->err, "%s: %s: expected at most %" PRId64 " bytes (%s), got %" PRId64 " "
                         "elements of %" PRId64, r->path, place, *left, what, count, size);
    *left -= count * size;
    return 0;
}

/* The product of a shape, or -1 where a dimension is negative or it is too large for an array. */
static int64_t shape_count(int rank, const int64_t *shape)
{
    int64_t count = 1;
    for (int i = 0; i < rank; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(count, shape[i], &count))
            return -1;
    return count <= INT64_MAX / 8 ? count : -1;
}

/* An array of a recipe: the dataset is empty, its attributes tell the rest. */
typedef struct {
    char name[32], digest[SHA256_TEXT];
    uint64_t seed;
    int rank;
    int64_t shape[DSV4_ARRAY_RANK];
} recipe;

static int read_recipe(reader *r, const char *place, const dsv4_h5_info *info, dsv4_format format,
                       recipe *made)
{
    if (dsv4_h5_get_text(r->file, place, "recipe", made->name, sizeof made->name, r->err) != 0 ||
        dsv4_h5_get_text(r->file, place, "sha256", made->digest, sizeof made->digest, r->err) != 0)
        return -1;
    if (strcmp(made->name, "splitmix64") != 0 || format == DSV4_FORMAT_F64 ||
        format == DSV4_FORMAT_I64)
        return dsv4_fail(r->err, "%s: %s: expected recipe splitmix64 of f32, bf16, e4m3, e2m1 or "
                         "e8m0, got '%s' of %s", r->path, place, made->name,
                         dsv4_format_name(format));
    if (info->rank != 1 || info->count != 0)
        return dsv4_fail(r->err, "%s: %s: expected shape [0] of a dataset with a recipe", r->path,
                         place);
    int64_t seeds = dsv4_h5_get_numbers(r->file, place, "recipe_seed", DSV4_H5_U64, 1, &made->seed,
                                        r->err);
    if (seeds < 0)
        return -1;
    if (seeds != 1)
        return dsv4_fail(r->err, "%s: %s: attribute recipe_seed: expected one number", r->path,
                         place);
    int64_t rank = dsv4_h5_get_numbers(r->file, place, "shape", DSV4_H5_I64, DSV4_ARRAY_RANK,
                                       made->shape, r->err);
    if (rank < 0)
        return -1;
    made->rank = (int)rank;
    int64_t count = shape_count(made->rank, made->shape);
    if (count < 0)
        return dsv4_fail(r->err, "%s: %s: attribute shape: expected sizes of an array", r->path,
                         place);
    return take_bytes(r, place, "all recipes", count, dsv4_format_size(format), &r->recipe_left);
}

static int fill_recipe(const reader *r, const char *place, const recipe *made, dsv4_array *array)
{
    strcpy(array->recipe, made->name);
    array->recipe_seed = made->seed;
    dsv4_recipe_fill(array);
    char digest[SHA256_TEXT];
    if (sha256(array, digest) != 0)
        return dsv4_fail(r->err, "%s: %s: libcrypto could not compute SHA-256", r->path, place);
    if (strcmp(digest, made->digest) != 0)
        return dsv4_fail(r->err, "%s: %s: expected sha256 %s, got %s from the recipe", r->path,
                         place, made->digest, digest);
    return 0;
}

typedef dsv4_array *adder(dsv4_case *, const char *, dsv4_format, int, const int64_t *);

static int read_array(reader *r, dsv4_case *c, const char *place, const char *name, adder *add)
{
    dsv4_format format;
    dsv4_h5_info info;
    if (read_format(r, place, &format) != 0 ||
        dsv4_h5_describe(r->file, place, &info, r->err) != 0)
        return -1;
    if (info.type != stored_types[format])
        return dsv4_fail(r->err, "%s: %s: expected %s, as %s is stored, got %s", r->path, place,
                         dsv4_h5_type_name(stored_types[format]), dsv4_format_name(format),
                         dsv4_h5_type_name(info.type));
    if (info.rank > DSV4_ARRAY_RANK)
        return dsv4_fail(r->err, "%s: %s: expected at most %d dimensions, got %d", r->path, place,
                         DSV4_ARRAY_RANK, info.rank);
    if (!info.plain)
        return dsv4_fail(r->err, "%s: %s: expected plain storage, got chunks, filters or another "
                         "file", r->path, place);
    if (dsv4_h5_has_attribute(r->file, place, "recipe")) {
        recipe made = {.rank = 0};
        if (read_recipe(r, place, &info, format, &made) != 0)
            return -1;
        return fill_recipe(r, place, &made, add(c, name, format, made.rank, made.shape));
    }
    if (take_bytes(r, place, "what is left of the file", info.count, dsv4_format_size(format),
                   &r->stored_left) != 0)
        return -1;
    dsv4_array *array = add(c, name, format, info.rank, info.shape);
    return dsv4_h5_get(r->file, place, info.type, info.count, array->data, r->err);
}

/* The only group or dataset of the name, of a name that fits. */
static int check_child(const reader *r, const char *place, const dsv4_h5_child *child, bool group,
                       const dsv4_h5_child *before)
{
    const char *slash = place[0] != '\0' ? place : "/";
    if (strlen(child->name) >= DSV4_NAME)
        return dsv4_fail(r->err, "%s: %s: expected names of less than %d bytes, got %s", r->path,
                         slash, DSV4_NAME, child->name);
    if (child->group != group)
        return dsv4_fail(r->err, "%s: %s: expected %s, got %s %s", r->path, slash,
                         group ? "only groups" : "only datasets", group ? "dataset" : "group",
                         child->name);
    if (before != NULL && strcmp(before->name, child->name) == 0)
        return dsv4_fail(r->err, "%s: %s: expected every name once, got %s twice", r->path, slash,
                         child->name);
    return 0;
}

static int read_arrays(reader *r, dsv4_case *c, const char *group, adder *add)
{
    char place[PLACE_SIZE], inner[2 * PLACE_SIZE];
    dsv4_h5_child *children;
    int64_t count;
    snprintf(place, sizeof place, "/%s/%s/%s", r->op->name, c->name, group);
    if (dsv4_h5_children(r->file, place, &children, &count, r->err) != 0)
        return -1;
    int status = 0;
    if (count > MAX_CASE_ARRAYS)
        status = dsv4_fail(r->err, "%s: %s: expected at most %d arrays, got %" PRId64, r->path,
                           place, MAX_CASE_ARRAYS, count);
    for (int64_t i = 0; status == 0 && i < count; i++) {
        status = check_child(r, place, &children[i], false, i > 0 ? &children[i - 1] : NULL);
        snprintf(inner, sizeof inner, "%s/%s", place, children[i].name);
        if (status == 0)
            status = read_array(r, c, inner, children[i].name, add);
    }
    dsv4_h5_children_free(children, count);
    return status;
}

static int read_tolerances(const reader *r, dsv4_case *c)
{
    c->tolerance = dsv4_alloc((size_t)c->outs, sizeof *c->tolerance);
    for (int i = 0; i < c->outs; i++)
        for (int tier = 0; tier < DSV4_TIERS; tier++) {
            char place[PLACE_SIZE];
            double numbers[3];
            snprintf(place, sizeof place, "/%s/%s/out/%s", r->op->name, c->name, c->out[i].name);
            int64_t count = dsv4_h5_get_numbers(r->file, place, tier_names[tier], DSV4_H5_F64, 3,
                                                numbers, r->err);
            if (count < 0)
                return -1;
            if (count != 3)
                return dsv4_fail(r->err, "%s: %s: attribute %s: expected 3 numbers, got %" PRId64,
                                 r->path, place, tier_names[tier], count);
            c->tolerance[i][tier] = (dsv4_tolerance){numbers[0], numbers[1], numbers[2]};
        }
    return 0;
}

static int read_param(const reader *r, dsv4_case *c, const char *place, const char *name)
{
    double value;
    if (strlen(name) >= DSV4_NAME || c->params == DSV4_MAX_PARAMS)
        return dsv4_fail(r->err, "%s: %s: expected at most %d parameters of less than %d bytes, "
                         "got attribute %s", r->path, place, DSV4_MAX_PARAMS, DSV4_NAME, name);
    int64_t count = dsv4_h5_get_numbers(r->file, place, name, DSV4_H5_F64, 1, &value, r->err);
    if (count < 0)
        return -1;
    if (count != 1)
        return dsv4_fail(r->err, "%s: %s: attribute %s: expected one number", r->path, place, name);
    dsv4_case_set(c, name, value);
    return 0;
}

/* Attributes that are no texts of a case are its parameters. */
static int read_attributes(const reader *r, dsv4_case *c, const char *place)
{
    const struct { const char *name; char *text; size_t size; bool needed; } texts[] = {
        {"reason", c->reason, sizeof c->reason, true},
        {"flags", c->flags, sizeof c->flags, true},
        {"checkpoint", c->checkpoint, sizeof c->checkpoint, false},
    };
    enum { TEXTS = sizeof texts / sizeof *texts };
    int numerics = read_choice(r, place, "numerics", &numerics_names[r->numerics], 1);
    if (numerics < 0)
        return -1;
    c->numerics = r->numerics;
    for (int i = 0; i < TEXTS; i++)
        if ((texts[i].needed || dsv4_h5_has_attribute(r->file, place, texts[i].name)) &&
            dsv4_h5_get_text(r->file, place, texts[i].name, texts[i].text, texts[i].size,
                             r->err) != 0)
            return -1;

    int64_t count;
    char **names = dsv4_h5_attributes(r->file, place, &count, r->err);
    int status = names != NULL ? 0 : -1;
    for (int64_t i = 0; status == 0 && i < count; i++) {
        bool text = strcmp(names[i], "numerics") == 0;
        for (int j = 0; j < TEXTS; j++)
            text = text || strcmp(names[i], texts[j].name) == 0;
        if (!text)
            status = read_param(r, c, place, names[i]);
    }
    dsv4_h5_names_free(names, count);
    return status;
}

/* Groups `in` and `out`, and no other. */
static int check_parts(const reader *r, const char *place)
{
    dsv4_h5_child *children;
    int64_t count;
    if (dsv4_h5_children(r->file, place, &children, &count, r->err) != 0)
        return -1;
    int status = 0;
    if (count != 2 || strcmp(children[0].name, "in") != 0 || !children[0].group ||
        strcmp(children[1].name, "out") != 0 || !children[1].group)
        status = dsv4_fail(r->err, "%s: %s: expected the groups in and out, got %" PRId64 " groups "
                           "or datasets%s%s", r->path, place, count,
                           count > 0 ? ", the first " : "", count > 0 ? children[0].name : "");
    dsv4_h5_children_free(children, count);
    return status;
}

static int read_case(reader *r, dsv4_case *c, const char *directory)
{
    char place[PLACE_SIZE];
    snprintf(place, sizeof place, "/%s/%s", r->op->name, c->name);
    strcpy(c->directory, directory);
    if (check_parts(r, place) != 0 || read_attributes(r, c, place) != 0 ||
        read_arrays(r, c, "in", dsv4_case_add_in) != 0 ||
        read_arrays(r, c, "out", dsv4_case_add_out) != 0 || read_tolerances(r, c) != 0)
        return -1;
    dsv4_error wrong = {""};
    if (dsv4_case_check(c, &wrong) != 0)
        return dsv4_fail(r->err, "%s: /%s", r->path, wrong.text);
    return 0;
}

static int read_cases(reader *r, dsv4_case_file *result, const dsv4_h5_child *children,
                      int64_t count, const char *directory)
{
    char place[DSV4_NAME + 1];
    snprintf(place, sizeof place, "/%s", r->op->name);
    if (count < 1)
        return dsv4_fail(r->err, "%s: %s: expected at least one case, got none", r->path, place);
    result->c = dsv4_alloc((size_t)count, sizeof *result->c);
    for (int64_t i = 0; i < count; i++) {
        if (check_child(r, place, &children[i], true, i > 0 ? &children[i - 1] : NULL) != 0)
            return -1;
        dsv4_case *c = &result->c[i];
        c->op = r->op;
        strcpy(c->name, children[i].name);
        result->count++;
        if (read_case(r, c, directory) != 0)
            return -1;
    }
    return 0;
}

/* The root: which operator, which contract, and nothing beside. */
static int read_root(reader *r)
{
    char text[DSV4_NAME];
    const char *const formats[] = {format_name};
    if (read_choice(r, "", "format", formats, 1) < 0 ||
        dsv4_h5_get_text(r->file, "", "operator", text, sizeof text, r->err) != 0)
        return -1;
    r->op = dsv4_operator_find(text);
    if (r->op == NULL)
        return dsv4_fail(r->err, "%s: /: attribute operator: expected an operator's name, got '%s'",
                         r->path, text);
    int numerics = read_choice(r, "", "numerics", numerics_names, 2);
    if (numerics < 0)
        return -1;
    r->numerics = (dsv4_numerics)numerics;

    dsv4_h5_child *children;
    int64_t count;
    if (dsv4_h5_children(r->file, "", &children, &count, r->err) != 0)
        return -1;
    int status = 0;
    if (count != 1 || !children[0].group || strcmp(children[0].name, r->op->name) != 0)
        status = dsv4_fail(r->err, "%s: /: expected only the group %s, got %" PRId64 " groups or "
                           "datasets%s%s", r->path, r->op->name, count,
                           count > 0 ? ", the first " : "", count > 0 ? children[0].name : "");
    dsv4_h5_children_free(children, count);
    return status;
}

static int read_file(reader *r, dsv4_case_file *result)
{
    char directory[sizeof result->c->directory], place[DSV4_NAME + 1];
    const char *slash = strrchr(r->path, '/');
    size_t length = slash == NULL ? 0 : slash == r->path ? 1 : (size_t)(slash - r->path);
    if (length >= sizeof directory)
        return dsv4_fail(r->err, "%s: the name of the directory is too long", r->path);
    snprintf(directory, sizeof directory, "%.*s", length > 0 ? (int)length : 1,
             length > 0 ? r->path : ".");
    if (read_root(r) != 0)
        return -1;
    dsv4_h5_child *children;
    int64_t count;
    snprintf(place, sizeof place, "/%s", r->op->name);
    if (dsv4_h5_children(r->file, place, &children, &count, r->err) != 0)
        return -1;
    int status = read_cases(r, result, children, count, directory);
    dsv4_h5_children_free(children, count);
    return status;
}

int dsv4_case_file_read(dsv4_case_file *file, const char *path, dsv4_error *err)
{
    memset(file, 0, sizeof *file);
    struct stat status;
    dsv4_h5 *opened = dsv4_h5_open(path, err);
    if (opened == NULL)
        return -1;
    reader r = {.file = opened, .path = path, .recipe_left = max_recipe_bytes, .err = err};
    r.stored_left = stat(path, &status) == 0 ? (int64_t)status.st_size : 0;
    file->path = dsv4_alloc(strlen(path) + 1, 1);
    strcpy(file->path, path);
    int result = read_file(&r, file);
    dsv4_h5_abandon(opened);
    if (result != 0)
        dsv4_case_file_free(file);
    return result;
}

void dsv4_case_file_free(dsv4_case_file *file)
{
    for (int64_t i = 0; i < file->count; i++)
        dsv4_case_free(&file->c[i]);
    free(file->c);
    free(file->path);
    memset(file, 0, sizeof *file);
}
