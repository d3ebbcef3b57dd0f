/* The sockets of calls as one process holds them: messages of known sizes, and what becomes of each.
 *
 * A message begins with the time it was sent at and its number on its socket; the rest is a pattern
 * that follows from the number, so that whoever gets one knows whether it is whole.
 */
#ifndef WIRES_H
#define WIRES_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
    /* A frame of Twilio's in JSON, and of it the 16 kHz frame for the model in base64. */
    CALLER_IN = 230,
    CALLER_OUT = 930,
    /* 40 ms of the model's at 24 kHz in base64, and of it the mu-law for the caller. */
    AGENT_IN = 2600,
    AGENT_OUT = 530,
    READ_BYTES = 16384, /* as the pump has it */
    HELD_BYTES = 65536, /* what one pass can make for one socket, with much room */
    PATIENCE_MS = 20000,
};

struct head {
    uint64_t sent_ns;
    uint32_t number;
    uint32_t nothing;
};

/* What the serving process and the driving one both see. */
struct shared {
    volatile uint64_t passes;
    volatile uint64_t full; /* sends that a socket did not take at once */
    volatile uint64_t serving;
};

struct wire {
    int fd;
    int in_size;       /* of a message that comes here */
    int out_size;      /* of what it becomes, which goes to the other */
    int part_size;     /* of a message that has come in part */
    int held_size;     /* made for this socket, and not sent */
    int is_dirty;      /* in the list of those that have something held */
    struct wire *other;
    uint8_t *part;
    uint8_t *held;
};

static struct shared *shared;
static uint64_t work_ns; /* spent on each message, in place of a codec */

static void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* A message of another size, of the same content: what the server does, and the driver checks. */
static void change(const uint8_t *in, int in_size, uint8_t *out, int out_size) {
    const int head = sizeof(struct head);
    memcpy(out, in, head);
    for (int at = head; at < out_size;) {
        int size = in_size - head < out_size - at ? in_size - head : out_size - at;
        for (int i = 0; i < size; i++) out[at + i] = in[head + i] ^ 0x5a;
        at += size;
    }
}

/* Send all of it, and wait where the socket does not take it: counted, for it should not be so. */
static void send_all(int fd, const uint8_t *data, int size) {
    while (size > 0) {
        ssize_t sent = send(fd, data, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) die("send");
        if (sent == size) return;
        if (sent > 0) data += sent, size -= (int)sent;
        shared->full++;
        struct pollfd writable = {.fd = fd, .events = POLLOUT};
        if (poll(&writable, 1, PATIENCE_MS) != 1) {
            errno = ETIMEDOUT;
            die("send");
        }
    }
}

/* Wires with something to be sent at the end of a pass. */
struct dirty {
    struct wire **wires;
    int count;
};

static void become(struct wire *wire, const uint8_t *message, struct dirty *dirty) {
    struct wire *sink = wire->other;
    if (sink->held_size + wire->out_size > HELD_BYTES) { /* the process has not been served itself */
        send_all(sink->fd, sink->held, sink->held_size);
        sink->held_size = 0;
    }
    change(message, wire->in_size, sink->held + sink->held_size, wire->out_size);
    sink->held_size += wire->out_size;
    if (!sink->is_dirty) {
        sink->is_dirty = 1;
        dirty->wires[dirty->count++] = sink;
    }
    if (work_ns)
        for (uint64_t until = now_ns() + work_ns; now_ns() < until;) {}
}

/* What has been read becomes something held for the other socket. */
static void take(struct wire *wire, const uint8_t *data, int size, struct dirty *dirty) {
    if (wire->part_size) {
        int more = wire->in_size - wire->part_size;
        if (more > size) more = size;
        memcpy(wire->part + wire->part_size, data, (size_t)more);
        wire->part_size += more, data += more, size -= more;
        if (wire->part_size < wire->in_size) return;
        wire->part_size = 0;
        become(wire, wire->part, dirty);
    }
    for (; size >= wire->in_size; data += wire->in_size, size -= wire->in_size)
        become(wire, data, dirty);
    if (size) memcpy(wire->part, data, (size_t)size);
    wire->part_size = size;
}

#endif
