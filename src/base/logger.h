/* logger: one line to stderr per event: time, level, message. Any thread; a line is one write. */
#ifndef KVASIR_BASE_LOGGER_H
#define KVASIR_BASE_LOGGER_H

enum logger_level { LOGGER_INFO, LOGGER_WARNING, LOGGER_ERROR };

void logger_write(enum logger_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Lines below this level are dropped from now on. */
void logger_set_level(enum logger_level least);

#define LOG_INFO(...)    logger_write(LOGGER_INFO, __VA_ARGS__)
#define LOG_WARNING(...) logger_write(LOGGER_WARNING, __VA_ARGS__)
#define LOG_ERROR(...)   logger_write(LOGGER_ERROR, __VA_ARGS__)

#endif
