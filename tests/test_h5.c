/* Tensor files: what is written is read back, foreign files are read or refused with a reason. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <hdf5.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "command.h"
#include "host/h5.h"

#define SHAPE(...) ((const int64_t[]){__VA_ARGS__})

static dsv4_h5 *create(const char *path)
{
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create(path, &err);
    assert_string_equal(err.text, "");
    assert_non_null(file);
    return file;
}

static void define(dsv4_h5 *file, const char *name, dsv4_h5_type type, int rank,
                   const int64_t *shape, double fill)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_define(file, name, type, rank, shape, fill, &err), 0);
    assert_string_equal(err.text, "");
}

static void write_values(dsv4_h5 *file, const char *name, int64_t row, int64_t rows, int64_t width,
                         const double *values)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_write(file, name, row, rows, width, values, NULL, &err), 0);
    assert_string_equal(err.text, "");
}

static void write_indices(dsv4_h5 *file, const char *name, int64_t row, int64_t rows,
                          int64_t width, const int64_t *indices)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_write(file, name, row, rows, width, NULL, indices, &err), 0);
    assert_string_equal(err.text, "");
}

static void close_file(dsv4_h5 *file)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_string_equal(err.text, "");
}

static dsv4_h5 *reopen(const char *path)
{
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_open(path, &err);
    assert_string_equal(err.text, "");
    assert_non_null(file);
    return file;
}

static dsv4_h5_data read_back(dsv4_h5 *file, const char *name)
{
    dsv4_error err = {""};
    dsv4_h5_data data;
    assert_int_equal(dsv4_h5_read(file, name, &data, &err), 0);
    assert_string_equal(err.text, "");
    return data;
}

static void assert_values(dsv4_h5 *file, const char *name, int64_t count, const double *expected)
{
    dsv4_h5_data data = read_back(file, name);
    assert_false(data.integer);
    assert_int_equal(data.count, count);
    for (int64_t i = 0; i < count; i++)
        assert_true(data.values[i] == expected[i]);
    dsv4_h5_data_free(&data);
}

static void assert_indices(dsv4_h5 *file, const char *name, int64_t count, const int64_t *expected)
{
    dsv4_h5_data data = read_back(file, name);
    assert_true(data.integer);
    assert_int_equal(data.count, count);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(data.indices[i], expected[i]);
    dsv4_h5_data_free(&data);
}

static void assert_read_fails(dsv4_h5 *file, const char *name, const char *expected)
{
    dsv4_error err = {""};
    dsv4_h5_data data;
    assert_int_equal(dsv4_h5_read(file, name, &data, &err), -1);
    assert_string_equal(err.text, expected);
}

static void written_is_read(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    define(file, "f64", DSV4_H5_F64, 2, SHAPE(3, 2), -INFINITY);
    define(file, "trace/layers/0/f32", DSV4_H5_F32, 3, SHAPE(2, 2, 2), 0.5);
    define(file, "trace/layers/0/i32", DSV4_H5_I32, 1, SHAPE(4), -1);
    define(file, "i64", DSV4_H5_I64, 2, SHAPE(2, 3), 7);
    define(file, "scalar", DSV4_H5_F64, 0, NULL, 2.5);
    define(file, "nothing", DSV4_H5_F64, 2, SHAPE(0, 5), 0);
    define(file, "no_width", DSV4_H5_I32, 3, SHAPE(5, 0, 2), -1);
    write_values(file, "f64", 1, 2, 1, (const double[]){1 / 3.0, NAN});
    /* 1 + 2^-24 + 2^-40 is nearer to the larger neighbour in binary32. */
    write_values(file, "trace/layers/0/f32", 1, 1, 4,
                 (const double[]){1, 1 + 0x1p-24 + 0x1p-40, -INFINITY, 1e300});
    write_indices(file, "trace/layers/0/i32", 1, 2, 1, (const int64_t[]){INT32_MIN, INT32_MAX});
    write_indices(file, "i64", 0, 2, 2, (const int64_t[]){1, 2, 3, INT64_MIN});
    write_values(file, "nothing", 0, 0, 5, (const double[]){0});
    write_indices(file, "no_width", 0, 5, 0, (const int64_t[]){0});
    close_file(file);
    assert_int_not_equal(access("a.h5.part", F_OK), 0);

    file = reopen("a.h5");
    dsv4_h5_data data = read_back(file, "f64");
    assert_int_equal(data.rank, 2);
    assert_int_equal(data.shape[0], 3);
    assert_int_equal(data.shape[1], 2);
    assert_true(isnan(data.values[4]));
    data.values[4] = 0;
    const double expected[] = {-INFINITY, -INFINITY, 1 / 3.0, -INFINITY, 0, -INFINITY};
    for (int i = 0; i < 6; i++)
        assert_true(data.values[i] == expected[i]);
    dsv4_h5_data_free(&data);
    assert_values(file, "trace/layers/0/f32", 8,
                  (const double[]){.5, .5, .5, .5, 1, 1 + 0x1p-23, -INFINITY, INFINITY});
    assert_indices(file, "trace/layers/0/i32", 4, SHAPE(-1, INT32_MIN, INT32_MAX, -1));
    assert_indices(file, "i64", 6, SHAPE(1, 2, 7, 3, INT64_MIN, 7));
    assert_values(file, "scalar", 1, (const double[]){2.5});
    data = read_back(file, "no_width");
    assert_int_equal(data.rank, 3);
    assert_int_equal(data.shape[2], 2);
    assert_int_equal(data.count, 0);
    dsv4_h5_data_free(&data);
    assert_values(file, "nothing", 0, NULL);
    close_file(file);
}

