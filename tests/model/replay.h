/* A trace of the real code, one event a line, from the file that $TRACE names; for protocol.pml with REPLAY. */

#include <stdlib.h>

#define MOST_EVENTS 8192

static int trace[MOST_EVENTS][4], trace_length = -1, trace_furthest;

static void trace_stopped(void) {
    printf("stopped at event %d of %d\n", trace_furthest, trace_length);
}

static void trace_load(void) {
    FILE *file = fopen(getenv("TRACE"), "r");
    int *event;
    for (trace_length = 0; trace_length < MOST_EVENTS; trace_length++) {
        event = trace[trace_length];
        if (fscanf(file, "%d %d %d %d", event, event + 1, event + 2, event + 3) != 4)
            break;
    }
    fclose(file);
    atexit(trace_stopped);
}

/* Whether the trace goes on with this event. After its last one there is nothing more to be looked for. */
static int replays(int at, int kind, int a, int b, int c) {
    int *event = trace[at];
    if (trace_length < 0)
        trace_load();
    if (at >= trace_length || event[0] != kind || event[1] != a || event[2] != b || event[3] != c)
        return 0;
    if (at + 1 > trace_furthest)
        trace_furthest = at + 1;
    if (trace_furthest == trace_length) {
        printf("accepted\n");
        exit(0);
    }
    return 1;
}

/* What the event says in the second place. */
static int trace_says(int at) {
    if (trace_length < 0)
        trace_load();
    return trace[at][2];
}
