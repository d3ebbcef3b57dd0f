/* Wires served by io_uring: reads that go on by themselves, and all writes of a pass in one call.
 *
 * Each socket has one receive that is never asked for again ("multishot"), into buffers that all
 * sockets share. What a pass has made is sent by the same system call that waits for the next. A
 * send that goes through at once, as nearly all do, has no completion of its own, for the process
 * would be woken by it; one that does not is finished the ordinary way, and counted.
 */
#ifndef BY_URING_H
#define BY_URING_H

#include <liburing.h>

#include "wires.h"

enum {
    ENTRIES = 4096,
    BUFFERS = 256, /* more of them are not in the processor's cache; when they run out, one asks again */
    BUFFER_BYTES = 4096,
    SENDS = 1, /* the last bit of a completion's data; a receive has a wire's address alone */
};

struct buffers {
    struct io_uring_buf_ring *ring;
    uint8_t *bytes;
};

static void lend(struct buffers *buffers, int id, int at) {
    io_uring_buf_ring_add(
        buffers->ring, buffers->bytes + (size_t)id * BUFFER_BYTES, BUFFER_BYTES, (unsigned short)id,
        io_uring_buf_ring_mask(BUFFERS), at);
}

static void open_ring(struct io_uring *ring, struct buffers *buffers, unsigned flags) {
    struct io_uring_params params = {
        .flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL,
        .cq_entries = 4 * ENTRIES,
    };
    int failed = io_uring_queue_init_params(ENTRIES, ring, &params);
    if (failed) errno = -failed, die("io_uring_setup");
    void *place;
    if (posix_memalign(&place, 4096, BUFFERS * sizeof(struct io_uring_buf))) die("posix_memalign");
    buffers->ring = place;
    buffers->bytes = malloc((size_t)BUFFERS * BUFFER_BYTES);
    if (!buffers->bytes) die("malloc");
    struct io_uring_buf_reg reg = {.ring_addr = (uintptr_t)place, .ring_entries = BUFFERS};
    failed = io_uring_register_buf_ring(ring, &reg, 0);
    if (failed) errno = -failed, die("io_uring_register_buf_ring");
    io_uring_buf_ring_init(buffers->ring);
    for (int id = 0; id < BUFFERS; id++) lend(buffers, id, id);
    io_uring_buf_ring_advance(buffers->ring, BUFFERS);
}

static struct io_uring_sqe *next_entry(struct io_uring *ring) {
    struct io_uring_sqe *entry = io_uring_get_sqe(ring);
    if (!entry) errno = EBUSY, die("io_uring_get_sqe");
    return entry;
}

static void ask(struct io_uring *ring, struct wire *wires, struct wire *wire) {
    struct io_uring_sqe *entry = next_entry(ring);
    io_uring_prep_recv_multishot(entry, (int)(wire - wires), NULL, 0, 0);
    entry->flags |= IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
    entry->buf_group = 0;
    io_uring_sqe_set_data(entry, wire);
}

static void queue_sends(struct io_uring *ring, struct wire *wires, struct dirty *dirty) {
    for (int i = 0; i < dirty->count; i++) {
        struct wire *sink = dirty->wires[i];
        struct io_uring_sqe *entry = next_entry(ring);
        /* Both flags: all of it now, or a completion that says how much. */
        int flags = MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL;
        io_uring_prep_send(
            entry, (int)(sink - wires), sink->held, (size_t)sink->held_size, flags);
        entry->flags |= IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS;
        io_uring_sqe_set_data64(entry, (uintptr_t)sink | SENDS);
    }
}

/* What was queued before the last call has gone; what has not says so among the completions. */
static void finish_sends(
    struct dirty *dirty, struct io_uring_cqe **done, unsigned number) {
    for (unsigned i = 0; i < number; i++) {
        if (!(done[i]->user_data & SENDS)) continue;
        struct wire *sink = (struct wire *)(uintptr_t)(done[i]->user_data & ~(uint64_t)SENDS);
        int sent = done[i]->res;
        if (sent < 0 && sent != -EAGAIN) errno = -sent, die("send");
        if (sent < 0) sent = 0;
        shared->full++;
        send_all(sink->fd, sink->held + sent, sink->held_size - sent);
    }
    for (int i = 0; i < dirty->count; i++) dirty->wires[i]->held_size = dirty->wires[i]->is_dirty = 0;
    dirty->count = 0;
}

/* Serve until a peer has gone. */
static void serve_by_uring(struct wire *wires, int count, unsigned flags) {
    static struct io_uring_cqe *done[4 * ENTRIES];
    struct dirty dirty = {calloc((size_t)count, sizeof(struct wire *)), 0};
    int *numbers = calloc((size_t)count, sizeof(int));
    struct buffers buffers;
    struct io_uring ring;
    if (!dirty.wires || !numbers) die("calloc");
    open_ring(&ring, &buffers, flags);
    for (int i = 0; i < count; i++) numbers[i] = wires[i].fd;
    int failed = io_uring_register_files(&ring, numbers, (unsigned)count);
    if (failed) errno = -failed, die("io_uring_register_files");
    for (int i = 0; i < count; i++) ask(&ring, wires, &wires[i]);
    io_uring_submit(&ring);
    shared->serving = 1;
    for (;;) {
        queue_sends(&ring, wires, &dirty);
        int submitted = io_uring_submit_and_wait(&ring, 1);
        if (submitted < 0) errno = -submitted, die("io_uring_enter");
        if (io_uring_sq_ready(&ring)) errno = EBUSY, die("io_uring_enter");
        shared->passes++;
        unsigned number = io_uring_peek_batch_cqe(&ring, done, 4 * ENTRIES);
        finish_sends(&dirty, done, number);
        int returned = 0;
        for (unsigned i = 0; i < number; i++) {
            struct io_uring_cqe *cqe = done[i];
            if (cqe->user_data & SENDS) continue;
            struct wire *wire = io_uring_cqe_get_data(cqe);
            if (cqe->res == 0 || cqe->res == -ECONNRESET) return;
            if (cqe->res < 0 && cqe->res != -ENOBUFS) errno = -cqe->res, die("recv");
            if (cqe->flags & IORING_CQE_F_BUFFER) {
                int id = (int)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
                take(wire, buffers.bytes + (size_t)id * BUFFER_BYTES, cqe->res, &dirty);
                lend(&buffers, id, returned++);
            }
            if (!(cqe->flags & IORING_CQE_F_MORE)) ask(&ring, wires, wire);
        }
        io_uring_buf_ring_cq_advance(&ring, buffers.ring, returned);
        io_uring_cq_advance(&ring, number - (unsigned)returned);
    }
}

#endif