static void rows_of_an_entry_are_written(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_h5 *file = create("a.h5");
    define(file, "x", DSV4_H5_F64, 3, SHAPE(2, 3, 2), -1);
    define(file, "y", DSV4_H5_I32, 4, SHAPE(2, 2, 1, 2), -1);
    define(file, "z", DSV4_H5_I32, 2, SHAPE(2, 3), -1);
    const double some[] = {1, 2, 3, 4};
    assert_int_equal(dsv4_h5_write_in(file, "x", 1, 1, 2, 1, some, NULL, &err), 0);
    assert_int_equal(dsv4_h5_write_in(file, "x", 0, 2, 1, 2, some + 2, NULL, &err), 0);
    assert_int_equal(dsv4_h5_write_in(file, "y", 1, 0, 1, 2, NULL, SHAPE(5, 6), &err), 0);
    assert_int_equal(dsv4_h5_write_in(file, "z", 1, 1, 2, 1, NULL, SHAPE(7, 8), &err), 0);
    assert_string_equal(err.text, "");
    static const struct {
        const char *name;
        int64_t entry, row, rows, width;
        const char *expected;
    } wrong[] = {
        {"x", 2, 0, 1, 2, "a.h5: x: has no entry 2"},
        {"x", -1, 0, 1, 2, "a.h5: x: has no entry -1"},
        {"x", 1, 2, 2, 2, "a.h5: x: 2 rows of 2 values from row 2 are outside the dataset"},
        {"x", 1, 0, 1, 3, "a.h5: x: 1 rows of 3 values from row 0 are outside the dataset"},
        {"y", 1, 0, 1, 1, "a.h5: y: 1 of 2 values: only whole rows at rank 4"},
        {"flat", 1, 0, 1, 1, "a.h5: flat: 1 rows of 1 values from row 0 are outside the dataset"},
        {"scalar", 0, 0, 1, 1, "a.h5: scalar: has no entry 0"},
    };
    define(file, "flat", DSV4_H5_F64, 1, SHAPE(2), 0);
    define(file, "scalar", DSV4_H5_F64, 0, NULL, 0);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const double values[8] = {0};
        err = (dsv4_error){""};
        assert_int_equal(dsv4_h5_write_in(file, wrong[i].name, wrong[i].entry, wrong[i].row,
                                          wrong[i].rows, wrong[i].width, values, NULL, &err), -1);
        assert_string_equal(err.text, wrong[i].expected);
    }
    close_file(file);
    file = reopen("a.h5");
    assert_values(file, "x", 12, (const double[]){-1, -1, -1, -1, 3, 4, -1, -1, 1, -1, 2, -1});
    assert_indices(file, "y", 8, SHAPE(-1, -1, -1, -1, 5, 6, -1, -1));
    assert_indices(file, "z", 6, SHAPE(-1, -1, -1, -1, 7, 8));
    close_file(file);
}

static void datasets_are_listed(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    const char *const names[] = {"b/a", "b/c/d", "b-", "a"}; /* '-' sorts before '/' */
    for (int i = 0; i < 4; i++)
        define(file, names[i], DSV4_H5_I32, 1, SHAPE(1), 0);
    close_file(file);
    file = reopen("a.h5");
    int64_t count;
    dsv4_error err = {""};
    char **list = dsv4_h5_names(file, &count, &err);
    assert_int_equal(count, 4);
    const char *const sorted[] = {"a", "b-", "b/a", "b/c/d"};
    for (int i = 0; i < 4; i++)
        assert_string_equal(list[i], sorted[i]);
    dsv4_h5_names_free(list, count);
    assert_true(dsv4_h5_has(file, "b/c/d"));
    assert_false(dsv4_h5_has(file, "b/c"));
    assert_false(dsv4_h5_has(file, "e/f"));
    close_file(file);

    close_file(create("empty.h5"));
    file = reopen("empty.h5");
    list = dsv4_h5_names(file, &count, &err);
    assert_non_null(list);
    assert_int_equal(count, 0);
    dsv4_h5_names_free(list, count);
    close_file(file);
}

static char *contents(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *bytes = malloc(1 << 20);
    assert_non_null(bytes);
    *size = fread(bytes, 1, 1 << 20, file);
    fclose(file);
    return bytes;
}

/* Another second, another order of writing, another division into calls: the same bytes. */
static void bytes_do_not_depend_on_the_run(void **state)
{
    (void)state;
    char *bytes[2];
    size_t size[2];
    for (int run = 0; run < 2; run++) {
        dsv4_h5 *file = create("run.h5");
        char name[64];
        for (int i = 0; i < 40; i++) {
            snprintf(name, sizeof name, "%s%d", i < 20 ? "" : "group/inner/", i);
            define(file, name, DSV4_H5_F64, 2, SHAPE(4, 3), -1);
        }
        for (int i = 0; i < 40; i++) {
            snprintf(name, sizeof name, "%s%d", (i ^ run) < 20 ? "" : "group/inner/", i ^ run);
            const double values[] = {1, 2, 3, 4, 5, 6};
            write_values(file, name, 1, 2 - run, 3, values);
            if (run == 1)
                write_values(file, name, 2, 1, 3, values + 3);
        }
        close_file(file);
        bytes[run] = contents("run.h5", &size[run]);
        if (run == 0)
            usleep(1100000);
    }
    assert_int_equal(bytes[0][8], 2); /* the superblock of HDF5 1.8 */
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(bytes[0], bytes[1], size[0]);
    free(bytes[0]);
    free(bytes[1]);

    /* No heap of links: it would lie elsewhere after a long run in another number of calls. */
    hid_t file = H5Fopen("run.h5", H5F_ACC_RDONLY, H5P_DEFAULT);
    const char *const groups[] = {"/", "/group/inner"};
    for (int i = 0; i < 2; i++) {
        H5G_info_t info;
        assert_true(H5Gget_info_by_name(file, groups[i], &info, H5P_DEFAULT) >= 0);
        assert_true(info.nlinks >= 20);
        assert_int_equal(info.storage_type, H5G_STORAGE_TYPE_COMPACT);
    }
    H5Fclose(file);
}

