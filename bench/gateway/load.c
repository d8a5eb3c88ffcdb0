/* A load generator that costs next to nothing: one thread, one epoll, HTTP/1.1 with connections kept.
 *
 *   load PORT REQUEST CONNECTIONS COUNT RATE LIMIT_S
 *
 * REQUEST is a file with one whole HTTP request, sent COUNT times. With RATE 0 each connection asks again as soon as it
 * has its answer; otherwise requests begin RATE times per second, and their latency counts from the moment they were
 * due, also where no connection was free then. An answer is good when its status is 200, its body is whole, and it ends in
 * `}` or, for an event stream, in `data: [DONE]`. Prints one line of JSON; the exit status is 2 when LIMIT_S ran out.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { IDLE, HEAD, LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE };

struct conn {
    int fd, state, status;
    bool events, closes, line_empty;
    int64_t due;
    size_t head_len, left;           /* bytes of the body or of this chunk still to come */
    int matched;                     /* of `data:` at the beginning of a line, -1 when the line is another one */
    char head[8192], tail[16];       /* the last bytes of the body */
    size_t tail_len;
};

static struct conn *conns;
static struct sockaddr_in server = {.sin_family = AF_INET};
static int poller;
static char *request, trouble[256];
static size_t request_len;
static int64_t *latencies, started;
static long wanted, begun, finished, errors, good, events_seen, bytes_seen;
static double rate;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fatal(const char *what) {
    perror(what);
    exit(1);
}

static void open_connection(struct conn *c) {
    if (c->fd > 0) close(c->fd);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&server, sizeof server)) fatal("load: connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e)) fatal("load: epoll");
    c->state = IDLE;
}

static void ask(struct conn *c, int64_t due) {
    begun++;
    c->due = due, c->state = HEAD, c->head_len = c->tail_len = 0, c->matched = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) {
        open_connection(c); /* the server had closed it while it was idle: once more on a new one */
        c->state = HEAD;
        if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) fatal("load: send");
    }
}

static void done(struct conn *c, const char *wrong) {
    finished++;
    if (!wrong && c->status != 200) wrong = "status";
    const char *ending = c->events ? "data: [DONE]" : "}";
    while (c->tail_len && strchr("\r\n ", c->tail[c->tail_len - 1])) c->tail_len--;
    size_t n = strlen(ending);
    if (!wrong && (c->tail_len < n || memcmp(c->tail + c->tail_len - n, ending, n))) wrong = "ending";
    if (!wrong) latencies[good++] = now_ns() - c->due;
    else if (!errors++) snprintf(trouble, sizeof trouble, "%s (status %d)", wrong, c->status);
    if (wrong || c->closes) open_connection(c);
    c->state = IDLE;
    if (rate == 0 && begun < wanted) ask(c, now_ns());
}

static void keep_tail(struct conn *c, const char *data, size_t n) {
    size_t kept = n >= sizeof c->tail ? 0 : c->tail_len;
    if (kept + n > sizeof c->tail && kept) {
        size_t cut = kept + n - sizeof c->tail;
        memmove(c->tail, c->tail + cut, kept - cut);
        kept -= cut;
    }
    size_t taken = n < sizeof c->tail ? n : sizeof c->tail;
    memcpy(c->tail + kept, data + n - taken, taken);
    c->tail_len = kept + taken;
}

static void body(struct conn *c, const char *data, size_t n) {
    bytes_seen += n;
    keep_tail(c, data, n);
    for (size_t i = 0; c->events && i < n; i++) {
        if (data[i] == '\n') c->matched = 0;
        else if (c->matched >= 0) {
            c->matched = data[i] == "data:"[c->matched] ? c->matched + 1 : -1;
            if (c->matched == 5) events_seen++, c->matched = -1;
        }
    }
}

static void read_head(struct conn *c) {
    char *field = strcasestr(c->head, "\r\ncontent-length:");
    c->status = c->head_len > 12 ? atoi(c->head + 9) : 0;
    c->events = strcasestr(c->head, "text/event-stream") != NULL;
    c->closes = strcasestr(c->head, "\r\nconnection: close") != NULL;
    c->left = field ? strtoul(field + 17, NULL, 10) : 0;
    if (field) c->state = LENGTH;
    else if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) c->state = CHUNK_SIZE, c->left = 0;
    else c->state = UNTIL_CLOSE, c->closes = true;
}

