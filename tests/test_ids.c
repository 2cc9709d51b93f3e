/* Token ids from text and files. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "command.h"
#include "host/h5.h"
#include "host/ids.h"

static void assert_ids(const dsv4_ids *ids, int64_t count, const int64_t *expected)
{
    assert_int_equal(ids->count, count);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(ids->id[i], expected[i]);
}

static void assert_parses(const char *text, int64_t count, const int64_t *expected)
{
    dsv4_error err = {""};
    dsv4_ids ids;
    assert_int_equal(dsv4_ids_parse(&ids, text, "--tokens", &err), 0);
    assert_string_equal(err.text, "");
    assert_ids(&ids, count, expected);
    dsv4_ids_free(&ids);
}

static void text_is_read(void **state)
{
    (void)state;
    const int64_t expected[] = {5, 17, 99};
    assert_parses("5 17 99", 3, expected);
    assert_parses("5,17,99", 3, expected);
    assert_parses("\t5,\r\n17\v\f 99\n", 3, expected);
    assert_parses("[5, 17, 99]", 3, expected);
    assert_parses(" [ 5 17 +99 ] ", 3, expected);
    assert_parses("005 17 0000000000000000000000000000000000099", 3, expected);
    assert_parses("-1 9223372036854775807 -9223372036854775808", 3,
                  (const int64_t[]){-1, INT64_MAX, INT64_MIN});
    int64_t many[100];
    char text[400] = "";
    for (int i = 0; i < 100; i++) {
        many[i] = i;
        sprintf(text + strlen(text), "%d ", i);
    }
    assert_parses(text, 100, many);
}

static void assert_refused(const char *text, const char *expected)
{
    dsv4_error err = {""};
    dsv4_ids ids;
    assert_int_equal(dsv4_ids_parse(&ids, text, "--tokens", &err), -1);
    assert_string_equal(err.text, expected);
    assert_null(ids.id);
}

static void other_text_is_refused(void **state)
{
    (void)state;
    assert_refused("", "--tokens: no token ids");
    assert_refused(" , ", "--tokens: no token ids");
    assert_refused("[]", "--tokens: no token ids");
    assert_refused("5 six", "--tokens: item 2: 'six' is not a decimal number");
    assert_refused("1.5", "--tokens: item 1: '1.5' is not a decimal number");
    assert_refused("1 0x10", "--tokens: item 2: '0x10' is not a decimal number");
    assert_refused("1 2 -", "--tokens: item 3: '-' is not a decimal number");
    assert_refused("--1", "--tokens: item 1: '--1' is not a decimal number");
    assert_refused("1\x01", "--tokens: item 1: '1?' is not a decimal number");
    assert_refused("9223372036854775808",
                   "--tokens: item 1: 9223372036854775808 does not fit a 64-bit number");
    assert_refused("0123456789012345678901234567890123456789x", "--tokens: item 1: "
                   "'0123456789012345678901234567890123456789...' is not a token id");
    assert_refused("[1, 2", "--tokens: no closing bracket");
    assert_refused("1, 2]", "--tokens: item 3: misplaced ']'");
    assert_refused("1 [2]", "--tokens: item 2: misplaced '['");
    assert_refused("[[1]]", "--tokens: item 1: misplaced '['");
    assert_refused("[1]]", "--tokens: item 2: misplaced ']'");
    assert_refused("[1] 2", "--tokens: item 2: '2' is after the closing bracket");
}

static void put_text(const char *path, const char *text, size_t size)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    fwrite(text, 1, size, file);
    fclose(file);
}

static void text_files_are_read(void **state)
{
    (void)state;
    dsv4_error err = {""};
    dsv4_ids ids;
    put_text("ids.txt", "3\n4\n", 4);
    assert_int_equal(dsv4_ids_read_text(&ids, "ids.txt", &err), 0);
    assert_ids(&ids, 2, (const int64_t[]){3, 4});
    dsv4_ids_free(&ids);

    put_text("zero.txt", "1\0", 2);
    assert_int_equal(dsv4_ids_read_text(&ids, "zero.txt", &err), -1);
    assert_string_equal(err.text, "zero.txt: item 1: '1?' is not a decimal number");
    err = (dsv4_error){""};
    assert_int_equal(dsv4_ids_read_text(&ids, "none.txt", &err), -1);
    assert_string_equal(err.text, "none.txt: cannot open: No such file or directory");
    err = (dsv4_error){""};
    assert_int_equal(dsv4_ids_read_text(&ids, ".", &err), -1);
    assert_string_equal(err.text, ".: cannot read: Is a directory");
    err = (dsv4_error){""}; /* no end, and no number */
    assert_int_equal(dsv4_ids_read_text(&ids, "/dev/zero", &err), -1);
    assert_memory_equal(err.text, "/dev/zero: item 1: '????", 23);
}

