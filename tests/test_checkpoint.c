#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "files.h"
#include "host/checkpoint.h"
#include "host/file.h"

/* A safetensors file with this header, and `size` bytes of data: 0, 1, 2 ... */
static void write_raw(const char *directory, const char *name, const char *header, size_t size)
{
    size_t length = strlen(header);
    unsigned char *file = dsv4_alloc(8 + length + size, 1);
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < size; i++)
        file[8 + length + i] = (unsigned char)i;
    files_write(directory, name, file, 8 + length + size);
    free(file);
}

/* The directory is refused by one line that has `expected` in it. */
static void refuse(const char *directory, const char *expected)
{
    dsv4_error err = {0};
    dsv4_checkpoint *checkpoint = dsv4_checkpoint_open(directory, &err);
    if (checkpoint != NULL)
        fail_msg("accepted, expected '%s'", expected);
    if (strstr(err.text, expected) == NULL || strncmp(err.text, directory, strlen(directory)) != 0)
        fail_msg("expected '%s', got '%s'", expected, err.text);
}

static dsv4_checkpoint *accept(const char *directory)
{
    dsv4_error err = {0};
    dsv4_checkpoint *checkpoint = dsv4_checkpoint_open(directory, &err);
    if (checkpoint == NULL)
        fail_msg("%s", err.text);
    return checkpoint;
}

static void accept_only(const char *directory)
{
    dsv4_checkpoint_close(accept(directory));
}

/* covers: checkpoint.file.2 checkpoint.directory.1 */
static void tensors_are_found(void **state)
{
    (void)state;
    char *directory = files_directory();
    write_raw(directory, "model.safetensors",
              "{\"b\": {\"dtype\": \"F32\", \"shape\": [2, 3], \"data_offsets\": [3, 27]},"
              " \"__metadata__\": {\"format\": \"pt\"},"
              " \"a\": {\"dtype\": \"I8\", \"shape\": [3], \"data_offsets\": [0, 3], \"more\": 1},"
              " \"c\": {\"dtype\": \"F64\", \"shape\": [], \"data_offsets\": [27, 35]}}   ",
              35);
    dsv4_checkpoint *checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), 3);
    assert_string_equal(dsv4_checkpoint_at(checkpoint, 0)->name, "a");
    assert_string_equal(dsv4_checkpoint_at(checkpoint, 2)->name, "c");
    const dsv4_tensor *b = dsv4_checkpoint_find(checkpoint, "b");
    assert_ptr_equal(b, dsv4_checkpoint_at(checkpoint, 1));
    assert_string_equal(b->dtype_name, "F32");
    assert_int_equal(b->dtype, DSV4_F32);
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->bytes, 24);
    assert_int_equal(*(const unsigned char *)b->data, 3);
    assert_non_null(strstr(b->file, "/model.safetensors"));
    const dsv4_tensor *c = dsv4_checkpoint_find(checkpoint, "c");
    assert_int_equal(c->dtype, DSV4_OTHER);
    assert_string_equal(c->dtype_name, "F64");
    assert_int_equal(c->rank, 0);
    assert_int_equal(((const unsigned char *)c->data)[7], 34);
    assert_null(dsv4_checkpoint_find(checkpoint, "__metadata__"));
    assert_null(dsv4_checkpoint_find(checkpoint, ""));
    dsv4_checkpoint_close(checkpoint);
    dsv4_checkpoint_close(NULL);
    files_remove(directory);
}

