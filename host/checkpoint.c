#include "checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "json.h"

typedef struct {
    char *path;
    dsv4_file map;
} shard;

struct dsv4_checkpoint {
    shard *shards;
    size_t shard_count;
    dsv4_tensor *tensors;
    size_t count, capacity;
    json_t *index; /* canonical name -> position in tensors */
};

/* checkpoint.tensor.1: A dtype is one of the names of the table. Any other name is refused. */
static const struct {
    const char *name;
    int bits;
    dsv4_dtype dtype;
} dtypes[] = {
    {"F32", 32, DSV4_F32},          {"BF16", 16, DSV4_BF16},
    {"F16", 16, DSV4_F16},          {"F8_E4M3", 8, DSV4_F8_E4M3},
    {"F8_E8M0", 8, DSV4_F8_E8M0},   {"I8", 8, DSV4_I8},
    {"I32", 32, DSV4_I32},          {"I64", 64, DSV4_I64},
    {"BOOL", 8, DSV4_OTHER},        {"F4", 4, DSV4_OTHER},
    {"F6_E2M3", 6, DSV4_OTHER},     {"F6_E3M2", 6, DSV4_OTHER},
    {"U8", 8, DSV4_OTHER},          {"F8_E5M2", 8, DSV4_OTHER},
    {"F8_E4M3FNUZ", 8, DSV4_OTHER}, {"F8_E5M2FNUZ", 8, DSV4_OTHER},
    {"I16", 16, DSV4_OTHER},        {"U16", 16, DSV4_OTHER},
    {"U32", 32, DSV4_OTHER},        {"U64", 64, DSV4_OTHER},
    {"F64", 64, DSV4_OTHER},        {"C64", 64, DSV4_OTHER},
};

enum { DTYPE_NAMES = sizeof dtypes / sizeof *dtypes };

const char *dsv4_dtype_name(dsv4_dtype dtype)
{
    return dtype < DSV4_DTYPES ? dtypes[dtype].name : "other";
}

int64_t dsv4_dtype_size(dsv4_dtype dtype)
{
    return dtype < DSV4_DTYPES ? dtypes[dtype].bits / 8 : 0;
}

/* A file while its header is read. */
typedef struct {
    const char *path;
    json_t *header;
    const char *data; /* after the header */
    int64_t size;     /* of the data */
    dsv4_error *err;
} payload;

/* What model.safetensors.index.json lists, while the shards are read. */
typedef struct {
    json_t *weight_map; /* stored name -> file name of its shard */
    json_t *seen;       /* the stored names that were met so far */
} listing;

static int read_dtype(const payload *p, const char *name, const json_t *entry, int *bits,
                      dsv4_tensor *tensor)
{
    const json_t *dtype = json_object_get(entry, "dtype");
    if (!json_is_string(dtype))
        return dsv4_fail(p->err, "%s: tensor %s: dtype: expected a string", p->path, name);
    for (int i = 0; i < DTYPE_NAMES; i++)
        if (strcmp(json_string_value(dtype), dtypes[i].name) == 0) {
            tensor->dtype = dtypes[i].dtype;
            tensor->dtype_name = dtypes[i].name;
            *bits = dtypes[i].bits;
            return 0;
        }
    return dsv4_fail(p->err, "%s: tensor %s: dtype: %s is not known", p->path, name,
                     json_string_value(dtype));
}

/* checkpoint.tensor.2: shape is a list of at most 8 integers, none negative; the list of a scalar
 * is empty. The size of a tensor in bits, the product of shape and dtype, is below 2^63 and a
 * multiple of 8. */
