/* kvasir check, against what a store does that opens the same folder: it must say beforehand whether it will
 * start, and what it saves must be what the store would show. */
#include "unit/tools/check_fixture.h"

#include <xxhash.h>

#include "log/segment.h"
#include "part.h"
#include "toc/toc_format.h"

enum { KEYS = 40, BIG_BYTES = 150 << 10 };

#define LATER 4102444800000ull /* the year 2100 */

static char *ever; /* all lines that any moment's dump had */
static size_t ever_len;

static void remember(struct store *store)
{
    char *lines = dump(store);
    size_t len = strlen(lines);
    ever = realloc(ever, ever_len + len + 2);
    assert_non_null(ever);
    if (ever_len == 0)
        ever[ever_len++] = '\n';
    memcpy(ever + ever_len, lines, len + 1);
    ever_len += len;
    free(lines);
}

static struct slice make_value(struct prng *p, char *buffer, size_t len)
{
    for (size_t i = 0; i < len; i++)
        buffer[i] = (char)('a' + prng_below(p, 26));
    return slice_make(buffer, len);
}

static void write_some(struct store *store, struct prng *p, unsigned from, unsigned to)
{
    static char buffer[BIG_BYTES];
    char key[32];
    for (unsigned i = from; i < to; i++) {
        snprintf(key, sizeof key, "k/%02u", i);
        size_t len = i % 10 == 3 ? BIG_BYTES : prng_below(p, 600);
        write_key(store, key, make_value(p, buffer, len), i % 7 == 0 ? LATER + i : 0);
        remember(store);
    }
    static const char *const together[] = {"m/1", "m/2", "m/3"};
    struct slice values[3];
    for (unsigned i = 0; i < 3; i++)
        values[i] = make_value(p, buffer + 100 * i, 50 + prng_below(p, 50));
    write_keys(store, 3, together, values, 0);
    remember(store);
}

/* Keys that are deleted again, one by one and as a tree, before any checkpoint. */
static void write_and_delete(struct store *store)
{
    char key[32];
    for (unsigned i = 0; i < 6; i++) {
        snprintf(key, sizeof key, i < 3 ? "gone/%u" : "gone%u", i);
        write_key(store, key, slice_make("short", 5), 0);
    }
    for (unsigned i = 3; i < 6; i++) {
        snprintf(key, sizeof key, "gone%u", i);
        write_key(store, key, slice_make(NULL, 0), 0);
    }
    delete_tree(store, "gone");
    write_key(store, "stays", slice_make("here", 4), 0);
    remember(store);
}

/* killed: as SIGKILL leaves it, without the log's farewell. moved: with data segments.
 * Returns the last state's dump. */
static char *make_history(const char *folder, unsigned tocs, bool killed, bool moved)
{
    struct store *store;
    struct prng p;
    prng_seed(&p, 5);
    free(ever);
    ever = NULL;
    ever_len = 0;
    folder_remove(folder);
    status_t s = open_store(folder, &store);
    assert_true(status_is_ok(&s));
    write_and_delete(store);
    write_some(store, &p, 0, KEYS);
    if (moved) {
        write_some(store, &p, 0, KEYS); /* into the log's second segment */
        move_values(store, 1, 128);
    }
    if (tocs > 0)
        checkpoint(store);
    write_some(store, &p, 10, 20);
    expire_key(store, "k/01", LATER);
    remember(store);
    expire_key(store, "k/07", 0);
    remember(store);
    if (moved)
        move_values(store, 2, 256);
    if (tocs > 1)
        checkpoint(store);
    write_some(store, &p, 15, 25);
    write_key(store, "k/30", slice_make(NULL, 0), 0);
    expire_key(store, "k/02", LATER + 5);
    remember(store);
    char *last = dump(store);
    if (killed)
        folder_copy(folder, "killed");
    store_close(store);
    if (killed) {
        folder_copy("killed", folder);
        folder_remove("killed");
    }
    return last;
}

/* ---- comparing ---- */

