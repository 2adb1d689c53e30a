#include "tools/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/parse.h"

enum { CONFIG_BYTES_MAX = 1 << 20 };

static const struct option_spec *find_spec(const struct option_spec *specs, const char *name, size_t len)
{
    for (const struct option_spec *s = specs; s->name; s++)
        if (strlen(s->name) == len && memcmp(s->name, name, len) == 0)
            return s;
    return NULL;
}

static status_t bad_value(const struct option_spec *spec, const char *value, const char *wanted)
{
    return status_error(STATUS_INVALID, "--%s: '%.60s' is not %s", spec->name, value, wanted);
}

static status_t set_flag(const struct option_spec *spec, const char *value)
{
    bool *into = spec->into;
    if (value == NULL || strcmp(value, "yes") == 0 || strcmp(value, "true") == 0)
        *into = true;
    else if (strcmp(value, "no") == 0 || strcmp(value, "false") == 0)
        *into = false;
    else
        return bad_value(spec, value, "yes or no");
    return status_ok();
}

static status_t set_choice(const struct option_spec *spec, const char *value)
{
    const char *word = spec->value_name;
    size_t len = strlen(value);
    for (int i = 0;; i++) {
        size_t n = strcspn(word, "|");
        if (n == len && memcmp(word, value, n) == 0) {
            *(int *)spec->into = i;
            return status_ok();
        }
        if (word[n] == '\0')
            return bad_value(spec, value, spec->value_name);
        word += n + 1;
    }
}

static status_t set_number(const struct option_spec *spec, const char *value)
{
    struct slice text = slice_make(value, strlen(value));
    uint64_t v;
    bool size = spec->kind == OPTION_SIZE;
    if (size ? !parse_size(text, &v) : !parse_u64(text, &v))
        return bad_value(spec, value, size ? "a size (examples: 4096, 64M, 2G)" : "a whole number");
    if (v < spec->min)
        return status_error(STATUS_INVALID, "--%s: '%.60s' is too small, the least is %llu", spec->name,
                            value, (unsigned long long)spec->min);
    if (spec->max && v > spec->max)
        return status_error(STATUS_INVALID, "--%s: '%.60s' is too large, the most is %llu", spec->name, value,
                            (unsigned long long)spec->max);
    *(uint64_t *)spec->into = v;
    return status_ok();
}

static status_t set_port(const struct option_spec *spec, const char *value)
{
    uint64_t port;
    if (!parse_u64(slice_make(value, strlen(value)), &port) || port < 1 || port > UINT16_MAX)
        return bad_value(spec, value, "a port from 1 to 65535");
    *(const char **)spec->into = value;
    return status_ok();
}

static status_t set_address(const struct option_spec *spec, const char *value)
{
    if (strchr(value, ':') == NULL)
        return bad_value(spec, value, "HOST:PORT");
    *(const char **)spec->into = value;
    return status_ok();
}

static status_t set_double(const struct option_spec *spec, const char *value)
{
    double v;
    if (!parse_double(slice_make(value, strlen(value)), &v))
        return bad_value(spec, value, "a number");
    if (v < (double)spec->min || v > (spec->max ? (double)spec->max : 1e18))
        return bad_value(spec, value, "in range");
    *(double *)spec->into = v;
    return status_ok();
}

static status_t set_spec(const struct option_spec *spec, const char *value)
{
    if (spec->kind == OPTION_FLAG)
        return set_flag(spec, value);
    if (value == NULL)
        return status_error(STATUS_INVALID, "--%s needs a value: %s", spec->name,
                            spec->value_name ? spec->value_name : "VALUE");
    switch (spec->kind) {
    case OPTION_TEXT:
        *(const char **)spec->into = value;
        return status_ok();
    case OPTION_ADDRESS:
        return set_address(spec, value);
    case OPTION_PORT:
        return set_port(spec, value);
    case OPTION_CHOICE:
        return set_choice(spec, value);
    case OPTION_DOUBLE:
        return set_double(spec, value);
    default:
        return set_number(spec, value);
    }
}

status_t options_set(const struct option_spec *specs, const char *name, const char *value)
{
    const struct option_spec *spec = find_spec(specs, name, strlen(name));
    if (spec == NULL)
        return status_error(STATUS_INVALID, "unknown option '%.60s'", name);
    return set_spec(spec, value);
}

static bool is_positional(const char *arg)
{
    return arg[0] != '-' || arg[1] == '\0' || (arg[1] >= '0' && arg[1] <= '9');
}

/* The option at argv[*at]; *at moves on to its last word. */
static status_t parse_option(const struct option_spec *specs, int argc, char **argv, int *at)
{
    const char *arg = argv[*at];
    const char *name = arg + 2;
    if (arg[1] != '-')
        return status_error(STATUS_INVALID, "unknown option '%.60s'; --help lists them", arg);
    size_t len = strcspn(name, "=");
    const struct option_spec *spec = find_spec(specs, name, len);
    if (spec == NULL)
        return status_error(STATUS_INVALID,
                            "unknown option '--%.*s'; --help lists them (put -- before words that "
                            "begin with a dash)",
                            (int)(len < 60 ? len : 60), name);
    if (name[len] == '=')
        return set_spec(spec, name + len + 1);
    if (spec->kind == OPTION_FLAG || *at + 1 >= argc)
        return set_spec(spec, NULL);
    *at += 1;
    return set_spec(spec, argv[*at]);
}