/* The framing between two chunks, one byte at a time; false when it is broken. */
static bool framing(struct conn *c, char byte) {
    if (c->state == CHUNK_SIZE) {
        static const char digits[] = "0123456789abcdef";
        const char *digit = byte ? strchr(digits, byte | 32) : NULL; /* the bit of lower case is set in 0 to 9 anyway */
        if (digit) c->left = c->left * 16 + (digit - digits);
        else if (byte == '\n') c->state = c->left ? CHUNK_DATA : TRAILER, c->line_empty = true;
        else return byte == '\r';
    } else if (c->state == CHUNK_END) {
        if (byte == '\n') c->state = CHUNK_SIZE, c->left = 0;
        else return byte == '\r';
    } else if (byte == '\n' && c->line_empty) done(c, NULL);
    else c->line_empty = byte == '\n' || (byte == '\r' && c->line_empty);
    return true;
}

static void take(struct conn *c, const char *data, size_t n) {
    while (n) {
        size_t used = 1;
        if (c->state == IDLE) {
            done(c, "bytes after the answer");
            return;
        }
        if (c->state == HEAD) {
            if (c->head_len == sizeof c->head - 1) {
                done(c, "head too long");
                return;
            }
            c->head[c->head_len++] = *data;
            c->head[c->head_len] = 0;
            if (c->head_len >= 4 && !strcmp(c->head + c->head_len - 4, "\r\n\r\n")) read_head(c);
            if (c->state == LENGTH && !c->left) done(c, "empty");
        } else if (c->state == LENGTH || c->state == CHUNK_DATA || c->state == UNTIL_CLOSE) {
            used = c->state != UNTIL_CLOSE && c->left < n ? c->left : n;
            body(c, data, used);
            c->left -= used;
            if (c->state == CHUNK_DATA && !c->left) c->state = CHUNK_END;
            else if (c->state == LENGTH && !c->left) done(c, NULL);
        } else if (!framing(c, *data)) {
            done(c, "broken chunk");
            return;
        }
        data += used, n -= used;
    }
}

static void receive(struct conn *c) {
    static char buffer[65536];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0) take(c, buffer, n);
    else if (n < 0 && errno == EAGAIN) return;
    else if (c->state == IDLE) open_connection(c);
    else done(c, c->state == UNTIL_CLOSE ? NULL : "closed before the end");
}

/* Open loop: begin what is due on free connections. Returns when the next is due, 0 where an answer comes first. */
static int64_t begin_due(int connections) {
    static int from;
    int64_t now = now_ns();
    for (int looked = 0; begun < wanted && looked < connections; looked++, from = (from + 1) % connections) {
        int64_t due = started + (int64_t)(begun * 1e9 / rate);
        if (due > now) return due;
        if (conns[from].state == IDLE) ask(&conns[from], due);
    }
    return 0;
}

static int by_size(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile_ms(double part) {
    return good ? latencies[(long)(part * (good - 1) + 0.5)] / 1e6 : 0;
}

static void report(void) {
    double elapsed = (now_ns() - started) / 1e9;
    qsort(latencies, good, sizeof *latencies, by_size);
    printf("{\"requests\":%ld,\"good\":%ld,\"errors\":%ld,\"trouble\":\"%s\",\"elapsed_s\":%.4f,\"p50_ms\":%.4f,"
           "\"p99_ms\":%.4f,\"max_ms\":%.4f,\"events\":%ld,\"bytes\":%ld}\n",
           finished, good, errors, trouble, elapsed, quantile_ms(0.5), quantile_ms(0.99), quantile_ms(1), events_seen,
           bytes_seen);
}

int main(int count, char **words) {
    if (count != 7) {
        fprintf(stderr, "load PORT REQUEST CONNECTIONS COUNT RATE LIMIT_S\n");
        return 1;
    }
    int connections = atoi(words[3]), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    server.sin_port = htons(atoi(words[1])), server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    wanted = atol(words[4]), rate = atof(words[5]);
    FILE *file = fopen(words[2], "rb");
    if (!file) fatal(words[2]);
    request = malloc(1 << 20), request_len = fread(request, 1, 1 << 20, file);
    latencies = calloc(wanted, sizeof *latencies), conns = calloc(connections, sizeof *conns);
    poller = epoll_create1(0);
    for (int i = 0; i < connections; i++) open_connection(&conns[i]);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &timer}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    started = now_ns();
    int64_t until = started + (int64_t)(atof(words[6]) * 1e9);
    for (int i = 0; rate == 0 && i < connections && begun < wanted; i++) ask(&conns[i], now_ns());
    while (finished < wanted) {
        if (rate > 0) {
            int64_t next = begin_due(connections);
            struct itimerspec at = {.it_value = {next / 1000000000, next % 1000000000}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        }
        int n = epoll_wait(poller, events, 512, 1000);
        for (int i = 0; i < n; i++) {
            uint64_t expired;
            if (events[i].data.ptr == &timer) (void)!read(timer, &expired, sizeof expired);
            else receive(events[i].data.ptr);
        }
        if (now_ns() > until) {
            report();
            return 2;
        }
    }
    report();
}
