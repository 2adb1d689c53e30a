#include "base/parse.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

/* Digits without leading zeros that fit into 64 bits. */
static bool parse_digits(const char *p, const char *end, uint64_t *value)
{
    uint64_t v = 0;
    if (p == end || (*p == '0' && end - p > 1))
        return false;
    for (; p < end; p++) {
        unsigned digit = (unsigned)(unsigned char)*p - '0';
        if (digit > 9 || __builtin_mul_overflow(v, 10, &v) || __builtin_add_overflow(v, digit, &v))
            return false;
    }
    *value = v;
    return true;
}

bool parse_u64(struct slice text, uint64_t *value)
{
    return parse_digits(text.data, text.data + text.len, value);
}

bool parse_i64(struct slice text, int64_t *value)
{
    uint64_t magnitude;
    bool negative = text.len > 0 && text.data[0] == '-';
    if (!parse_digits(text.data + negative, text.data + text.len, &magnitude))
        return false;
    if (negative) {
        if (magnitude == 0 || magnitude > (uint64_t)INT64_MAX + 1)
            return false;
        *value = (int64_t)(0 - magnitude);
    } else {
        if (magnitude > INT64_MAX)
            return false;
        *value = (int64_t)magnitude;
    }
    return true;
}

bool parse_double(struct slice text, double *value)
{
    enum { TEXT_BYTES_MAX = 400 }; /* more digits than a double can have a use for */
    char copy[TEXT_BYTES_MAX + 1];
    char *end;
    if (text.len == 0 || text.len > TEXT_BYTES_MAX)
        return false;
    memcpy(copy, text.data, text.len);
    copy[text.len] = '\0';
    if (copy[0] == ' ' || (copy[0] >= '\t' && copy[0] <= '\r'))
        return false;
    errno = 0;
    double v = strtod(copy, &end);
    if (end != copy + text.len || isnan(v) || (errno == ERANGE && isinf(v)))
        return false;
    *value = v;
    return true;
}

/* Power of two of a unit, -1 for an unknown one. */
static int unit_shift(const char *p, size_t len)
{
    static const char letters[] = "kmgt";
    if (len == 0 || (len == 1 && (p[0] | 32) == 'b'))
        return 0;
    const char *letter = strchr(letters, p[0] | 32);
    bool tail_fits = len == 1 || (len == 2 && (p[1] | 32) == 'b') ||
                     (len == 3 && (p[1] | 32) == 'i' && (p[2] | 32) == 'b');
    if (letter == NULL || *letter == '\0' || !tail_fits)
        return -1;
    return 10 * (int)(letter - letters + 1);
}

bool parse_size(struct slice text, uint64_t *bytes)
{
    size_t digits = 0;
    uint64_t v;
    while (digits < text.len && text.data[digits] >= '0' && text.data[digits] <= '9')
        digits++;
    int shift = unit_shift(text.data + digits, text.len - digits);
    if (shift < 0 || !parse_digits(text.data, text.data + digits, &v) || v > UINT64_MAX >> shift)
        return false;
    *bytes = v << shift;
    return true;
}
