#include "tools/load_formats.h"

#include <stdlib.h>

#include "base/check.h"

/* Bytes that grow; out of memory ends the program, as a loader can do nothing better. */
struct buffer {
    char *data;
    size_t len, capacity;
};

static void buffer_add(struct buffer *b, struct slice s)
{
    if (b->len + s.len > b->capacity) {
        b->capacity = 2 * b->capacity + s.len + 256;
        b->data = realloc(b->data, b->capacity);
        CHECK(b->data != NULL);
    }
    if (s.len)
        memcpy(b->data + b->len, s.data, s.len);
    b->len += s.len;
}

/* A field of the paragraph being read; offsets into its text. */
struct field {
    size_t name, name_len, value, value_len;
};

struct load_parser {
    enum load_format format;
    struct slice prefix, sep;
    struct load_sink sink;
    struct buffer line; /* an unfinished line */
    uint64_t line_number;
    struct buffer key;
    /* deb822 */
    struct buffer text; /* names and values of the paragraph's fields */
    struct field *fields;
    size_t field_count, field_capacity;
    uint64_t paragraph_line; /* where it started */
    bool skipping;           /* a malformed field: its continuation lines go with it */
};

status_t load_parser_create(enum load_format format, struct slice prefix, struct slice sep,
                            struct load_sink sink, struct load_parser **out)
{
    struct load_parser *p = calloc(1, sizeof *p);
    if (p == NULL)
        return status_error(STATUS_NO_MEMORY, "out of memory");
    p->format = format;
    p->prefix = prefix;
    p->sep = sep;
    p->sink = sink;
    *out = p;
    return status_ok();
}

void load_parser_destroy(struct load_parser *p)
{
    if (p == NULL)
        return;
    free(p->line.data);
    free(p->key.data);
    free(p->text.data);
    free(p->fields);
    free(p);
}

static void problem(struct load_parser *p, uint64_t line, const char *text)
{
    p->sink.problem(p->sink.context, line, text);
}

static void key_begin(struct load_parser *p)
{
    p->key.len = 0;
    buffer_add(&p->key, p->prefix);
    if (p->prefix.len)
        buffer_add(&p->key, p->sep);
}

static struct slice buffer_slice(const struct buffer *b)
{
    return slice_make(b->data, b->len);
}

static void tsv_line(struct load_parser *p, struct slice line)
{
    if (line.len == 0)
        return;
    const char *tab = memchr(line.data, '\t', line.len);
    if (tab == NULL || tab == line.data) {
        problem(p, p->line_number, tab ? "the key is empty" : "no tab between key and value");
        return;
    }
    size_t key_len = (size_t)(tab - line.data);
    key_begin(p);
    buffer_add(&p->key, slice_make(line.data, key_len));
    p->sink.pair(p->sink.context, buffer_slice(&p->key), slice_make(tab + 1, line.len - key_len - 1));
}

/* Stores the paragraph that has been collected. */
static void deb822_end(struct load_parser *p)
{
    const char *text = p->text.data;
    struct field *package = NULL;
    for (size_t i = 0; i < p->field_count && package == NULL; i++)
        if (slice_equal(slice_make(text + p->fields[i].name, p->fields[i].name_len),
                        SLICE_LITERAL("Package")))
            package = &p->fields[i];
    if (p->field_count && (package == NULL || package->value_len == 0))
        problem(p, p->paragraph_line, "the paragraph has no Package field: skipped");
    for (size_t i = 0; package && package->value_len && i < p->field_count; i++) {
        const struct field *f = &p->fields[i];
        key_begin(p);
        buffer_add(&p->key, slice_make(text + package->value, package->value_len));
        buffer_add(&p->key, p->sep);
        buffer_add(&p->key, slice_make(text + f->name, f->name_len));
        p->sink.pair(p->sink.context, buffer_slice(&p->key), slice_make(text + f->value, f->value_len));
    }
    p->field_count = 0;
    p->text.len = 0;
    p->skipping = false;
}

/* Length of a field's name if the line starts one, else 0. Debian Policy: printable ASCII but blanks and
 * colon. */
static size_t field_name_length(struct slice line)
{
    size_t n = 0;
    while (n < line.len && line.data[n] > ' ' && line.data[n] < 127 && line.data[n] != ':')
        n++;
    return n < line.len && line.data[n] == ':' && line.data[0] != '-' ? n : 0;
}

