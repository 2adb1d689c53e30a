/* Tests of one thread do a part of their many like cases under ThreadSanitizer, which is some twenty times
 * slower and has little to find there: every PART-th, or so many times fewer. */
#ifndef KVASIR_TESTS_PART_H
#define KVASIR_TESTS_PART_H

#ifdef __SANITIZE_THREAD__
enum { PART = 10 };
#else
enum { PART = 1 };
#endif

#endif
