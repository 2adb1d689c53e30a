/* progress: the bar of long loads.
 *
 * Thread safety: none needed; one thread draws. */
#ifndef KVASIR_TOOLS_PROGRESS_H
#define KVASIR_TOOLS_PROGRESS_H

#include <stdint.h>
#include <stdio.h>

/* "[####....]  50%  N keys  R keys/s  M MB/s  S s left", without a line's end. share: 0 to 1, of the whole
 * work, reached in `seconds`. */
void progress_bar(FILE *out, double share, uint64_t keys, double keys_per_s, double mb_per_s, double seconds);

#endif
