/* check: assertions. CHECK stays on in production: a server that would corrupt data stops instead.
 * DCHECK is for debug and sanitizer builds (KVASIR_DEBUG). */
#ifndef KVASIR_BASE_CHECK_H
#define KVASIR_BASE_CHECK_H

/* Prints the place and the broken condition to stderr and aborts. Does not return. */
_Noreturn void check_failed(const char *file, int line, const char *condition);

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (UNLIKELY(!(condition)))                                                                          \
            check_failed(__FILE__, __LINE__, #condition);                                                    \
    } while (0)

#ifdef KVASIR_DEBUG
#define DCHECK(condition) CHECK(condition)
#else
#define DCHECK(condition)                                                                                    \
    do {                                                                                                     \
        if (0)                                                                                               \
            (void)(condition);                                                                               \
    } while (0)
#endif

#endif
