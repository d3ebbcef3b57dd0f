/* What the beat asks of the system: two clocks, a bell, and what a thread has waited for a core.
 *
 * Linux only; elsewhere there is no bell, and nobody watches.
 */
#ifndef OFFHOOK_BEAT_H
#define OFFHOOK_BEAT_H

#include <stdint.h>

#ifdef __linux__

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define BEAT_AVAILABLE 1

static int64_t ns_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t now_ns(void) { return ns_of(CLOCK_MONOTONIC); }

/* What this thread has run. A system call, unlike the one above. */
static int64_t ran_ns(void) { return ns_of(CLOCK_THREAD_CPUTIME_ID); }

/* What says how long this thread has waited for a core; -1 where nothing does. */
static int open_waits(void) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%ld/schedstat", (long)syscall(SYS_gettid));
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* "ran waited slices", in nanoseconds; a wait that goes on is not in it yet. */
static int64_t waited_ns(int number) {
    char text[96];
    char *waited;
    ssize_t size = number < 0 ? -1 : pread(number, text, sizeof text - 1, 0);
    if (size <= 0)
        return 0;
    text[size] = 0;
    (void)strtoll(text, &waited, 10);
    return strtoll(waited, NULL, 10);
}

static int new_bell(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

static void ring(int bell) {
    uint64_t one = 1;
    ssize_t written = write(bell, &one, sizeof one);
    (void)written; /* full: it has been rung before */
}

/* Wait for the bell, and no longer than this. */
static void wait_rung(int bell, int64_t timeout_ns) {
    struct timespec left = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    struct pollfd asked = {bell, POLLIN, 0};
    uint64_t times;
    if (ppoll(&asked, 1, &left, NULL) > 0) {
        ssize_t size = read(bell, &times, sizeof times);
        (void)size;
    }
}

static void close_number(int number) {
    if (number >= 0)
        close(number);
}

static int64_t loaded(int64_t *from) { return __atomic_load_n(from, __ATOMIC_SEQ_CST); }

static void store(int64_t *to, int64_t value) { __atomic_store_n(to, value, __ATOMIC_SEQ_CST); }

/* The same for less, where nothing is loaded after it that another thread stores meanwhile. */
static void put(int64_t *to, int64_t value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }

#else

#define BEAT_AVAILABLE 0

static int64_t now_ns(void) { return 0; }
static int64_t ran_ns(void) { return 0; }
static int open_waits(void) { return -1; }
static int64_t waited_ns(int number) { return (void)number, 0; }
static int new_bell(void) { return -1; }
static void ring(int bell) { (void)bell; }
static void wait_rung(int bell, int64_t timeout_ns) { (void)bell, (void)timeout_ns; }
static void close_number(int number) { (void)number; }
static int64_t loaded(int64_t *from) { return *from; }
static void store(int64_t *to, int64_t value) { *to = value; }
static void put(int64_t *to, int64_t value) { *to = value; }

#endif
#endif
