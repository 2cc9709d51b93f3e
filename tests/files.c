#include "files.h"

#include <dirent.h>
#include <err.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

char *files_directory(void)
{
    const char *parent = getenv("TMPDIR");
    char *path = files_path(parent != NULL ? parent : "/tmp", "dsv4-test-XXXXXX");
    if (mkdtemp(path) == NULL)
        err(1, "%s", path);
    return path;
}

static int remove_one(const char *path, const struct stat *information, int type, struct FTW *level)
{
    (void)information, (void)type, (void)level;
    return remove(path);
}

void files_remove(char *directory)
{
    if (nftw(directory, remove_one, 16, FTW_DEPTH | FTW_PHYS) != 0)
        err(1, "%s", directory);
    free(directory);
}

char *files_path(const char *directory, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        err(1, "asprintf");
    return path;
}

void files_write(const char *directory, const char *name, const void *data, size_t size)
{
    char *path = files_path(directory, name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0)
        err(1, "%s", path);
    free(path);
}

void files_write_text(const char *directory, const char *name, const char *text)
{
    files_write(directory, name, text, strlen(text));
}

char *files_read(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    struct stat information;
    if (file == NULL || fstat(fileno(file), &information) != 0)
        err(1, "%s", path);
    *size = (size_t)information.st_size;
    char *data = dsv4_alloc(*size + 1, 1);
    if (fread(data, 1, *size, file) != *size || fclose(file) != 0)
        err(1, "%s", path);
    return data;
}

void files_copy(const char *from, const char *to)
{
    DIR *directory = opendir(from);
    if (directory == NULL)
        err(1, "%s", from);
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL) {
        char *path = files_path(from, entry->d_name);
        struct stat information;
        if (stat(path, &information) == 0 && S_ISREG(information.st_mode)) {
            size_t size;
            char *data = files_read(path, &size);
            files_write(to, entry->d_name, data, size);
            free(data);
        }
        free(path);
    }
    closedir(directory);
}

const char END_OF_CHANGES[] = "end";

static void change_json(json_t *object, const char *path, const char *text)
{
    const char *dot = strchr(path, '.');
    if (dot != NULL) {
        char *parent = strndup(path, (size_t)(dot - path));
        object = json_object_get(object, parent);
        free(parent);
        path = dot + 1;
    }
    if (text == NULL)
        json_object_del(object, path);
    else if (json_object_set_new(object, path, json_loads(text, JSON_DECODE_ANY, NULL)) != 0)
        errx(1, "%s: cannot set %s", path, text);
}

char *files_json(const char *text, const char *const changes[])
{
    json_t *root = json_loads(text, 0, NULL);
    for (int i = 0; changes[i] != END_OF_CHANGES; i += 2)
        change_json(root, changes[i], changes[i + 1]);
    char *changed = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return changed;
}

static void set_tensor(stored_tensor *tensor, const char *dtype, int rank, const int64_t *shape,
                       size_t size)
{
    snprintf(tensor->dtype, sizeof tensor->dtype, "%s", dtype);
    tensor->rank = rank;
    for (int i = 0; i < rank; i++)
        tensor->shape[i] = shape[i];
    tensor->size = size;
    free(tensor->data);
    tensor->data = dsv4_alloc(size, 1);
}

stored_tensor *stored_add(stored_tensors *list, const char *name, const char *dtype, int rank,
                          const int64_t *shape, size_t size)
{
    list->at = realloc(list->at, (list->count + 1) * sizeof *list->at);
    if (list->at == NULL)
        err(1, "realloc");
    stored_tensor *tensor = &list->at[list->count++];
    *tensor = (stored_tensor){.rank = 0};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    set_tensor(tensor, dtype, rank, shape, size);
    return tensor;
}

stored_tensor *stored_find(const stored_tensors *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->at[i].name, name) == 0)
            return &list->at[i];
    errx(1, "no tensor %s", name);
}

