/* passes VARIANT CALLS SECONDS WORK_NS SERVING_CORE DRIVING_CORE: what it costs to pass calls' audio on.
 *
 * One process serves the sockets of so many calls, in the way that VARIANT names; another, on a core
 * of its own and never asleep, is all the telephones and the model: it sends what is due, and looks
 * at what comes out. Prints one line of JSON. A core of -1 is any.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "wires.h"

#include "by_epoll.h"
#ifndef WITHOUT_URING
#include "by_uring.h"
#endif

#define MS 1000000ull

static const uint64_t FRAME_NS = 20 * MS, CHUNK_NS = 10 * MS; /* 40 ms of audio, four times as fast */
static const uint64_t CYCLE_NS = 4000 * MS, TURN_NS = 500 * MS; /* 2 s of audio every 4 s */
static const uint64_t WARM_UP_NS = 500 * MS, PATIENCE_NS = PATIENCE_MS * MS;

enum { PATTERN = 4096, NUMBERS = 1024, INBOX = 8192, READY = 256, BUFFER_SIZE = 1 << 20 };

/* One end of the driver's: it sends messages of one kind, and gets those of the other. */
struct end {
    int fd;
    int sends_size;
    int gets_size, gets_from; /* and what it was sent as, before it was changed */
    uint32_t sent, got;
    uint64_t phase_ns, turn_ns;
    int inbox_size;
    uint8_t *inbox;
};

struct driver {
    struct end *ends; /* callers first, and then models */
    int calls, epoll;
    uint8_t pattern[NUMBERS + PATTERN];
    uint64_t sent, got, broken;
    uint64_t *latencies_ns;
    uint64_t measured, room;
    int is_measuring;
};

static void *zeroed(size_t count, size_t size) {
    void *place = calloc(count, size);
    if (!place) die("calloc");
    return place;
}

static uint64_t random_below(uint64_t bound) {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % bound;
}

static void make_message(struct driver *driver, uint32_t number, uint64_t at_ns, int size, uint8_t *to) {
    struct head head = {.sent_ns = at_ns, .number = number};
    memcpy(to, &head, sizeof head);
    memcpy(to + sizeof head, driver->pattern + number % NUMBERS, (size_t)size - sizeof head);
}

static void look_at(struct driver *driver, struct end *end, const uint8_t *message, uint64_t now) {
    uint8_t sent[PATTERN], expected[PATTERN];
    struct head head;
    memcpy(&head, message, sizeof head);
    make_message(driver, end->got, head.sent_ns, end->gets_from, sent);
    change(sent, end->gets_from, expected, end->gets_size);
    if (memcmp(message, expected, (size_t)end->gets_size)) driver->broken++;
    end->got++;
    driver->got++;
    if (driver->is_measuring && driver->measured < driver->room)
        driver->latencies_ns[driver->measured++] = now - head.sent_ns;
}

static void hear(struct driver *driver, struct end *end) {
    ssize_t size = recv(
        end->fd, end->inbox + end->inbox_size, (size_t)(INBOX - end->inbox_size), MSG_DONTWAIT);
    if (size < 0 && errno == EAGAIN) return;
    if (size <= 0) die("the serving process has gone");
    uint64_t now = now_ns();
    end->inbox_size += (int)size;
    int at = 0;
    for (; end->inbox_size - at >= end->gets_size; at += end->gets_size)
        look_at(driver, end, end->inbox + at, now);
    end->inbox_size -= at;
    memmove(end->inbox, end->inbox + at, (size_t)end->inbox_size);
}

static void hear_what_came(struct driver *driver) {
    struct epoll_event ready[READY];
    int number = epoll_wait(driver->epoll, ready, READY, 0);
    if (number < 0) die("epoll_wait");
    for (int i = 0; i < number; i++) hear(driver, ready[i].data.ptr);
}

/* Send a message; where the socket is full, so may the serving process's be, which has to be read. */
static void say(struct driver *driver, struct end *end) {
    uint8_t message[PATTERN];
    make_message(driver, end->sent++, now_ns(), end->sends_size, message);
    uint64_t until = 0;
    for (int at = 0; at < end->sends_size;) {
        ssize_t sent = send(
            end->fd, message + at, (size_t)(end->sends_size - at), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) die("send");
        if (sent > 0) at += (int)sent;
        if (at == end->sends_size) break;
        if (!until) shared->full++, until = now_ns() + PATIENCE_NS;
        if (now_ns() > until) errno = ETIMEDOUT, die("send");
        hear_what_came(driver);
    }
    driver->sent++;
}

static int by_phase(const void *one, const void *other) {
    uint64_t a = (*(struct end *const *)one)->phase_ns, b = (*(struct end *const *)other)->phase_ns;
    return (a > b) - (a < b);
}

/* Ends that send one after the other, each once in every period. */
struct round {
    struct end **ends;
    int count, at;
    uint64_t began_ns, period_ns, closes_ns;
};