static bool is_line_of(const char *line, size_t len, const char *lines)
{
    for (const char *at = lines; (at = memmem(at, strlen(at), line, len)) != NULL; at++)
        if ((at == lines || at[-1] == '\n') && at[len] == '\n')
            return true;
    return false;
}

/* Lines of a that b has not; skip: those which contain it do not count. */
static unsigned lines_missing(const char *a, const char *b, const char *skip)
{
    unsigned missing = 0;
    for (const char *end; *a; a = end + 1) {
        end = strchr(a, '\n');
        assert_non_null(end);
        size_t len = (size_t)(end - a);
        missing += !(skip && memmem(a, len, skip, strlen(skip))) && !is_line_of(a, len, b);
    }
    return missing;
}

/* Checks, repairs and opens what is in "x"; compares all of it. most: how many keys may be missing or older
 * when the store would refuse. */
static enum check_code judge(const char *last, unsigned most, bool has_toc)
{
    folder_copy("x", "untouched");
    enum check_code code = run_check("x", NULL);
    folder_remove("new");
    enum check_code repaired = run_check("x", "new");
    assert_true(folder_same("x", "untouched"));
    char *shown = dump_folder("x"), *saved = dump_folder("new");
    if ((shown != NULL) != (code == CHECK_WELL || code == CHECK_STARTS))
        fail_msg("code %d, but the store %s:\n%s", code, shown ? "opens" : "does not open", out_text);
    if (saved == NULL)
        fail_msg("the salvage does not open:\n%s", out_text);
    assert_int_equal(repaired, code == CHECK_WELL ? CHECK_WELL : CHECK_STARTS);
    /* Nothing that never was, nothing that was deleted before the oldest toc. */
    assert_int_equal(lines_missing(saved, ever, NULL), 0);
    assert_false(has_toc && strstr(saved, "gone"));
    if (shown) {
        if (lines_missing(saved, shown, NULL) || lines_missing(shown, saved, "corrupt"))
            fail_msg("code %d; shown and not saved %u, saved and not shown %u:\n%s", code,
                     lines_missing(shown, saved, "corrupt"), lines_missing(saved, shown, NULL), out_text);
    } else if (lines_missing(last, saved, NULL) > most) {
        fail_msg("%u keys are not as they were:\n%s", lines_missing(last, saved, NULL), out_text);
    }
    free(shown);
    free(saved);
    return code;
}

/* ---- tests ---- */

static void assert_well(char *last, bool has_toc)
{
    assert_int_equal(judge(last, 0, has_toc), CHECK_WELL);
    assert_says("/new is complete");
    assert_null(strstr(out_text, "note"));
    char *again = dump_folder("new");
    assert_string_equal(again, last);
    free(again);
    free(last);
}

static void test_well(void **state)
{
    (void)state;
    for (unsigned tocs = 0; tocs <= 2; tocs++) {
        for (int killed = 0; killed < 2; killed++) {
            char *last = make_history("base", tocs, killed, false);
            folder_copy("base", "x");
            assert_well(last, tocs > 0);
        }
    }
    char *last = make_history("base", 2, true, true);
    folder_copy("base", "x");
    assert_well(last, true);
}

/* A place worth damaging: mostly bytes that mean something. */
static size_t some_offset(struct prng *p, const char *folder, const struct folder_file *f)
{
    size_t bytes, offset = 0;
    char *data = file_read(folder, f->name, &bytes);
    assert_true(bytes > 0);
    for (unsigned tries = 0; tries < 2000; tries++) {
        offset = prng_below(p, (uint32_t)bytes);
        if (prng_below(p, 3) == 0)
            offset -= offset % 4096 - prng_below(p, 140) % 140;
        if (offset < bytes && (data[offset] || (tries == 0 && prng_below(p, 20) == 0)))
            break;
    }
    free(data);
    return offset < bytes ? offset : 0;
}

