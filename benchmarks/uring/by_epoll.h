/* Wires served by epoll, in several ways. */
#ifndef BY_EPOLL_H
#define BY_EPOLL_H

#include <sys/epoll.h>

#include "wires.h"

enum { READY_PER_PASS = 128 }; /* as the plane has it */

struct how {
    int is_edge;         /* told of what is new only */
    int sends_last;      /* all sockets of a pass are read before any is written to */
    uint64_t spins_ns;   /* asked again and again for so long, before the process sleeps */
    uint64_t gathers_ns; /* slept after each pass, so that the next has more */
};

static void send_held(struct dirty *dirty) {
    for (int i = 0; i < dirty->count; i++) {
        struct wire *sink = dirty->wires[i];
        send_all(sink->fd, sink->held, sink->held_size);
        sink->held_size = sink->is_dirty = 0;
    }
    dirty->count = 0;
}

static int wait_ready(int epoll, struct epoll_event *ready, uint64_t spins_ns) {
    if (spins_ns)
        for (uint64_t until = now_ns() + spins_ns; now_ns() < until;) {
            int count = epoll_wait(epoll, ready, READY_PER_PASS, 0);
            if (count) return count;
        }
    return epoll_wait(epoll, ready, READY_PER_PASS, -1);
}

/* Serve until a peer has gone. */
static void serve_by_epoll(struct wire *wires, int count, struct how how) {
    struct epoll_event ready[READY_PER_PASS];
    uint8_t data[READ_BYTES];
    struct dirty dirty = {calloc((size_t)count, sizeof(struct wire *)), 0};
    int epoll = epoll_create1(0);
    if (epoll < 0 || !dirty.wires) die("epoll");
    for (int i = 0; i < count; i++) {
        struct epoll_event event = {.events = EPOLLIN | (how.is_edge ? EPOLLET : 0)};
        event.data.ptr = &wires[i];
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, wires[i].fd, &event)) die("epoll_ctl");
    }
    shared->serving = 1;
    for (;;) {
        int number = wait_ready(epoll, ready, how.spins_ns);
        if (number < 0) die("epoll_wait");
        shared->passes++;
        for (int i = 0; i < number; i++) {
            struct wire *wire = ready[i].data.ptr;
            ssize_t size;
            do {
                size = recv(wire->fd, data, READ_BYTES, MSG_DONTWAIT);
                if (size == 0 || (size < 0 && errno == ECONNRESET)) return;
                if (size < 0 && errno != EAGAIN) die("recv");
                if (size > 0) take(wire, data, (int)size, &dirty);
            } while (how.is_edge && size == READ_BYTES); /* a stream that gave less is empty */
            if (!how.sends_last) send_held(&dirty);
        }
        send_held(&dirty);
        if (how.gathers_ns) {
            struct timespec pause = {.tv_nsec = (long)how.gathers_ns};
            clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
        }
    }
}

#endif