/* covers: checkpoint.tensor.1 */
static void dtypes_have_names_and_sizes(void **state)
{
    (void)state;
    const struct {
        const char *name;
        int bits;
        dsv4_dtype dtype;
    } known[] = {
        {"F32", 32, DSV4_F32},        {"BF16", 16, DSV4_BF16},       {"F16", 16, DSV4_F16},
        {"F8_E4M3", 8, DSV4_F8_E4M3}, {"F8_E8M0", 8, DSV4_F8_E8M0},  {"I8", 8, DSV4_I8},
        {"I32", 32, DSV4_I32},        {"I64", 64, DSV4_I64},         {"BOOL", 8, DSV4_OTHER},
        {"U8", 8, DSV4_OTHER},        {"I16", 16, DSV4_OTHER},       {"U16", 16, DSV4_OTHER},
        {"U32", 32, DSV4_OTHER},      {"U64", 64, DSV4_OTHER},       {"F64", 64, DSV4_OTHER},
        {"C64", 64, DSV4_OTHER},      {"F8_E5M2", 8, DSV4_OTHER},    {"F8_E4M3FNUZ", 8, DSV4_OTHER},
        {"F4", 4, DSV4_OTHER},        {"F8_E5M2FNUZ", 8, DSV4_OTHER}, {"F6_E2M3", 6, DSV4_OTHER},
        {"F6_E3M2", 6, DSV4_OTHER},
    };
    char *directory = files_directory();
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char header[128];
        snprintf(header, sizeof header,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,%d]}}", known[i].name,
                 known[i].bits / 2);
        write_raw(directory, "model.safetensors", header, (size_t)known[i].bits / 2);
        dsv4_checkpoint *checkpoint = accept(directory);
        const dsv4_tensor *x = dsv4_checkpoint_find(checkpoint, "x");
        assert_int_equal(x->dtype, known[i].dtype);
        assert_string_equal(x->dtype_name, known[i].name);
        if (x->dtype != DSV4_OTHER) {
            assert_string_equal(dsv4_dtype_name(x->dtype), known[i].name);
            assert_int_equal(dsv4_dtype_size(x->dtype), known[i].bits / 8);
        }
        dsv4_checkpoint_close(checkpoint);
    }
    assert_string_equal(dsv4_dtype_name(DSV4_OTHER), "other");
    assert_int_equal(dsv4_dtype_size(DSV4_OTHER), 0);
    files_remove(directory);
}

#define X "{\"x\":{"
#define I8X X "\"dtype\":\"I8\","
#define I8Y "\"y\":{\"dtype\":\"I8\","
#define FOUR "\"shape\":[4],"

/* covers: checkpoint.tensor.1 checkpoint.tensor.2 checkpoint.tensor.3 checkpoint.tensor.4
 * checkpoint.file.1 */
static void damaged_headers_are_refused(void **state)
{
    (void)state;
    const struct {
        const char *header;
        size_t data;
        const char *expected;
    } cases[] = {
        {"", 0, "header: "},
        {"{", 0, "header: "},
        {"[]", 0, "header: expected a JSON object"},
        {"{} {}", 0, "header: line 1: end of file expected"},
        {"{\"x\":{},\"x\":{}}", 0, "header: line 1: duplicate object key \"x\""},
        {"{\"a long name of a tensor\":{},\"a\":[[1]],\"a long name of a tensor\":{}}", 0,
         "duplicate object key \"a long name of a tensor\""},
        {"{\"x\":{\"y\":1},\"z\\\"z\":{\"data_offsets\":[0,9223372036854775808]}}", 0,
         "header: line 1: too big integer near '9223372036854775808', after the key \"z\\\"z\""},
        {"{\"\":{\"dtype\":\"I8\"," FOUR "\"data_offsets\":[0,4]}}", 4, "a tensor without a name"},
        {"{\"x\":4}", 0, "tensor x: expected an object"},
        {X FOUR "\"data_offsets\":[0,4]}}", 4, "tensor x: dtype: expected a string"},
        {X "\"dtype\":8," FOUR "\"data_offsets\":[0,4]}}", 4, "tensor x: dtype: expected a string"},
        {X "\"dtype\":\"I7\"," FOUR "\"data_offsets\":[0,4]}}", 4,
         "tensor x: dtype: I7 is not known"},
        {X "\"dtype\":\"i8\"," FOUR "\"data_offsets\":[0,4]}}", 4,
         "tensor x: dtype: i8 is not known"},
        {I8X "\"data_offsets\":[0,4]}}", 4, "tensor x: shape: expected a list"},
        {I8X "\"shape\":4,\"data_offsets\":[0,4]}}", 4, "tensor x: shape: expected a list"},
        {I8X "\"shape\":[4.0],\"data_offsets\":[0,4]}}", 4, "tensor x: shape: expected integers"},
        {I8X "\"shape\":[true],\"data_offsets\":[0,1]}}", 1, "tensor x: shape: expected integers"},
        {I8X "\"shape\":[-4],\"data_offsets\":[0,4]}}", 4, "tensor x: shape: expected integers"},
        {I8X "\"shape\":[-2,-2],\"data_offsets\":[0,4]}}", 4, "tensor x: shape: expected integers"},
        {I8X "\"shape\":[1,1,1,1,1,1,1,1,4],\"data_offsets\":[0,4]}}", 4,
         "tensor x: shape: expected at most 8 dimensions, got 9"},
        {I8X "\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "tensor x: shape: too large"},
        {I8X "\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
         "tensor x: shape: too large"},
        {X "\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1,
         "tensor x: expected whole bytes, got 12 bits"},
        {I8X FOUR "\"data_offset\":[0,4]}}", 4, "data_offsets: expected two integers"},
        {I8X FOUR "\"data_offsets\":4}}", 4, "data_offsets: expected two integers"},
        {I8X FOUR "\"data_offsets\":[0]}}", 4, "data_offsets: expected two integers"},
        {I8X FOUR "\"data_offsets\":[0,2,4]}}", 4, "data_offsets: expected two integers"},
        {I8X FOUR "\"data_offsets\":[0,4.0]}}", 4, "data_offsets: expected two integers"},
        {I8X FOUR "\"data_offsets\":[\"0\",4]}}", 4, "data_offsets: expected two integers"},
        {I8X FOUR "\"data_offsets\":[-4,0]}}", 4, "expected 0 <= begin <= end, got [-4, 0]"},
        {I8X FOUR "\"data_offsets\":[4,0]}}", 4, "expected 0 <= begin <= end, got [4, 0]"},
        {I8X FOUR "\"data_offsets\":[0,5]}}", 5, "expected 4 bytes by dtype and shape, got 5"},
        {I8X FOUR "\"data_offsets\":[0,4]}}", 3,
         "truncated: tensor x does not lie within the file: expected 4 bytes of data, got 3"},
        {I8X FOUR "\"data_offsets\":[9223372036854775803,9223372036854775807]}}", 4,
         "expected 9223372036854775807 bytes of data, got 4"},
        {I8X FOUR "\"data_offsets\":[0,4]}}", 5, "expected 4 bytes of data, got 5"},
        {I8X FOUR "\"data_offsets\":[1,5]}}", 5,
         "tensor x: expected to begin at byte 0 of the data, where the one before it ends, got 1"},
        {I8X FOUR "\"data_offsets\":[0,4]}," I8Y FOUR "\"data_offsets\":[3,7]}}",
         7, "tensors x and y overlap"},
        {I8X FOUR "\"data_offsets\":[0,4]}," I8Y FOUR "\"data_offsets\":[0,4]}}",
         4, "overlap"},
        {I8X FOUR "\"data_offsets\":[5,9]}," I8Y FOUR "\"data_offsets\":[0,4]}}",
         9, "tensor x: expected to begin at byte 4"},
        {I8X FOUR "\"data_offsets\":[0,4]},"
         "\"y\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[2,2]}}", 4, "overlap"},
        {"{}", 1, "expected 0 bytes of data, got 1"},
    };
    char *directory = files_directory();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_raw(directory, "model.safetensors", cases[i].header, cases[i].data);
        refuse(directory, cases[i].expected);
    }
    files_remove(directory);
}

