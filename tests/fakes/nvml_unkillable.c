/* Loaded before everything else: nobody can be killed. That is how a process looks from outside that waits in a driver
   which hangs, or that belongs to another user. FAKE_KILL_REFUSED, where set, says that it is the second. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>

static int nothing(void) {
    if (!getenv("FAKE_KILL_REFUSED")) return 0;
    errno = EPERM;
    return -1;
}

int kill(pid_t process, int number) { (void)process; (void)number; return nothing(); }

int killpg(pid_t group, int number) { (void)group; (void)number; return nothing(); }
