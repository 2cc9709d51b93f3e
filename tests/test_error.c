/* Messages: one line, the first of several, and of a long one beginning and end. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "host/error.h"

static void one_line_and_the_first(void **state)
{
    (void)state;
    dsv4_error err = {""};
    assert_int_equal(dsv4_fail(&err, "a\nb\033c\177d %d", 7), -1);
    assert_string_equal(err.text, "a?b?c?d 7");
    assert_int_equal(dsv4_fail(&err, "later"), -1);
    assert_string_equal(err.text, "a?b?c?d 7");
    assert_int_equal(dsv4_fail(NULL, "nobody asks"), -1);
}

/* What was expected and got stands at the end, behind names of any length. */
static void long_messages_keep_their_end(void **state)
{
    (void)state;
    char name[5000];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    dsv4_error err = {""};
    dsv4_fail(&err, "file.safetensors: tensor %s: expected F32, got I8", name);
    const char *end = ": expected F32, got I8";
    assert_true(strlen(err.text) < sizeof err.text);
    assert_memory_equal(err.text, "file.safetensors: tensor nnn", 28);
    assert_non_null(strstr(err.text, "nnn...nnn"));
    assert_string_equal(err.text + strlen(err.text) - strlen(end), end);
    for (size_t length = sizeof err.text - 3; length <= sizeof err.text + 2; length++) {
        err = (dsv4_error){""};
        name[length] = '\0';
        dsv4_fail(&err, "%s", name);
        assert_true(strlen(err.text) < sizeof err.text);
        assert_true((strlen(err.text) == length) == (length < sizeof err.text));
        name[length] = 'n';
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_line_and_the_first),
        cmocka_unit_test(long_messages_keep_their_end),
    };
    return cmocka_run_group_tests_name("error", tests, NULL, NULL) != 0;
}