static int read_shape(const payload *p, const char *name, const json_t *entry, int bits,
                      dsv4_tensor *tensor)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape))
        return dsv4_fail(p->err, "%s: tensor %s: shape: expected a list", p->path, name);
    size_t rank = json_array_size(shape);
    if (rank > DSV4_MAX_RANK)
        return dsv4_fail(p->err, "%s: tensor %s: shape: expected at most %d dimensions, got %zu",
                         p->path, name, DSV4_MAX_RANK, rank);
    int64_t size = bits;
    for (size_t i = 0; i < rank; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return dsv4_fail(p->err, "%s: tensor %s: shape: expected integers, none negative",
                             p->path, name);
        tensor->shape[i] = json_integer_value(dim);
        if (__builtin_mul_overflow(size, tensor->shape[i], &size))
            return dsv4_fail(p->err, "%s: tensor %s: shape: too large", p->path, name);
    }
    if (size % 8 != 0)
        return dsv4_fail(p->err, "%s: tensor %s: expected whole bytes, got %" PRId64 " bits",
                         p->path, name, size);
    tensor->rank = (int)rank;
    tensor->bytes = size / 8;
    return 0;
}

/* The size of the data that the header describes. */
static int64_t data_size(const payload *p)
{
    int64_t size = 0;
    const char *name;
    json_t *entry;
    json_object_foreach(p->header, name, entry) {
        const json_t *end = json_array_get(json_object_get(entry, "data_offsets"), 1);
        if (json_integer_value(end) > size)
            size = json_integer_value(end);
    }
    return size;
}

/* checkpoint.tensor.3: data_offsets is [begin, end], two integers with 0 <= begin <= end, counted
 * from the first byte after the header, and end - begin is the size of the tensor. */
static int read_offsets(const payload *p, const char *name, const json_t *entry,
                        dsv4_tensor *tensor)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *second = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return dsv4_fail(p->err, "%s: tensor %s: data_offsets: expected two integers", p->path,
                         name);
    int64_t begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || end < begin)
        return dsv4_fail(p->err, "%s: tensor %s: data_offsets: expected 0 <= begin <= end, got "
                         "[%" PRId64 ", %" PRId64 "]", p->path, name, begin, end);
    if (end - begin != tensor->bytes)
        return dsv4_fail(p->err, "%s: tensor %s: expected %" PRId64 " bytes by dtype and shape, "
                         "got %" PRId64 " by data_offsets", p->path, name, tensor->bytes,
                         end - begin);
    if (end > p->size)
        return dsv4_fail(p->err, "%s: truncated: tensor %s does not lie within the file: expected "
                         "%" PRId64 " bytes of data, got %" PRId64, p->path, name, data_size(p),
                         p->size);
    tensor->data = p->data + begin;
    return 0;
}

static int by_address(const void *left, const void *right)
{
    const dsv4_tensor *a = left, *b = right;
    if (a->data != b->data)
        return (const char *)a->data < (const char *)b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

/* checkpoint.tensor.4: The tensors of a file lie end to end, in any order, from the first byte
 * after the header to the last byte of the file: no overlap, no hole, nothing behind them. */
static int check_cover(const payload *p, dsv4_tensor *tensors, size_t n)
{
    qsort(tensors, n, sizeof *tensors, by_address);
    int64_t end = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t begin = (const char *)tensors[i].data - p->data;
        if (begin < end)
            return dsv4_fail(p->err, "%s: tensors %s and %s overlap", p->path, tensors[i - 1].name,
                             tensors[i].name);
        if (begin > end)
            return dsv4_fail(p->err, "%s: tensor %s: expected to begin at byte %" PRId64
                             " of the data, where the one before it ends, got %" PRId64, p->path,
                             tensors[i].name, end, begin);
        end += tensors[i].bytes;
    }
    if (end != p->size)
        return dsv4_fail(p->err, "%s: expected %" PRId64 " bytes of data, got %" PRId64, p->path,
                         end, p->size);
    return 0;
}

/* checkpoint.names.1: The canonical name of a tensor is its stored name without one leading model.
 * and with the ending .weight_scale_inv replaced by .scale. */