static void flip_many(unsigned tocs, bool killed, bool moved, unsigned rounds)
{
    struct folder_file files[FILES_MAX];
    unsigned codes[4] = {0};
    rounds /= PART;
    char *last = make_history("base", tocs, killed, moved);
    unsigned n = folder_files("base", files);
    struct prng p;
    prng_seed(&p, tocs * 2 + killed + 10 * moved);
    for (unsigned i = 0; i < rounds;) {
        const struct folder_file *f = &files[prng_below(&p, n)];
        if (f->bytes == 0)
            continue;
        i++;
        size_t offset = some_offset(&p, "base", f);
        unsigned bit = prng_below(&p, 8);
        folder_copy("base", "x");
        flip("x", f->name, offset, bit);
        enum check_code code = judge(last, 3, tocs > 1);
        /* Not noticed, or taken for a torn tail: only what nothing vouches for. */
        if (code == CHECK_WELL && (!killed || strstr(out_text, "note:") == NULL) && offset >= 4096)
            assert_says("behind the last write that is known to be durable");
        codes[code]++;
    }
    assert_true(codes[CHECK_STARTS] + codes[CHECK_DAMAGED] > rounds / 2);
    assert_int_equal(codes[CHECK_UNREADABLE], 0);
    free(last);
}

static void test_bit_flips(void **state)
{
    (void)state;
    flip_many(0, false, false, 60);
    flip_many(0, true, false, 30);
    flip_many(1, true, false, 60);
    flip_many(2, false, false, 90);
    flip_many(2, true, false, 60);
    flip_many(2, false, true, 90);
}

/* Several at once: whatever they are, check and store agree. */
static void test_more_flips(void **state)
{
    (void)state;
    struct folder_file files[FILES_MAX];
    char *last = make_history("base", 2, false, true);
    unsigned n = folder_files("base", files);
    struct prng p;
    prng_seed(&p, 99);
    for (unsigned i = 0; i < 60 / PART; i++) {
        folder_copy("base", "x");
        for (unsigned flips = 2 + prng_below(&p, 6); flips;) {
            const struct folder_file *f = &files[prng_below(&p, n)];
            if (f->bytes == 0)
                continue;
            flip("x", f->name, some_offset(&p, "base", f), prng_below(&p, 8));
            flips--;
        }
        (void)judge(last, KEYS, false);
    }
    free(last);
}

static void test_truncated(void **state)
{
    (void)state;
    struct folder_file files[FILES_MAX];
    char *last = make_history("base", 2, false, true), path[PATH_BYTES];
    unsigned n = folder_files("base", files), damaged = 0;
    for (unsigned i = 0; i < n; i++) {
        for (unsigned part = 0; part < 8 && files[i].bytes; part++) {
            folder_copy("base", "x");
            assert_int_equal(truncate(under("x", files[i].name, path), (off_t)(files[i].bytes * part / 8)),
                             0);
            damaged += judge(last, KEYS, true) != CHECK_WELL;
        }
    }
    assert_true(damaged > 20);
    free(last);
}

static void remove_each(bool moved)
{
    struct folder_file files[FILES_MAX];
    char *last = make_history("base", 2, false, moved), path[PATH_BYTES];
    unsigned n = folder_files("base", files), witnesses = 0;
    for (unsigned i = 0; i < n; i++) {
        folder_copy("base", "x");
        assert_int_equal(unlink(under("x", files[i].name, path)), 0);
        bool is_segment = strncmp(files[i].name, "log-", 4) == 0 || strncmp(files[i].name, "data-", 5) == 0;
        enum check_code code = judge(last, 2 * KEYS, true);
        /* The newest is only to witness that the one before it is there. */
        bool witness = files[i].bytes == LOG_BLOCK_BYTES;
        witnesses += witness;
        if ((code != CHECK_WELL) != (is_segment && !witness))
            fail_msg("without %s the code is %d:\n%s", files[i].name, code, out_text);
        if (code == CHECK_STARTS)
            assert_says("is missing, toc");
    }
    assert_int_equal(witnesses, 1);
    free(last);
}

static void test_missing(void **state)
{
    (void)state;
    remove_each(false);
    remove_each(true);
}

