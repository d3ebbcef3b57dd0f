/* The system calls of the pumps and their clock, on any system: nothing but wait_ready waits.
 *
 * Where there is no media plane (it needs epoll) there is nobody to call them.
 */
#ifndef OFFHOOK_SOCKETS_H
#define OFFHOOK_SOCKETS_H

#include <errno.h>
#include <stddef.h>

#ifdef _WIN32

static ptrdiff_t recv_now(int number, void *data, size_t size) {
    (void)number, (void)data, (void)size;
    return -1;
}

static ptrdiff_t send_now(int number, const void *data, size_t size) {
    (void)number, (void)data, (void)size;
    return -1;
}

static double seconds(void) { return 0.0; }

#else

#ifdef __linux__
#include <sys/epoll.h>
#endif

#include <sys/socket.h>
#include <time.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* Python ignores SIGPIPE */
#endif

static ptrdiff_t recv_now(int number, void *data, size_t size) {
    return recv(number, data, size, MSG_DONTWAIT);
}

static ptrdiff_t send_now(int number, const void *data, size_t size) {
    return send(number, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

#endif

enum { MOST_READY = 128, LONGEST_WAIT_MS = 1000000000 };

/* Sockets that are ready, and for what. */
typedef struct {
    int number[MOST_READY];
    unsigned events[MOST_READY];
} ready_t;

/* Wait until some are, for so long at most; how many, or -1 with errno. */
static int wait_ready(int epoll, ready_t *ready, double timeout_s) {
#if defined(__linux__)
    struct epoll_event events[MOST_READY];
    double wait_ms = timeout_s * 1e3;
    int rounded_ms = LONGEST_WAIT_MS;
    if (wait_ms <= 0.0) {
        rounded_ms = 0;
    } else if (wait_ms < LONGEST_WAIT_MS) {
        rounded_ms = (int)wait_ms; /* up: a wait that is too short is another one */
        rounded_ms += rounded_ms < wait_ms;
    }
    int count = epoll_wait(epoll, events, MOST_READY, rounded_ms);
    for (int i = 0; i < count; i++) {
        ready->number[i] = events[i].data.fd;
        ready->events[i] = events[i].events;
    }
    return count;
#else
    (void)epoll, (void)ready, (void)timeout_s;
    errno = ENOSYS;
    return -1;
#endif
}

#endif