static char *canonical_name(const char *stored)
{
    static const char prefix[] = "model.", ending[] = ".weight_scale_inv";
    if (strncmp(stored, prefix, strlen(prefix)) == 0)
        stored += strlen(prefix);
    size_t length = strlen(stored);
    char *name = dsv4_alloc(length + 1, 1);
    memcpy(name, stored, length);
    if (length >= strlen(ending) && strcmp(stored + length - strlen(ending), ending) == 0)
        strcpy(name + length - strlen(ending), ".scale");
    return name;
}

/* checkpoint.names.2: No two tensors of a checkpoint have the same canonical name. */
static int index_names(dsv4_checkpoint *c, dsv4_error *err)
{
    for (size_t i = 0; i < c->count; i++) {
        const dsv4_tensor *tensor = &c->tensors[i];
        if (tensor->name[0] == '\0')
            return dsv4_fail(err, "%s: a tensor without a name", tensor->file);
        const dsv4_tensor *other = dsv4_checkpoint_find(c, tensor->name);
        if (other != NULL)
            return dsv4_fail(err, "%s: tensor %s: %s has the same one under another name",
                             tensor->file, tensor->name, other->file);
        json_object_set_new(c->index, tensor->name, json_integer((json_int_t)i));
    }
    return 0;
}

static dsv4_tensor *append_tensor(dsv4_checkpoint *c)
{
    if (c->count == c->capacity) {
        c->capacity *= 2;
        dsv4_tensor *tensors = dsv4_alloc(c->capacity, sizeof *tensors);
        memcpy(tensors, c->tensors, c->count * sizeof *tensors);
        free(c->tensors);
        c->tensors = tensors;
    }
    return &c->tensors[c->count++];
}

static int check_listed(const listing *list, const char *file, const payload *p, const char *name)
{
    const json_t *listed = json_object_get(list->weight_map, name);
    if (listed == NULL)
        return dsv4_fail(p->err, "%s: tensor %s is not in the weight_map of the index", p->path,
                         name);
    if (strcmp(json_string_value(listed), file) != 0)
        return dsv4_fail(p->err, "%s: tensor %s: the index says that it is in %s", p->path, name,
                         json_string_value(listed));
    json_object_set_new(list->seen, name, json_true());
    return 0;
}

static int check_all_seen(const listing *list, const char *index_path, dsv4_error *err)
{
    const char *name;
    json_t *file;
    json_object_foreach(list->weight_map, name, file)
        if (json_object_get(list->seen, name) == NULL)
            return dsv4_fail(err, "%s: tensor %s is not in %s", index_path, name,
                             json_string_value(file));
    return 0;
}

/* checkpoint.file.1: Every key of the header is the name of a tensor, no name occurs twice, and its
 * value is an object with dtype, shape and data_offsets. The one key for metadata is none: it is
 * ignored. */
static int read_entries(dsv4_checkpoint *c, const payload *p, const char *file,
                        const listing *list)
{
    size_t first = c->count;
    const char *name;
    json_t *entry;
    json_object_foreach(p->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        if (!json_is_object(entry))
            return dsv4_fail(p->err, "%s: tensor %s: expected an object", p->path, name);
        dsv4_tensor *tensor = append_tensor(c);
        tensor->name = canonical_name(name);
        tensor->file = p->path;
        int bits = 0;
        if (read_dtype(p, name, entry, &bits, tensor) != 0 ||
            read_shape(p, name, entry, bits, tensor) != 0 ||
            read_offsets(p, name, entry, tensor) != 0 ||
            (list != NULL && check_listed(list, file, p, name) != 0))
            return -1;
    }
    return check_cover(p, c->tensors + first, c->count - first);
}

enum { MAX_HEADER = 100000000 };

/* checkpoint.file.2: A safetensors file begins with the length of its header, an unsigned
 * little-endian number of 8 bytes that is at most 100000000 and lies within the file. The header is
 * one JSON object, spaces may follow it; the data comes after it. */
