/* kvasir log DIR: the records of a log as text, one a line: LSN<TAB>WRITE<TAB>key<TAB>value, see the help
 * text below. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "log/log.h"
#include "tools/options.h"
#include "tools/tools.h"

static const char about[] = "Prints a server's log in order, one record a line, fields separated by tabs:\n"
                            "  LSN WRITE key value [expire_ms]   LSN DELETE key   LSN EXPIRE key expire_ms "
                            "(0: none)   LSN DELTREE path\n"
                            "Bytes that are not printable ASCII appear as \\t, \\n, \\r, \\\\ or \\xNN. How "
                            "the log ends is said on stderr; exit code 2 when it is\n"
                            "damaged. The server may be running.";

static void print_escaped(struct slice text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.data[i];
        if (c == '\t')
            fputs("\\t", stdout);
        else if (c == '\n')
            fputs("\\n", stdout);
        else if (c == '\r')
            fputs("\\r", stdout);
        else if (c == '\\')
            fputs("\\\\", stdout);
        else if (c < 32 || c > 126)
            printf("\\x%02x", c);
        else
            putchar_unlocked(c);
    }
}

static bool print_record(void *context, const struct record *record)
{
    (void)context;
    static const char *const names[] = {
        [RECORD_SET] = "WRITE",     [RECORD_SET_EXPIRE] = "WRITE", [RECORD_DELETE] = "DELETE",
        [RECORD_EXPIRE] = "EXPIRE", [RECORD_DELTREE] = "DELTREE",
    };
    if (record->type == RECORD_TXN || record->type == RECORD_NONE)
        return true; /* the frame; its records follow */
    printf("%" PRIu64 "\t%s\t", record->lsn, names[record->type]);
    print_escaped(record->key);
    if (record->type == RECORD_SET || record->type == RECORD_SET_EXPIRE) {
        putchar('\t');
        print_escaped(record->value);
    }
    if (record->type == RECORD_SET_EXPIRE || record->type == RECORD_EXPIRE)
        printf("\t%" PRIu64, record->expire_ms);
    putchar('\n');
    return !ferror(stdout);
}

int tool_log(int argc, char **argv)
{
    uint64_t from = 0;
    const struct option_spec specs[] = {
        {"from", OPTION_U64, &from, "LSN", "start at this position (0: at the oldest)", 0, 0},
        {0},
    };
    char note[256] = "";
    int count, rc = options_begin("log", "log [OPTIONS] DIR", about, specs, argc, argv, 1, 1, &count);
    if (rc >= 0)
        return rc;
    signal(SIGPIPE, SIG_IGN);
    errno = 0;
    status_t s = log_read(disk_real(), argv[1], from, print_record, NULL, note);
    bool written = fflush(stdout) == 0 && !ferror(stdout);
    if (!written && errno == EPIPE)
        return TOOL_OK; /* the reader wanted no more */
    if (!written) {
        fprintf(stderr, "kvasir log: cannot write to stdout: %s\n", strerror(errno));
        return TOOL_ERROR;
    }
    fprintf(stderr, "kvasir log: %s\n", status_is_ok(&s) ? note : s.text);
    if (!status_is_ok(&s))
        return TOOL_ERROR;
    return strstr(note, "damage") ? TOOL_ERROR : TOOL_OK;
}
