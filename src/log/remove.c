/* Removing segment files that nothing needs any more. */
#include "log/internal.h"
#include "log/spare.h"

status_t log_remove_segment(struct log *log, struct segment_file *file, bool keep)
{
    const struct segment_folder folder = log_segment_folder(log);
    return spare_retire(&folder, file, keep);
}
