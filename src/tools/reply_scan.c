#include "tools/reply_scan.h"

#include "base/parse.h"

enum {
    LINE_BYTES_MAX = 1 << 16,
    BULK_BYTES_MAX = 1 << 30,
};
static const int64_t COUNT_MAX = 1ll << 40;

/* The line behind the type byte: its text, and the offset behind its CRLF. As reply_item_read. */
static int64_t read_line(const char *data, size_t len, struct slice *text)
{
    const char *end = memchr(data, '\n', len < LINE_BYTES_MAX ? len : LINE_BYTES_MAX);
    if (end == NULL)
        return len < LINE_BYTES_MAX ? 0 : -1;
    if (end - data < 2 || end[-1] != '\r')
        return -1;
    *text = slice_make(data + 1, (size_t)(end - data) - 2);
    return end - data + 1;
}

static int64_t read_bulk(const char *data, size_t len, int64_t head, struct reply_item *item)
{
    if (item->number > BULK_BYTES_MAX)
        return -1;
    size_t body = (size_t)item->number;
    if (len < (size_t)head + body + 2)
        return 0;
    if (data[(size_t)head + body] != '\r' || data[(size_t)head + body + 1] != '\n')
        return -1;
    item->text = slice_make(data + head, body);
    return head + item->number + 2;
}

int64_t reply_item_read(const char *data, size_t len, struct reply_item *item)
{
    if (len == 0)
        return 0;
    *item = (struct reply_item){.type = data[0]};
    if (strchr("+-:$*_#,(!=%~>", data[0]) == NULL || data[0] == '\0')
        return -1;
    int64_t head = read_line(data, len, &item->text);
    if (head <= 0)
        return head;
    switch (item->type) {
    case ':':
        return parse_i64(item->text, &item->number) ? head : -1;
    case '_':
        item->nil = true;
        return head;
    case '$':
    case '!':
    case '=':
    case '*':
    case '%':
    case '~':
    case '>':
        break;
    default:
        return head;
    }
    if (!parse_i64(item->text, &item->number) || item->number < -1 || item->number > COUNT_MAX)
        return -1;
    if (item->number == -1) {
        item->nil = true;
        item->number = 0;
        return head;
    }
    if (item->type == '$' || item->type == '!' || item->type == '=')
        return read_bulk(data, len, head, item);
    if (item->type == '%')
        item->number *= 2;
    return head;
}

int64_t reply_scan_continue(struct reply_scan *scan, const char *data, size_t len)
{
    struct reply_item item;
    if (scan->done == 0)
        scan->pending = 1;
    while (scan->pending > 0) {
        int64_t n = reply_item_read(data + scan->done, len - scan->done, &item);
        if (n <= 0)
            return n;
        scan->done += (size_t)n;
        scan->items++;
        scan->pending--;
        bool aggregate = item.type == '*' || item.type == '%' || item.type == '~' || item.type == '>';
        if (aggregate && __builtin_add_overflow(scan->pending, (uint64_t)item.number, &scan->pending))
            return -1;
    }
    return (int64_t)scan->done;
}
