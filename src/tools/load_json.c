/* One line of ndjson becomes keys and values; the text is read by jansson. See load_formats.h for what is
 * stored where. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/check.h"
#include "tools/load_formats.h"

enum { DEPTH_MAX = 100, KEY_BYTES_MAX = 1 << 17 /* longer than any server takes */ };

/* The key being built: a stack of path components. */
struct path {
    char text[KEY_BYTES_MAX];
    size_t len;
    bool started; /* something stands before the next component */
};

struct walk {
    struct path *path;
    struct slice sep;
    uint64_t line;
    const struct load_sink *sink;
    bool told; /* the line gave a pair, or a problem was reported */
};

static bool append(struct path *path, struct slice s)
{
    if (s.len > sizeof path->text - path->len)
        return false;
    if (s.len)
        memcpy(path->text + path->len, s.data, s.len);
    path->len += s.len;
    return true;
}

static void problem(struct walk *w, const char *text)
{
    w->told = true;
    w->sink->problem(w->sink->context, w->line, text);
}

static bool push(struct walk *w, struct slice name)
{
    bool fits = (!w->path->started || append(w->path, w->sep)) && append(w->path, name);
    w->path->started = true;
    if (!fits)
        problem(w, "a key is too long: skipped");
    return fits;
}

static void emit(struct walk *w, struct slice value)
{
    w->told = true;
    w->sink->pair(w->sink->context, slice_make(w->path->text, w->path->len), value);
}

static void emit_number(struct walk *w, const json_t *value)
{
    char text[64];
    int n = 0;
    if (json_is_integer(value)) {
        n = snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    } else {
        for (int digits = 1; digits <= 17; digits++) {
            n = snprintf(text, sizeof text, "%.*g", digits, json_real_value(value));
            if (strtod(text, NULL) == json_real_value(value))
                break;
        }
    }
    emit(w, slice_make(text, (size_t)n));
}

static void emit_json(struct walk *w, const json_t *value)
{
    char *text = json_dumps(value, JSON_COMPACT | JSON_ENSURE_ASCII);
    if (text == NULL) {
        problem(w, "an array that cannot be written as JSON: skipped");
        return;
    }
    emit(w, slice_make(text, strlen(text)));
    free(text);
}

static void walk_object(struct walk *w, json_t *object, const char *skip1, const char *skip2, int depth);

static void walk_value(struct walk *w, json_t *value, int depth)
{
    switch (json_typeof(value)) {
    case JSON_STRING:
        emit(w, slice_make(json_string_value(value), json_string_length(value)));
        break;
    case JSON_INTEGER:
    case JSON_REAL:
        emit_number(w, value);
        break;
    case JSON_TRUE:
        emit(w, SLICE_LITERAL("true"));
        break;
    case JSON_FALSE:
        emit(w, SLICE_LITERAL("false"));
        break;
    case JSON_ARRAY:
        emit_json(w, value);
        break;
    case JSON_OBJECT:
        if (json_object_size(value) == 0)
            emit(w, SLICE_LITERAL("{}"));
        else
            walk_object(w, value, NULL, NULL, depth + 1);
        break;
    case JSON_NULL:
        break;
    }
}

static void walk_object(struct walk *w, json_t *object, const char *skip1, const char *skip2, int depth)
{
    const char *name;
    json_t *value;
    if (depth > DEPTH_MAX) {
        problem(w, "objects nest too deep: skipped");
        return;
    }
    json_object_foreach(object, name, value)
    {
        if ((skip1 && strcmp(name, skip1) == 0) || (skip2 && strcmp(name, skip2) == 0))
            continue;
        size_t len = w->path->len;
        bool started = w->path->started;
        if (push(w, slice_make(name, strlen(name))))
            walk_value(w, value, depth);
        w->path->len = len;
        w->path->started = started;
    }
}

void load_json_line(struct slice text, uint64_t line, struct slice prefix, struct slice sep,
                    const struct load_sink *sink)
{
    static struct path path; /* one loader a process; too large for a stack */
    struct walk w = {.path = &path, .sep = sep, .line = line, .sink = sink};
    json_error_t error;
    char message[sizeof error.text + 64];
    path.len = 0;
    path.started = prefix.len > 0;
    json_t *root = json_loadb(text.data, text.len, JSON_ALLOW_NUL, &error);
    if (root == NULL || !json_is_object(root) || !append(&path, prefix)) {
        snprintf(message, sizeof message, "not a JSON object: %s", root ? "another type" : error.text);
        sink->problem(sink->context, line, message);
        json_decref(root);
        return;
    }
    json_t *key = json_object_get(root, "key");
    if (!json_is_string(key)) {
        walk_object(&w, root, NULL, NULL, 0);
    } else if (json_string_length(key) == 0) {
        problem(&w, "the key is empty: skipped");
    } else if (push(&w, slice_make(json_string_value(key), json_string_length(key)))) {
        json_t *value = json_object_get(root, "value");
        if (value)
            walk_value(&w, value, 0);
        walk_object(&w, root, "key", value ? "value" : NULL, 0);
    }
    if (!w.told)
        problem(&w, "nothing to store: skipped");
    json_decref(root);
}
