/* Texts of any bytes as JSON: bytes that are no UTF-8 become U+FFFD, all others stay. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "host/json.h"

#define BAD "\xef\xbf\xbd"

static void becomes(const char *text, const char *want)
{
    json_t *json = dsv4_json_text(text);
    assert_non_null(json);
    assert_string_equal(json_string_value(json), want);
    json_decref(json);
}

static void test_texts(void **state)
{
    static const char *const stay[] = {
        "", "a/b", "\x7f", "caf\xc3\xa9", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        BAD, "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"};
    (void)state;
    for (size_t i = 0; i < sizeof stay / sizeof *stay; i++)
        becomes(stay[i], stay[i]);
    becomes("caf\xe9", "caf" BAD);
    becomes("caf\xe9/x", "caf" BAD "/x");
    becomes("\xff\xc3\xa9\x80", BAD "\xc3\xa9" BAD);
    becomes("\xc3", BAD); /* the rest is missing */
    becomes("\xe2\x82", BAD BAD);
    becomes("\xc0\xaf", BAD BAD); /* longer than need be */
    becomes("\xc1\xbf", BAD BAD);
    becomes("\xe0\x9f\xbf", BAD BAD BAD);
    becomes("\xf0\x8f\xbf\xbf", BAD BAD BAD BAD);
    becomes("\xed\xa0\x80", BAD BAD BAD); /* a surrogate */
    becomes("\xf4\x90\x80\x80", BAD BAD BAD BAD); /* past the last one */
    becomes("\xf5\x80\x80\x80", BAD BAD BAD BAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts)};
    return cmocka_run_group_tests_name("json", tests, NULL, NULL) != 0;
}
