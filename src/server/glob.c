#include "server/glob.h"

/* Matches one character against the class that starts behind '['. *p is moved behind its ']'. */
static bool class_matches(const char **p, const char *end, unsigned char c)
{
    bool negated = *p < end && **p == '^', found = false;
    const char *s = *p + negated;
    while (s < end && *s != ']') {
        if (*s == '\\' && s + 1 < end) {
            s++;
            found |= (unsigned char)*s == c;
            s++;
        } else if (s + 2 < end && s[1] == '-') {
            unsigned char low = (unsigned char)s[0], high = (unsigned char)s[2];
            if (low > high) {
                unsigned char swap = low;
                low = high;
                high = swap;
            }
            found |= c >= low && c <= high;
            s += 3;
        } else {
            found |= (unsigned char)*s == c;
            s++;
        }
    }
    *p = s < end ? s + 1 : s;
    return found != negated;
}

/* One pattern element against one character; *p is moved behind the element. */
static bool one_matches(const char **p, const char *end, char c)
{
    switch (**p) {
    case '?':
        (*p)++;
        return true;
    case '[':
        (*p)++;
        return class_matches(p, end, (unsigned char)c);
    case '\\':
        if (*p + 1 < end)
            (*p)++;
        /* fall through */
    default:
        return *(*p)++ == c;
    }
}

/* Linear in the text for each star: only the last star is ever tried again, which suffices. */
bool glob_matches(struct slice pattern, struct slice text)
{
    if (text.len ==
        0) /* as Redis: stars match nothing in an empty text, but for the pattern that means "all" */
        return pattern.len == 0 || slice_equal(pattern, SLICE_LITERAL("*"));
    const char *p = pattern.data, *p_end = p + pattern.len, *t = text.data, *t_end = t + text.len;
    const char *star = NULL, *star_text = NULL;
    while (t < t_end) {
        const char *next = p;
        if (p < p_end && *p == '*') {
            star = ++p;
            star_text = t;
        } else if (p < p_end && one_matches(&next, p_end, *t)) {
            p = next;
            t++;
        } else if (star) {
            p = star;
            t = ++star_text;
        } else {
            return false;
        }
    }
    while (p < p_end && *p == '*')
        p++;
    return p == p_end;
}

struct slice glob_prefix(struct slice pattern, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < pattern.len; i++) {
        char c = pattern.data[i];
        if (c == '*' || c == '?' || c == '[')
            break;
        if (c == '\\' && i + 1 < pattern.len)
            c = pattern.data[++i];
        out[n++] = c;
    }
    return slice_make(out, n);
}
