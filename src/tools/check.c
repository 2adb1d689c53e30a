/* kvasir check DIR: see the help text below, and check.h. */
#include "tools/check.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "base/check.h"
#include "log/spare.h"
#include "sys/clock.h"
#include "tools/check_internal.h"
#include "tools/descriptors.h"
#include "tools/options.h"
#include "tools/tools.h"

enum {
    LISTINGS_MAX = 1000,   /* of the folder of a busy server, until one holds still */
    OTHER_DESCRIPTORS = 32 /* beside one for each file */
};

static const char about[] =
    "Verifies every checksum of a data folder: the log's segments, the checkpoints (tocs), and that each "
    "key's\n"
    "value is where they say. It changes nothing there. The server may be running; then only what was "
    "written\n"
    "when the check began is looked at. Files that the server removes meanwhile take room until the check\n"
    "ends.\n"
    "Exit code: 0 well, 1 damaged but the server would start, 2 damaged, 3 not everything could be read.\n"
    "--repair writes what is valid to a new folder, from which a server starts. Exit code then: 0 nothing "
    "was\n"
    "damaged, 1 what was is missing there or as it was before (said in words), 3 it could not be made, or "
    "not\n"
    "all be read.";

/* ---- what is there ---- */

static void *grow(void *array, size_t count, size_t element)
{
    /* Room doubles at powers of two. */
    if (count & (count - 1))
        return array;
    array = realloc(array, (count ? count * 2 : 1) * element);
    CHECK(array != NULL);
    return array;
}

static int add_name(void *context, const char *name)
{
    uint64_t number;
    bool temporary = false;
    if (segment_parse_name(name, &number) || segment_parse_data_name(name, &number) ||
        (toc_parse_name(name, &number, &temporary) && !temporary))
        *(uint64_t *)context += XXH3_64bits(name, strlen(name));
    return 0;
}

/* Of which segments and tocs are there. */
static status_t sum_names(struct check *c, uint64_t *sum)
{
    *sum = 0;
    int e = c->disk->ops->list(c->disk, c->folder, add_name, sum);
    return e < 0 ? status_errno(-e, "cannot list the folder %s", c->path) : status_ok();
}

