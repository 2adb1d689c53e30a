#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>

#include "tools/load_formats.h"

static char found[10000]; /* "key=value;" for pairs, "!line;" for problems */

static void on_pair(void *context, struct slice key, struct slice value)
{
    (void)context;
    size_t n = strlen(found);
    snprintf(found + n, sizeof found - n, "%.*s=%.*s;", (int)key.len, key.data, (int)value.len, value.data);
}

static void on_problem(void *context, uint64_t line, const char *text)
{
    (void)context;
    (void)text;
    size_t n = strlen(found);
    snprintf(found + n, sizeof found - n, "!%llu;", (unsigned long long)line);
}

/* The same result whatever the pieces are that the text comes in. */
static void expect(enum load_format format, const char *prefix, const char *text, const char *wanted)
{
    size_t len = strlen(text);
    for (size_t piece = 1; piece <= len; piece++) {
        struct load_parser *parser;
        struct load_sink sink = {on_pair, on_problem, NULL};
        found[0] = '\0';
        status_t s =
            load_parser_create(format, slice_make(prefix, strlen(prefix)), SLICE_LITERAL("/"), sink, &parser);
        for (size_t at = 0; at < len && status_is_ok(&s); at += piece)
            s = load_parser_feed(parser, text + at, len - at < piece ? len - at : piece);
        assert_true(status_is_ok(&s));
        load_parser_finish(parser);
        load_parser_destroy(parser);
        assert_string_equal(found, wanted);
    }
}

static void test_deb822(void **state)
{
    (void)state;
    expect(LOAD_DEB822, "deb", "Package: a\nX:  y \nLong: s\n one\n .\n\ttwo\n\n\n# c\nV: 1\nPackage: b",
           "deb/a/Package=a;deb/a/X=y ;deb/a/Long=s\n one\n .\n\ttwo;deb/b/V=1;deb/b/Package=b;");
    expect(LOAD_DEB822, "", "Empty:\nPackage:p\n", "p/Empty=;p/Package=p;");
    expect(LOAD_DEB822, "", "\nFoo: x\nBar: y\n\nPackage: p\nno colon\n gone\nZ: 1\n \n orphan\n",
           "!2;!6;p/Package=p;p/Z=1;!10;");
    expect(LOAD_DEB822, "", "Package:\nX: 1\n\n: v\n-a: b\n", "!1;!4;!5;");
    expect(LOAD_DEB822, "", "Package: a\r\nX: y\r\r\nLong: s\r\n one\r\n\r\nPackage: b\r\nE:\r",
           "a/Package=a;a/X=y\r;a/Long=s\n one;b/Package=b;b/E=;");
}

static void test_tsv(void **state)
{
    (void)state;
    expect(LOAD_TSV, "p", "a\tb\nc\td\te\r\n\ne\t", "p/a=b;p/c=d\te\r;p/e=;");
    expect(LOAD_TSV, "", "a b\n\tv\nk\tv", "!1;!2;k=v;");
}

static void test_ndjson(void **state)
{
    (void)state;
    expect(LOAD_NDJSON, "p", "{\"key\":\"k\",\"value\":\"v\"}\n\n{\"key\":\"k\",\"x\":1}", "p/k=v;p/k/x=1;");
    expect(LOAD_NDJSON, "",
           "{\"a\":{\"b\":\"\\u00e9\",\"c\":{\"d\":0.1}},\"e\":true,\"f\":null,\"g\":[1, \"x\"],\"h\":{}}",
           "a/b=\xc3\xa9;a/c/d=0.1;e=true;g=[1,\"x\"];h={};");
    expect(LOAD_NDJSON, "", "{\"key\":\"k\",\"value\":{\"x\":-3,\"y\":false}}", "k/x=-3;k/y=false;");
    expect(LOAD_NDJSON, "", "[1]\n{\"a\":\n{} {}\n{\"key\":\"\",\"value\":1}\n{\"key\":7}",
           "!1;!2;!3;!4;key=7;");
    expect(LOAD_NDJSON, "", "{\"key\":\"k\"}\n{\"key\":\"k\",\"value\":null}\n{}\n{\"a\":null,\"b\":1}",
           "!1;!2;!3;b=1;");
    char deep[2000] = "";
    for (int i = 0; i < 300; i++)
        strncat(deep, "{\"a\":", sizeof deep - strlen(deep) - 1);
    expect(LOAD_NDJSON, "", deep, "!1;");
}

static void test_guess(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum load_format format;
    } cases[] = {
        {"Package: a\nb: c\n", LOAD_DEB822},
        {"\n# comment\nPackage:\n", LOAD_DEB822},
        {"key:1\tvalue\n", LOAD_TSV},
        {"a b\tc\n", LOAD_TSV},
        {" {\"a\":1}\n", LOAD_NDJSON},
        {"hello\n", LOAD_UNKNOWN},
        {"", LOAD_UNKNOWN},
        {"\n\n", LOAD_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(load_format_guess(slice_make(cases[i].text, strlen(cases[i].text))),
                         cases[i].format);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deb822),
        cmocka_unit_test(test_tsv),
        cmocka_unit_test(test_ndjson),
        cmocka_unit_test(test_guess),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
