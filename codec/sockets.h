/* The two system calls of the pump and its clock, on any system: nothing here waits.
 *
 * Where there is no media plane (it needs epoll) there is nobody to call them.
 */
#ifndef OFFHOOK_SOCKETS_H
#define OFFHOOK_SOCKETS_H

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
#endif