/* Both tocs damaged, and the log whole: it is all there. Without the log's beginning: what is left of it. */
static void test_no_toc_left(void **state)
{
    (void)state;
    char *last = make_history("base", 2, true, false), path[PATH_BYTES];
    folder_copy("base", "x");
    flip("x", "toc-0000000001.kv", 70, 1);
    flip("x", "toc-0000000002.kv", 40, 1);
    assert_int_equal(judge(last, 0, false), CHECK_STARTS);
    folder_copy("base", "x");
    flip("x", "toc-0000000001.kv", 70, 1);
    flip("x", "toc-0000000002.kv", 40, 1);
    assert_int_equal(unlink(under("x", "log-0000000001.kv", path)), 0);
    assert_int_equal(judge(last, 2 * KEYS, false), CHECK_DAMAGED);
    assert_says("the log's beginning is missing");
    free(last);
}

/* No toc at all, and a log whose beginning is gone because all in it was moved: what data segments and the
 * rest of the log have makes the whole, by version; nothing that was deleted comes back. */
static void test_no_toc_but_data_segments(void **state)
{
    (void)state;
    struct store *store;
    char path[PATH_BYTES];
    free(make_history("base", 2, true, true));
    status_t s = open_store("base", &store);
    assert_true(status_is_ok(&s));
    write_key(store, "k/30", slice_make("back", 4), 0); /* else its deletion is needed */
    remember(store);
    move_values(store, 3, 256); /* the log before this start is not needed any more */
    delete_tree(store, "m");
    write_key(store, "m/2", slice_make("again", 5), 0);
    write_key(store, "k/05", slice_make(NULL, 0), 0);
    write_key(store, "k/08", slice_make("newer", 5), LATER);
    remember(store);
    move_values(store, 4, 128); /* some once more */
    remember(store);
    expire_key(store, "k/06", LATER);
    remember(store);
    write_key(store, "k/09", slice_make("newest", 6), 0);
    remember(store);
    char *last = dump(store);
    store_close(store);
    for (unsigned round = 0; round < 3;
         round++) { /* 2: the file after the first is gone, older values are there */
        folder_copy("base", "x");
        assert_int_equal(unlink(under("x", "toc-0000000001.kv", path)), 0);
        assert_int_equal(unlink(under("x", "toc-0000000002.kv", path)), 0);
        if (round)
            assert_int_equal(unlink(under("x", round == 1 ? "log-0000000001.kv" : "log-0000000002.kv", path)),
                             0);
        enum check_code code = judge(last, 0, false);
        assert_int_equal(code, round ? CHECK_DAMAGED : CHECK_WELL);
        if (round)
            assert_says("values of data segments and");
        char *saved = dump_folder("new");
        assert_string_equal(saved, last);
        free(saved);
    }
    free(last);
}

/* A block of each toc is damaged: the other's is good there. One toc with a damaged block: the rest of it. */
static void test_toc_blocks(void **state)
{
    (void)state;
    char *last = make_history("base", 2, true, false), path[PATH_BYTES];
    folder_copy("base", "x");
    flip("x", "toc-0000000002.kv", 4096 + 500, 1);
    assert_int_equal(judge(last, 0, true), CHECK_STARTS);
    assert_says("toc-0000000002.kv is damaged at offset 4096");
    flip("x", "toc-0000000001.kv", 4096 + 500, 1);
    assert_int_equal(unlink(under("x", "log-0000000001.kv", path)), 0);
    assert_int_equal(judge(last, 2 * KEYS, true), CHECK_DAMAGED);
    free(last);
}

static void seal_header(char *header)
{
    uint64_t checksum = XXH3_64bits(header, 48);
    memcpy(header + 48, &checksum, 8);
}

static void test_versions(void **state)
{
    (void)state;
    size_t bytes;
    free(make_history("base", 1, false, false));
    folder_copy("base", "x");
    char *data = file_read("x", "log-0000000001.kv", &bytes);
    data[8] = 2;
    seal_header(data);
    file_write("x", "log-0000000001.kv", data, bytes);
    free(data);
    assert_int_equal(run_check("x", NULL), CHECK_UNREADABLE);
    assert_says("format version 2");
    assert_says("use a newer kvasir");

    folder_copy("base", "x");
    data = file_read("x", "toc-0000000001.kv", &bytes);
    data[16] = 9;
    uint64_t checksum = toc_page_checksum(data, 0, 0);
    memcpy(data + 8, &checksum, 8);
    file_write("x", "toc-0000000001.kv", data, bytes);
    free(data);
    assert_int_equal(run_check("x", NULL), CHECK_UNREADABLE);
    assert_says("format version 9");
}

