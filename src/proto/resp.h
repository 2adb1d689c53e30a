/* resp: requests of the Redis protocol (RESP2 and RESP3 send the same) and inline commands: bytes to
 * arguments.
 *
 * Two parsers for the same language. resp_parse_complete is the hot path: it takes a command that lies
 * completely in memory and is of the usual form, in one pass without state. Everything else (commands that
 * arrive in pieces, large ones, inline ones, errors) goes through a struct resp_request, which remembers how
 * far it came, so that a command is looked at once however finely it is cut.
 *
 * Texts of protocol errors are Redis's. Thread safety: none needed; a request belongs to one connection. */
#ifndef KVASIR_PROTO_RESP_H
#define KVASIR_PROTO_RESP_H

#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"

enum {
    RESP_ARGUMENTS_MAX = 1024 * 1024,
    RESP_INLINE_BYTES_MAX = 64 * 1024, /* of an inline command, and of a header line */
    RESP_BULK_BYTES_MAX_LEAST = 1024,  /* smallest allowed resp_limits.bulk_bytes_max */
    /* An argument that is longer than allowed but not than this (Redis's own limit) can be passed over: its
     * sender, who is busy sending, then reads why it was refused instead of finding the connection cut. */
    RESP_BULK_BYTES_PASSED_MAX = 512 * 1024 * 1024,
};

struct resp_limits {
    uint64_t bulk_bytes_max;    /* of one argument */
    uint64_t request_bytes_max; /* of one command, all told */
};

enum resp_result {
    RESP_COMMAND,  /* a complete command */
    RESP_NOTHING,  /* bytes that mean nothing (an empty array or line): skip *used */
    RESP_INLINE,   /* a complete inline line: resp_split_inline makes the command of it */
    RESP_MORE,     /* so far all right, but incomplete */
    RESP_TOO_LONG, /* only resp_request_parse: against the limits, but resp_request_skip_begin may follow */
    RESP_UNUSUAL,  /* only resp_parse_complete: the other parser must look at it */
    RESP_ERROR,    /* the connection cannot go on; the text says why */
};

/* Parses the command at data..end. RESP_COMMAND: argv[0..*argc) are views into the data, *next is behind it.
 * Answers RESP_UNUSUAL rather than more than argv_max arguments. limits are honoured. */
enum resp_result resp_parse_complete(const char *data, const char *end, const struct resp_limits *limits,
                                     struct slice *argv, unsigned argv_max, unsigned *argc,
                                     const char **next);

struct resp_span {
    size_t offset; /* from the first byte of the command */
    size_t len;
};

/* A command on its way in. All zero: nothing of it was seen. */
struct resp_request {
    size_t position;      /* bytes of the command that are understood */
    size_t scanned;       /* bytes behind position known to hold no line end */
    uint64_t bulk_bytes;  /* of the argument that is awaited, when in_bulk; skipping: of it to come, with its
                             line end */
    uint32_t argc_wanted; /* 0: the header was not read yet */
    uint32_t argc;
    uint32_t capacity; /* of spans */
    uint8_t in_bulk;
    uint8_t skipping;        /* resp_request_skip */
    struct resp_span *spans; /* argc of them; owned */
};

enum { RESP_ERROR_TEXT_BYTES = 96 };

/* Goes on with a command of which len bytes are there now (all from its beginning, at data). On RESP_COMMAND,
 * RESP_NOTHING and RESP_INLINE *used is its length, line end included; on RESP_ERROR and RESP_TOO_LONG error
 * holds the text, without "ERR ". */
enum resp_result resp_request_parse(struct resp_request *request, const char *data, size_t len,
                                    const struct resp_limits *limits, size_t *used,
                                    char error[RESP_ERROR_TEXT_BYTES]);

/* Splits an inline line by Redis's quoting rules. Arguments are put one after the other into out (at least
 * len bytes); request->spans then count from out. False: unbalanced quotes. argc may be 0. */
bool resp_split_inline(struct resp_request *request, const char *line, size_t len, char *out);

/* Length of the command as far as it is announced: never less than what is there plus what is known to
 * follow. 0 for one that is passed over. */
uint64_t resp_request_announced(const struct resp_request *request);

/* Gives up a command that resp_request_parse wants more of: its rest is to be passed over as it comes. The
 * first position bytes of it are done with; then position is 0. Not for an inline command. */
void resp_request_skip_begin(struct resp_request *request);
/* Goes on with that, at the first byte not yet passed over. *used: so many more are now. RESP_NOTHING: that
 * was its end. RESP_MORE, RESP_ERROR: as above. */
enum resp_result resp_request_skip(struct resp_request *request, const char *data, size_t len,
                                   const struct resp_limits *limits, size_t *used,
                                   char error[RESP_ERROR_TEXT_BYTES]);

/* Forgets the command and frees its memory. */
void resp_request_reset(struct resp_request *request);

#endif