status_t options_parse(const struct option_spec *specs, int argc, char **argv, int *positional_count,
                       bool *help)
{
    int count = 0;
    bool ended = false;
    *help = false;
    for (int i = 1; i < argc; i++) {
        if (ended || is_positional(argv[i])) {
            argv[++count] = argv[i];
        } else if (strcmp(argv[i], "--") == 0) {
            ended = true;
        } else if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            *help = true;
            break;
        } else {
            TRY(parse_option(specs, argc, argv, &i));
        }
    }
    *positional_count = count;
    return status_ok();
}

static status_t read_text(const char *path, char **text)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return status_errno(errno, "cannot open config file %s", path);
    char *buffer = malloc(CONFIG_BYTES_MAX + 1);
    size_t n = buffer ? fread(buffer, 1, CONFIG_BYTES_MAX, file) : 0;
    int error = ferror(file) ? errno : 0;
    bool whole = n < CONFIG_BYTES_MAX;
    fclose(file);
    if (buffer && !error && whole) {
        buffer[n] = '\0';
        if (strlen(buffer) == n) {
            *text = buffer;
            return status_ok();
        }
    }
    free(buffer);
    if (error)
        return status_errno(error, "cannot read config file %s", path);
    return status_error(STATUS_INVALID, "config file %s is too long or not text", path);
}

static char *skip_blanks(char *p)
{
    return p + strspn(p, " \t");
}

/* One line of a config file, NUL-terminated, changed in place. */
static status_t set_line(const struct option_spec *specs, char *line)
{
    line[strcspn(line, "\r")] = '\0';
    char *name = skip_blanks(line);
    if (*name == '\0' || *name == '#')
        return status_ok();
    size_t len = strcspn(name, " \t=");
    char *value = skip_blanks(name + len);
    if (*value == '=')
        value = skip_blanks(value + 1);
    name[len] = '\0';
    if (strcmp(name, "config") == 0)
        return status_error(STATUS_INVALID, "config: a config file cannot name another one");
    size_t n = strlen(value);
    while (n > 0 && (value[n - 1] == ' ' || value[n - 1] == '\t'))
        value[--n] = '\0';
    if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
        value[n - 1] = '\0';
        return options_set(specs, name, value + 1);
    }
    return options_set(specs, name, n ? value : NULL);
}

status_t options_read_file(const struct option_spec *specs, const char *path, char **buffer)
{
    char *text = NULL;
    int line_number = 0;
    TRY(read_text(path, &text));
    for (char *line = text; line;) {
        char *end = strchr(line, '\n');
        if (end)
            *end = '\0';
        line_number++;
        status_t s = set_line(specs, line);
        if (!status_is_ok(&s)) {
            s = status_wrap(s, "%s line %d", path, line_number);
            free(text);
            return s;
        }
        line = end ? end + 1 : NULL;
    }
    *buffer = text;
    return status_ok();
}

void options_print_help(FILE *out, const char *usage, const char *about, const struct option_spec *specs)
{
    fprintf(out, "usage: kvasir %s\n\n%s\n\noptions:\n", usage, about);
    for (const struct option_spec *s = specs; s->name; s++) {
        char left[64];
        snprintf(left, sizeof left, "--%s%s%s", s->name, s->value_name ? " " : "",
                 s->value_name ? s->value_name : "");
        if (strlen(left) <= 28)
            fprintf(out, "  %-28s  %s\n", left, s->help);
        else
            fprintf(out, "  %s\n%32s%s\n", left, "", s->help);
    }
    fprintf(out, "  %-28s  %s\n", "--help", "this text");
}

int options_begin(const char *name, const char *usage, const char *about, const struct option_spec *specs,
                  int argc, char **argv, int positional_min, int positional_max, int *positional_count)
{
    bool help;
    status_t s = options_parse(specs, argc, argv, positional_count, &help);
    if (status_is_ok(&s) && help) {
        options_print_help(stdout, usage, about, specs);
        return fflush(stdout) == 0 ? 0 : 2;
    }
    if (status_is_ok(&s) && (*positional_count < positional_min || *positional_count > positional_max))
        s = *positional_count < positional_min
                ? status_error(STATUS_INVALID, "an argument is missing; usage: kvasir %s", usage)
                : status_error(STATUS_INVALID, "too many arguments: '%s'; usage: kvasir %s",
                               argv[1 + positional_max], usage);
    if (status_is_ok(&s))
        return -1;
    fprintf(stderr, "kvasir %s: %s\n", name, s.text);
    return 2;
}