static void tensors_without_values_are_legal(void **state)
{
    (void)state;
    char *directory = files_directory();
    write_raw(directory, "model.safetensors", "{}", 0);
    dsv4_checkpoint *checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), 0);
    assert_null(dsv4_checkpoint_find(checkpoint, "x"));
    dsv4_checkpoint_close(checkpoint);

    write_raw(directory, "model.safetensors",
              "{\"end\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[4,4]},"
              "\"x\":{\"dtype\":\"I8\",\"shape\":[4],\"data_offsets\":[0,4]},"
              "\"start\":{\"dtype\":\"I64\",\"shape\":[0],\"data_offsets\":[0,0]}}", 4);
    checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), 3);
    assert_string_equal(dsv4_checkpoint_at(checkpoint, 0)->name, "start");
    assert_int_equal(dsv4_checkpoint_find(checkpoint, "end")->bytes, 0);
    dsv4_checkpoint_close(checkpoint);
    files_remove(directory);
}

/* covers: checkpoint.file.2 */
static void header_lengths_are_checked(void **state)
{
    (void)state;
    char *directory = files_directory();
    files_write(directory, "model.safetensors", "", 0);
    refuse(directory, "expected a safetensors file, got only 0 bytes");
    files_write(directory, "model.safetensors", "\2\0\0\0\0\0\0", 7);
    refuse(directory, "expected a safetensors file, got only 7 bytes");
    files_write(directory, "model.safetensors", "\0\0\0\0\0\0\0\0", 8);
    refuse(directory, "header: ");
    files_write(directory, "model.safetensors", "\3\0\0\0\0\0\0\0{}", 10);
    refuse(directory, "truncated: expected a header of 3 bytes, got a file of 10");
    files_write(directory, "model.safetensors", "\377\377\377\377\377\377\377\377{}", 10);
    refuse(directory, "expected a header of at most 100000000 bytes, got 18446744073709551615");
    files_write(directory, "model.safetensors", "\0\341\365\5\0\0\0\0{}", 10);
    refuse(directory, "truncated: expected a header of 100000000 bytes");
    files_write(directory, "model.safetensors", "\1\341\365\5\0\0\0\0{}", 10);
    refuse(directory, "expected a header of at most 100000000 bytes, got 100000001");
    /* Every byte of the length counts. */
    files_write(directory, "model.safetensors", "\2\0\0\0\0\0\0\1{}", 10);
    refuse(directory, "got 72057594037927938");
    files_write(directory, "model.safetensors", "\2\0\0\0\0\0\0\0{}", 10);
    accept_only(directory);
    files_remove(directory);
}

