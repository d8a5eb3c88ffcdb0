/* A stand-in for vLLM's HTTP server that costs next to nothing: one thread, one epoll.
 *
 *   upstream PORT          listens on 127.0.0.1
 *
 * POST /v1/chat/completions   about 1 KB of JSON, or with "stream":true one event per engine step, usage, [DONE]
 * GET  /health /version /v1/models /metrics
 * GET  /bench/set?delay_us=&gap_us=&chunks=   how it answers from now on
 * GET  /bench/active          open requests, and when the last client that did not wait for its answer was seen to go
 *
 * Streams advance together, one event each per step of `gap_us`, as sequences of one batch do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READING, WAITING, STREAMING };

struct conn {
    int fd, state, sent;
    bool stream, usage, dead;
    char *in, *out;
    size_t in_len, in_cap, out_len, out_cap; /* `out` holds what the socket did not take yet */
    int64_t due;                             /* when the next piece is to go out, ns of the monotonic clock */
    struct conn *previous, *next;            /* among the open requests */
};

static struct conn *open_requests, *graveyard;
static int poller, timer;
static int64_t delay_ns, gap_ns = 10000000, last_left_ns;
static int chunks = 64;
static unsigned long active, left, answered, tokens, connections;

static const char WORDS[] = "The spread narrowed into the close while volume held up, so the earlier reading stands. ";

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(struct conn *c, int operation, uint32_t events) {
    struct epoll_event e = {.events = events | EPOLLRDHUP, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &e);
}

static void begin(struct conn *c, int state, int64_t due) {
    c->state = state, c->due = due, c->sent = 0, c->previous = NULL, c->next = open_requests;
    if (open_requests) open_requests->previous = c;
    open_requests = c;
    active++;
}

static void end(struct conn *c) {
    if (c->state == READING) return;
    if (c->previous) c->previous->next = c->next;
    else open_requests = c->next;
    if (c->next) c->next->previous = c->previous;
    c->state = READING;
    active--;
}

/* Freed after the round: events of the same round may still point to it. */
static void drop(struct conn *c) {
    if (c->dead) return;
    if (c->state != READING) left++, last_left_ns = now_ns();
    end(c);
    close(c->fd);
    c->dead = true, c->next = graveyard, graveyard = c;
    connections--;
}

static void grow(char **buffer, size_t *capacity, size_t needed) {
    if (needed <= *capacity) return;
    *capacity = needed * 2;
    if (!(*buffer = realloc(*buffer, *capacity))) abort();
}

static void put(struct conn *c, const char *text, size_t length) {
    ssize_t taken = c->out_len ? 0 : send(c->fd, text, length, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        drop(c);
        return;
    }
    size_t done = taken > 0 ? (size_t)taken : 0;
    if (done == length) return;
    grow(&c->out, &c->out_cap, c->out_len + length - done);
    memcpy(c->out + c->out_len, text + done, length - done);
    if (!c->out_len) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    c->out_len += length - done;
}

static void flush_out(struct conn *c) {
    ssize_t taken = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) drop(c);
    if (taken <= 0) return;
    memmove(c->out, c->out + taken, c->out_len - taken);
    if (!(c->out_len -= taken)) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void answer(struct conn *c, const char *type, const char *body) {
    char text[8192];
    int n = snprintf(text, sizeof text,
                     "HTTP/1.1 200 OK\r\nserver: upstream\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", type,
                     strlen(body), body);
    put(c, text, n);
}

