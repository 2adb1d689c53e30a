#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

status_t status_ok(void)
{
    status_t s;
    s.code = STATUS_OK;
    s.sys_errno = 0;
    s.text[0] = '\0';
    return s;
}

status_t status_error(enum status_code code, const char *format, ...)
{
    status_t s = {.code = code};
    va_list args;
    va_start(args, format);
    vsnprintf(s.text, sizeof s.text, format, args);
    va_end(args);
    return s;
}

status_t status_errno(int sys_errno, const char *format, ...)
{
    bool full = sys_errno == ENOSPC || sys_errno == EDQUOT;
    status_t s = {.code = full ? STATUS_NO_SPACE : STATUS_IO, .sys_errno = sys_errno};
    va_list args;
    va_start(args, format);
    vsnprintf(s.text, sizeof s.text, format, args);
    va_end(args);
    size_t used = strlen(s.text);
    char reason[96];
    snprintf(s.text + used, sizeof s.text - used, ": %s", strerror_r(sys_errno, reason, sizeof reason));
    return s;
}

status_t status_wrap(status_t s, const char *format, ...)
{
    if (status_is_ok(&s))
        return s;
    status_t out = {.code = s.code, .sys_errno = s.sys_errno};
    va_list args;
    va_start(args, format);
    vsnprintf(out.text, sizeof out.text, format, args);
    va_end(args);
    size_t used = strlen(out.text);
    snprintf(out.text + used, sizeof out.text - used, ": %.*s", (int)(sizeof out.text - used - 3), s.text);
    return out;
}
