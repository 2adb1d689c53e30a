/* kvasir get, put, del, ls, backup: one request (or a page at a time), then the end. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/client.h"
#include "tools/options.h"
#include "tools/tools.h"

enum { LS_PAGE = 1000 };

static struct slice text_slice(const char *text)
{
    return slice_make(text, strlen(text));
}

static int fail(const char *tool, const status_t *s)
{
    fprintf(stderr, "kvasir %s: %s\n", tool, s->text);
    return TOOL_ERROR;
}

/* Ends the use of stdout: a reader that has gone (`| head`) is no error, anything else that kept bytes back
 * is. */
static int finish_output(const char *tool, int code)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    if (errno == EPIPE)
        return code;
    fprintf(stderr, "kvasir %s: cannot write to stdout: %s\n", tool, strerror(errno));
    return TOOL_ERROR;
}

/* One request and its reply's first item; *rest is what follows it. An error reply is a failure with its
 * text. */
static status_t ask(struct client *client, int argc, const struct slice *argv, struct reply_item *item,
                    struct slice *rest)
{
    struct slice reply;
    TRY(client_send(client, argc, argv));
    TRY(client_receive(client, &reply));
    int64_t n = reply_item_read(reply.data, reply.len, item);
    *rest = slice_make(reply.data + n, reply.len - (size_t)n);
    if (item->type == '-' || item->type == '!')
        return status_error(STATUS_INVALID, "%.*s", (int)(item->text.len < 200 ? item->text.len : 200),
                            item->text.data);
    return status_ok();
}

int tool_get(int argc, char **argv)
{
    const char *connect = TOOL_CONNECT_DEFAULT;
    const struct option_spec specs[] = {TOOL_CONNECT_OPTIONS(&connect), {0}};
    struct client *client = NULL;
    struct reply_item item;
    struct slice rest;
    int count, rc = options_begin(
                   "get", "get [OPTIONS] KEY",
                   "Writes the value's bytes to stdout, nothing else. Exit code 1 when the key is absent.",
                   specs, argc, argv, 1, 1, &count);
    if (rc >= 0)
        return rc;
    signal(SIGPIPE, SIG_IGN);
    status_t s = client_open(connect, &client);
    if (status_is_ok(&s)) {
        struct slice request[] = {SLICE_LITERAL("GET"), text_slice(argv[1])};
        s = ask(client, 2, request, &item, &rest);
    }
    if (!status_is_ok(&s)) {
        rc = fail("get", &s);
    } else if (item.nil) {
        rc = TOOL_ABSENT;
    } else {
        fwrite(item.text.data, 1, item.text.len, stdout);
        rc = finish_output("get", TOOL_OK);
    }
    client_close(client);
    return rc;
}

/* All of stdin. The caller frees *text. */
static status_t read_stdin(char **text, size_t *len)
{
    size_t capacity = 1 << 16, used = 0;
    char *buffer = malloc(capacity);
    while (buffer) {
        ssize_t n = read(STDIN_FILENO, buffer + used, capacity - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            free(buffer);
            return status_errno(errno, "cannot read stdin");
        }
        if (n == 0) {
            *text = buffer;
            *len = used;
            return status_ok();
        }
        used += (size_t)n;
        if (used < capacity)
            continue;
        char *larger = realloc(buffer, capacity *= 2);
        if (larger == NULL)
            free(buffer);
        buffer = larger;
    }
    return status_error(STATUS_NO_MEMORY, "out of memory for the value");
}