static void put_h5(const char *path, const char *name, dsv4_h5_type type, int rank,
                   const int64_t *shape)
{
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create(path, &err);
    assert_non_null(file);
    assert_int_equal(dsv4_h5_define(file, name, type, rank, shape, 7, &err), 0);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
}

static void assert_h5_refused(const char *path, const char *expected)
{
    dsv4_error err = {""};
    dsv4_ids ids;
    assert_int_equal(dsv4_ids_read_h5(&ids, path, 1000, &err), -1);
    assert_string_equal(err.text, expected);
    assert_null(ids.id);
}

static void h5_files_are_read(void **state)
{
    (void)state;
    const int64_t three[] = {3, 1}, none[] = {0};
    dsv4_error err = {""};
    dsv4_ids ids;
    put_h5("ids.h5", "token_ids", DSV4_H5_I32, 1, three);
    assert_int_equal(dsv4_ids_read_h5(&ids, "ids.h5", 1000, &err), 0);
    assert_ids(&ids, 3, (const int64_t[]){7, 7, 7});
    dsv4_ids_free(&ids);

    put_h5("float.h5", "token_ids", DSV4_H5_F32, 1, three);
    assert_h5_refused("float.h5", "float.h5: token_ids: expected integers of rank 1, got floats of "
                      "rank 1");
    put_h5("rank.h5", "token_ids", DSV4_H5_I64, 2, three);
    assert_h5_refused("rank.h5", "rank.h5: token_ids: expected integers of rank 1, got integers of "
                      "rank 2");
    put_h5("empty.h5", "token_ids", DSV4_H5_I64, 1, none);
    assert_h5_refused("empty.h5", "empty.h5: token_ids: no token ids");
    put_h5("other.h5", "tokens", DSV4_H5_I64, 1, three);
    assert_h5_refused("other.h5", "other.h5: no dataset token_ids");
    assert_h5_refused("none.h5", "none.h5: cannot open: No such file or directory");
}

static void put_integers(const char *path, const char *name, int rank, const int64_t *shape,
                         const int64_t *values, const char *more, int more_rank,
                         const int64_t *more_shape, const int64_t *more_values)
{
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create(path, &err);
    assert_non_null(file);
    assert_int_equal(dsv4_h5_put(file, name, DSV4_H5_I64, rank, shape, values, &err), 0);
    if (more != NULL)
        assert_int_equal(dsv4_h5_put(file, more, DSV4_H5_I64, more_rank, more_shape, more_values,
                                     &err), 0);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
}

static void sequences_are_read(void **state)
{
    (void)state;
    const int64_t shape[] = {2, 3}, two[] = {2}, values[] = {5, 6, 7, 8, -1, -1};
    dsv4_error err = {""};
    dsv4_sequences sequences;
    put_integers("a.h5", "token_ids", 2, shape, values, "lengths", 1, two, (const int64_t[]){3, 1});
    assert_int_equal(dsv4_sequences_read_h5(&sequences, "a.h5", 3, &err), 0);
    assert_int_equal(sequences.count, 2);
    assert_int_equal(sequences.width, 3);
    assert_true(sequences.batch);
    assert_ids(&sequences.sequence[0], 3, values);
    assert_ids(&sequences.sequence[1], 1, values + 3);
    dsv4_sequences_free(&sequences);
    assert_null(sequences.sequence);

    put_integers("b.h5", "token_ids", 2, shape, values, NULL, 0, NULL, NULL);
    assert_int_equal(dsv4_sequences_read_h5(&sequences, "b.h5", 3, &err), 0);
    assert_int_equal(sequences.count, 2);
    assert_ids(&sequences.sequence[1], 3, values + 3);
    dsv4_sequences_free(&sequences);

    put_integers("c.h5", "token_ids", 1, (const int64_t[]){6}, values, NULL, 0, NULL, NULL);
    assert_int_equal(dsv4_sequences_read_h5(&sequences, "c.h5", 6, &err), 0);
    assert_int_equal(sequences.count, 1);
    assert_int_equal(sequences.width, 6);
    assert_false(sequences.batch);
    assert_ids(&sequences.sequence[0], 6, values);
    dsv4_sequences_free(&sequences);
    assert_string_equal(err.text, "");
}

static void assert_sequences_refused(const char *path, const char *expected)
{
    dsv4_error err = {""};
    dsv4_sequences sequences;
    assert_int_equal(dsv4_sequences_read_h5(&sequences, path, 1000, &err), -1);
    assert_string_equal(err.text, expected);
    assert_null(sequences.sequence);
}

