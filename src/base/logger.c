#include "base/logger.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static _Atomic int least_level = LOGGER_INFO; /* relaxed: a setting */

void logger_set_level(enum logger_level least)
{
    atomic_store_explicit(&least_level, (int)least, memory_order_relaxed);
}

void logger_write(enum logger_level level, const char *format, ...)
{
    static const char *const names[] = {"info", "warning", "error"};
    struct timespec now;
    struct tm parts;
    char line[1024];
    if ((int)level < atomic_load_explicit(&least_level, memory_order_relaxed))
        return;
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &parts);
    size_t n = strftime(line, sizeof line, "%Y-%m-%d %H:%M:%S", &parts);
    n += (size_t)snprintf(line + n, sizeof line - n, ".%03ld %s ", now.tv_nsec / 1000000, names[level]);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - n - 1, format, args);
    va_end(args);
    if (m > 0)
        n += (size_t)m < sizeof line - n - 1 ? (size_t)m : sizeof line - n - 2;
    line[n++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, n);
    (void)ignored;
}