/* A whole file of another folder in the place of one: generations differ. */
static void test_foreign_file(void **state)
{
    (void)state;
    size_t bytes;
    free(make_history("other", 0, false, false));
    char *last = make_history("base", 2, false, false);
    folder_copy("base", "x");
    char *data = file_read("other", "log-0000000001.kv", &bytes);
    file_write("x", "log-0000000001.kv", data, bytes);
    free(data);
    enum check_code code = run_check("x", NULL);
    assert_true(code == CHECK_DAMAGED || code == CHECK_STARTS);
    assert_says("it has another generation");
    free(last);
}

static void test_names(void **state)
{
    (void)state;
    char *last = make_history("base", 1, false, false);
    folder_copy("base", "x");
    file_write("x", "toc-0000000009.tmp", "half", 4);
    file_write("x", "notes.txt", "mine", 4);
    file_write("x", "toc-9999999999.kv.bak", "mine", 4);
    assert_int_equal(run_check("x", NULL), CHECK_WELL);
    assert_says("toc-0000000009.tmp is a checkpoint that was not finished, or");
    assert_says("notes.txt is no file of kvasir's");
    assert_says("toc-9999999999.kv.bak is no file of kvasir's");
    free(last);
}

static void test_no_folder(void **state)
{
    (void)state;
    char path[PATH_BYTES];
    free(make_history("base", 0, false, false));
    assert_int_equal(run_check("nowhere", NULL), CHECK_UNREADABLE);
    assert_int_equal(run_check("base/log-0000000001.kv", NULL), CHECK_UNREADABLE);
    folder_remove("empty");
    assert_int_equal(mkdir(under("empty", "", path), 0755), 0);
    assert_int_equal(run_check("empty", NULL), CHECK_UNREADABLE);
    /* Nothing is written to a folder in which something is, least of all to the one that is read. */
    folder_copy("base", "x");
    assert_int_equal(run_check("x", "x"), CHECK_UNREADABLE);
    assert_true(folder_same("x", "base"));
    assert_int_equal(run_check("x", "empty"), CHECK_WELL);
    assert_int_equal(run_check("x", "empty"), CHECK_UNREADABLE);
}

/* ---- reads that fail ---- */

static struct {
    uint64_t from, to;
    int fd;
    const char *name;
} bad;

static int bad_open(struct disk *disk, int folder, const char *name, bool write, bool direct)
{
    (void)disk;
    int fd = disk_real()->ops->open(disk_real(), folder, name, write, direct);
    if (strcmp(name, bad.name) == 0)
        bad.fd = fd;
    return fd;
}

static int64_t bad_read(struct disk *disk, int fd, void *buffer, size_t len, uint64_t offset)
{
    (void)disk;
    if (fd == bad.fd && offset < bad.to && offset + len > bad.from)
        return -EIO;
    return disk_real()->ops->read(disk_real(), fd, buffer, len, offset);
}

static void bad_close(struct disk *disk, int fd)
{
    (void)disk;
    if (fd == bad.fd)
        bad.fd = -1;
    disk_real()->ops->close(disk_real(), fd);
}

static enum check_code run_bad(const char *name, uint64_t from, uint64_t to, const char *new_folder)
{
    struct disk_ops ops = *disk_real()->ops;
    ops.open = bad_open;
    ops.read = bad_read;
    ops.close = bad_close;
    struct disk disk = {&ops};
    char path[PATH_BYTES], new_path[PATH_BYTES];
    bad.fd = -1;
    bad.name = name;
    bad.from = from;
    bad.to = to;
    FILE *out = fmemopen(out_text, OUT_BYTES, "w");
    assert_non_null(out);
    struct check_options options = {.disk = &disk,
                                    .path = under("x", "", path),
                                    .new_path = new_folder ? under(new_folder, "", new_path) : NULL,
                                    .out = out};
    enum check_code code = check_run(&options);
    fclose(out);
    return code;
}

