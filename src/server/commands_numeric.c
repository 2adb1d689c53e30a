/* Numbers in strings. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/parse.h"
#include "server/commands.h"

enum { NUMBER_BYTES = 64, FLOAT_BYTES = 5 * 1024 };

struct increment {
    int64_t by;
    char text[NUMBER_BYTES]; /* the new value; lives until the commit */
};

static bool stage_increment(struct command_call *call, struct store_entry *entries, void *context)
{
    struct increment *inc = context;
    int64_t value = 0;
    struct slice old;
    if (store_entry_live(entries, 0) &&
        (!command_old_value(call, entries, 0, &old) || !command_integer(call, old, &value)))
        return false;
    if (__builtin_add_overflow(value, inc->by, &value)) {
        reply_error(call->reply, "ERR increment or decrement would overflow");
        return false;
    }
    int n = snprintf(inc->text, sizeof inc->text, "%lld", (long long)value);
    store_stage_set(call->sw, entries, 0, slice_make(inc->text, (size_t)n),
                    store_entry_expire_ms(entries, 0));
    reply_integer(call->reply, value);
    return true;
}

static enum command_result increment(struct command_call *call, int64_t by)
{
    struct increment inc = {.by = by};
    return command_write_one(call, 0, stage_increment, &inc);
}

enum command_result command_incr(struct command_call *call)
{
    return increment(call, 1);
}

enum command_result command_decr(struct command_call *call)
{
    return increment(call, -1);
}

enum command_result command_incrby(struct command_call *call)
{
    int64_t by;
    return command_integer(call, call->argv[2], &by) ? increment(call, by) : COMMAND_DONE;
}

enum command_result command_decrby(struct command_call *call)
{
    int64_t by;
    if (!command_integer(call, call->argv[2], &by))
        return COMMAND_DONE;
    if (by == INT64_MIN) {
        reply_error(call->reply, "ERR decrement would overflow");
        return COMMAND_DONE;
    }
    return increment(call, -by);
}

/* As Redis: the whole text is a number, without spaces around it; infinities are numbers, NaN is not. */
static bool parse_long_double(struct slice text, long double *value)
{
    char copy[FLOAT_BYTES], *end;
    if (text.len == 0 || text.len >= sizeof copy || isspace((unsigned char)text.data[0]))
        return false;
    memcpy(copy, text.data, text.len);
    copy[text.len] = '\0';
    errno = 0;
    *value = strtold(copy, &end);
    bool overflow = errno == ERANGE && (isinf(*value) || *value == 0);
    return (size_t)(end - copy) == text.len && !overflow && !isnan(*value);
}

/* 17 digits behind the point, without trailing zeros. */
static size_t format_long_double(char *text, size_t bytes, long double value)
{
    size_t n = (size_t)snprintf(text, bytes, "%.17Lf", value);
    if (memchr(text, '.', n)) {
        while (text[n - 1] == '0')
            n--;
        if (text[n - 1] == '.')
            n--;
    }
    if (n == 2 && text[0] == '-' && text[1] == '0') {
        text[0] = '0';
        n = 1;
    }
    return n;
}

struct float_increment {
    long double by;
    char text[FLOAT_BYTES];
};

static bool stage_float_increment(struct command_call *call, struct store_entry *entries, void *context)
{
    struct float_increment *inc = context;
    long double value = 0;
    struct slice old = {0};
    bool live = store_entry_live(entries, 0);
    if (live && !command_old_value(call, entries, 0, &old))
        return false;
    if (live && !parse_long_double(old, &value)) {
        reply_error(call->reply, "ERR value is not a valid float");
        return false;
    }
    value += inc->by;
    if (isnan(value) || isinf(value)) {
        reply_error(call->reply, "ERR increment would produce NaN or Infinity");
        return false;
    }
    struct slice text = slice_make(inc->text, format_long_double(inc->text, sizeof inc->text, value));
    store_stage_set(call->sw, entries, 0, text, store_entry_expire_ms(entries, 0));
    reply_bulk(call->reply, text);
    return true;
}

enum command_result command_incrbyfloat(struct command_call *call)
{
    struct float_increment inc;
    if (!parse_long_double(call->argv[2], &inc.by)) {
        reply_error(call->reply, "ERR value is not a valid float");
        return COMMAND_DONE;
    }
    return command_write_one(call, 0, stage_float_increment, &inc);
}