static int read_shard(dsv4_checkpoint *c, const shard *s, const char *file, const listing *list,
                      dsv4_error *err)
{
    if (s->map.size < 8)
        return dsv4_fail(err, "%s: expected a safetensors file, got only %zu bytes", s->path,
                         s->map.size);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | (unsigned char)s->map.data[i];
    if (length > MAX_HEADER)
        return dsv4_fail(err, "%s: expected a header of at most %d bytes, got %" PRIu64, s->path,
                         MAX_HEADER, length);
    if (length > s->map.size - 8)
        return dsv4_fail(err, "%s: truncated: expected a header of %" PRIu64
                         " bytes, got a file of %zu", s->path, length, s->map.size);
    char *where = dsv4_alloc(strlen(s->path) + sizeof ": header", 1);
    json_t *header = dsv4_json_parse(s->map.data + 8, length,
                                     strcat(strcpy(where, s->path), ": header"), err);
    free(where);
    if (header == NULL)
        return -1;
    const payload p = {
        .path = s->path,
        .header = header,
        .data = s->map.data + 8 + length,
        .size = (int64_t)(s->map.size - 8 - length),
        .err = err,
    };
    int status = json_is_object(header)
                     ? read_entries(c, &p, file, list)
                     : dsv4_fail(err, "%s: header: expected a JSON object", s->path);
    json_decref(header);
    return status;
}

static char *join(const char *dir, const char *name)
{
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = dsv4_alloc(size, 1);
    snprintf(path, size, "%s/%s", dir, name);
    return path;
}

/* Takes `path` over, also when it fails. `list` is NULL for a file that needs no index. */
static int open_shard(dsv4_checkpoint *c, char *path, const char *file, const listing *list,
                      dsv4_error *err)
{
    shard *s = &c->shards[c->shard_count++];
    s->path = path;
    if (dsv4_file_map(&s->map, path, err) != 0)
        return -1;
    return read_shard(c, s, file, list, err);
}

/* checkpoint.index.1: The index is one JSON object whose weight_map gives for every tensor the name
 * of its shard, a file in the same directory. Its other keys are ignored. */
