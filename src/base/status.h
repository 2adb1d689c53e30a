/* status: the one result type of calls that can fail.
 *
 * A status is a small value: a code for programs and a text for people. The text says what failed, where
 * (path, offset, option) and, where it helps, what to do. Callers add context on the way up with
 * status_wrap. A status that is ignored is a compiler warning, and warnings are errors.
 *
 * Thread safety: a status is a value; it belongs to whoever holds it. It owns no memory. */
#ifndef KVASIR_BASE_STATUS_H
#define KVASIR_BASE_STATUS_H

#include <stdbool.h>
#include <stddef.h>

enum status_code {
    STATUS_OK = 0,
    STATUS_INVALID,     /* a bad argument, option or request */
    STATUS_IO,          /* the system refused an operation; sys_errno says why */
    STATUS_NO_SPACE,    /* the disk, or a quota on it, is full */
    STATUS_CORRUPT,     /* bytes on disk are not what was written */
    STATUS_UNSUPPORTED, /* a newer format version, or a kernel that cannot do this */
    STATUS_BUSY,        /* in use by somebody else */
    STATUS_NO_MEMORY,
};

enum { STATUS_TEXT_BYTES = 240 };

struct status {
    enum status_code code;
    int sys_errno; /* errno value when code is STATUS_IO or STATUS_NO_SPACE, else 0 */
    char text[STATUS_TEXT_BYTES];
};

typedef struct status status_t;

#define STATUS_MUST_USE __attribute__((warn_unused_result))

static inline bool status_is_ok(const status_t *s)
{
    return s->code == STATUS_OK;
}

/* The success value. */
STATUS_MUST_USE status_t status_ok(void);

/* A failure with a printf-style text; longer texts are cut at STATUS_TEXT_BYTES - 1. */
STATUS_MUST_USE status_t status_error(enum status_code code, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* A failure of a system call: appends ": <strerror>" and sets sys_errno. ENOSPC and EDQUOT become
 * STATUS_NO_SPACE, everything else STATUS_IO. */
STATUS_MUST_USE status_t status_errno(int sys_errno, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Puts "<context>: " before the text of a failure; leaves success alone. */
STATUS_MUST_USE status_t status_wrap(status_t s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Returns from the calling function when the expression is a failure. */
#define TRY(expression)                                                                                      \
    do {                                                                                                     \
        status_t try_status_ = (expression);                                                                 \
        if (!status_is_ok(&try_status_))                                                                     \
            return try_status_;                                                                              \
    } while (0)

#endif