/* covers: checkpoint.names.1 checkpoint.names.2 */
static void names_are_canonical(void **state)
{
    (void)state;
    const struct {
        const char *stored, *canonical;
    } names[] = {
        {"model.embed.weight", "embed.weight"},
        {"model.model.x", "model.x"},
        {"layers.0.model.x", "layers.0.model.x"},
        {"modelx", "modelx"},
        {"a.weight_scale_inv", "a.scale"},
        {"model.b.weight_scale_inv", "b.scale"},
        {"c.weight_scale_inv.d", "c.weight_scale_inv.d"},
        {"weight_scale_inv", "weight_scale_inv"},
        {".weight_scale_inv", ".scale"},
        {"e.weight_scale", "e.weight_scale"},
    };
    char *directory = files_directory();
    stored_tensors list = {0};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        stored_add(&list, names[i].stored, "I8", 1, (const int64_t[]){1}, 1);
    stored_write(&list, directory, "model.safetensors");
    dsv4_checkpoint *checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), sizeof names / sizeof *names);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        assert_non_null(dsv4_checkpoint_find(checkpoint, names[i].canonical));
        if (strcmp(names[i].stored, names[i].canonical) != 0)
            assert_null(dsv4_checkpoint_find(checkpoint, names[i].stored));
    }
    dsv4_checkpoint_close(checkpoint);

    stored_add(&list, "a.scale", "I8", 1, (const int64_t[]){1}, 1);
    stored_write(&list, directory, "model.safetensors");
    refuse(directory, "tensor a.scale: ");
    stored_remove(&list, "a.scale");
    stored_add(&list, "embed.weight", "I8", 1, (const int64_t[]){1}, 1);
    stored_write(&list, directory, "model.safetensors");
    refuse(directory, "tensor embed.weight: ");
    stored_free(&list);
    files_remove(directory);
}

static const char shard_a[] =
    "{\"a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]}}";
static const char shard_b[] =
    "{\"b\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]},"
    "\"c\":{\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[1,2]}}";

/* covers: checkpoint.index.1 checkpoint.index.2 */
static void indexes_and_shards_agree(void **state)
{
    (void)state;
    const struct {
        const char *index, *expected;
    } cases[] = {
        {"", "index.json: line 1: "},
        {"[]", "weight_map: expected an object"},
        {"{}", "weight_map: expected an object"},
        {"{\"weight_map\": []}", "weight_map: expected an object"},
        {"{\"weight_map\": {\"a\": \"1.st\", \"a\": \"1.st\"}}", "duplicate object key \"a\""},
        {"{\"weight_map\": {\"a\": 1}}", "tensor a: expected the name of a file beside the index"},
        {"{\"weight_map\": {\"a\": \"\"}}", "tensor a: expected the name of a file"},
        {"{\"weight_map\": {\"a\": \"../1.st\"}}",
         "tensor a: expected the name of a file beside the index, got ../1.st"},
        {"{\"weight_map\": {\"a\": \"..\"}}", "tensor a: expected the name of a file"},
        {"{\"weight_map\": {\"a\": \".\"}}", "/.: not a regular file"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "tensor a: expected the name of a file"},
        {"{\"weight_map\": {\"a\": \"3.st\"}}", "/3.st: No such file or directory"},
        {"{\"weight_map\": {\"a\": \"1.st\", \"b\": \"2.st\"}}",
         "/2.st: tensor c is not in the weight_map of the index"},
        {"{\"weight_map\": {\"a\": \"1.st\", \"d\": \"1.st\"}}",
         "index.json: tensor d is not in 1.st"},
        {"{\"weight_map\": {\"a\": \"1.st\", \"model.a\": \"1.st\"}}",
         "index.json: tensor model.a is not in 1.st"},
        {"{\"weight_map\": {\"a\": \"1.st\", \"b\": \"2.st\", \"c\": \"1.st\"}}",
         "/2.st: tensor c: the index says that it is in 1.st"},
        {"{\"weight_map\": {\"a\": \"1.st\", \"b\": \"2.st\", \"c\": \"4.st\"}}",
         "/2.st: tensor c: the index says that it is in 4.st"},
    };
    char *directory = files_directory();
    write_raw(directory, "1.st", shard_a, 2);
    write_raw(directory, "2.st", shard_b, 2);
    write_raw(directory, "4.st", shard_b, 2); /* a twin of 2.st */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        files_write_text(directory, "model.safetensors.index.json", cases[i].index);
        refuse(directory, cases[i].expected);
    }
    files_write_text(directory, "model.safetensors.index.json",
                     "{\"metadata\": 4, \"weight_map\": {\"c\": \"2.st\", \"b\": \"2.st\","
                     " \"a\": \"1.st\"}}");
    dsv4_checkpoint *checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), 3);
    const char *const order[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++)
        assert_string_equal(dsv4_checkpoint_at(checkpoint, i)->name, order[i]);
    const dsv4_tensor *c = dsv4_checkpoint_find(checkpoint, "c");
    assert_non_null(strstr(c->file, "/2.st"));
    assert_int_equal(*(const unsigned char *)c->data, 1);
    dsv4_checkpoint_close(checkpoint);

    files_write_text(directory, "model.safetensors.index.json", "{\"weight_map\": {}}");
    checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), 0);
    dsv4_checkpoint_close(checkpoint);
    files_remove(directory);
}