int tool_put(int argc, char **argv)
{
    const char *connect = TOOL_CONNECT_DEFAULT;
    const struct option_spec specs[] = {TOOL_CONNECT_OPTIONS(&connect), {0}};
    struct client *client = NULL;
    struct reply_item item;
    struct slice rest;
    char *text = NULL;
    int count,
        rc =
            options_begin("put", "put [OPTIONS] KEY VALUE",
                          "Stores a value; VALUE - reads it from stdin. It is on disk when the command ends.",
                          specs, argc, argv, 2, 2, &count);
    if (rc >= 0)
        return rc;
    signal(SIGPIPE, SIG_IGN);
    struct slice value = text_slice(argv[2]);
    status_t s = status_ok();
    if (strcmp(argv[2], "-") == 0) {
        s = read_stdin(&text, &value.len);
        value.data = text;
    }
    if (status_is_ok(&s))
        s = client_open(connect, &client);
    if (status_is_ok(&s)) {
        struct slice request[] = {SLICE_LITERAL("SET"), text_slice(argv[1]), value};
        s = ask(client, 3, request, &item, &rest);
    }
    rc = status_is_ok(&s) ? TOOL_OK : fail("put", &s);
    client_close(client);
    free(text);
    return rc;
}

int tool_del(int argc, char **argv)
{
    const char *connect = TOOL_CONNECT_DEFAULT;
    const struct option_spec specs[] = {TOOL_CONNECT_OPTIONS(&connect), {0}};
    struct client *client = NULL;
    struct reply_item item = {0};
    struct slice rest;
    int count, rc = options_begin("del", "del [OPTIONS] KEY...",
                                  "Deletes keys. Exit code 1 when none of them was there.", specs, argc, argv,
                                  1, argc, &count);
    if (rc >= 0)
        return rc;
    struct slice *request = calloc((size_t)count + 1, sizeof *request);
    status_t s = request ? client_open(connect, &client) : status_error(STATUS_NO_MEMORY, "out of memory");
    if (request && status_is_ok(&s)) {
        request[0] = SLICE_LITERAL("DEL");
        for (int i = 1; i <= count; i++)
            request[i] = text_slice(argv[i]);
        s = ask(client, count + 1, request, &item, &rest);
    }
    rc = !status_is_ok(&s) ? fail("del", &s) : item.number > 0 ? TOOL_OK : TOOL_ABSENT;
    client_close(client);
    free(request);
    return rc;
}

/* A name and a newline; on a terminal control bytes are shown as \xNN, so that a key cannot command it. */
static void print_name(struct slice name, bool terminal)
{
    if (!terminal) {
        fwrite(name.data, 1, name.len, stdout);
    } else {
        for (size_t i = 0; i < name.len; i++) {
            unsigned char c = (unsigned char)name.data[i];
            if (c < 32 || c == 127 || c == '\\')
                printf(c == '\\' ? "\\\\" : "\\x%02x", c);
            else
                putchar(c);
        }
    }
    putchar('\n');
}

/* Prints one page of names; *from (owned by the caller) becomes where the next one starts. */
static status_t list_page(struct client *client, struct slice path, char **from, size_t *from_len,
                          uint64_t *names)
{
    static const char page[] = "1000";
    bool terminal = isatty(STDOUT_FILENO);
    struct slice request[] = {SLICE_LITERAL("KIDS"),  path,
                              SLICE_LITERAL("LIMIT"), slice_make(page, sizeof page - 1),
                              SLICE_LITERAL("FROM"),  slice_make(*from, *from_len)};
    struct reply_item item, name = {0};
    struct slice rest;
    _Static_assert(LS_PAGE == 1000, "the text of the page size");
    TRY(ask(client, *from ? 6 : 4, request, &item, &rest));
    *names = (uint64_t)item.number;
    for (int64_t i = 0; i < item.number; i++) {
        int64_t n = reply_item_read(rest.data, rest.len, &name);
        if (n <= 0 || name.type != '$')
            return status_error(STATUS_CORRUPT, "the server's answer to KIDS is not a list of names");
        rest = slice_make(rest.data + n, rest.len - (size_t)n);
        print_name(name.text, terminal);
    }
    char *next =
        malloc(name.text.len + 1); /* the least name behind the last one: that with a zero byte more */
    if (next == NULL)
        return status_error(STATUS_NO_MEMORY, "out of memory");
    if (name.text.len)
        memcpy(next, name.text.data, name.text.len);
    next[name.text.len] = '\0';
    free(*from);
    *from = next;
    *from_len = name.text.len + 1;
    return status_ok();
}