static void test_read_errors(void **state)
{
    (void)state;
    char *last = make_history("base", 2, false, false);
    folder_copy("base", "x");
    assert_int_equal(run_bad("log-0000000001.kv", 8192, 8193, NULL), CHECK_UNREADABLE);
    assert_says("log-0000000001.kv at offset 8192: Input/output error");
    assert_int_equal(run_bad("toc-0000000002.kv", 5000, 5001, NULL), CHECK_UNREADABLE);
    assert_says("Input/output error");
    assert_int_equal(run_bad("log-0000000002.kv", 0, 1, NULL), CHECK_UNREADABLE);
    assert_says("cannot read");
    /* Only the block that cannot be read is lost. (The tocs and what they name are in other places.) */
    folder_remove("new");
    assert_int_equal(run_bad("log-0000000001.kv", 8192, 8193, "new"), CHECK_UNREADABLE);
    assert_says("/new is complete");
    char *saved = dump_folder("new");
    assert_non_null(saved);
    assert_int_equal(lines_missing(saved, ever, NULL), 0);
    assert_true(lines_missing(last, saved, NULL) <= 1);
    free(saved);
    free(last);
}

/* ---- beside a server that cleans ---- */

static struct {
    struct store *store;
    unsigned cleanings, done; /* still to come; so far */
    bool listed;              /* since the last cleaning */
    unsigned later_cleanings; /* still to come, when the log is read */
    void (*at_listing)(void); /* called behind the next listing, which does not have `hidden` */
    const char *hidden;
    const char *flickering; /* is in two listings of four */
    unsigned listings;
    unsigned empty_reads; /* of file's first block: still to come */
    int file;
} cleaner;

/* All log files but the newest go, and the tocs that named them. */
static void clean_all(struct store *store)
{
    static const char filler[BIG_BYTES];
    char path[PATH_BYTES];
    struct folder_file files[FILES_MAX];
    unsigned before = folder_files("base", files);
    uint64_t number = 10 + cleaner.done++;
    for (unsigned i = 0; i < 8; i++)
        write_key(store, "filler", slice_make(filler, sizeof filler), 0);
    move_values(store, number, 256);
    write_key(store, "k/01", slice_make("x", 1), 0);
    for (unsigned i = 0; i < 3; i++) {
        checkpoint(store);
        while (store_keep(store))
            flush_store(store);
    }
    unsigned gone = 0;
    for (unsigned i = 0; i < before; i++)
        gone +=
            access(under("base", files[i].name, path), F_OK) < 0 && strncmp(files[i].name, "log-", 4) == 0;
    assert_true(gone > 0);
}

struct listing {
    int (*each)(void *context, const char *name);
    void *context;
};

static int pass_on(void *context, const char *name)
{
    struct listing *l = context;
    bool flickers = cleaner.flickering && cleaner.listings % 4 < 2;
    bool hides = (cleaner.hidden && strcmp(name, cleaner.hidden) == 0) ||
                 (flickers && strcmp(name, cleaner.flickering) == 0);
    return hides ? 0 : l->each(l->context, name);
}

static int busy_list(struct disk *disk, int folder, int (*each)(void *context, const char *name),
                     void *context)
{
    (void)disk;
    struct listing l = {each, context};
    int r = disk_real()->ops->list(disk_real(), folder, pass_on, &l);
    cleaner.hidden = NULL;
    cleaner.listings++;
    cleaner.listed = true;
    if (cleaner.at_listing)
        cleaner.at_listing();
    cleaner.at_listing = NULL;
    return r;
}

