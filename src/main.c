/* kvasir: which tool was asked for; nothing else. */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/tools.h"

#ifndef KVASIR_VERSION
#define KVASIR_VERSION "0.1.0"
#endif

static const struct tool {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} tools[] = {
    {"server", tool_server, "run the server"},
    {"get", tool_get, "print a key's value"},
    {"put", tool_put, "store a value"},
    {"del", tool_del, "delete keys"},
    {"ls", tool_ls, "list the children of a path"},
    {"load", tool_load, "load many keys from a file (deb822, tsv, ndjson), or random ones"},
    {"bench", tool_bench, "measure a server"},
    {"backup", tool_backup, "copy a running server's data into a new folder"},
    {"log", tool_log, "print a server's log"},
    {"check", tool_check, "verify a data folder, and save what is valid of a damaged one"},
};

enum { TOOL_COUNT = sizeof tools / sizeof *tools };

static void print_help(FILE *out)
{
    fputs("usage: kvasir TOOL [OPTIONS]\n\nA durable, ordered key-value server for Redis clients, and its "
          "tools.\n\n",
          out);
    for (unsigned i = 0; i < TOOL_COUNT; i++)
        fprintf(out, "  %-8s %s\n", tools[i].name, tools[i].summary);
    fputs("\n`kvasir TOOL --help` tells more about a tool; `kvasir --version` prints the version.\n", out);
}

/* The number of a closed standard stream would go to the first socket or data file, and what is printed with
 * it. Opened the wrong way round, so that using a closed one remains an error. open takes the lowest number.
 */
static bool fill_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd)
            return false;
    return true;
}

int main(int argc, char **argv)
{
    const char *name = argc > 1 ? argv[1] : NULL;
    if (!fill_standard_streams())
        return TOOL_ERROR;
    if (name == NULL) {
        print_help(stderr);
        return TOOL_ERROR;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0)
        return puts("kvasir " KVASIR_VERSION) < 0 || fflush(stdout) != 0 ? TOOL_ERROR : TOOL_OK;
    bool help = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0;
    if (help && argc == 2) {
        print_help(stdout);
        return fflush(stdout) != 0 ? TOOL_ERROR : TOOL_OK;
    }
    if (help) { /* help TOOL */
        static char option[] = "--help";
        argv[1] = argv[2];
        argv[2] = option;
        name = argv[1];
        argc = 3;
    }
    for (unsigned i = 0; i < TOOL_COUNT; i++)
        if (strcmp(name, tools[i].name) == 0)
            return tools[i].run(argc - 1, argv + 1);
    fprintf(stderr, "kvasir: there is no tool '%s'; `kvasir --help` lists them\n", name);
    return TOOL_ERROR;
}
