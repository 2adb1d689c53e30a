#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>

#include "base/check.h"
#include "sys/clock.h"
#include "tools/check_internal.h"

enum { DRAW_US = 200000 };

static void clear_progress(struct check *c)
{
    if (c->drawn_us)
        fputs("\r\033[K", c->progress);
    c->drawn_us = 0;
}

static void line(struct check *c, const char *word, const char *format, va_list args)
{
    if (++c->lines > CHECK_LINES_MAX)
        return;
    clear_progress(c);
    fputs(word, c->out);
    vfprintf(c->out, format, args);
    fputc('\n', c->out);
    if (c->lines == CHECK_LINES_MAX)
        fputs("more places are counted, but not named\n", c->out);
}

void check_note(struct check *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    line(c, "note: ", format, args);
    va_end(args);
}

void check_damage(struct check *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    line(c, "damaged: ", format, args);
    va_end(args);
    c->damages++;
}

void check_unreadable(struct check *c, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    line(c, "not read: ", format, args);
    va_end(args);
    c->unreadables++;
}

void check_status(struct check *c, const status_t *s)
{
    if (s->code == STATUS_CORRUPT)
        check_damage(c, "%s", s->text);
    else
        check_unreadable(c, "%s", s->text);
}

void check_finding(struct check *c, uint64_t from_lsn, uint64_t to_lsn, bool breaks, const char *format, ...)
{
    if (c->finding_count == CHECK_FINDINGS_MAX) {
        c->finding_more += format != NULL;
        if (breaks)
            c->more_breaks_to = to_lsn;
        return;
    }
    if (c->findings == NULL)
        c->findings = calloc(CHECK_FINDINGS_MAX, sizeof *c->findings);
    CHECK(c->findings != NULL);
    struct check_finding *f = &c->findings[c->finding_count++];
    *f = (struct check_finding){.from_lsn = from_lsn, .to_lsn = to_lsn, .breaks = breaks};
    if (format == NULL)
        return;
    va_list args;
    va_start(args, format);
    CHECK(vasprintf(&f->text, format, args) >= 0);
    va_end(args);
}

void check_progress(struct check *c, uint64_t bytes)
{
    c->done_bytes += bytes;
    if (c->progress == NULL)
        return;
    uint64_t now = clock_monotonic_us();
    if (c->drawn_us && now - c->drawn_us < DRAW_US)
        return;
    c->drawn_us = now;
    double seconds = (double)(now - c->began_us) / 1e6 + 1e-9;
    double share = c->total_bytes ? (double)c->done_bytes / (double)c->total_bytes : 1;
    share = share < 1 ? share : 1;
    fprintf(c->progress, "\r%3.0f%%  %.2f of %.2f GB  %.0f MB/s  %.0f s left\033[K", share * 100,
            (double)c->done_bytes / 1e9, (double)c->total_bytes / 1e9, (double)c->done_bytes / seconds / 1e6,
            share > 0 ? seconds * (1 - share) / share : 0);
    fflush(c->progress);
}

void check_progress_end(struct check *c)
{
    clear_progress(c);
}

const char *check_key_text(struct slice key, char text[CHECK_KEY_TEXT_BYTES])
{
    size_t n = 0;
    for (size_t i = 0; i < key.len; i++) {
        unsigned char b = (unsigned char)key.data[i];
        bool plain = b >= 32 && b <= 126 && b != '\\' && b != '\'';
        if (n + 8 > CHECK_KEY_TEXT_BYTES) {
            snprintf(text + n, CHECK_KEY_TEXT_BYTES - n, "...");
            return text;
        }
        n += (size_t)snprintf(text + n, CHECK_KEY_TEXT_BYTES - n, plain ? "%c" : "\\x%02x", b);
    }
    text[n] = '\0';
    return text;
}