/* Cleans when the folder has been listed and the first segment is looked at. */
static int busy_open(struct disk *disk, int folder, const char *name, bool write, bool direct)
{
    uint64_t number;
    (void)disk;
    if (cleaner.listed && cleaner.cleanings && direct && segment_parse_name(name, &number)) {
        cleaner.listed = false;
        cleaner.cleanings--;
        clean_all(cleaner.store);
    }
    int fd = disk_real()->ops->open(disk_real(), folder, name, write, direct);
    if (cleaner.empty_reads && cleaner.file < 0 && strcmp(name, "log-0000000001.kv") == 0)
        cleaner.file = fd;
    return fd;
}

static int64_t busy_read(struct disk *disk, int fd, void *buffer, size_t len, uint64_t offset)
{
    (void)disk;
    if (cleaner.later_cleanings && cleaner.listings >= 3 && offset == LOG_BLOCK_BYTES) {
        cleaner.later_cleanings--;
        clean_all(cleaner.store);
    }
    int64_t n = disk_real()->ops->read(disk_real(), fd, buffer, len, offset);
    if (cleaner.empty_reads && fd == cleaner.file && offset == 0) {
        cleaner.empty_reads--;
        memset(buffer, 0, len);
    }
    return n;
}

static enum check_code check_busy(unsigned cleanings)
{
    struct disk_ops ops = *disk_real()->ops;
    ops.list = busy_list;
    ops.open = busy_open;
    ops.read = busy_read;
    struct disk disk = {&ops};
    char path[PATH_BYTES];
    FILE *out = fmemopen(out_text, OUT_BYTES, "w");
    assert_non_null(out);
    struct check_options options = {.disk = &disk, .path = under("base", "", path), .out = out};
    cleaner.cleanings = cleanings;
    cleaner.listings = 0;
    enum check_code code = check_run(&options);
    fclose(out);
    assert_int_equal(cleaner.cleanings + cleaner.later_cleanings + cleaner.empty_reads, 0);
    assert_null(cleaner.at_listing);
    assert_null(cleaner.hidden);
    return code;
}

static void open_busy(void)
{
    free(make_history("base", 2, true, true));
    memset(&cleaner, 0, sizeof cleaner);
    status_t s = open_store("base", &cleaner.store);
    assert_true(status_is_ok(&s));
}

static void make_checkpoint(void)
{
    checkpoint(cleaner.store);
}

/* When the folder has been listed the server replaces an old toc; a data segment in the making has no header
 * yet. */
static void test_beside_a_checkpoint(void **state)
{
    static const char zeros[8192];
    (void)state;
    open_busy();
    checkpoint(cleaner.store);
    file_write("base", "data-0000000099.kv", zeros, sizeof zeros);
    cleaner.at_listing = make_checkpoint;
    assert_int_equal(check_busy(0), CHECK_WELL);
    assert_null(strstr(out_text, "damaged"));
    store_close(cleaner.store);
}

/* A listing need not have a file that was made meanwhile, but may have a later one, which needs it. */
static void test_beside_new_files(void **state)
{
    static const char *const names[] = {"data-0000000002.kv", "log-0000000001.kv", "toc-0000000002.kv"};
    (void)state;
    open_busy();
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        cleaner.hidden = names[i];
        assert_int_equal(check_busy(0), CHECK_WELL);
        assert_null(strstr(out_text, "damaged"));
    }
    store_close(cleaner.store);
}

/* The header of a new segment is written last. Records may follow between a look at the header and one at
 * them. */
static void test_beside_a_new_segment(void **state)
{
    (void)state;
    open_busy();
    cleaner.file = -1;
    cleaner.empty_reads = 2;
    assert_int_equal(check_busy(0), CHECK_WELL);
    assert_null(strstr(out_text, "damaged"));
    store_close(cleaner.store);
}

