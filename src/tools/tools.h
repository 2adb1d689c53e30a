/* tools: what `kvasir NAME` runs. argv[0] is the tool's name.
 *
 * All return the process's exit code. They block, and use signals and standard streams as a program does. */
#ifndef KVASIR_TOOLS_TOOLS_H
#define KVASIR_TOOLS_TOOLS_H

enum {
    TOOL_OK = 0,
    TOOL_ABSENT = 1,  /* the key is not there */
    TOOL_WRONG = 1,   /* bench: a value is not what it has to be */
    TOOL_NOTHING = 1, /* load: nothing of the input could be used */
    TOOL_ERROR = 2,   /* text on stderr */
};

#define TOOL_CONNECT_DEFAULT "127.0.0.1:6379"

/* Rows of a tool's table of options (options.h): the server it talks to. into: const char ** for
 * client_connect. */
#define TOOL_CONNECT_OPTIONS(into)                                                                           \
    {"connect",                                                                                              \
     OPTION_TEXT,                                                                                            \
     (into),                                                                                                 \
     "HOST:PORT",                                                                                            \
     "server, or a Unix socket's path (" TOOL_CONNECT_DEFAULT ")",                                           \
     0,                                                                                                      \
     0},                                                                                                     \
    {                                                                                                        \
        "port", OPTION_PORT, (into), "N", "short for --connect 127.0.0.1:N", 0, 0                            \
    }

int tool_server(int argc, char **argv); /* options, signals, start line, the server; enum server_exit */
int tool_get(int argc, char **argv);
int tool_put(int argc, char **argv);
int tool_del(int argc, char **argv);
int tool_ls(int argc, char **argv);
int tool_backup(int argc, char **argv);
int tool_load(int argc, char **argv);
int tool_bench(int argc, char **argv);
int tool_log(int argc, char **argv);
int tool_check(int argc, char **argv); /* enum check_code */

#endif