static struct round new_round(
    struct end *ends, int count, uint64_t began_ns, uint64_t period_ns, uint64_t closes_ns) {
    struct round round = {
        zeroed((size_t)count, sizeof(struct end *)), count, 0, began_ns, period_ns, closes_ns,
    };
    for (int i = 0; i < count; i++) {
        ends[i].phase_ns = random_below(period_ns);
        /* Steps of the golden section: at any time as many as at any other have their turn. */
        ends[i].turn_ns = (uint64_t)(i * 0.618034 * (double)CYCLE_NS) % CYCLE_NS;
        round.ends[i] = &ends[i];
    }
    qsort(round.ends, (size_t)count, sizeof(struct end *), by_phase);
    return round;
}

static void say_what_is_due(struct driver *driver, struct round *round, int in_turns) {
    for (;;) {
        struct end *end = round->ends[round->at];
        uint64_t due_ns = round->began_ns + end->phase_ns;
        if (due_ns >= round->closes_ns || now_ns() < due_ns) return;
        if (!in_turns || (due_ns + end->turn_ns) % CYCLE_NS < TURN_NS) say(driver, end);
        if (++round->at == round->count) round->at = 0, round->began_ns += round->period_ns;
    }
}

/* What the serving process had used, by the driver's own look at it. */
struct used {
    uint64_t cpu_ns, sleeps, passes;
};

static struct used look_at_use(pid_t server, clockid_t clock) {
    struct timespec cpu;
    if (clock_gettime(clock, &cpu)) die("the serving process's clock");
    struct used used = {(uint64_t)cpu.tv_sec * 1000 * MS + (uint64_t)cpu.tv_nsec, 0, shared->passes};
    char name[64], line[256];
    snprintf(name, sizeof name, "/proc/%d/status", (int)server);
    FILE *status = fopen(name, "r");
    if (!status) die(name);
    while (fgets(line, sizeof line, status))
        if (!strncmp(line, "voluntary_ctxt_switches:", 24)) used.sleeps = strtoull(line + 24, NULL, 10);
    fclose(status);
    return used;
}

static int by_size(const void *one, const void *other) {
    uint64_t a = *(const uint64_t *)one, b = *(const uint64_t *)other;
    return (a > b) - (a < b);
}

static double latency_us(struct driver *driver, double place) {
    if (!driver->measured) return 0;
    uint64_t at = (uint64_t)((double)driver->measured * place);
    if (at >= driver->measured) at = driver->measured - 1;
    return (double)driver->latencies_ns[at] / 1000;
}

static void drive(struct driver *driver, pid_t server, double seconds, const char *variant) {
    clockid_t clock;
    driver->epoll = epoll_create1(0);
    errno = clock_getcpuclockid(server, &clock);
    if (errno || driver->epoll < 0) die("the driver");
    for (int i = 0; i < 2 * driver->calls; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &driver->ends[i]};
        if (epoll_ctl(driver->epoll, EPOLL_CTL_ADD, driver->ends[i].fd, &event)) die("epoll_ctl");
    }
    for (uint64_t until = now_ns() + PATIENCE_NS; !shared->serving;) {
        if (now_ns() > until) die("the serving process has not begun");
        if (waitpid(server, NULL, WNOHANG)) exit(1); /* and it has said why */
        usleep(1000);
    }

    uint64_t began = now_ns(), opens = began + WARM_UP_NS, closes = opens + (uint64_t)(seconds * 1e9);
    struct round callers = new_round(driver->ends, driver->calls, began, FRAME_NS, closes);
    struct round models =
        new_round(driver->ends + driver->calls, driver->calls, began, CHUNK_NS, closes);
    struct used before = {0}, after = {0};
    uint64_t got_before = 0, took_ns = 0;
    for (uint64_t now; (now = now_ns()) < closes;) {
        if (!driver->is_measuring && now >= opens) {
            before = look_at_use(server, clock);
            driver->is_measuring = 1, got_before = driver->got, opens = now;
        }
        say_what_is_due(driver, &callers, 0);
        hear_what_came(driver);
        say_what_is_due(driver, &models, 1);
        hear_what_came(driver);
    }
    after = look_at_use(server, clock);
    took_ns = now_ns() - opens;
    driver->is_measuring = 0;
    double messages = (double)(driver->got - got_before), took_s = (double)took_ns / 1e9;
    if (!messages) messages = 1;
    say_what_is_due(driver, &callers, 0); /* so that what is sent in all is known, however late */
    say_what_is_due(driver, &models, 1);
    for (uint64_t until = now_ns() + PATIENCE_NS; driver->got < driver->sent && now_ns() < until;)
        hear_what_came(driver);

    struct rusage whole;
    for (int i = 0; i < 2 * driver->calls; i++) close(driver->ends[i].fd);
    int status;
    if (wait4(server, &status, 0, &whole) != server || !WIFEXITED(status) || WEXITSTATUS(status)) exit(1);
    double user_s = (double)whole.ru_utime.tv_sec + (double)whole.ru_utime.tv_usec / 1e6;
    double system_s = (double)whole.ru_stime.tv_sec + (double)whole.ru_stime.tv_usec / 1e6;
    qsort(driver->latencies_ns, driver->measured, sizeof(uint64_t), by_size);
    printf("{\"variant\": \"%s\", \"sent\": %llu, \"got\": %llu, \"broken\": %llu, \"full\": %llu, ",
        variant, (unsigned long long)driver->sent, (unsigned long long)driver->got,
        (unsigned long long)driver->broken, (unsigned long long)shared->full);
    printf("\"messages_per_s\": %.0f, \"cpu_us\": %.4f, \"cpu_share\": %.4f, \"wakeups_per_s\": %.1f, ",
        messages / took_s, (double)(after.cpu_ns - before.cpu_ns) / 1000 / messages,
        (double)(after.cpu_ns - before.cpu_ns) / (double)took_ns,
        (double)(after.sleeps - before.sleeps) / took_s);
    printf("\"passes_per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, ",
        (double)(after.passes - before.passes) / took_s, latency_us(driver, 0.5),
        latency_us(driver, 0.99), latency_us(driver, 0.999));
    printf("\"user_s\": %.3f, \"system_s\": %.3f}\n", user_s, system_s);
}