static void test_beside_cleaning(void **state)
{
    (void)state;
    char path[PATH_BYTES];
    open_busy();
    assert_int_equal(check_busy(0), CHECK_WELL);
    for (unsigned n = 1; n < 20; n += 6) {
        assert_int_equal(check_busy(n), CHECK_WELL);
        assert_null(strstr(out_text, "damaged"));
    }
    /* What has been opened stays as it was, and is not looked at twice. */
    for (unsigned n = 1; n <= 3; n++) {
        cleaner.later_cleanings = n;
        assert_int_equal(check_busy(0), CHECK_WELL);
        assert_null(strstr(out_text, "damaged"));
        assert_int_equal(cleaner.listings, 3);
    }
    cleaner.flickering = "toc-0000000099.kv";
    file_write("base", cleaner.flickering, "x", 1);
    assert_int_equal(check_busy(0), CHECK_UNREADABLE);
    assert_says("kvasir backup");
    assert_null(strstr(out_text, "damaged"));
    assert_int_equal(unlink(under("base", cleaner.flickering, path)), 0);
    cleaner.flickering = NULL;
    /* Damage is damage, also then. */
    struct folder_file files[FILES_MAX];
    unsigned n = folder_files("base", files);
    for (unsigned i = 0; i < n; i++)
        if (strncmp(files[i].name, "toc-", 4) == 0)
            flip("base", files[i].name, 4096 + 500, 1);
    assert_true(check_busy(0) != CHECK_WELL);
    assert_says("damaged");
    assert_null(strstr(out_text, "kvasir backup"));
    store_close(cleaner.store);
}

/* A write whose flush is given out but not performed. */
static struct log_flush begin_write(struct store *store, const char *key)
{
    struct store_worker *sw = store_worker_get(store, 0);
    struct store_entry entry;
    struct log_flush flush;
    store_turn_begin(sw);
    store_key_prepare(sw, &entry.key, slice_make(key, strlen(key)));
    assert_int_equal(store_write_begin(sw, &entry, 1, 0), STORE_OK);
    store_stage_set(sw, &entry, 0, slice_make("v", 1), 0);
    assert_int_equal(store_write_commit(sw), STORE_OK);
    store_turn_end(sw);
    assert_true(log_flush_take(store_log(store), 1000, true, &flush, NULL));
    return flush;
}

static void end_write(struct store *store, const struct log_flush *flush)
{
    log_flush_done(store_log(store), flush, by_hand_write(disk_real(), flush), 1000);
}

/* All that is written counts, although no later batch says yet that it is durable; but nothing behind a write
 * under way. */
static void test_beside_the_last_writes(void **state)
{
    struct store *store;
    (void)state;
    folder_remove("base");
    status_t s = open_store("base", &store);
    assert_true(status_is_ok(&s));
    assert_int_equal(run_check("base", NULL), CHECK_WELL);
    assert_says(" 0 valid records in 0 batches");
    write_key(store, "a", slice_make("v", 1), 0);
    assert_int_equal(run_check("base", NULL), CHECK_WELL);
    assert_says("a server has");
    assert_says(" 1 valid records in 1 batches");
    struct log_flush first = begin_write(store, "b"), second = begin_write(store, "c");
    end_write(store, &second);
    assert_int_equal(run_check("base", NULL), CHECK_WELL);
    assert_says(" 1 valid records in 1 batches");
    end_write(store, &first);
    assert_int_equal(run_check("base", NULL), CHECK_WELL);
    assert_says(" 3 valid records in 3 batches");
    store_close(store);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof root, "%s/kvasir-check-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_root(void **state)
{
    (void)state;
    static const char *const folders[] = {"base", "x", "new", "untouched", "other", "empty", "killed"};
    for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++)
        folder_remove(folders[i]);
    free(ever);
    return rmdir(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_well),
        cmocka_unit_test(test_bit_flips),
        cmocka_unit_test(test_more_flips),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_no_toc_left),
        cmocka_unit_test(test_no_toc_but_data_segments),
        cmocka_unit_test(test_toc_blocks),
        cmocka_unit_test(test_versions),
        cmocka_unit_test(test_foreign_file),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_no_folder),
        cmocka_unit_test(test_read_errors),
        cmocka_unit_test(test_beside_cleaning),
        cmocka_unit_test(test_beside_a_checkpoint),
        cmocka_unit_test(test_beside_new_files),
        cmocka_unit_test(test_beside_a_new_segment),
        cmocka_unit_test(test_beside_the_last_writes),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