static void other_sequences_are_refused(void **state)
{
    (void)state;
    const int64_t shape[] = {2, 3}, values[6] = {0}, one[] = {1}, two[] = {2}, three[] = {3};
    put_h5("rank3.h5", "token_ids", DSV4_H5_I32, 3, (const int64_t[]){1, 2, 3});
    assert_sequences_refused("rank3.h5", "rank3.h5: token_ids: rank 3, expected 1, or 2 where "
                             "there are several sequences");
    put_h5("scalar.h5", "token_ids", DSV4_H5_I32, 0, NULL);
    assert_sequences_refused("scalar.h5", "scalar.h5: token_ids: rank 0, expected 1, or 2 where "
                             "there are several sequences");
    put_h5("empty.h5", "token_ids", DSV4_H5_I32, 2, (const int64_t[]){0, 3});
    assert_sequences_refused("empty.h5", "empty.h5: token_ids: shape [0,3]: no token ids");
    put_h5("empty.h5", "token_ids", DSV4_H5_I32, 2, (const int64_t[]){3, 0});
    assert_sequences_refused("empty.h5", "empty.h5: token_ids: shape [3,0]: no token ids");
    put_h5("many.h5", "token_ids", DSV4_H5_I32, 2, (const int64_t[]){4097, 1});
    assert_sequences_refused("many.h5", "many.h5: token_ids: 4097 sequences, expected at most "
                             "4096");
    put_h5("long.h5", "token_ids", DSV4_H5_I32, 2, (const int64_t[]){1, 1001});
    assert_sequences_refused("long.h5", "long.h5: sequences of 1001 token ids: the model has "
                             "max_position_embeddings 1000");
    put_h5("float.h5", "token_ids", DSV4_H5_F32, 2, shape);
    assert_sequences_refused("float.h5", "float.h5: token_ids: expected integers, got floats");
    put_h5("float.h5", "token_ids", DSV4_H5_F32, 1, three);
    assert_sequences_refused("float.h5", "float.h5: token_ids: expected integers of rank 1, got "
                             "floats of rank 1");
    put_h5("other.h5", "tokens", DSV4_H5_I64, 1, three);
    assert_sequences_refused("other.h5", "other.h5: no dataset token_ids");
    assert_sequences_refused("none.h5", "none.h5: cannot open: No such file or directory");

    put_integers("l.h5", "token_ids", 2, shape, values, "lengths", 1, three, values);
    assert_sequences_refused("l.h5", "l.h5: lengths: 3 values of rank 1, expected one for each of "
                             "the 2 sequences");
    put_integers("l.h5", "token_ids", 2, shape, values, "lengths", 1, one, values);
    assert_sequences_refused("l.h5", "l.h5: lengths: 1 values of rank 1, expected one for each of "
                             "the 2 sequences");
    put_integers("l.h5", "token_ids", 2, shape, values, "lengths", 2, (const int64_t[]){2, 1},
                 values);
    assert_sequences_refused("l.h5", "l.h5: lengths: 2 values of rank 2, expected one for each of "
                             "the 2 sequences");
    put_integers("l.h5", "token_ids", 2, shape, values, "lengths", 1, two,
                 (const int64_t[]){3, 0});
    assert_sequences_refused("l.h5", "l.h5: lengths: sequence 1 has 0 tokens, expected 1..3");
    put_integers("l.h5", "token_ids", 2, shape, values, "lengths", 1, two,
                 (const int64_t[]){4, 3});
    assert_sequences_refused("l.h5", "l.h5: lengths: sequence 0 has 4 tokens, expected 1..3");
    dsv4_error err = {""};
    dsv4_h5 *file = dsv4_h5_create("l.h5", &err);
    assert_int_equal(dsv4_h5_put(file, "token_ids", DSV4_H5_I64, 2, shape, values, &err), 0);
    assert_int_equal(dsv4_h5_define(file, "lengths", DSV4_H5_F64, 1, two, 1, &err), 0);
    assert_int_equal(dsv4_h5_close(file, &err), 0);
    assert_sequences_refused("l.h5", "l.h5: lengths: expected integers, got floats");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_read),
        cmocka_unit_test(other_text_is_refused),
        cmocka_unit_test(text_files_are_read),
        cmocka_unit_test(h5_files_are_read),
        cmocka_unit_test(sequences_are_read),
        cmocka_unit_test(other_sequences_are_refused),
    };
    return cmocka_run_group_tests_name("ids", tests, scratch_enter, scratch_leave) != 0;
}