static void answer_whole(struct conn *c) {
    char body[4096], content[800];
    for (size_t i = 0; i < sizeof content; i++) content[i] = WORDS[i % (sizeof WORDS - 1)];
    content[640] = 0;
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-%016lx\",\"object\":\"chat.completion\",\"created\":1750000000,\"model\":\"Lexi\","
             "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null,"
             "\"annotations\":null,\"audio\":null,\"function_call\":null,\"tool_calls\":[],\"reasoning\":null},"
             "\"logprobs\":null,\"finish_reason\":\"stop\",\"stop_reason\":null,\"token_ids\":null}],"
             "\"service_tier\":null,\"system_fingerprint\":null,\"usage\":{\"prompt_tokens\":96,\"total_tokens\":224,"
             "\"completion_tokens\":128,\"prompt_tokens_details\":null},\"prompt_logprobs\":null}",
             answered, content);
    answered++, tokens += 128;
    end(c);
    answer(c, "application/json", body);
}

static void put_event(struct conn *c, const char *event, const char *after) {
    char text[1024];
    int n = snprintf(text, sizeof text, "%zx\r\ndata: %s\n\n\r\n%s", strlen(event) + 8, event, after);
    put(c, text, n);
}

/* One step of the engine for this stream: an event of its own, written at once. */
static void step(struct conn *c, int64_t now) {
    char event[768];
    const char *head = "\"object\":\"chat.completion.chunk\",\"created\":1750000000,\"model\":\"Lexi\"";
    if (c->sent == 0) {
        static const char start[] = "HTTP/1.1 200 OK\r\nserver: upstream\r\ncontent-type: text/event-stream; "
                                    "charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
        put(c, start, sizeof start - 1);
    }
    bool last = ++c->sent >= chunks;
    snprintf(event, sizeof event,
             "{\"id\":\"chatcmpl-%016lx\",%s,\"choices\":[{\"index\":0,\"delta\":{%s\"content\":\"%s\"},"
             "\"logprobs\":null,\"finish_reason\":%s%s}]}",
             (unsigned long)c->fd, head, c->sent == 1 ? "\"role\":\"assistant\"," : "", c->sent == 1 ? "" : " spread",
             last ? "\"stop\"" : "null", last ? ",\"stop_reason\":null" : ",\"token_ids\":null");
    tokens++;
    c->due = gap_ns ? (now / gap_ns + 1) * gap_ns : now;
    if (!c->dead) put_event(c, event, "");
    if (!last || c->dead) return;
    snprintf(event, sizeof event,
             "{\"id\":\"chatcmpl-%016lx\",%s,\"choices\":[],\"usage\":{\"prompt_tokens\":96,\"total_tokens\":%d,"
             "\"completion_tokens\":%d}}",
             (unsigned long)c->fd, head, 96 + c->sent, c->sent);
    if (c->usage) put_event(c, event, "");
    answered++;
    end(c);
    if (!c->dead) put_event(c, "[DONE]", "0\r\n\r\n");
}

static bool asks(const char *body, size_t length, const char *member) {
    const char *end_of_body = body + length, *found = memmem(body, length, member, strlen(member));
    if (!found) return false;
    found += strlen(member);
    while (found < end_of_body && (*found == ' ' || *found == ':')) found++;
    return end_of_body - found >= 4 && !memcmp(found, "true", 4);
}

static void set(const char *query, const char *name, int64_t unit, int64_t *value) {
    const char *found = strstr(query, name);
    if (found) *value = atoll(found + strlen(name)) * unit;
}