static json_t *load_weight_map(const char *path, dsv4_error *err)
{
    dsv4_file file;
    if (dsv4_file_map(&file, path, err) != 0)
        return NULL;
    json_t *root = dsv4_json_parse(file.data, file.size, path, err);
    dsv4_file_unmap(&file);
    if (root == NULL)
        return NULL;
    json_t *weight_map = json_incref(json_object_get(root, "weight_map"));
    json_decref(root);
    if (!json_is_object(weight_map)) {
        dsv4_fail(err, "%s: weight_map: expected an object", path);
        json_decref(weight_map);
        return NULL;
    }
    return weight_map;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The names of all shards in `names` ([size of weight_map]), sorted, each once. -1 at a bad one. */
static int64_t list_shards(json_t *weight_map, const char **names, const char *path,
                           dsv4_error *err)
{
    size_t n = 0;
    const char *tensor;
    json_t *value;
    json_t *seen = json_object();
    json_object_foreach(weight_map, tensor, value) {
        const char *name = json_string_value(value);
        if (name == NULL || *name == '\0' || strchr(name, '/') != NULL || strcmp(name, "..") == 0) {
            json_decref(seen);
            return dsv4_fail(err, "%s: tensor %s: expected the name of a file beside the index%s%s",
                             path, tensor, name != NULL ? ", got " : "", name != NULL ? name : "");
        }
        if (json_object_get(seen, name) == NULL) {
            json_object_set_new(seen, name, json_true());
            names[n++] = name;
        }
    }
    json_decref(seen);
    qsort(names, n, sizeof *names, by_name);
    return (int64_t)n;
}

static int open_indexed(dsv4_checkpoint *c, const char *dir, const char *index_path,
                        dsv4_error *err)
{
    const listing list = {load_weight_map(index_path, err), json_object()};
    const char **files = dsv4_alloc(json_object_size(list.weight_map), sizeof *files);
    int64_t n = list.weight_map != NULL ? list_shards(list.weight_map, files, index_path, err) : -1;
    int status = n < 0 ? -1 : 0;
    c->shards = dsv4_alloc(n > 0 ? (size_t)n : 0, sizeof *c->shards);
    /* checkpoint.index.2: Every tensor of a shard is listed in weight_map under its stored name and
     * with that shard's file name, and every listed tensor is in its shard. */
    for (int64_t i = 0; status == 0 && i < n; i++)
        status = open_shard(c, join(dir, files[i]), files[i], &list, err);
    if (status == 0)
        status = check_all_seen(&list, index_path, err);
    free(files);
    json_decref(list.seen);
    json_decref(list.weight_map);
    return status;
}

/* checkpoint.directory.1: The tensors are in model.safetensors; where there is no such file, in the
 * shards that model.safetensors.index.json lists. */
static int open_files(dsv4_checkpoint *c, const char *dir, dsv4_error *err)
{
    struct stat information;
    if (stat(dir, &information) != 0)
        return dsv4_fail(err, "%s: %s", dir, strerror(errno));
    if (!S_ISDIR(information.st_mode))
        return dsv4_fail(err, "%s: expected a checkpoint directory", dir);

    char *single = join(dir, "model.safetensors");
    if (stat(single, &information) == 0 || errno != ENOENT) {
        c->shards = dsv4_alloc(1, sizeof *c->shards);
        return open_shard(c, single, NULL, NULL, err);
    }
    free(single);
    int status;
    char *index_path = join(dir, "model.safetensors.index.json");
    if (stat(index_path, &information) != 0 && errno == ENOENT)
        status = dsv4_fail(err, "%s: expected model.safetensors or model.safetensors.index.json, "
                           "found neither", dir);
    else
        status = open_indexed(c, dir, index_path, err);
    free(index_path);
    return status;
}

dsv4_checkpoint *dsv4_checkpoint_open(const char *dir, dsv4_error *err)
{
    dsv4_checkpoint *checkpoint = dsv4_alloc(1, sizeof *checkpoint);
    checkpoint->index = json_object();
    checkpoint->capacity = 64;
    checkpoint->tensors = dsv4_alloc(checkpoint->capacity, sizeof *checkpoint->tensors);
    if (open_files(checkpoint, dir, err) == 0 && index_names(checkpoint, err) == 0)
        return checkpoint;
    dsv4_checkpoint_close(checkpoint);
    return NULL;
}

void dsv4_checkpoint_close(dsv4_checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    for (size_t i = 0; i < checkpoint->count; i++)
        free((char *)checkpoint->tensors[i].name);
    free(checkpoint->tensors);
    for (size_t i = 0; i < checkpoint->shard_count; i++) {
        dsv4_file_unmap(&checkpoint->shards[i].map);
        free(checkpoint->shards[i].path);
    }
    free(checkpoint->shards);
    json_decref(checkpoint->index);
    free(checkpoint);
}

const dsv4_tensor *dsv4_checkpoint_find(const dsv4_checkpoint *checkpoint, const char *name)
{
    const json_t *position = json_object_get(checkpoint->index, name);
    return position != NULL ? &checkpoint->tensors[json_integer_value(position)] : NULL;
}

int64_t dsv4_checkpoint_count(const dsv4_checkpoint *checkpoint)
{
    return (int64_t)checkpoint->count;
}

const dsv4_tensor *dsv4_checkpoint_at(const dsv4_checkpoint *checkpoint, int64_t index)
{
    return &checkpoint->tensors[index];
}

int64_t dsv4_checkpoint_files(const dsv4_checkpoint *checkpoint)
{
    return (int64_t)checkpoint->shard_count;
}

dsv4_file dsv4_checkpoint_file(const dsv4_checkpoint *checkpoint, int64_t index, const char **path)
{
    *path = checkpoint->shards[index].path;
    return checkpoint->shards[index].map;
}