static bool is_folder(const struct check *c, const char *name)
{
    struct stat s;
    return fstatat(c->folder, name, &s, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(s.st_mode);
}

/* A folder with the name of a file that a start removes or writes. */
static void note_folder(struct check *c, const char *name)
{
    check_damage(
        c,
        "%s/%s is a folder, where a file of the server's own belongs: move it away, no server starts before",
        c->path, name);
    c->refuses = true;
}

static void note_temporary(struct check *c, const char *name)
{
    if (is_folder(c, name))
        note_folder(c, name);
    else if (c->live)
        check_note(c, "%s/%s is the next checkpoint's file", c->path, name);
    else
        check_note(c,
                   "%s/%s is a checkpoint that was not finished, or an old one's file kept for the next: the "
                   "next start removes it",
                   c->path, name);
}

static void note_spare(struct check *c, const char *name)
{
    if (is_folder(c, name))
        check_note(c, "%s/%s is a folder and no spare file: it stays", c->path, name);
    else if (!c->live)
        check_note(c, "%s/%s is a spare file, not needed: the next start removes it", c->path, name);
}

/* No segment, and no checkpoint or its beginning. */
static void note_other(struct check *c, const char *name)
{
    char text[CHECK_KEY_TEXT_BYTES];
    if (spare_parse_name(name)) {
        note_spare(c, name);
    } else if (strcmp(name, "unfinished-backup") == 0) {
        check_note(c, "%s is a backup that is not finished: files may be missing", c->path);
    } else if (strcmp(name, "lock") == 0) {
        if (is_folder(c, name))
            note_folder(c, name);
    } else {
        check_note(c, "%s/%s is no file of kvasir's and not looked at", c->path,
                   check_key_text(slice_make(name, strlen(name)), text));
    }
}

static int note_name(void *context, const char *name)
{
    struct check *c = context;
    uint64_t number;
    bool temporary;
    bool data = segment_parse_data_name(name, &number);
    if (data || segment_parse_name(name, &number)) {
        c->segments = grow(c->segments, c->segment_count, sizeof *c->segments);
        c->segments[c->segment_count++] = (struct check_segment){.data = data, .number = number, .fd = -1};
        c->log_count += !data;
    } else if (!toc_parse_name(name, &number, &temporary)) {
        note_other(c, name);
    } else if (!temporary) {
        c->tocs = grow(c->tocs, c->toc_count, sizeof *c->tocs);
        c->tocs[c->toc_count++] = (struct check_toc){.number = number, .fd = -1};
    } else {
        note_temporary(c, name);
    }
    return 0;
}

static int by_number(const void *a, const void *b)
{
    const struct check_segment *x = a, *y = b;
    if (x->data != y->data)
        return x->data - y->data;
    return (x->number > y->number) - (x->number < y->number);
}

static int newest_first(const void *a, const void *b)
{
    uint64_t x = ((const struct check_toc *)a)->number, y = ((const struct check_toc *)b)->number;
    return (x < y) - (x > y);
}

/* Does a server hold the folder's lock? Asking takes the lock for a moment, shared. */
static bool is_locked(struct check *c)
{
    int fd = c->disk->ops->open(c->disk, c->folder, "lock", false, false);
    if (fd < 0)
        return false;
    bool locked = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    c->disk->ops->close(c->disk, fd);
    return locked;
}

static void on_durable(void *context, const struct batch_header *h, bool whole)
{
    uint64_t *durable = context;
    if (whole && h->durable_lsn > *durable)
        *durable = h->durable_lsn;
}

/* A batch is on disk when it is whole, and belongs to the log when all before it does. */
static void on_whole(void *context, const struct batch_header *h, bool whole)
{
    uint64_t *end = context, batch_end = h->lsn + round_up(h->length, LOG_BLOCK_BYTES);
    if (whole && (h->previous_lsn == 0 || h->previous_lsn < *end) && batch_end > *end)
        *end = batch_end;
}

/* With a running server: how far the log is written when this begins. What was durable before the newest
 * batches, they say; from there on it goes as far as whole batches follow each other. Nothing below that can
 * be a write under way. */
static void find_limit(struct check *c)
{
    uint64_t end = 0;
    const struct scan_sink durable = {.context = &end, .batch = on_durable};
    const struct scan_sink behind = {.context = &end, .batch = on_whole};
    for (size_t i = c->log_count; i-- > 0 && end == 0;)
        if (c->segments[i].usable)
            check_scan(c, &c->segments[i], &durable);
    for (size_t i = 0, first = end >> LOG_SEGMENT_SHIFT; i < c->log_count; i++)
        if (c->segments[i].usable && c->segments[i].number >= first)
            check_scan(c, &c->segments[i], &behind);
    c->limit_lsn = end;
    check_note(c, "a server has %s open: the log is looked at up to LSN %" PRIu64, c->path, end);
}

/* Opens one, and asks the server not to use it again. */
static int hold(struct check *c, const char *name)
{
    int fd = c->disk->ops->open(c->disk, c->folder, name, false, true);
    if (fd >= 0 && c->disk->ops->lock_shared)
        c->changed |= c->disk->ops->lock_shared(c->disk, fd) == -EWOULDBLOCK;
    c->changed |= fd == -ENOENT;
    return fd;
}

/* With a running server: what this opens stays as it is. A file that cannot be opened is met again later. */
static status_t hold_files(struct check *c)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t wanted = c->segment_count + 2 * c->toc_count + OTHER_DESCRIPTORS;
    uint64_t limit = descriptors_raise_limit(wanted);
    if (limit < wanted)
        return status_error(STATUS_INVALID,
                            "beside a server all files of %s must be open, %zu: the process may have %" PRIu64
                            " of the %" PRIu64 " open files that this takes, raise that (ulimit -n)",
                            c->path, c->segment_count + c->toc_count, limit, wanted);
    for (size_t i = 0; i < c->toc_count && !c->changed; i++) {
        toc_name(name, c->tocs[i].number, false);
        c->tocs[i].fd = hold(c, name);
    }
    for (size_t i = 0; i < c->segment_count && !c->changed; i++) {
        segment_file_name(name, c->segments[i].data, c->segments[i].number);
        c->segments[i].fd = hold(c, name);
    }
    return status_ok();
}