static void report(struct conn *c, const char *path) {
    char body[1024];
    int64_t wanted = chunks;
    if (!strncmp(path, "/bench/set", 10)) {
        set(path, "delay_us=", 1000, &delay_ns), set(path, "gap_us=", 1000, &gap_ns), set(path, "chunks=", 1, &wanted);
        chunks = (int)wanted;
    }
    if (!strncmp(path, "/bench/", 7))
        snprintf(body, sizeof body,
                 "{\"active\":%lu,\"left\":%lu,\"last_left_ns\":%ld,\"answered\":%lu,\"connections\":%lu}", active,
                 left, (long)last_left_ns, answered, connections);
    else if (!strncmp(path, "/v1/models", 10))
        snprintf(body, sizeof body, "{\"object\":\"list\",\"data\":[{\"id\":\"Lexi\",\"object\":\"model\","
                                    "\"created\":1750000000,\"owned_by\":\"vllm\",\"max_model_len\":4096}]}");
    else if (!strncmp(path, "/metrics", 8))
        snprintf(body, sizeof body,
                 "vllm:num_requests_running{model_name=\"Lexi\"} %lu\n"
                 "vllm:num_requests_waiting{model_name=\"Lexi\"} 0\n"
                 "vllm:iteration_tokens_total_count{model_name=\"Lexi\"} %lu\n"
                 "vllm:generation_tokens_total{model_name=\"Lexi\"} %lu\n"
                 "vllm:kv_cache_usage_perc{model_name=\"Lexi\"} 0.1\n",
                 active, tokens, tokens);
    else
        snprintf(body, sizeof body, "{\"version\":\"0.33.0\"}");
    answer(c, path[1] == 'm' ? "text/plain; version=0.0.4" : "application/json", body);
}

/* Take one whole request off the buffer, if there is one. */
static bool take_request(struct conn *c) {
    char *head_end = memmem(c->in, c->in_len, "\r\n\r\n", 4), path[256] = "";
    if (!head_end) return false;
    *head_end = 0;
    char *field = strcasestr(c->in, "\r\ncontent-length:");
    size_t head = head_end + 4 - c->in, body = field ? strtoul(field + 17, NULL, 10) : 0;
    *head_end = '\r';
    if (c->in_len < head + body) return false;
    bool post = !strncmp(c->in, "POST ", 5);
    sscanf(c->in, "%*15s %255s", path);
    c->stream = asks(c->in + head, body, "\"stream\""), c->usage = asks(c->in + head, body, "\"include_usage\"");
    memmove(c->in, c->in + head + body, c->in_len -= head + body);
    if (!post) {
        report(c, path);
        return true;
    }
    int64_t now = now_ns(), grid = gap_ns && c->stream ? gap_ns : 1;
    begin(c, c->stream ? STREAMING : WAITING, ((now + delay_ns) / grid + (grid > 1)) * grid);
    if (!c->stream && !delay_ns) answer_whole(c);
    return true;
}

static void receive(struct conn *c) {
    for (;;) {
        grow(&c->in, &c->in_cap, c->in_len + 16384);
        ssize_t n = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            drop(c);
            return;
        }
        if (n < 0) break;
        c->in_len += n;
        if (c->in_len < c->in_cap) break;
    }
    while (!c->dead && c->state == READING && c->in_len && take_request(c)) continue;
}

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c) abort();
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
        connections++;
    }
}

/* Send what is due, and set the timer for what is due next. */
static void advance(void) {
    int64_t now = now_ns(), next = 0;
    for (struct conn *c = open_requests, *following; c; c = following) {
        following = c->next;
        if (c->due <= now) {
            if (c->state == STREAMING) step(c, now);
            else answer_whole(c);
            if (!c->dead && c->state == READING && c->in_len) take_request(c);
        }
        if (!c->dead && c->state != READING && (!next || c->due < next)) next = c->due;
    }
    struct itimerspec at = {.it_value = {next / 1000000000, next % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static void bury(void) {
    for (struct conn *c; (c = graveyard);) {
        graveyard = c->next;
        free(c->in), free(c->out), free(c);
    }
}

int main(int count, char **words) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons(count > 1 ? atoi(words[1]) : 0);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("upstream");
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = &listener}, events[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    e.data.ptr = &timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &e);
    for (;;) {
        int n = epoll_wait(poller, events, 512, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            uint64_t expired;
            if (events[i].data.ptr == &listener) accept_all(listener);
            else if (events[i].data.ptr == &timer) (void)!read(timer, &expired, sizeof expired);
            else if (c->dead) continue;
            else if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) drop(c);
            else {
                if (events[i].events & EPOLLOUT) flush_out(c);
                if (!c->dead && events[i].events & EPOLLIN) receive(c);
            }
        }
        advance();
        bury();
    }
}