/* covers: checkpoint.names.2 */
static void shards_share_no_name(void **state)
{
    (void)state;
    char *directory = files_directory();
    write_raw(directory, "1.st", shard_a, 2);
    write_raw(directory, "2.st",
              "{\"model.a\":{\"dtype\":\"I8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 2);
    files_write_text(directory, "model.safetensors.index.json",
                     "{\"weight_map\": {\"a\": \"1.st\", \"model.a\": \"2.st\"}}");
    refuse(directory, "/2.st: tensor a: ");
    files_remove(directory);
}

/* covers: checkpoint.directory.1 */
static void directories_are_checked(void **state)
{
    (void)state;
    char *directory = files_directory();
    refuse(directory, "expected model.safetensors or model.safetensors.index.json, found neither");

    char *nothing = files_path(directory, "nothing");
    refuse(nothing, "No such file or directory");
    free(nothing);
    files_write_text(directory, "file", "x");
    char *file = files_path(directory, "file");
    refuse(file, "expected a checkpoint directory");
    free(file);

    /* model.safetensors goes first. */
    files_write_text(directory, "model.safetensors.index.json", "{}");
    write_raw(directory, "model.safetensors", shard_a, 2);
    accept_only(directory);

    char *model = files_path(directory, "model.safetensors");
    assert_int_equal(unlink(model), 0);
    assert_int_equal(symlink("model.safetensors", model), 0); /* a link to itself */
    refuse(directory, "model.safetensors: Too many levels of symbolic links");
    assert_int_equal(unlink(model), 0);
    assert_int_equal(mkdir(model, 0700), 0);
    refuse(directory, "model.safetensors: not a regular file");
    assert_int_equal(rmdir(model), 0);
    refuse(directory, "index.json: weight_map: expected an object");

    char *index = files_path(directory, "model.safetensors.index.json");
    assert_int_equal(unlink(index), 0);
    assert_int_equal(mkdir(index, 0700), 0);
    refuse(directory, "index.json: not a regular file");
    free(index);
    free(model);
    files_remove(directory);
}

static void unreadable_files_are_refused(void **state)
{
    (void)state;
    char *directory = files_directory();
    write_raw(directory, "model.safetensors", shard_a, 2);
    char *model = files_path(directory, "model.safetensors");
    assert_int_equal(chmod(model, 0), 0);
    assert_int_equal(chmod(directory, 0755), 0);
    /* Root reads everything: be nobody for the moment. */
    uid_t user = geteuid();
    assert_int_equal(user == 0 ? seteuid(65534) : 0, 0);
    refuse(directory, "model.safetensors: Permission denied");
    assert_int_equal(user == 0 ? seteuid(0) : 0, 0);
    free(model);
    files_remove(directory);
}

static void unmappable_files_are_refused(void **state)
{
    (void)state;
    char *directory = files_directory();
    char *path = files_path(directory, "large");
    files_write(directory, "large", "x", 1);
    const off_t size = (off_t)1 << 34; /* none of it on the disk */
    assert_int_equal(truncate(path, size), 0);

    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    small = before;
    small.rlim_cur = (rlim_t)1 << 33;
    assert_int_equal(setrlimit(RLIMIT_AS, &small), 0);
    dsv4_file file;
    dsv4_error err = {0};
    int status = dsv4_file_map(&file, path, &err);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_equal(status, -1);
    assert_non_null(strstr(err.text, "large: cannot map 17179869184 bytes: "));
    free(path);
    files_remove(directory);
}

/* covers: checkpoint.tensor.4 */
static void truncated_files_say_what_is_missing(void **state)
{
    (void)state;
    char *directory = files_directory();
    stored_tensors list = {0};
    const char *const names[] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++)
        stored_add(&list, names[i], "F32", 1, (const int64_t[]){100}, 400);
    stored_write(&list, directory, "model.safetensors");
    stored_free(&list);
    char *model = files_path(directory, "model.safetensors");
    size_t size;
    free(files_read(model, &size));
    assert_int_equal(truncate(model, (off_t)size - 500), 0);
    refuse(directory, "truncated: tensor b does not lie within the file: expected 1200 bytes of "
                      "data, got 700");
    free(model);
    files_remove(directory);
}