static status_t list_folder(struct check *c)
{
    c->folder = c->disk->ops->folder_open(c->disk, c->path, false);
    if (c->folder < 0)
        return status_errno(-c->folder, "cannot open the folder %s", c->path);
    c->live = is_locked(c);
    uint64_t before = 0, after;
    if (c->live)
        TRY(sum_names(c, &before));
    int e = c->disk->ops->list(c->disk, c->folder, note_name, c);
    if (e < 0)
        return status_errno(-e, "cannot list the folder %s", c->path);
    if (c->segment_count == 0 && c->toc_count == 0)
        return status_error(STATUS_INVALID, "%s is no data folder: no file is named like log-0000000001.kv",
                            c->path);
    if (c->segment_count)
        qsort(c->segments, c->segment_count, sizeof *c->segments, by_number);
    if (c->toc_count)
        qsort(c->tocs, c->toc_count, sizeof *c->tocs, newest_first);
    if (c->live)
        TRY(hold_files(c));
    if (c->changed)
        return status_ok();
    check_toc_headers(c);
    /* A listing has all that was there from its beginning to its end; of files made or renamed meanwhile it
     * may have the later and not the earlier. So all the files that these tocs name are in it and held, and
     * no other toc names any, only if nothing has changed from before it to behind the tocs' opening. */
    if (c->live) {
        TRY(sum_names(c, &after));
        c->changed = after != before;
        if (c->changed)
            return status_ok();
    }
    check_headers(c);
    if (c->live)
        find_limit(c);
    return status_ok();
}

/* ---- all of it ---- */

/* Segments from `first` on that make a group, with room for their bits. Returns the first of the next. */
static size_t begin_group(struct check *c, size_t first)
{
    uint64_t bytes = 0, bits = 0;
    size_t i = first;
    for (; i < c->segment_count; i++) {
        struct check_segment *s = &c->segments[i];
        if (!s->usable)
            continue;
        if (bytes && bytes + s->bytes > CHECK_GROUP_BYTES)
            break;
        bytes += s->bytes;
        s->in_group = true;
        s->starts_at = bits;
        bits += round_up(s->bytes / 8 + 1, 64);
    }
    bool wanted = false;
    for (size_t t = 0; t < c->toc_count; t++)
        wanted |= c->tocs[t].toc != NULL;
    c->starts = wanted ? calloc(bits / 64 + 1, sizeof *c->starts) : NULL;
    CHECK(!wanted || c->starts != NULL);
    return i;
}

void check_groups(struct check *c, void (*segment)(struct check *c, struct check_segment *s, void *context),
                  void (*group)(struct check *c, bool first, void *context), void *context)
{
    size_t first = 0;
    do {
        size_t next = begin_group(c, first);
        for (size_t i = first; i < next; i++)
            if (c->segments[i].usable && segment)
                segment(c, &c->segments[i], context);
        group(c, first == 0, context);
        for (size_t i = first; i < next; i++)
            c->segments[i].in_group = false;
        free(c->starts);
        c->starts = NULL;
        first = next;
    } while (first < c->segment_count);
}

static void check_one_segment(struct check *c, struct check_segment *s, void *context)
{
    (void)context;
    check_log_segment(c, s);
}

static void check_tocs(struct check *c, bool first, void *context)
{
    (void)context;
    for (size_t i = 0; i < c->toc_count; i++)
        check_toc_group(c, &c->tocs[i], first);
}

static void count_total(struct check *c)
{
    uint64_t segments = 0;
    for (size_t i = 0; i < c->segment_count; i++)
        segments += c->segments[i].usable ? c->segments[i].bytes : 0;
    c->total_bytes = segments;
    for (size_t i = 0; i < c->toc_count; i++)
        if (c->tocs[i].toc)
            c->total_bytes +=
                toc_info(c->tocs[i].toc)->blocks * TOC_BLOCK_BYTES * (segments / CHECK_GROUP_BYTES + 1);
}

static enum check_code verdict(struct check *c)
{
    enum check_code code = CHECK_WELL;
    size_t good = 0;
    for (size_t i = 0; i < c->toc_count; i++)
        good += c->tocs[i].whole;
    fprintf(c->out,
            "%zu log and %zu data segments with %" PRIu64 " valid records in %" PRIu64
            " batches; %zu tocs, %zu of them good",
            c->log_count, c->segment_count - c->log_count, c->records, c->batches, c->toc_count, good);
    if (c->chosen)
        fprintf(c->out, ": toc %" PRIu64 " has %" PRIu64 " keys", c->chosen->number, c->chosen->keys);
    fputc('\n', c->out);
    if (c->damages)
        code = c->refuses ? CHECK_DAMAGED : CHECK_STARTS;
    if (c->unreadables)
        fprintf(c->out, "%s: not everything could be read, %" PRIu64 " places; %" PRIu64 " are damaged\n",
                c->path, c->unreadables, c->damages);
    else if (code == CHECK_WELL)
        fprintf(c->out, "%s: well\n", c->path);
    else
        fprintf(c->out, "%s: damaged at %" PRIu64 " places; the server %s\n", c->path, c->damages,
                code == CHECK_STARTS
                    ? "would start, with all that it can read"
                    : "would not start: `kvasir check DIR --repair NEWDIR` saves what is valid");
    return c->unreadables ? CHECK_UNREADABLE : code;
}