static status_t list(struct client *client, struct slice path, bool *absent)
{
    char *from = NULL;
    size_t from_len = 0;
    uint64_t names = 0, total = 0;
    status_t s;
    do {
        s = list_page(client, path, &from, &from_len, &names);
        total += names;
    } while (status_is_ok(&s) && names >= LS_PAGE && !ferror(stdout));
    free(from);
    if (!status_is_ok(&s) || total > 0 || path.len == 0)
        return s;
    struct slice request[] = {SLICE_LITERAL("EXISTS"), path};
    struct reply_item item = {0};
    struct slice rest;
    s = ask(client, 2, request, &item, &rest);
    *absent = item.number == 0;
    return s;
}

int tool_ls(int argc, char **argv)
{
    const char *connect = TOOL_CONNECT_DEFAULT;
    const struct option_spec specs[] = {TOOL_CONNECT_OPTIONS(&connect), {0}};
    struct client *client = NULL;
    bool absent = false;
    int count, rc = options_begin("ls", "ls [OPTIONS] [PATH]",
                                  "Lists the names below a path (without PATH: at the top), in order, one a "
                                  "line. Exit code 1 when\n"
                                  "there is neither a value at the path nor anything below.",
                                  specs, argc, argv, 0, 1, &count);
    if (rc >= 0)
        return rc;
    signal(SIGPIPE, SIG_IGN);
    status_t s = client_open(connect, &client);
    if (status_is_ok(&s))
        s = list(client, count ? text_slice(argv[1]) : SLICE_LITERAL(""), &absent);
    rc = finish_output("ls", absent ? TOOL_ABSENT : TOOL_OK);
    if (!status_is_ok(&s))
        rc = fail("ls", &s);
    client_close(client);
    return rc;
}

/* The server takes absolute paths only; here they may count from the current folder. */
static status_t absolute_path(const char *path, char out[PATH_MAX])
{
    size_t used = 0;
    if (path[0] != '/') {
        if (getcwd(out, PATH_MAX - 1) == NULL)
            return status_errno(errno, "cannot tell the current folder");
        used = strlen(out);
        out[used++] = '/';
    }
    size_t len = strlen(path) + 1;
    if (len > PATH_MAX - used)
        return status_error(STATUS_INVALID, "the path %.64s... is too long", path);
    memcpy(out + used, path, len);
    return status_ok();
}

int tool_backup(int argc, char **argv)
{
    const char *connect = TOOL_CONNECT_DEFAULT;
    const struct option_spec specs[] = {TOOL_CONNECT_OPTIONS(&connect), {0}};
    struct client *client = NULL;
    struct reply_item item = {0};
    struct slice rest;
    char path[PATH_MAX];
    int count,
        rc = options_begin("backup", "backup [OPTIONS] FOLDER",
                           "Copies the data of a running server, on its machine, into a new folder: by "
                           "hard links where\npossible, without stopping writes. `kvasir server --dir "
                           "FOLDER` starts from it.",
                           specs, argc, argv, 1, 1, &count);
    if (rc >= 0)
        return rc;
    signal(SIGPIPE, SIG_IGN);
    status_t s = absolute_path(argv[1], path);
    if (status_is_ok(&s))
        s = client_open(connect, &client);
    if (status_is_ok(&s)) {
        struct slice request[] = {SLICE_LITERAL("BACKUP"), text_slice(path)};
        s = ask(client, 2, request, &item, &rest);
    }
    if (!status_is_ok(&s)) {
        rc = fail("backup", &s);
    } else {
        printf("%s: %.*s\n", path, (int)item.text.len, item.text.data);
        rc = finish_output("backup", TOOL_OK);
    }
    client_close(client);
    return rc;
}