static void abandoned_files_leave_nothing(void **state)
{
    (void)state;
    dsv4_h5 *file = create("kept.h5");
    define(file, "x", DSV4_H5_I32, 1, SHAPE(1), 5);
    close_file(file);
    file = create("kept.h5");
    assert_int_equal(access("kept.h5.part", F_OK), 0);
    dsv4_h5_abandon(file);
    dsv4_h5_abandon(NULL);
    assert_int_not_equal(access("kept.h5.part", F_OK), 0);
    file = reopen("kept.h5");
    assert_indices(file, "x", 1, SHAPE(5));
    dsv4_h5_abandon(file);
    assert_int_equal(access("kept.h5", F_OK), 0);
}

static void assert_create_fails(const char *path, const char *expected)
{
    dsv4_error err = {""};
    assert_null(dsv4_h5_create(path, &err));
    assert_string_equal(err.text, expected);
}

static void unusable_names_are_refused(void **state)
{
    (void)state;
    assert_create_fails("none/a.h5", "none/a.h5.part: cannot create: No such file or directory");
    assert_create_fails("/dev/null", "'/dev/null': cannot write: not the name of a regular file");
    assert_create_fails("", "'': cannot write: not the name of a regular file");
    assert_create_fails(".", "'.': cannot write: not the name of a regular file");
    dsv4_h5 *file = create("twice.h5");
    dsv4_error err = {""};
    assert_null(dsv4_h5_create("twice.h5", &err));
    assert_string_equal(err.text, "twice.h5.part: exists: another run is writing it, or one was killed and "
                        "it can go");
    close_file(file);

    file = create("late.h5");
    assert_int_equal(mkdir("late.h5", 0700), 0);
    err = (dsv4_error){""};
    assert_int_equal(dsv4_h5_close(file, &err), -1);
    assert_string_equal(err.text, "late.h5.part: cannot rename to late.h5: Is a directory");
    assert_int_not_equal(access("late.h5.part", F_OK), 0);
}

static void assert_define_fails(dsv4_h5 *file, const char *name, int rank, const int64_t *shape,
                                const char *expected)
{
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_define(file, name, DSV4_H5_F64, rank, shape, 0, &err), -1);
    assert_memory_equal(err.text, expected, strlen(expected));
}

static void impossible_datasets_are_refused(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    assert_define_fails(file, "x", 9, SHAPE(1, 1, 1, 1, 1, 1, 1, 1, 1),
                        "a.h5: x: rank 9 is not in 0..8");
    assert_define_fails(file, "x", 2, SHAPE(1, -1), "a.h5: x: negative dimension");
    assert_define_fails(file, "x", 2, SHAPE(INT64_C(1) << 32, INT64_C(1) << 32),
                        "a.h5: x: too large");
    assert_define_fails(file, "x", 2, SHAPE(INT64_C(1) << 31, INT64_C(1) << 30),
                        "a.h5: x: too large");
    define(file, "g/x", DSV4_H5_F64, 1, SHAPE(1), 0);
    assert_define_fails(file, "g/x", 1, SHAPE(1), "a.h5: g/x: cannot create the dataset: ");
    assert_define_fails(file, "g/x/y/z", 1, SHAPE(1), "a.h5: g/x/y: cannot create the group: ");
    dsv4_h5_abandon(file);
}

static void assert_write_fails(dsv4_h5 *file, const char *name, int64_t row, int64_t rows,
                               int64_t width, const char *expected)
{
    const double values[64] = {0};
    dsv4_error err = {""};
    assert_int_equal(dsv4_h5_write(file, name, row, rows, width, values, NULL, &err), -1);
    assert_string_equal(err.text, expected);
}

static void misplaced_rows_are_refused(void **state)
{
    (void)state;
    dsv4_h5 *file = create("a.h5");
    define(file, "x", DSV4_H5_F64, 2, SHAPE(4, 3), 0);
    define(file, "y", DSV4_H5_I32, 3, SHAPE(4, 3, 2), 0);
    define(file, "scalar", DSV4_H5_F64, 0, NULL, 0);
    assert_write_fails(file, "z", 0, 1, 1, "a.h5: no dataset z");
    assert_write_fails(file, "x", 3, 2, 3,
                       "a.h5: x: 2 rows of 3 values from row 3 are outside the dataset");
    assert_write_fails(file, "x", -1, 1, 3,
                       "a.h5: x: 1 rows of 3 values from row -1 are outside the dataset");
    assert_write_fails(file, "x", 0, 1, 4,
                       "a.h5: x: 1 rows of 4 values from row 0 are outside the dataset");
    assert_write_fails(file, "scalar", 0, 1, 1,
                       "a.h5: scalar: 1 rows of 1 values from row 0 are outside the dataset");
    assert_write_fails(file, "y", 0, 1, 5,
                       "a.h5: y: 5 of 6 values: only whole rows at rank 3");
    dsv4_error err = {""};
    const int64_t large[] = {0, 0, 0, 0, 0, INT64_C(1) << 31};
    assert_int_equal(dsv4_h5_write(file, "y", 0, 1, 6, NULL, large, &err), -1);
    assert_string_equal(err.text, "a.h5: y: 2147483648 does not fit 32 bits");
    dsv4_h5_abandon(file);
}