static void deb822_field(struct load_parser *p, struct slice line)
{
    size_t name_len = field_name_length(line), at = name_len + 1;
    p->skipping = name_len == 0;
    if (p->skipping) {
        problem(p, p->line_number, "neither a field (Name: value) nor a continuation: skipped");
        return;
    }
    while (at < line.len && (line.data[at] == ' ' || line.data[at] == '\t'))
        at++;
    if (p->field_count == p->field_capacity) {
        p->field_capacity = 2 * p->field_capacity + 32;
        p->fields = realloc(p->fields, p->field_capacity * sizeof *p->fields);
        CHECK(p->fields != NULL);
    }
    if (p->field_count == 0)
        p->paragraph_line = p->line_number;
    p->fields[p->field_count++] =
        (struct field){p->text.len, name_len, p->text.len + name_len, line.len - at};
    buffer_add(&p->text, slice_make(line.data, name_len));
    buffer_add(&p->text, slice_make(line.data + at, line.len - at));
}

static bool is_blank(struct slice line)
{
    size_t n = 0;
    while (n < line.len && (line.data[n] == ' ' || line.data[n] == '\t' || line.data[n] == '\r'))
        n++;
    return n == line.len;
}

static void deb822_line(struct load_parser *p, struct slice line)
{
    if (line.len && line.data[line.len - 1] == '\r')
        line.len--;
    if (is_blank(line)) {
        deb822_end(p);
    } else if (line.data[0] == '#') {
        return;
    } else if (line.data[0] != ' ' && line.data[0] != '\t') {
        deb822_field(p, line);
    } else if (p->skipping) {
        return;
    } else if (p->field_count == 0) {
        problem(p, p->line_number, "a continuation line without a field: skipped");
    } else {
        buffer_add(&p->text, SLICE_LITERAL("\n"));
        buffer_add(&p->text, line);
        p->fields[p->field_count - 1].value_len += 1 + line.len;
    }
}

static void take_line(struct load_parser *p, struct slice line)
{
    p->line_number++;
    switch (p->format) {
    case LOAD_DEB822:
        deb822_line(p, line);
        break;
    case LOAD_TSV:
        tsv_line(p, line);
        break;
    default:
        if (!is_blank(line))
            load_json_line(line, p->line_number, p->prefix, p->sep, &p->sink);
    }
}

status_t load_parser_feed(struct load_parser *p, const char *data, size_t len)
{
    const char *end = data + len;
    while (data < end) {
        const char *newline = memchr(data, '\n', (size_t)(end - data));
        struct slice piece = slice_make(data, (size_t)((newline ? newline : end) - data));
        if (p->line.len + piece.len > LOAD_LINE_BYTES_MAX)
            return status_error(STATUS_INVALID,
                                "line %llu is longer than %d bytes: not a file of this format?",
                                (unsigned long long)p->line_number + 1, LOAD_LINE_BYTES_MAX);
        if (newline && p->line.len == 0) {
            take_line(p, piece);
        } else {
            buffer_add(&p->line, piece);
            if (newline) {
                struct slice line = buffer_slice(&p->line);
                p->line.len = 0;
                take_line(p, line);
            }
        }
        data = newline ? newline + 1 : end;
    }
    if (p->text.len > LOAD_LINE_BYTES_MAX)
        return status_error(STATUS_INVALID,
                            "the paragraph at line %llu is longer than %d bytes: not a deb822 file?",
                            (unsigned long long)p->paragraph_line, LOAD_LINE_BYTES_MAX);
    return status_ok();
}

void load_parser_finish(struct load_parser *p)
{
    if (p->line.len) {
        struct slice line = buffer_slice(&p->line);
        p->line.len = 0;
        take_line(p, line);
    }
    if (p->format == LOAD_DEB822)
        deb822_end(p);
}

enum load_format load_format_guess(struct slice text)
{
    while (text.len) {
        const char *newline = memchr(text.data, '\n', text.len);
        struct slice line = slice_make(text.data, newline ? (size_t)(newline - text.data) : text.len);
        size_t blanks = 0;
        while (blanks < line.len && (line.data[blanks] == ' ' || line.data[blanks] == '\r'))
            blanks++;
        if (blanks < line.len && line.data[0] != '#') {
            if (line.data[blanks] == '{')
                return LOAD_NDJSON;
            size_t name = field_name_length(line);
            if (name && (name + 1 == line.len || strchr(" \t\r", line.data[name + 1])))
                return LOAD_DEB822;
            return memchr(line.data, '\t', line.len) ? LOAD_TSV : name ? LOAD_DEB822 : LOAD_UNKNOWN;
        }
        size_t used = newline ? line.len + 1 : line.len;
        text = slice_make(text.data + used, text.len - used);
    }
    return LOAD_UNKNOWN;
}
