/* Stands in for the driver's library, libnvidia-ml.so.1. Each start of it takes the next line of the file that
   FAKE_NVML_FILE names, the last one again and again: a number of MiB in use on card 0 (card 1 has 100 more), or
   lost, hang, crash. FILE.read has one byte for each start. Compiled with -DOLD it has no second version of the call. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_FOUND = 6, LOST = 15, VERSION_MISMATCH = 25 };
static const unsigned long long MIB = 1048576ULL, RESERVED = 400;
static char line[64];

int nvmlInitWithFlags(unsigned int flags) {
    char name[4096];
    const char *path = getenv("FAKE_NVML_FILE");
    snprintf(name, sizeof name, "%s.read", path);
    FILE *read = fopen(name, "a+");
    fseek(read, 0, SEEK_END);
    long before = ftell(read);
    fputc('.', read);
    fclose(read);
    FILE *lines = fopen(path, "r");
    for (long at = 0; at <= before && fgets(line, sizeof line, lines); at++) {}
    fclose(lines);
    line[strcspn(line, "\n")] = 0;
    if (!strcmp(line, "hang")) for (;;) pause();
    if (!strcmp(line, "crash")) abort();
    return (int)flags;
}

int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) { return code == LOST ? "GPU is lost" : code == NOT_FOUND ? "Not Found" : "Error"; }

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return index < 2 ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)(size_t)2;
    return strcmp(uuid, "GPU-00000000-0000-0000-0000-000000000001") ? NOT_FOUND : SUCCESS;
}

static unsigned long long used(void *device) {
    return (unsigned long long)(atof(line) * MIB) + ((size_t)device - 1) * 100 * MIB;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_v1 *memory) {
    if (!strcmp(line, "lost")) return LOST;
    memory->used = used(device) + RESERVED * MIB;
    return SUCCESS;
}

#ifndef OLD
int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    if (memory->version != (sizeof(memory_v2) | 2u << 24)) return VERSION_MISMATCH;
    if (!strcmp(line, "lost")) return LOST;
    memory->used = used(device);
    memory->reserved = RESERVED * MIB;
    return SUCCESS;
}
#endif