/* Truncations and single-byte changes are read or refused: never worse. */
static void damaged_files_do_no_harm(void **state)
{
    (void)state;
    char *directory = files_directory();
    write_raw(directory, "model.safetensors", shard_b, 2);
    char *model = files_path(directory, "model.safetensors");
    size_t size;
    char *original = files_read(model, &size);
    for (size_t i = 0; i < size; i++) {
        dsv4_error err = {0};
        files_write(directory, "model.safetensors", original, i);
        assert_null(dsv4_checkpoint_open(directory, &err));
        assert_true(err.text[0] != '\0');
        static const char bytes[] = {'0', '9', '-', '"', ',', '}', '\0', '\xff'};
        for (size_t k = 0; k < sizeof bytes; k++) {
            char old = original[i];
            original[i] = bytes[k];
            files_write(directory, "model.safetensors", original, size);
            original[i] = old;
            err = (dsv4_error){0};
            dsv4_checkpoint *checkpoint = dsv4_checkpoint_open(directory, &err);
            assert_true((checkpoint == NULL) == (err.text[0] != '\0'));
            dsv4_checkpoint_close(checkpoint);
        }
    }
    free(original);
    free(model);
    files_remove(directory);
}

/* More tensors than the first allocation holds, over several shards. */
static void many_tensors(void **state)
{
    (void)state;
    char *directory = files_directory();
    stored_tensors list = {0};
    for (int i = 0; i < 1000; i++) {
        char name[32];
        snprintf(name, sizeof name, "layers.%d.w", i);
        *stored_add(&list, name, "I8", 1, (const int64_t[]){1}, 1)->data = (unsigned char)(i % 251);
    }
    stored_write_shards(&list, directory, 7);
    stored_free(&list);
    dsv4_checkpoint *checkpoint = accept(directory);
    assert_int_equal(dsv4_checkpoint_count(checkpoint), 1000);
    for (int i = 0; i < 1000; i++) {
        char name[32];
        snprintf(name, sizeof name, "layers.%d.w", i);
        const dsv4_tensor *tensor = dsv4_checkpoint_find(checkpoint, name);
        assert_ptr_equal(tensor, dsv4_checkpoint_at(checkpoint, i));
        assert_int_equal(*(const unsigned char *)tensor->data, i % 251);
    }
    dsv4_checkpoint_close(checkpoint);
    files_remove(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_are_found),
        cmocka_unit_test(dtypes_have_names_and_sizes),
        cmocka_unit_test(damaged_headers_are_refused),
        cmocka_unit_test(tensors_without_values_are_legal),
        cmocka_unit_test(header_lengths_are_checked),
        cmocka_unit_test(names_are_canonical),
        cmocka_unit_test(indexes_and_shards_agree),
        cmocka_unit_test(shards_share_no_name),
        cmocka_unit_test(directories_are_checked),
        cmocka_unit_test(unreadable_files_are_refused),
        cmocka_unit_test(unmappable_files_are_refused),
        cmocka_unit_test(truncated_files_say_what_is_missing),
        cmocka_unit_test(damaged_files_do_no_harm),
        cmocka_unit_test(many_tensors),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL) != 0;
}
