/* Tests of many like cases do a part of them under AddressSanitizer, which is some eight times slower: every
 * PART-th, or so many times fewer. */
#ifndef KVASIR_TESTS_PART_H
#define KVASIR_TESTS_PART_H

#ifdef __SANITIZE_ADDRESS__
enum { PART = 3 };
#else
enum { PART = 1 };
#endif

#endif