static void serve(struct wire *wires, int count, const char *variant) {
    struct how how = {0};
    if (!strcmp(variant, "level")) return serve_by_epoll(wires, count, how);
    if (!strcmp(variant, "edge")) how.is_edge = 1;
    else if (!strcmp(variant, "sends-last")) how.sends_last = 1;
    else if (!strcmp(variant, "spins")) how.spins_ns = MS / 20;
    else if (!strcmp(variant, "gathers")) how.gathers_ns = MS;
#ifndef WITHOUT_URING
    else if (!strcmp(variant, "uring")) return serve_by_uring(wires, count, 0);
    else if (!strcmp(variant, "uring-deferred"))
        return serve_by_uring(
            wires, count, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
#endif
    else errno = EINVAL, die(variant);
    serve_by_epoll(wires, count, how);
}

static void stay_on(int core) {
    cpu_set_t set;
    if (core < 0) return;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set)) die("sched_setaffinity");
}

static void set_up(int fd) {
    int on = 1, size = BUFFER_SIZE;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on)) die("TCP_NODELAY");
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size); /* as much of it as is allowed */
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
}

/* Both ends of so many connections over the loopback interface. */
static void connect_all(int count, int *near, int *far) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length)) die("bind");
    if (listen(listener, 16) || getsockname(listener, (struct sockaddr *)&address, &length)) die("listen");
    for (int i = 0; i < count; i++) {
        far[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (far[i] < 0 || connect(far[i], (struct sockaddr *)&address, length)) die("connect");
        near[i] = accept(listener, NULL, NULL);
        if (near[i] < 0) die("accept");
        set_up(near[i]), set_up(far[i]);
    }
    close(listener);
}

int main(int argc, char **argv) {
    if (argc != 7) {
        fprintf(stderr, "passes VARIANT CALLS SECONDS WORK_NS SERVING_CORE DRIVING_CORE\n");
        return 2;
    }
    int calls = atoi(argv[2]), count = 2 * calls;
    double seconds = atof(argv[3]);
    work_ns = strtoull(argv[4], NULL, 10);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int *near = zeroed((size_t)count, sizeof(int)), *far = zeroed((size_t)count, sizeof(int));
    connect_all(count, near, far);
    shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) die("mmap");

    pid_t driving = getpid(), server = fork();
    if (server < 0) die("fork");
    if (!server) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != driving) return 1;
        stay_on(atoi(argv[5]));
        struct wire *wires = zeroed((size_t)count, sizeof *wires);
        for (int i = 0; i < count; i++) {
            close(far[i]);
            wires[i].fd = near[i];
            wires[i].in_size = i < calls ? CALLER_IN : AGENT_IN;
            wires[i].out_size = i < calls ? CALLER_OUT : AGENT_OUT;
            wires[i].other = &wires[(i + calls) % count];
            wires[i].part = zeroed(1, PATTERN);
            wires[i].held = zeroed(1, HELD_BYTES);
        }
        serve(wires, count, argv[1]);
        return 0;
    }
    stay_on(atoi(argv[6]));
    struct driver *driver = zeroed(1, sizeof *driver);
    driver->calls = calls;
    driver->room = (uint64_t)((seconds + 1) * calls * 200);
    driver->latencies_ns = zeroed(driver->room, sizeof(uint64_t));
    driver->ends = zeroed((size_t)count, sizeof(struct end));
    for (int i = 0; i < NUMBERS + PATTERN; i++) driver->pattern[i] = (uint8_t)random_below(256);
    for (int i = 0; i < count; i++) {
        int is_caller = i < calls;
        struct end *end = &driver->ends[i];
        close(near[i]);
        end->fd = far[i];
        end->sends_size = is_caller ? CALLER_IN : AGENT_IN;
        end->gets_from = is_caller ? AGENT_IN : CALLER_IN;
        end->gets_size = is_caller ? AGENT_OUT : CALLER_OUT;
        end->inbox = zeroed(1, INBOX);
    }
    drive(driver, server, seconds, argv[1]);
    return 0;
}
