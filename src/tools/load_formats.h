/* load_formats: text of a format, fed in pieces, becomes keys and values.
 *
 * deb822  Debian's control files: paragraphs of fields. Each field is stored at <Package>/<Field>; the value
 * is what follows the colon, without the blanks before it, and continuation lines as they are (newlines
 * between, none at the end). A paragraph without Package is skipped and reported. '#' lines are comments. tsv
 * key TAB value, one a line; no escapes. ndjson  one JSON object a line. "key": K, if a string, names the
 * node; "value": V is then the node's own value, and all other members become nodes below it. Without "key"
 * the members are nodes at the top. Objects nest: {"a": {"b": "x"}} is a/b = x. Strings are stored as their
 * bytes (UTF-8); numbers and true/false as JSON writes them (the shortest form that reads back as the same
 * number); arrays and empty objects as compact JSON; null is skipped.
 *
 * Keys begin with the prefix, if there is one; '/' above stands for the separator that was asked for.
 * Thread safety: a parser belongs to one thread. */
#ifndef KVASIR_TOOLS_LOAD_FORMATS_H
#define KVASIR_TOOLS_LOAD_FORMATS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

enum load_format { LOAD_DEB822, LOAD_TSV, LOAD_NDJSON, LOAD_UNKNOWN };

enum { LOAD_LINE_BYTES_MAX = 1 << 27 };

struct load_sink {
    /* A pair; slices live during the call. */
    void (*pair)(void *context, struct slice key, struct slice value);
    /* Something that could not be used, with the number of its line (from 1). */
    void (*problem)(void *context, uint64_t line, const char *text);
    void *context;
};

struct load_parser;

/* prefix and sep must live as long as the parser. prefix "" adds nothing; else keys are prefix sep key. */
STATUS_MUST_USE status_t load_parser_create(enum load_format format, struct slice prefix, struct slice sep,
                                            struct load_sink sink, struct load_parser **out);
void load_parser_destroy(struct load_parser *parser); /* NULL is fine */

/* The next bytes of the text. All whole lines among them are used up. */
STATUS_MUST_USE status_t load_parser_feed(struct load_parser *parser, const char *data, size_t len);

/* The end of the text: uses the last line, the last paragraph. */
void load_parser_finish(struct load_parser *parser);

/* The format that a text with this beginning must have; LOAD_UNKNOWN when it is none of them. */
enum load_format load_format_guess(struct slice text);

/* load_json.c: one line of ndjson; line: its number, for problems. */
void load_json_line(struct slice text, uint64_t line, struct slice prefix, struct slice sep,
                    const struct load_sink *sink);

#endif
