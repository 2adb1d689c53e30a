/* Recovery and reading.
 *
 * The happy path: segments in order of their numbers; in each, batches one behind the other; each names the
 * batch before it, so that the chain shows whether anything is missing. Where the chain ends is the end of
 * the log.
 *
 * Then the question is whether the end is a torn tail (a write that was under way at a crash and was never
 * acknowledged) or damage. Every batch says up to where the log was durable when it was written. If any valid
 * batch behind the end says that something beyond the end was durable, then bytes are gone that were
 * promised: the server refuses to start. Otherwise what lies behind the end was never acknowledged; it is cut
 * off, durably, before anything new is written.
 *
 * With a start LSN the chain begins with the first batch of the segment in which that LSN lies, whatever
 * batch it follows; only its records from there on are handed over. Segments below are not looked into. All
 * below the start was durable, so a chain that does not reach it is damaged. The segment must be there,
 * unless nothing had been logged at all when the start was taken (it is then the first LSN of a segment that
 * recovery may have removed unused). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/check.h"
#include "base/logger.h"
#include "log/internal.h"

enum { READ_BYTES = 4 << 20 };

struct reader {
    struct disk *disk;
    const char *path;
    int folder;
    uint64_t *numbers; /* of segments, ascending */
    size_t count, capacity;
    size_t first;       /* the first that is read; those before lie below start_lsn */
    uint64_t start_lsn; /* 0: the log's beginning */
    bool any_start;     /* whatever is there first is the beginning */
    bool in_the_middle; /* something was before what was read first */
    /* One segment's bytes, through a window. */
    struct segment segment;
    uint64_t file_bytes;
    char *window;
    size_t window_capacity, window_len;
    uint64_t window_offset;
    /* The chain. */
    uint64_t previous_lsn; /* start of the last valid batch; 0: none yet */
    uint64_t end_lsn;      /* behind it */
    size_t end_index;      /* which segment it is in */
    bool has_witness;      /* the last file is but a header: its number was never part of an LSN */
    uint64_t records;
    uint64_t bytes; /* of batches from the start on */
    uint64_t done_bytes, total_bytes;
    /* Sinks. */
    const struct log_config *config;
    bool (*each)(void *context, const struct record *record);
    void *context;
    uint64_t from;
    bool stopped;
};