static enum check_code check_all(struct check *c, const struct check_options *o)
{
    status_t s = list_folder(c);
    if (status_is_ok(&s) && c->changed)
        return CHECK_UNREADABLE;
    if (status_is_ok(&s) && o->new_path) {
        s = c->live ? status_error(STATUS_BUSY, "a server has %s open: stop it before a repair", c->path)
                    : check_repair_target(c, o->new_path);
    }
    if (!status_is_ok(&s)) {
        fprintf(stderr, "kvasir check: %s\n", s.text);
        return CHECK_UNREADABLE;
    }
    count_total(c);
    check_groups(c, check_one_segment, check_tocs, NULL);
    check_toc_choose(c);
    check_log_end(c);
    check_progress_end(c);
    enum check_code code = verdict(c);
    if (o->new_path)
        code = check_repair(c, o->new_path);
    return code;
}

static void close_files(struct check *c)
{
    for (size_t i = 0; i < c->toc_count; i++) {
        toc_close(c->tocs[i].toc);
        if (c->tocs[i].fd >= 0)
            c->disk->ops->close(c->disk, c->tocs[i].fd);
    }
    for (size_t i = 0; i < c->segment_count; i++)
        if (c->segments[i].fd >= 0)
            c->disk->ops->close(c->disk, c->segments[i].fd);
    if (c->folder >= 0)
        c->disk->ops->close(c->disk, c->folder);
}

/* *changed: nothing was looked at, because the folder was changing. */
static enum check_code check_once(const struct check_options *o, FILE *out, bool *changed)
{
    struct check c = {.disk = o->disk,
                      .path = o->path,
                      .folder = -1,
                      .limit_lsn = CHECK_NO_LIMIT,
                      .out = out,
                      .progress = o->progress,
                      .began_us = clock_monotonic_us()};
    enum check_code code = check_all(&c, o);
    *changed = c.changed; /* never with an error */
    close_files(&c);
    free(c.tocs);
    free(c.segments);
    return code;
}

enum check_code check_run(const struct check_options *o)
{
    for (unsigned listings = 0; listings < LISTINGS_MAX; listings++) {
        char *text = NULL;
        size_t bytes = 0;
        bool changed;
        FILE *out = open_memstream(&text, &bytes);
        CHECK(out != NULL);
        enum check_code code = check_once(o, out, &changed);
        CHECK(fclose(out) == 0);
        if (!changed)
            (void)fwrite(text, 1, bytes, o->out); /* the caller looks for errors of the stream */
        free(text);
        if (!changed)
            return code;
    }
    fprintf(
        o->out,
        "%s: not looked at: the server made or removed files while they were listed, %d times. Make a copy "
        "with `kvasir backup PATH` and check that, or stop the server\n",
        o->path, LISTINGS_MAX);
    return CHECK_UNREADABLE;
}

int tool_check(int argc, char **argv)
{
    const char *new_path = NULL;
    const struct option_spec specs[] = {
        {"repair", OPTION_TEXT, &new_path, "NEWDIR", "save what is valid into this folder, absent or empty",
         0, 0},
        {0},
    };
    int count, rc = options_begin("check", "check [OPTIONS] DIR", about, specs, argc, argv, 1, 1, &count);
    if (rc >= 0)
        return rc ? CHECK_UNREADABLE : rc;
    signal(SIGPIPE, SIG_IGN);
    struct check_options options = {.disk = disk_real(),
                                    .path = argv[1],
                                    .new_path = new_path,
                                    .out = stdout,
                                    .progress = isatty(STDERR_FILENO) ? stderr : NULL};
    enum check_code code = check_run(&options);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "kvasir check: cannot write to stdout\n");
        return CHECK_UNREADABLE;
    }
    return (int)code;
}
