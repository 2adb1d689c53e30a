#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <stdio.h>
#include <unistd.h>

#include "tools/options.h"

static const char *listen_text, *port;
static uint64_t threads, memory;
static double seconds;
static int io;
static bool json;

static const struct option_spec specs[] = {
    {"listen", OPTION_TEXT, &listen_text, "HOST:PORT", "", 0, 0},
    {"port", OPTION_PORT, &port, "N", "", 0, 0},
    {"threads", OPTION_U64, &threads, "N", "", 1, 64},
    {"memory", OPTION_SIZE, &memory, "SIZE", "", 0, 0},
    {"seconds", OPTION_DOUBLE, &seconds, "S", "", 0, 100},
    {"io", OPTION_CHOICE, &io, "auto|uring|epoll", "", 0, 0},
    {"json", OPTION_FLAG, &json, NULL, "", 0, 0},
    {0},
};

static int reset(void **state)
{
    (void)state;
    listen_text = port = "default";
    threads = 1;
    memory = 0;
    seconds = 0;
    io = 0;
    json = false;
    return 0;
}

/* Splits words at blanks and parses them; the positional words come back joined. */
static status_t parse(const char *line, char *positional, bool *help)
{
    static char words[1000];
    char *argv[32] = {words}, *save = NULL;
    int argc = 1, count = 0;
    snprintf(words, sizeof words, "%s", line);
    for (char *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save))
        argv[argc++] = w;
    status_t s = options_parse(specs, argc, argv, &count, help);
    positional[0] = '\0';
    for (int i = 1; i <= count && status_is_ok(&s); i++)
        snprintf(positional + strlen(positional), 100 - strlen(positional), "%s,", argv[i]);
    return s;
}

static void test_values(void **state)
{
    (void)state;
    char rest[100];
    bool help;
    status_t s =
        parse("a --listen :1 --port 65535 --threads=4 - --memory 64M --io epoll --json -5 --seconds 1.5 "
              "-- --x",
              rest, &help);
    assert_true(status_is_ok(&s) && !help);
    assert_string_equal(rest, "a,-,-5,--x,");
    assert_string_equal(listen_text, ":1");
    assert_string_equal(port, "65535");
    assert_int_equal(threads, 4);
    assert_int_equal(memory, 64 << 20);
    assert_int_equal(io, 2);
    assert_true(json && seconds == 1.5);
    s = parse("--help --nonsense", rest, &help);
    assert_true(status_is_ok(&s) && help);
}

static void test_refusals_name_the_option(void **state)
{
    (void)state;
    static const struct {
        const char *line, *named;
    } bad[] = {
        {"--nope", "--nope"},           {"--thread 1", "--thread"},     {"-x", "-x"},
        {"--threads", "--threads"},     {"--threads 0", "--threads"},   {"--threads 65", "--threads"},
        {"--threads 1k", "--threads"},  {"--threads -1", "--threads"},  {"--memory 64Q", "--memory"},
        {"--memory=", "--memory"},      {"--io ring", "--io"},          {"--io=", "--io"},
        {"--seconds x", "--seconds"},   {"--seconds 101", "--seconds"}, {"--json=maybe", "--json"},
        {"--seconds inf", "--seconds"}, {"--seconds -1", "--seconds"},  {"--port 0", "--port"},
        {"--port 65536", "--port"},     {"--port :1", "--port"},        {"--port=", "--port"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char rest[100];
        bool help;
        status_t s = parse(bad[i].line, rest, &help);
        assert_int_equal(s.code, STATUS_INVALID);
        assert_non_null(strstr(s.text, bad[i].named));
    }
}

static status_t read_config(const char *text, char **buffer)
{
    char path[] = "/tmp/kvasir-test-options-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
    status_t s = options_read_file(specs, path, buffer);
    unlink(path);
    return s;
}

static void test_config_file(void **state)
{
    (void)state;
    char *buffer = NULL;
    status_t s =
        read_config("# comment\n\n threads 3 \r\nmemory = 2G\nlisten \"a b\"\njson yes\nio uring", &buffer);
    assert_true(status_is_ok(&s));
    assert_int_equal(threads, 3);
    assert_true(memory == 2ull << 30);
    assert_string_equal(listen_text, "a b");
    assert_true(json);
    assert_int_equal(io, 1);
    free(buffer);
    s = read_config("threads 3\nfoo bar\n", &buffer);
    assert_int_equal(s.code, STATUS_INVALID);
    assert_non_null(strstr(s.text, "line 2"));
    assert_non_null(strstr(s.text, "foo"));
    s = options_read_file(specs, "/nonexistent/file", &buffer);
    assert_int_equal(s.code, STATUS_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_values, reset),
        cmocka_unit_test_setup(test_refusals_name_the_option, reset),
        cmocka_unit_test_setup(test_config_file, reset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