/* A main() on a full disk: of `argv[1]`, "define" or "close", the first that fails. */
static int fill_disk(int argc, char **argv)
{
    (void)argc;
    dsv4_error err = {""};
    signal(SIGXFSZ, SIG_IGN);
    dsv4_h5 *file = dsv4_h5_create("full.h5", &err);
    struct rlimit usual, limit;
    getrlimit(RLIMIT_FSIZE, &usual);
    limit = (struct rlimit){4096, usual.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    int64_t shape[] = {strcmp(argv[1], "define") == 0 ? 10000 : 1};
    bool defined = true;
    char name[16];
    for (int i = 0; i < 50 && defined; i++) {
        snprintf(name, sizeof name, "g%d/x", i);
        defined = dsv4_h5_define(file, name, DSV4_H5_F64, 1, shape, 0, &err) == 0;
    }
    if (defined)
        dsv4_h5_close(file, &err);
    else
        dsv4_h5_abandon(file);
    setrlimit(RLIMIT_FSIZE, &usual); /* for what a coverage build writes at the end */
    fprintf(stderr, "%s", err.text);
    return access("full.h5.part", F_OK) == 0 || access("full.h5", F_OK) == 0;
}

static void full_disks_are_noticed(void **state)
{
    (void)state;
    command_result result = command_call(fill_disk, "fill_disk", "define");
    assert_string_equal(result.err, "full.h5: g0/x: cannot create the dataset: File too large");
    assert_int_equal(result.code, 0);
    command_free(&result);
    result = command_call(fill_disk, "fill_disk", "close");
    assert_string_equal(result.err, "full.h5: cannot finish writing: File too large");
    assert_int_equal(result.code, 0);
    command_free(&result);
}

/* A dataset of `type` in foreign.h5, with `values` given in `memory`. */
static void add_foreign(hid_t file, const char *name, hid_t type, int rank, const hsize_t *dims,
                        hid_t creation, hid_t memory, const void *values)
{
    hid_t space = rank < 0 ? H5Screate(H5S_NULL) : H5Screate_simple(rank, dims, NULL);
    hid_t set = H5Dcreate2(file, name, type, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    assert_true(set >= 0);
    if (values != NULL)
        assert_true(H5Dwrite(set, memory, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0);
    H5Dclose(set);
    H5Sclose(space);
}

static void foreign_numbers_are_read(void **state)
{
    (void)state;
    hid_t file = H5Fcreate("foreign.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hsize_t dims[] = {2, 2};
    const double values[] = {-1.5, 0.25, 3, 65504};
    const int64_t numbers[] = {0, 1, 200, 255};
    const hid_t integers[] = {H5T_STD_U8LE, H5T_STD_U16BE, H5T_STD_I32BE, H5T_STD_U64LE};
    char name[16];
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "i%d", i);
        add_foreign(file, name, integers[i], 2, dims, H5P_DEFAULT, H5T_NATIVE_INT64, numbers);
    }
    add_foreign(file, "long_double", H5T_NATIVE_LDOUBLE, 2, dims, H5P_DEFAULT, H5T_NATIVE_DOUBLE,
                values);
    hid_t half = H5Tcopy(H5T_IEEE_F32LE);
    H5Tset_fields(half, 15, 10, 5, 0, 10);
    H5Tset_size(half, 2);
    H5Tset_ebias(half, 15);
    add_foreign(file, "half", half, 2, dims, H5P_DEFAULT, H5T_NATIVE_DOUBLE, values);
    H5Tclose(half);
    hid_t chunked = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(chunked, 2, dims);
    H5Pset_shuffle(chunked);
    H5Pset_fletcher32(chunked);
    add_foreign(file, "filtered", H5T_IEEE_F64BE, 2, dims, chunked, H5T_NATIVE_DOUBLE, values);
    H5Pclose(chunked);
    H5Fclose(file);

    dsv4_h5 *reading = reopen("foreign.h5");
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "i%d", i);
        assert_indices(reading, name, 4, numbers);
    }
    assert_values(reading, "long_double", 4, values);
    assert_values(reading, "half", 4, values);
    assert_values(reading, "filtered", 4, values);
    close_file(reading);
}

static size_t same_bytes(unsigned flags, size_t count, const unsigned *values, size_t bytes,
                         size_t *size, void **buffer)
{
    (void)flags;
    (void)count;
    (void)values;
    (void)size;
    (void)buffer;
    return bytes;
}