static int collect_name(void *context, const char *name)
{
    struct reader *r = context;
    uint64_t number;
    if (!segment_parse_name(name, &number))
        return 0;
    if (r->count == r->capacity) {
        r->capacity = r->capacity ? r->capacity * 2 : 64;
        r->numbers = realloc(r->numbers, r->capacity * sizeof *r->numbers);
        CHECK(r->numbers != NULL);
    }
    r->numbers[r->count++] = number;
    return 0;
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static status_t reader_init(struct reader *r)
{
    int e = r->disk->ops->list(r->disk, r->folder, collect_name, r);
    if (e < 0)
        return status_errno(-e, "cannot list %s", r->path);
    if (r->count)
        qsort(r->numbers, r->count, sizeof *r->numbers, compare_numbers);
    while (r->first < r->count && r->numbers[r->first] < r->start_lsn >> LOG_SEGMENT_SHIFT)
        r->first++;
    r->end_index = r->first;
    r->window_capacity = r->config && r->config->replay_bytes ? r->config->replay_bytes : READ_BYTES;
    r->window = aligned_alloc(LOG_BLOCK_BYTES, r->window_capacity);
    CHECK(r->window != NULL);
    return status_ok();
}

static void reader_deinit(struct reader *r)
{
    free(r->numbers);
    free(r->window);
}

/* Makes [offset, offset + len) available; NULL when the file is shorter. offset is a multiple of the block
 * size. */
static status_t window_at(struct reader *r, uint64_t offset, size_t len, const char **data)
{
    *data = NULL;
    if (offset + len > r->file_bytes)
        return status_ok();
    if (offset < r->window_offset || offset + len > r->window_offset + r->window_len) {
        size_t want = round_up(len, LOG_BLOCK_BYTES);
        if (want > r->window_capacity) {
            free(r->window);
            r->window_capacity = want;
            if (r->config && r->config->replay_room)
                r->config->replay_room(r->config->context, want);
            r->window = aligned_alloc(LOG_BLOCK_BYTES, want);
            CHECK(r->window != NULL);
        }
        r->window_len = 0;
        int64_t n = r->disk->ops->read(r->disk, r->segment.fd, r->window, r->window_capacity, offset);
        if (n < 0)
            return status_errno((int)-n, "cannot read log segment %" PRIu64 " in %s at offset %" PRIu64,
                                r->segment.number, r->path, offset);
        r->window_offset = offset;
        r->window_len = (size_t)n;
        if ((size_t)n < len)
            return status_ok();
    }
    *data = r->window + (offset - r->window_offset);
    return status_ok();
}

/* A file without a valid header: was it never used (a crash while it was made: nothing but zeros in it)? The
 * header is written last and synced before the first batch, so anything else is damage. */
static status_t check_unused(struct reader *r, const char *name)
{
    bool used = r->file_bytes > 0 && r->file_bytes < LOG_BLOCK_BYTES;
    for (uint64_t offset = LOG_BLOCK_BYTES; offset < r->file_bytes && !used; offset += LOG_BLOCK_BYTES) {
        const char *data;
        uint64_t rest = r->file_bytes - offset;
        TRY(window_at(r, offset, rest < LOG_BLOCK_BYTES ? rest : LOG_BLOCK_BYTES, &data));
        for (size_t i = 0; data && i < LOG_BLOCK_BYTES && i < rest && !used; i++)
            used = data[i] != 0;
    }
    if (!used)
        return status_ok();
    return status_error(
        STATUS_CORRUPT,
        "the log is damaged at offset 0 of %s/%s: its header is not valid, but it was in use; "
        "restore the file from a copy (`kvasir log` shows what is readable)",
        r->path, name);
}

static void segment_close(struct reader *r)
{
    if (r->segment.file == NULL)
        r->disk->ops->close(r->disk, r->segment.fd);
}

/* Opens a segment. *empty: it was never used (its creation was cut short by a crash). */
static status_t segment_open(struct reader *r, uint64_t number, bool *empty)
{
    char name[SEGMENT_NAME_BYTES];
    segment_name(name, number);
    *empty = false;
    struct segments *table = r->config ? r->config->segments : NULL; /* it keeps what recovery opens */
    struct segment_file *file = table ? segments_find(table, segment_lsn(number, 0)) : NULL;
    int fd = file ? file->fd : r->disk->ops->open(r->disk, r->folder, name, table != NULL, true);
    if (fd < 0)
        return status_errno(-fd, "cannot open %s/%s", r->path, name);
    status_t s = segment_read_header(r->disk, fd, r->path, false, number, &r->segment);
    r->segment.fd = fd;
    r->segment.file = file;
    r->window_len = 0;
    r->window_offset = 0;
    int64_t size = r->disk->ops->size(r->disk, fd);
    r->file_bytes = size > 0 ? (uint64_t)size : 0;
    if (s.code == STATUS_CORRUPT) {
        *empty = true;
        s = check_unused(r, name);
    }
    if (!status_is_ok(&s))
        segment_close(r);
    else if (table && !file && !*empty)
        r->segment.file = segments_add(table, false, number, r->segment.generation, r->file_bytes, fd);
    return s;
}

/* Checks the records of a batch; counts them. */
static bool batch_is_valid(const struct reader *r, const struct batch_header *h, const char *data)
{
    uint64_t at = BATCH_HEADER_BYTES;
    uint32_t count = 0, txn_rest = 0;
    struct record record;
    while (at < h->length) {
        int64_t n = record_decode(data + at, h->length - at, h->lsn + at, r->segment.generation, &record);
        if (n <= 0 || record.type == RECORD_MOVED)
            return false;
        at += (uint64_t)n;
        if (record.type == RECORD_TXN)
            txn_rest = record.txn_count;
        else
            count++;
        if (txn_rest && record.type != RECORD_TXN)
            txn_rest--;
    }
    return count == h->record_count && txn_rest == 0;
}

/* All records of a valid batch, to whom they are for. */
static status_t deliver(struct reader *r, const struct batch_header *h, const char *data)
{
    uint64_t at = BATCH_HEADER_BYTES;
    struct record records[LOG_REPLAY_RECORDS_MAX];
    unsigned n = 0;
    while (at < h->length && !r->stopped) {
        struct record *record = &records[n];
        at += (uint64_t)record_decode(data + at, h->length - at, h->lsn + at, r->segment.generation, record);
        if (record->type == RECORD_TXN || record->lsn < r->start_lsn)
            continue;
        r->records++;
        if (r->each && record->lsn >= r->from)
            r->stopped = !r->each(r->context, record);
        if (r->config && r->config->replay && ++n == LOG_REPLAY_RECORDS_MAX) {
            TRY(r->config->replay(r->config->context, records, n));
            n = 0;
        }
    }
    return n ? r->config->replay(r->config->context, records, n) : status_ok();
}

/* Reads the batch at an offset: *valid with its header, all of it in *data. */
static status_t read_batch(struct reader *r, uint64_t offset, bool *valid, struct batch_header *h,
                           const char **data)
{
    *valid = false;
    TRY(window_at(r, offset, BATCH_HEADER_BYTES, data));
    if (*data == NULL ||
        !batch_header_read(*data, segment_lsn(r->segment.number, offset), r->segment.generation, h))
        return status_ok();
    if (h->length > r->file_bytes - offset)
        return status_ok();
    TRY(window_at(r, offset, h->length, data));
    *valid = *data != NULL && batch_is_valid(r, h, *data);
    return status_ok();
}

/* A segment file has its full size from the beginning, and recovery cuts it exactly behind its last batch. */
static status_t check_size(const struct reader *r, uint64_t end_offset)
{
    if (r->file_bytes >= r->segment.bytes || (r->file_bytes == end_offset && end_offset > LOG_BLOCK_BYTES))
        return status_ok();
    char name[SEGMENT_NAME_BYTES];
    segment_name(name, r->segment.number);
    return status_error(STATUS_CORRUPT,
                        "%s/%s was truncated at offset %" PRIu64 " (it had %" PRIu64
                        " bytes); restore the file from a copy (`kvasir log` shows what is readable)",
                        r->path, name, r->file_bytes, r->segment.bytes);
}

/* The open segment's batch follows one that the chain has not. */
static status_t missing_before(const struct reader *r, uint64_t previous_lsn)
{
    char name[SEGMENT_NAME_BYTES], missing[SEGMENT_NAME_BYTES];
    segment_name(name, r->segment.number);
    segment_name(missing, previous_lsn >> LOG_SEGMENT_SHIFT);
    return status_error(STATUS_CORRUPT,
                        "%s/%s goes on behind LSN %" PRIu64 " in %s, which is missing or damaged; restore it "
                        "from a copy (`kvasir log` shows what is readable)",
                        r->path, name, previous_lsn, missing);
}

/* The chain ends too early. */
static status_t damaged(const struct reader *r, uint64_t durable_lsn)
{
    char name[SEGMENT_NAME_BYTES];
    uint64_t number = r->first < r->count ? r->numbers[r->first] : durable_lsn >> LOG_SEGMENT_SHIFT;
    uint64_t place = r->end_lsn ? r->end_lsn : segment_lsn(number, LOG_BLOCK_BYTES);
    segment_name(name, place >> LOG_SEGMENT_SHIFT);
    return status_error(
        STATUS_CORRUPT,
        "the log is damaged at offset %" PRIu64 " of %s/%s or a file behind it is missing: all "
        "up to LSN %" PRIu64 " was durable; restore it from a copy (`kvasir log` shows what is "
        "readable)",
        lsn_offset(place), r->path, name, durable_lsn);
}

/* Is this valid batch the next of the chain? */
static bool is_next(const struct reader *r, const struct batch_header *h)
{
    if (r->previous_lsn == 0 && r->start_lsn)
        return h->previous_lsn < h->lsn && h->previous_lsn < r->start_lsn;
    if (r->previous_lsn == 0 && r->any_start && r->segment.number == r->numbers[r->first])
        return h->previous_lsn < h->lsn;
    return h->previous_lsn == r->previous_lsn;
}

/* So much of the open file is read too. */
static void tell_progress(const struct reader *r, uint64_t bytes)
{
    if (r->config && r->config->replay_progress)
        r->config->replay_progress(r->config->context, r->done_bytes + bytes, r->total_bytes);
}

/* Follows the chain through the open segment, from an offset on. */
static status_t follow(struct reader *r, size_t index, uint64_t offset)
{
    struct batch_header h;
    const char *data;
    bool valid = false;
    while (!r->stopped) {
        TRY(read_batch(r, offset, &valid, &h, &data));
        if (!valid || !is_next(r, &h))
            break;
        r->in_the_middle |= r->previous_lsn == 0 && h.previous_lsn != 0;
        TRY(deliver(r, &h, data));
        r->previous_lsn = h.lsn;
        offset += round_up(h.length, LOG_BLOCK_BYTES);
        r->end_lsn = segment_lsn(r->segment.number, offset);
        r->end_index = index;
        if (r->end_lsn > r->start_lsn)
            r->bytes += round_up(h.length, LOG_BLOCK_BYTES);
        tell_progress(r, offset);
    }
    r->done_bytes += r->file_bytes;
    tell_progress(r, 0);
    if (r->stopped)
        return status_ok();
    /* A batch that follows another than the last: it may have overtaken one that was lost in a crash, but not
     * in the log's first file, nor in one that recovery has cut, for then it was there once. */
    bool is_stranger = valid && h.previous_lsn > r->previous_lsn;
    if (is_stranger && (r->file_bytes < r->segment.bytes || (r->previous_lsn == 0 && index == r->first)))
        return missing_before(r, h.previous_lsn);
    return check_size(r, offset);
}

/* Follows the chain from where it has ended so far. */
static status_t follow_all(struct reader *r)
{
    uint64_t start_number = r->start_lsn >> LOG_SEGMENT_SHIFT;
    bool has_start = lsn_offset(r->start_lsn) > LOG_BLOCK_BYTES; /* a batch before it, in its segment */
    if (has_start && (r->first == r->count || r->numbers[r->first] != start_number))
        return status_error(STATUS_CORRUPT,
                            "the log segment %s/log-%010" PRIu64 ".kv is missing, in which the checkpoint's "
                            "start (LSN %" PRIu64 ") lies; restore the file from a copy",
                            r->path, start_number, r->start_lsn);
    for (size_t i = r->end_index; i < r->count && !r->stopped; i++) {
        bool empty;
        TRY(segment_open(r, r->numbers[i], &empty));
        bool again = r->end_lsn >> LOG_SEGMENT_SHIFT == r->numbers[i];
        status_t s = empty ? status_ok() : follow(r, i, again ? lsn_offset(r->end_lsn) : LOG_BLOCK_BYTES);
        segment_close(r);
        TRY(s);
        if (has_start && r->numbers[i] == start_number && r->end_lsn < r->start_lsn)
            return damaged(r, r->start_lsn);
    }
    return status_ok();
}

/* Looks in the open segment, from an offset on, for a batch that says something beyond the end was durable.
 */
static status_t find_witness(struct reader *r, uint64_t offset, uint64_t *witness_lsn, uint64_t *durable_lsn)
{
    struct batch_header h;
    const char *data;
    for (; offset < r->file_bytes; offset += LOG_BLOCK_BYTES) {
        TRY(window_at(r, offset, BATCH_HEADER_BYTES, &data));
        if (data == NULL)
            break;
        if (batch_header_read(data, segment_lsn(r->segment.number, offset), r->segment.generation, &h) &&
            h.durable_lsn > r->end_lsn) {
            *witness_lsn = h.lsn;
            *durable_lsn = h.durable_lsn;
            break;
        }
    }
    return status_ok();
}

/* A segment lies behind the chain's end. The one that was written to when it was made must be there, with its
 * header: it may hold durable batches, and a start that finds it unused removes this one first. */
static status_t check_after(struct reader *r, uint64_t number, uint64_t after)
{
    bool empty = false;
    if (after <= r->end_lsn >> LOG_SEGMENT_SHIFT || after < r->start_lsn >> LOG_SEGMENT_SHIFT)
        return status_ok();
    if (bsearch(&after, r->numbers, r->count, sizeof after, compare_numbers)) {
        TRY(segment_open(r, after, &empty));
        segment_close(r);
        if (!empty)
            return status_ok();
    }
    char name[SEGMENT_NAME_BYTES], missing[SEGMENT_NAME_BYTES];
    segment_name(name, number);
    segment_name(missing, after);
    return status_error(STATUS_CORRUPT,
                        "%s/%s is %s: the log was written to it when %s was made; restore it from a copy "
                        "(`kvasir check --repair` saves what else there is)",
                        r->path, missing, empty ? "empty" : "missing", name);
}

/* Is what lies behind the chain's end a torn tail? STATUS_CORRUPT with the place if it is damage. */
static status_t judge(struct reader *r)
{
    uint64_t witness = 0, durable = 0;
    for (size_t i = r->end_index; i < r->count && witness == 0; i++) {
        bool empty;
        TRY(segment_open(r, r->numbers[i], &empty));
        uint64_t offset = r->previous_lsn && i == r->end_index ? lsn_offset(r->end_lsn) : LOG_BLOCK_BYTES;
        status_t s = empty ? status_ok() : find_witness(r, offset, &witness, &durable);
        uint64_t after = empty ? 0 : r->segment.after;
        r->has_witness = !empty && r->segment.bytes == LOG_BLOCK_BYTES;
        segment_close(r);
        TRY(s);
        if (after && r->config && witness == 0)
            TRY(check_after(r, r->numbers[i], after));
    }
    if (witness)
        return damaged(r, durable);
    /* A checkpoint is a witness too, unless nothing was in that segment yet. */
    uint64_t known = r->config ? r->config->known_lsn : 0;
    return lsn_offset(known) > LOG_BLOCK_BYTES && r->end_lsn < known ? damaged(r, known) : status_ok();
}

/* What was read is made durable (the writes of a killed process may have got only as far as the disk's cache,
 * and what was replayed is from now on shown to clients); then what lies behind the end is cut off. */
static int settle_segment(struct reader *r, size_t i, struct segment_file *file, struct replay_end *end)
{
    struct disk *disk = r->disk;
    uint64_t size = atomic_load_explicit(&file->bytes, memory_order_relaxed);
    uint64_t keep = i == r->end_index ? lsn_offset(r->end_lsn) : size;
    int e = i + LOG_FLUSHES_MAX >= r->end_index ? disk->ops->sync(disk, file->fd) : 0;
    if (e >= 0 && size > keep) {
        end->cut_bytes = size - keep;
        e = disk->ops->truncate(disk, file->fd, keep);
        if (e >= 0)
            e = disk->ops->sync(disk, file->fd);
        atomic_store_explicit(&file->bytes, keep, memory_order_relaxed);
    }
    segments_seal(file);
    return e;
}

/* The chain's files are made durable, the first one first, for a file is only cut once all before it is. */
static status_t settle(struct reader *r, struct replay_end *end)
{
    for (size_t i = r->first; r->previous_lsn && i < r->count && i <= r->end_index; i++) {
        struct segment_file *file = segments_find(r->config->segments, segment_lsn(r->numbers[i], 0));
        int e = file ? settle_segment(r, i, file, end) : 0;
        if (e < 0)
            return status_errno(-e, "cannot cut the log's tail in %s/log-%010" PRIu64 ".kv", r->path,
                                r->numbers[i]);
    }
    return status_ok();
}

/* Cuts what lies behind the end: the last segment is truncated, later and empty ones are removed, the last
 * one first, each durably: none may be gone while one that names it is there (check_after). */
static status_t cut(struct reader *r, struct replay_end *end)
{
    struct disk *disk = r->disk;
    struct segments *table = r->config->segments;
    char name[SEGMENT_NAME_BYTES];
    TRY(settle(r, end));
    for (size_t i = r->count; i-- > r->first;) {
        segment_name(name, r->numbers[i]);
        struct segment_file *file = segments_find(table, segment_lsn(r->numbers[i], 0));
        if (file && r->previous_lsn && i <= r->end_index)
            continue;
        int e = disk->ops->remove(disk, r->folder, name);
        if (e >= 0)
            e = disk->ops->folder_sync(disk, r->folder);
        if (e < 0)
            return status_errno(-e, "cannot remove the unused log segment %s/%s", r->path, name);
        if (file)
            segments_unlist(table, file, 0);
    }
    (void)segments_reap(table);
    int e = disk->ops->folder_sync(disk, r->folder);
    return e < 0 ? status_errno(-e, "cannot sync the folder %s", r->path) : status_ok();
}

static uint64_t total_size(struct reader *r)
{
    uint64_t total = 0;
    for (size_t i = r->first; i < r->count; i++) {
        char name[SEGMENT_NAME_BYTES];
        segment_name(name, r->numbers[i]);
        int fd = r->disk->ops->open(r->disk, r->folder, name, false, false);
        if (fd < 0)
            continue;
        int64_t size = r->disk->ops->size(r->disk, fd);
        total += size > 0 ? (uint64_t)size : 0;
        r->disk->ops->close(r->disk, fd);
    }
    return total;
}

status_t log_list_segment(struct disk *disk, int folder, const char *path, struct segments *segments,
                          uint64_t number, struct segment_file **out)
{
    return segment_list(disk, folder, path, segments, false, number, out);
}

/* Segments below the start: values lie in them, but nothing to replay. One that cannot be listed is missed by
 * whoever knows what should be in it. */
static status_t list_below(struct reader *r)
{
    for (size_t i = 0; i < r->first; i++) {
        if (segments_find(r->config->segments, segment_lsn(r->numbers[i], 0)))
            continue;
        status_t s = log_list_segment(r->disk, r->folder, r->path, r->config->segments, r->numbers[i], NULL);
        if (s.code == STATUS_CORRUPT)
            LOG_WARNING("%s; nothing is read from this file", s.text);
        else
            TRY(s);
    }
    return status_ok();
}

status_t log_replay(const struct log_config *config, int folder, struct replay_end *end)
{
    struct reader r = {.disk = config->disk,
                       .path = config->path,
                       .folder = folder,
                       .config = config,
                       .start_lsn = config->start_lsn};
    *end = (struct replay_end){0};
    status_t s = reader_init(&r);
    r.total_bytes = total_size(&r);
    if (status_is_ok(&s))
        s = list_below(&r);
    if (status_is_ok(&s))
        s = follow_all(&r);
    if (status_is_ok(&s))
        s = judge(&r);
    if (status_is_ok(&s))
        s = cut(&r, end);
    end->lsn = r.end_lsn;
    end->previous_lsn = r.previous_lsn;
    end->last_number = r.count ? r.numbers[r.count - 1] - r.has_witness : 0;
    if (end->last_number + 1 < r.start_lsn >> LOG_SEGMENT_SHIFT)
        end->last_number = (r.start_lsn >> LOG_SEGMENT_SHIFT) - 1;
    end->records = r.records;
    end->bytes = r.bytes;
    reader_deinit(&r);
    return s;
}

/* A running server removes segments that it needs no more, or uses their files again. */
static bool some_have_gone(const struct reader *r)
{
    bool gone = false;
    for (size_t i = r->end_index; i < r->count && !gone; i++) {
        char name[SEGMENT_NAME_BYTES];
        segment_name(name, r->numbers[i]);
        int fd = r->disk->ops->open(r->disk, r->folder, name, false, false);
        gone = fd == -ENOENT;
        if (fd >= 0)
            r->disk->ops->close(r->disk, fd);
    }
    return gone;
}

status_t log_read(struct disk *disk, const char *path, uint64_t from,
                  bool (*each)(void *context, const struct record *record), void *context, char note[256])
{
    struct reader r = {
        .disk = disk, .path = path, .each = each, .context = context, .from = from, .any_start = true};
    r.folder = disk->ops->folder_open(disk, path, false);
    if (r.folder < 0)
        return status_errno(-r.folder, "cannot open the folder %s", path);
    status_t s = reader_init(&r);
    if (status_is_ok(&s) && r.count == 0)
        s = status_error(STATUS_INVALID, "%s has no log: no file is named like log-0000000001.kv", path);
    /* A running server goes on writing: what looks like damage may be a batch that was on its way when it was
     * read, and is there now. */
    for (uint64_t seen = UINT64_MAX; status_is_ok(&s) && !r.stopped && seen != r.end_lsn;) {
        seen = r.end_lsn;
        s = follow_all(&r);
        if (status_is_ok(&s) && !r.stopped)
            s = judge(&r);
        if (s.code == STATUS_CORRUPT) {
            r.window_len = 0;
            status_t again = follow_all(&r);
            if (status_is_ok(&again) && r.end_lsn != seen)
                s = status_ok();
        }
    }
    if (!status_is_ok(&s) && some_have_gone(&r))
        s = status_error(STATUS_BUSY,
                         "the server has removed segments of %s while they were read: read again, "
                         "or a copy that `kvasir backup` makes",
                         path);
    if (status_is_ok(&s))
        snprintf(note, 256, "%" PRIu64 " records, the log ends at LSN %" PRIu64 "%s", r.records, r.end_lsn,
                 r.in_the_middle ? "; its oldest segments are not there any more" : "");
    else
        snprintf(note, 256, "%s", s.text);
    disk->ops->close(disk, r.folder);
    reader_deinit(&r);
    return s;
}
