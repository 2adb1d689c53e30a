#include "log/segment_scan.h"

#include <errno.h>
#include <stdlib.h>

#include "base/check.h"
#include "log/segment.h"

void segment_scan_begin(struct segment_scan *scan, struct disk *disk, const struct segment_file *file)
{
    struct segment_file *f = (struct segment_file *)(uintptr_t)file;
    *scan = (struct segment_scan){.disk = disk, .file = file, .offset = LOG_BLOCK_BYTES};
    scan->bytes = atomic_load_explicit(&f->bytes, memory_order_relaxed);
    scan->batch_end = scan->offset;
}

void segment_scan_end(struct segment_scan *scan)
{
    free(scan->window);
    scan->window = NULL;
}

void segment_scan_forget(struct segment_scan *scan)
{
    segment_scan_end(scan);
    scan->window_len = scan->window_capacity = 0;
}

/* The next len bytes, which the file has; NULL: they must be read first. */
static const char *window_at(struct segment_scan *scan, size_t len)
{
    if (scan->offset >= scan->window_offset && scan->offset + len <= scan->window_offset + scan->window_len)
        return scan->window + (scan->offset - scan->window_offset);
    scan->wanted = len;
    return NULL;
}

status_t segment_scan_read(struct segment_scan *scan, size_t piece_bytes)
{
    uint64_t start = scan->offset & ~(uint64_t)(LOG_BLOCK_BYTES - 1);
    size_t need = (size_t)(scan->offset - start) + scan->wanted;
    size_t len = need < piece_bytes ? piece_bytes : round_up(need, LOG_BLOCK_BYTES);
    if (len > scan->window_capacity) {
        free(scan->window);
        scan->window = aligned_alloc(LOG_BLOCK_BYTES, len);
        CHECK(scan->window != NULL);
        scan->window_capacity = len;
    }
    if (len > scan->bytes - start)
        len = round_up(scan->bytes - start, LOG_BLOCK_BYTES);
    scan->window_len = 0;
    int64_t n = scan->disk->ops->read(scan->disk, scan->file->fd, scan->window, len, start);
    if (n < (int64_t)need) {
        char name[SEGMENT_NAME_BYTES];
        segment_file_name(name, scan->file->data, scan->file->number);
        return status_errno(n < 0 ? (int)-n : EIO, "cannot read %s at offset %llu", name,
                            (unsigned long long)start);
    }
    scan->window_offset = start;
    scan->window_len = (size_t)n;
    return status_ok();
}

static uint64_t address_here(const struct segment_scan *scan)
{
    return segment_lsn(scan->file->number, scan->offset) | (scan->file->data ? SEGMENT_DATA_ADDRESS : 0);
}

/* Enters the next batch of a log segment. False: it must be read first, or the end has come. */
static bool enter_batch(struct segment_scan *scan)
{
    struct batch_header h;
    scan->offset = round_up(scan->offset, LOG_BLOCK_BYTES);
    while (scan->offset + BATCH_HEADER_BYTES <= scan->bytes) {
        const char *data = window_at(scan, BATCH_HEADER_BYTES);
        if (data == NULL)
            return false;
        if (batch_header_read(data, address_here(scan), scan->file->generation, &h) &&
            h.length <= scan->bytes - scan->offset) {
            scan->batch_end = scan->offset + h.length;
            scan->offset += BATCH_HEADER_BYTES;
            return true;
        }
        scan->offset += LOG_BLOCK_BYTES; /* the unused end, mostly: batches lie close together */
    }
    scan->offset = scan->bytes;
    return false;
}

/* What is here does not check: on to where something else may. */
static void pass_over(struct segment_scan *scan, uint64_t end)
{
    scan->damaged = true;
    scan->offset = end;
}

enum segment_scan_result segment_scan_next(struct segment_scan *scan, struct record *record)
{
    while (scan->offset < scan->bytes) {
        if (!scan->file->data && scan->offset >= scan->batch_end && !enter_batch(scan))
            return scan->offset < scan->bytes ? SEGMENT_SCAN_READ : SEGMENT_SCAN_END;
        uint64_t end = scan->file->data ? scan->bytes : scan->batch_end;
        if (scan->offset == end)
            continue;
        if (end - scan->offset < RECORD_HEADER_BYTES) { /* in a data segment that is padding */
            scan->damaged |= !scan->file->data;
            scan->offset = end;
            continue;
        }
        const char *data = window_at(scan, RECORD_HEADER_BYTES);
        if (data == NULL)
            return SEGMENT_SCAN_READ;
        int64_t total = record_peek(data);
        if (total == 0 && scan->file->data) { /* padding behind the last */
            scan->offset = end;
            continue;
        }
        if (total <= 0 || (uint64_t)total > end - scan->offset) {
            pass_over(scan, end);
            continue;
        }
        data = window_at(scan, (size_t)total);
        if (data == NULL)
            return SEGMENT_SCAN_READ;
        if (record_decode(data, (size_t)total, address_here(scan), scan->file->generation, record) != total) {
            pass_over(scan, end);
            continue;
        }
        scan->offset += (uint64_t)total;
        if (record->type == RECORD_SET || record->type == RECORD_SET_EXPIRE || record->type == RECORD_MOVED)
            return SEGMENT_SCAN_RECORD;
    }
    return SEGMENT_SCAN_END;
}