/* Datasets with a filter that this program no longer has when it reads them. */
static void add_unreadable(hid_t file)
{
    const H5Z_class2_t filter = {H5Z_CLASS_T_VERS, 300, 1, 1, "test", NULL, NULL, same_bytes};
    const hsize_t dims[] = {2};
    assert_true(H5Zregister(&filter) >= 0);
    hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_chunk(creation, 1, dims);
    H5Pset_filter(creation, 300, 0, 0, NULL);
    add_foreign(file, "filtered_floats", H5T_IEEE_F64LE, 1, dims, creation, H5T_NATIVE_DOUBLE,
                (const double[]){1, 2});
    add_foreign(file, "filtered_integers", H5T_STD_I32LE, 1, dims, creation, H5T_NATIVE_INT,
                (const int[]){1, 2});
    H5Pclose(creation);
    assert_true(H5Zunregister(300) >= 0);
}

static void assert_begins(dsv4_h5 *file, const char *name, const char *expected)
{
    dsv4_error err = {""};
    dsv4_h5_data data;
    assert_int_equal(dsv4_h5_read(file, name, &data, &err), -1);
    assert_memory_equal(err.text, expected, strlen(expected));
}

static void other_datasets_are_refused(void **state)
{
    (void)state;
    hid_t file = H5Fcreate("foreign.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    const hsize_t one[] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
    const hsize_t huge[] = {(hsize_t)1 << 40, (hsize_t)1 << 10, (hsize_t)1 << 20};
    hid_t enumeration = H5Tenum_create(H5T_NATIVE_INT);
    H5Tenum_insert(enumeration, "zero", (const int[]){0});
    hid_t compound = H5Tcreate(H5T_COMPOUND, 4);
    H5Tinsert(compound, "x", 0, H5T_NATIVE_INT);
    hid_t wide = H5Tcopy(H5T_STD_I64LE);
    H5Tset_size(wide, 16);
    const uint64_t top = UINT64_C(1) << 63;
    add_foreign(file, "string", H5T_C_S1, 1, one, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "enumeration", enumeration, 1, one, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "compound", compound, 1, one, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "bits", H5T_STD_B8LE, 1, one, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "wide", wide, 1, one, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "unsigned", H5T_STD_U64LE, 1, one, H5P_DEFAULT, H5T_NATIVE_UINT64, &top);
    add_foreign(file, "null", H5T_STD_I32LE, -1, NULL, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "rank9", H5T_STD_I32LE, 9, one, H5P_DEFAULT, 0, NULL);
    add_foreign(file, "memory", H5T_IEEE_F32LE, 2, huge, H5P_DEFAULT, 0, NULL);
    hid_t chunked = H5Pcreate(H5P_DATASET_CREATE); /* or HDF5 refuses the size itself */
    H5Pset_chunk(chunked, 3, one);
    add_foreign(file, "overflow", H5T_IEEE_F32LE, 3, huge, chunked, 0, NULL);
    H5Pclose(chunked);
    add_unreadable(file);
    H5Tclose(enumeration);
    H5Tclose(compound);
    H5Tclose(wide);
    H5Fclose(file);

    dsv4_h5 *reading = reopen("foreign.h5");
    assert_read_fails(reading, "none", "foreign.h5: no dataset none");
    assert_read_fails(reading, "string",
                      "foreign.h5: string: expected integers or floats, got type class string");
    assert_read_fails(reading, "enumeration", "foreign.h5: enumeration: expected integers or "
                      "floats, got type class enumeration");
    assert_read_fails(reading, "compound", "foreign.h5: compound: expected integers or floats, "
                      "got type class compound");
    assert_read_fails(reading, "bits",
                      "foreign.h5: bits: expected integers or floats, got type class other");
    assert_read_fails(reading, "wide",
                      "foreign.h5: wide: integers of 16 bytes, at most 8 are supported");
    assert_read_fails(reading, "unsigned", "foreign.h5: unsigned: 9223372036854775808 does not "
                      "fit a signed 64-bit number");
    assert_read_fails(reading, "null", "foreign.h5: null: has no values (a null dataspace)");
    assert_read_fails(reading, "rank9", "foreign.h5: rank9: rank 9, at most 8 is supported");
    assert_read_fails(reading, "memory",
                      "foreign.h5: memory: too large for the memory of this machine");
    assert_read_fails(reading, "overflow",
                      "foreign.h5: overflow: too large for the memory of this machine");
    assert_begins(reading, "filtered_floats", "foreign.h5: filtered_floats: cannot read: ");
    assert_begins(reading, "filtered_integers", "foreign.h5: filtered_integers: cannot read: ");
    close_file(reading);
}

static void assert_open_fails(const char *path, const char *expected)
{
    dsv4_error err = {""};
    assert_null(dsv4_h5_open(path, &err));
    assert_memory_equal(err.text, expected, strlen(expected));
}

static void other_files_are_refused(void **state)
{
    (void)state;
    dsv4_h5 *file = create("whole.h5");
    define(file, "x", DSV4_H5_F64, 1, SHAPE(1000), 0);
    close_file(file);
    assert_int_equal(truncate("whole.h5", 5000), 0);
    assert_open_fails("whole.h5", "whole.h5: cannot open: truncated file");
    FILE *text = fopen("text.h5", "w");
    fputs("not HDF5", text);
    fclose(text);
    assert_open_fails("text.h5", "text.h5: not an HDF5 file");
    assert_open_fails("none.h5", "none.h5: cannot open: No such file or directory");
    assert_open_fails(".", ".: cannot open: Is a directory");
    assert_int_equal(mkfifo("pipe.h5", 0600), 0);
    assert_open_fails("pipe.h5", "pipe.h5: cannot open: not a regular file");
}

/* A dataset whose header is damaged is there: to list the others only would hide it. */
static void damaged_datasets_are_not_passed_over(void **state)
{
    (void)state;
    H5dont_atexit(); /* see host/h5.c */
    hid_t id = H5Fcreate("old.h5", H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    hid_t space = H5Screate_simple(1, (hsize_t[]){3}, NULL);
    hid_t set = H5Dcreate2(id, "x", H5T_NATIVE_INT, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5O_info_t info;
    assert_true(H5Oget_info2(set, &info, H5O_INFO_BASIC) >= 0);
    H5Dclose(set);
    H5Sclose(space);
    H5Fclose(id);
    FILE *bytes = fopen("old.h5", "r+b");
    assert_int_equal(fseek(bytes, (long)info.addr, SEEK_SET), 0);
    fputc(99, bytes); /* the version of its header */
    fclose(bytes);
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_open("old.h5", &err);
    assert_non_null(file);
    int64_t count;
    assert_null(dsv4_h5_names(file, &count, &err));
    assert_memory_equal(err.text, "old.h5: x: cannot open", 22);
    close_file(file);
}

/* What stands under the name of a new file, or of its unfinished part, is somebody's. */
static void nothing_foreign_is_replaced(void **state)
{
    (void)state;
    FILE *text = fopen("notes.h5", "w");
    fputs("not HDF5", text);
    fclose(text);
    assert_create_fails("notes.h5", "notes.h5: exists and is not an HDF5 file: not overwritten");
    text = fopen("mine.h5.part", "w");
    fclose(text);
    assert_create_fails("mine.h5", "mine.h5.part: exists: another run is writing it, or one was killed and "
                        "it can go");
    assert_int_equal(access("mine.h5.part", F_OK), 0);
}

/* Whole datasets of every type, as they are in memory. */
static void whole_datasets_are_put_and_got(void **state)
{
    (void)state;
    const double f64[] = {1 / 3.0, -INFINITY};
    const float f32[] = {1 / 3.0f, -0.0f};
    const int32_t i32[] = {INT32_MIN, 7};
    const int64_t i64[] = {INT64_MIN, INT64_MAX};
    const uint8_t u8[] = {255, 0};
    const uint64_t u64[] = {UINT64_MAX, 1};
    const struct { const char *name; dsv4_h5_type type; const void *data; size_t size; } all[] = {
        {"g/f64", DSV4_H5_F64, f64, sizeof f64}, {"g/f32", DSV4_H5_F32, f32, sizeof f32},
        {"g/i32", DSV4_H5_I32, i32, sizeof i32}, {"g/i64", DSV4_H5_I64, i64, sizeof i64},
        {"g/u8", DSV4_H5_U8, u8, sizeof u8},     {"g/u64", DSV4_H5_U64, u64, sizeof u64},
    };
    enum { ALL = sizeof all / sizeof *all };
    dsv4_error err = {""};
    dsv4_h5 *file = create("whole.h5");
    for (int i = 0; i < ALL; i++)
        assert_int_equal(dsv4_h5_put(file, all[i].name, all[i].type, 2, SHAPE(2, 1), all[i].data,
                                     &err), 0);
    assert_int_equal(dsv4_h5_put(file, "empty", DSV4_H5_U8, 2, SHAPE(0, 3), NULL, &err), 0);
    assert_int_equal(dsv4_h5_put(file, "scalar", DSV4_H5_F64, 0, NULL, f64, &err), 0);
    close_file(file);
    file = reopen("whole.h5");
    for (int i = 0; i < ALL; i++) {
        char data[16];
        dsv4_h5_info info;
        assert_int_equal(dsv4_h5_describe(file, all[i].name, &info, &err), 0);
        assert_int_equal(info.type, all[i].type);
        assert_int_equal(info.rank, 2);
        assert_int_equal(info.shape[0], 2);
        assert_int_equal(info.count, 2);
        assert_true(info.plain);
        assert_int_equal(dsv4_h5_get(file, all[i].name, all[i].type, 2, data, &err), 0);
        assert_memory_equal(data, all[i].data, all[i].size);
        assert_string_equal(dsv4_h5_type_name(all[i].type),
                            ((const char *[]){"float64", "float32", "int32", "int64", "uint8",
                                              "uint64"})[i]);
    }
    dsv4_h5_info info;
    assert_int_equal(dsv4_h5_describe(file, "empty", &info, &err), 0);
    assert_int_equal(info.count, 0);
    assert_int_equal(info.shape[1], 3);
    assert_int_equal(dsv4_h5_get(file, "empty", DSV4_H5_U8, 0, NULL, &err), 0);
    assert_string_equal(err.text, "");
    char none[16];
    assert_int_equal(dsv4_h5_get(file, "g/u8", DSV4_H5_I64, 2, none, &err), -1);
    assert_string_equal(err.text, "whole.h5: g/u8: expected int64, got uint8");
    err.text[0] = '\0';
    assert_int_equal(dsv4_h5_get(file, "g/u8", DSV4_H5_U8, 1, none, &err), -1);
    assert_string_equal(err.text, "whole.h5: g/u8: expected 1 values, got 2");
    err.text[0] = '\0';
    assert_int_equal(dsv4_h5_describe(file, "g", &info, &err), -1);
    assert_string_equal(err.text, "whole.h5: no dataset g");
    close_file(file);
}

static void attributes_are_put_and_got(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_h5 *file = create("attributes.h5");
    const double numbers[] = {1 / 3.0, 2, INFINITY};
    const uint64_t seed = UINT64_MAX;
    const int64_t shape[] = {-1, 5};
    const char *const objects[] = {"", "group", "group/set"};
    assert_int_equal(dsv4_h5_put(file, "group/set", DSV4_H5_U8, 1, SHAPE(1), "x", &err), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(dsv4_h5_put_text(file, objects[i], "text", "caf\xc3\xa9", &err), 0);
        assert_int_equal(dsv4_h5_put_text(file, objects[i], "nothing", "", &err), 0);
        assert_int_equal(dsv4_h5_put_numbers(file, objects[i], "three", DSV4_H5_F64, 3, numbers,
                                             &err), 0);
        assert_int_equal(dsv4_h5_put_numbers(file, objects[i], "seed", DSV4_H5_U64, DSV4_H5_SCALAR,
                                             &seed, &err), 0);
        assert_int_equal(dsv4_h5_put_numbers(file, objects[i], "shape", DSV4_H5_I64, 2, shape,
                                             &err), 0);
        assert_int_equal(dsv4_h5_put_numbers(file, objects[i], "none", DSV4_H5_I64, 0, shape,
                                             &err), 0);
        for (int j = 0; j < 30; j++) {
            char name[16];
            snprintf(name, sizeof name, "a%02d", j);
            assert_int_equal(dsv4_h5_put_numbers(file, objects[i], name, DSV4_H5_F64,
                                                 DSV4_H5_SCALAR, numbers, &err), 0);
        }
    }
    assert_int_equal(dsv4_h5_put_text(file, "absent", "a", "", &err), -1);
    assert_string_equal(err.text, "attributes.h5: no group or dataset absent");
    err.text[0] = '\0';
    assert_int_equal(dsv4_h5_put_text(file, "group", "text", "again", &err), -1);
    assert_memory_equal(err.text, "attributes.h5: group: attribute text: cannot create", 51);
    err.text[0] = '\0';
    close_file(file);

    file = reopen("attributes.h5");
    for (int i = 0; i < 3; i++) {
        char text[8];
        double got[3];
        uint64_t integer;
        int64_t two[2], count;
        assert_int_equal(dsv4_h5_get_text(file, objects[i], "text", text, 6, &err), 0);
        assert_string_equal(text, "caf\xc3\xa9");
        assert_int_equal(dsv4_h5_get_text(file, objects[i], "nothing", text, 2, &err), 0);
        assert_string_equal(text, "");
        assert_int_equal(dsv4_h5_get_numbers(file, objects[i], "three", DSV4_H5_F64, 3, got, &err),
                         3);
        assert_memory_equal(got, numbers, sizeof got);
        assert_int_equal(dsv4_h5_get_numbers(file, objects[i], "seed", DSV4_H5_U64, 1, &integer,
                                             &err), 1);
        assert_true(integer == UINT64_MAX);
        assert_int_equal(dsv4_h5_get_numbers(file, objects[i], "shape", DSV4_H5_I64, 2, two, &err),
                         2);
        assert_memory_equal(two, shape, sizeof two);
        assert_int_equal(dsv4_h5_get_numbers(file, objects[i], "shape", DSV4_H5_F64, 3, got, &err),
                         2);
        assert_true(got[0] == -1 && got[1] == 5);
        assert_int_equal(dsv4_h5_get_numbers(file, objects[i], "none", DSV4_H5_I64, 2, two, &err),
                         0);
        assert_true(dsv4_h5_has_attribute(file, objects[i], "seed"));
        assert_false(dsv4_h5_has_attribute(file, objects[i], "seeds"));
        char **names = dsv4_h5_attributes(file, objects[i], &count, &err);
        assert_int_equal(count, 36);
        assert_string_equal(names[0], "a00");
        assert_string_equal(names[35], "three");
        dsv4_h5_names_free(names, count);
    }
    assert_string_equal(err.text, "");
    assert_false(dsv4_h5_has_attribute(file, "absent", "seed"));
    int64_t count;
    assert_null(dsv4_h5_attributes(file, "absent", &count, &err));
    assert_string_equal(err.text, "attributes.h5: no group or dataset absent");
    close_file(file);
}

static void assert_compact(hid_t creation)
{
    unsigned most, least;
    assert_true(H5Pget_attr_phase_change(creation, &most, &least) >= 0);
    assert_int_equal(most, 65535);
    H5Pclose(creation);
}

/* The heap that HDF5 would otherwise make of many attributes has no fixed place in the file. */
static void attributes_stay_in_the_header(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_h5 *file = create("compact.h5");
    assert_int_equal(dsv4_h5_put(file, "group/set", DSV4_H5_U8, 1, SHAPE(1), "x", &err), 0);
    define(file, "group/defined", DSV4_H5_F64, 1, SHAPE(1), 0);
    close_file(file);
    hid_t id = H5Fopen("compact.h5", H5F_ACC_RDONLY, H5P_DEFAULT);
    const char *const groups[] = {"/", "group"};
    for (int i = 0; i < 2; i++) {
        hid_t group = H5Gopen2(id, groups[i], H5P_DEFAULT);
        assert_compact(H5Gget_create_plist(group));
        H5Gclose(group);
    }
    const char *const sets[] = {"group/set", "group/defined"};
    for (int i = 0; i < 2; i++) {
        hid_t set = H5Dopen2(id, sets[i], H5P_DEFAULT);
        assert_compact(H5Dget_create_plist(set));
        H5Dclose(set);
    }
    H5Fclose(id);
}

static void other_attributes_are_refused(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_h5 *file = create("attributes.h5");
    const double numbers[] = {1, 2};
    const uint64_t large[] = {UINT64_MAX};
    assert_int_equal(dsv4_h5_put_text(file, "", "text", "12345678", &err), 0);
    assert_int_equal(dsv4_h5_put_numbers(file, "", "two", DSV4_H5_F64, 2, numbers, &err), 0);
    assert_int_equal(dsv4_h5_put_numbers(file, "", "large", DSV4_H5_U64, 1, large, &err), 0);
    close_file(file);
    const struct {
        const char *name;
        bool text;
        dsv4_h5_type type;
        int64_t most;
        const char *says;
    } bad[] = {
        {"absent", true, 0, 0, "no attribute absent"},
        {"absent", false, DSV4_H5_F64, 1, "no attribute absent"},
        {"two", true, 0, 0, "attribute two: expected one text"},
        {"text", true, 0, 0, "attribute text: expected less than 8 bytes, got 8"},
        {"text", false, DSV4_H5_F64, 9, "attribute text: expected numbers"},
        {"two", false, DSV4_H5_I64, 2, "attribute two: expected integers"},
        {"two", false, DSV4_H5_F64, 1, "attribute two: expected at most 1 numbers, got 2"},
        {"large", false, DSV4_H5_I64, 1, "attribute large: expected numbers that fit int64"},
    };
    file = reopen("attributes.h5");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[8], expected[128];
        double data[9];
        dsv4_error wrong = {""};
        assert_int_equal(bad[i].text ? dsv4_h5_get_text(file, "", bad[i].name, text, sizeof text,
                                                        &wrong)
                                     : dsv4_h5_get_numbers(file, "", bad[i].name, bad[i].type,
                                                           bad[i].most, data, &wrong), -1);
        snprintf(expected, sizeof expected, "attributes.h5: /: %s", bad[i].says);
        assert_string_equal(wrong.text, expected);
    }
    close_file(file);
}

static void groups_are_listed(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_h5 *file = create("groups.h5");
    dsv4_h5_child *children;
    int64_t count;
    assert_int_equal(dsv4_h5_put(file, "b/set", DSV4_H5_U8, 1, SHAPE(1), "x", &err), 0);
    assert_int_equal(dsv4_h5_make_group(file, "b/a/empty", &err), 0);
    assert_int_equal(dsv4_h5_make_group(file, "b/a", &err), 0);
    close_file(file);
    file = reopen("groups.h5");
    assert_int_equal(dsv4_h5_children(file, "", &children, &count, &err), 0);
    assert_int_equal(count, 1);
    dsv4_h5_children_free(children, count);
    assert_int_equal(dsv4_h5_children(file, "/b", &children, &count, &err), 0);
    assert_int_equal(count, 2);
    assert_string_equal(children[0].name, "a");
    assert_true(children[0].group);
    assert_string_equal(children[1].name, "set");
    assert_false(children[1].group);
    dsv4_h5_children_free(children, count);
    assert_int_equal(dsv4_h5_children(file, "b/a/empty", &children, &count, &err), 0);
    assert_int_equal(count, 0);
    dsv4_h5_children_free(children, count);
    assert_string_equal(err.text, "");
    assert_int_equal(dsv4_h5_children(file, "b/set", &children, &count, &err), -1);
    assert_string_equal(err.text, "groups.h5: no group b/set");
    close_file(file);

    hid_t id = H5Fopen("groups.h5", H5F_ACC_RDWR, H5P_DEFAULT);
    hid_t type = H5Tcopy(H5T_NATIVE_INT);
    H5Tcommit2(id, "b/type", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Tclose(type);
    H5Fclose(id);
    file = reopen("groups.h5");
    err.text[0] = '\0';
    assert_int_equal(dsv4_h5_children(file, "b", &children, &count, &err), -1);
    assert_string_equal(err.text, "groups.h5: type: expected a group or a dataset, got another "
                        "object");
    assert_null(children);
    close_file(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(written_is_read),
        cmocka_unit_test(rows_of_an_entry_are_written),
        cmocka_unit_test(datasets_are_listed),
        cmocka_unit_test(bytes_do_not_depend_on_the_run),
        cmocka_unit_test(abandoned_files_leave_nothing),
        cmocka_unit_test(unusable_names_are_refused),
        cmocka_unit_test(impossible_datasets_are_refused),
        cmocka_unit_test(misplaced_rows_are_refused),
        cmocka_unit_test(full_disks_are_noticed),
        cmocka_unit_test(foreign_numbers_are_read),
        cmocka_unit_test(other_datasets_are_refused),
        cmocka_unit_test(other_files_are_refused),
        cmocka_unit_test(damaged_datasets_are_not_passed_over),
        cmocka_unit_test(nothing_foreign_is_replaced),
        cmocka_unit_test(whole_datasets_are_put_and_got),
        cmocka_unit_test(attributes_are_put_and_got),
        cmocka_unit_test(attributes_stay_in_the_header),
        cmocka_unit_test(other_attributes_are_refused),
        cmocka_unit_test(groups_are_listed),
    };
    return cmocka_run_group_tests_name("h5", tests, scratch_enter, scratch_leave) != 0;
}