void stored_remove(stored_tensors *list, const char *name)
{
    stored_tensor *tensor = stored_find(list, name);
    free(tensor->data);
    size_t behind = (size_t)(list->at + --list->count - tensor);
    memmove(tensor, tensor + 1, behind * sizeof *tensor);
}

void stored_change(const stored_tensors *list, const char *name, const char *dtype, int rank,
                   const int64_t *shape, size_t size)
{
    set_tensor(stored_find(list, name), dtype, rank, shape, size);
}

static int add_released(void *context, const dsv4_expected *expected)
{
    stored_add(context, expected->name, dsv4_dtype_name(expected->dtype), expected->rank,
               expected->shape, (size_t)expected->bytes);
    return 0;
}

static int add_plain(void *context, const dsv4_expected *expected)
{
    const int64_t shape[] = {expected->rows, expected->cols};
    if (expected->dtype == DSV4_I64)
        return add_released(context, expected);
    if (expected->dtype != DSV4_F8_E8M0)
        stored_add(context, expected->name, "F32", expected->rank, shape + 2 - expected->rank,
                   (size_t)(4 * shape[0] * shape[1]));
    return 0;
}

void stored_fill(stored_tensors *list, const dsv4_config *config)
{
    dsv4_model_each(config, add_released, list);
}

void stored_fill_plain(stored_tensors *list, const dsv4_config *config)
{
    dsv4_model_each(config, add_plain, list);
}

static void write_range(const stored_tensors *list, size_t first, size_t end, const char *directory,
                        const char *name)
{
    char *text;
    size_t size, offset = 0;
    FILE *file = open_memstream(&text, &size);
    const char zeros[8] = {0};
    fwrite(zeros, 1, 8, file);
    fputs("{\"__metadata__\":{\"format\":\"pt\"}", file);
    for (size_t i = first; i < end; i++) {
        const stored_tensor *tensor = &list->at[i];
        fprintf(file, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name, tensor->dtype);
        for (int k = 0; k < tensor->rank; k++)
            fprintf(file, "%s%" PRId64, k > 0 ? "," : "", tensor->shape[k]);
        fprintf(file, "],\"data_offsets\":[%zu,%zu]}", offset, offset + tensor->size);
        offset += tensor->size;
    }
    fputc('}', file);
    fflush(file);
    uint64_t length = size - 8;
    for (size_t i = first; i < end; i++)
        fwrite(list->at[i].data, 1, list->at[i].size, file);
    fclose(file);
    for (int i = 0; i < 8; i++)
        text[i] = (char)(length >> 8 * i);
    files_write(directory, name, text, size);
    free(text);
}

void stored_write(const stored_tensors *list, const char *directory, const char *name)
{
    write_range(list, 0, list->count, directory, name);
}

void stored_write_shards(const stored_tensors *list, const char *directory, size_t shards)
{
    char *text;
    size_t size;
    FILE *index = open_memstream(&text, &size);
    fputs("{\"metadata\":{\"total_size\":0},\"weight_map\":{", index);
    for (size_t s = 0; s < shards; s++) {
        char name[64];
        snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, shards);
        size_t first = list->count * s / shards, end = list->count * (s + 1) / shards;
        write_range(list, first, end, directory, name);
        for (size_t i = first; i < end; i++)
            fprintf(index, "%s\"%s\":\"%s\"", i > 0 ? "," : "", list->at[i].name, name);
    }
    fputs("}}", index);
    fclose(index);
    files_write(directory, "model.safetensors.index.json", text, size);
    free(text);
}

void stored_free(stored_tensors *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->at[i].data);
    free(list->at);
    *list = (stored_tensors){0};
}

char *files_oracle(const char *name)
{
    const char *directory = getenv("DSV4_ORACLE");
    char *path = files_path(directory != NULL ? directory : "tests/oracle", name);
    if (access(path, R_OK) == 0)
        return path;
    free(path);
    return NULL;
}
