/* The GPUs of a host as a model for SPIN: the queue of tickets, laptops that sleep or die, and the locks that decide.
 * docs/explanation/gpu-leases.md tells it in words.
 *
 * A start (kernelbridge/kernel/start/gpu_allocator.py, GpuAllocator) looks at labels and tickets, picks, has a
 * container made and started; in it a relay (kernelbridge/relay/gpus/gpu_lock.py, GpuLocks) takes the locks of all its
 * cards or of none. What was seen may be old by then: each of these is a step of its own. Tickets and their beats are
 * those of kernelbridge/hosts/docker/gpu_queue.py.
 *
 * Left out: how long anything takes (60 s without a beat, an hour until a ticket is thrown away, 60 s of a kernel that
 * nobody asks), cards that differ, and that a card which was just lost is picked last. Each kernel ends at some time.
 *
 * A word that begins with NO_ or BAD_ breaks one rule, and must be found out.
 */

#define CARDS 2
#define STARTS 3
/* The first wants both cards, the others one each. */
#define WANTS(s) ((s) == 0 -> 2 : 1)
#ifndef SLEEPS
#define SLEEPS 1
#endif
#ifndef DEATHS
#define DEATHS 1
#endif

#define E_TICKET 1
#define E_PICK 2
#define E_MAKE 3
#define E_BEGIN 4
#define E_LOCK 5
#define E_TOO_LATE 6
#define E_RUN 7
#define E_END 8
#define E_SLEEP 9
#define E_WAKE 10
#define E_DIE 11
#define E_SILENT 12
#define E_THROWN_AWAY 13
#define E_BEAT 14

inline event(which, x, y) { printf("event %d %d %d\n", which, x, y) }

/* A start: is looking, has picked, has a container, whose relay takes the locks, has a kernel; or is over. */
#define LOOKING 0
#define PICKED 1
#define CREATED 2
#define LOCKING 3
#define RUNS 4
#define OVER 5
byte state[STARTS];
/* The cards that it has picked, and its container's label names; bit by bit. And how many of them are locked. */
byte label[STARTS], locked[STARTS];
bool sleeps[STARTS], is_dead[STARTS];
/* Its place in the queue, 0 if it has none; whether its last beat is fresh. */
byte ticket[STARTS], last_ticket;
bool beats[STARTS];
/* Who has a card's lock: a start, or nobody. */
#define NOBODY 255
byte lock[CARDS] = NOBODY;
byte naps, deaths;

#define IS_AWAKE(s) (!sleeps[s] && !is_dead[s])
#define HAS(s, card) ((label[s] >> (card)) & 1)

/* Containers that run hold what their labels say; one that is only created holds nothing (holdings). */
#ifdef BAD_CREATED_HOLDS
#define HOLDS(s, card) (state[s] >= CREATED && state[s] <= RUNS && HAS(s, card))
#else
#define HOLDS(s, card) (state[s] >= LOCKING && state[s] <= RUNS && HAS(s, card))
#endif
#define IS_FREE(card) (!HOLDS(0, card) && !HOLDS(1, card) && !HOLDS(2, card))
#define FREE (IS_FREE(0) + IS_FREE(1))

/* gpu_queue.ahead: who is awake and came before; all of them for one without a ticket. */
#ifdef NO_PASSING_OVER
#define IS_AHEAD(s, other) (other != s && ticket[other] && (!ticket[s] || ticket[other] < ticket[s]))
#else
#define IS_AHEAD(s, other) (other != s && ticket[other] && beats[other] && (!ticket[s] || ticket[other] < ticket[s]))
#endif
#define WANTED_BEFORE(s) (IS_AHEAD(s, 0) * 2 + IS_AHEAD(s, 1) + IS_AHEAD(s, 2))
#ifdef NO_QUEUE
#define KEPT(s) 0
#else
#define KEPT(s) WANTED_BEFORE(s)
#endif
#define CAN_PICK(s) (FREE >= KEPT(s) + WANTS(s))

/* selection.pick: the first that are free behind those that are kept for others. */
inline pick(s, card, skips) {
    assert(FREE >= WANTED_BEFORE(s) + WANTS(s));  /* first come, first served */
    label[s] = 0; card = 0;
    skips = KEPT(s);
    do
    :: card == CARDS -> break
    :: card < CARDS && IS_FREE(card) && skips -> skips--; card++
    :: card < CARDS && IS_FREE(card) && !skips ->
        label[s] = label[s] | (1 << card);
        card++;
        if
        :: WANTS(s) == 1 -> break
        :: else -> skip
        fi
    :: card < CARDS && !IS_FREE(card) -> card++
    od;
    card = 0; skips = 0
}

inline give_back(s, card) {
    for (card : 0 .. CARDS - 1) {
        lock[card] = (lock[card] == s -> NOBODY : lock[card])
    }
    card = 0; locked[s] = 0
}

active [STARTS] proctype Start() {
    byte card, skips;
end:
    do
    /* GpuAllocator.look */
    :: d_step { state[_pid] == LOOKING && IS_AWAKE(_pid) && CAN_PICK(_pid) ->
        pick(_pid, card, skips);
        state[_pid] = PICKED;
        event(E_PICK, _pid, label[_pid]) }
    /* GpuAllocator._queue_up, QueuePlace.beat: a ticket that was thrown away is taken anew. */
    :: d_step { state[_pid] == LOOKING && IS_AWAKE(_pid) && !CAN_PICK(_pid) && !ticket[_pid] ->
        last_ticket++;
        ticket[_pid] = last_ticket; beats[_pid] = true;
        event(E_TICKET, _pid, last_ticket) }
    :: d_step { ticket[_pid] && IS_AWAKE(_pid) && !beats[_pid] -> beats[_pid] = true; event(E_BEAT, _pid, 0) }
    :: d_step { state[_pid] == PICKED && IS_AWAKE(_pid) -> state[_pid] = CREATED; event(E_MAKE, _pid, label[_pid]) }
    :: d_step { state[_pid] == CREATED && IS_AWAKE(_pid) -> state[_pid] = LOCKING; event(E_BEGIN, _pid, 0) }
    /* GpuAllocator.aclose: it runs, and gives its ticket back. */
    :: d_step { (state[_pid] == RUNS || state[_pid] == OVER) && IS_AWAKE(_pid) && ticket[_pid] ->
        ticket[_pid] = 0; beats[_pid] = false }
    od
}

/* The container's: the relay, and the kernel. */
active [STARTS] proctype Relay() {
    byte card;
end:
    do
    /* GpuLocks.take: one card after the other, nobody waits for one. */
    :: d_step { state[_pid - STARTS] == LOCKING ->
        card = 0;
        do
        :: card < CARDS && (!HAS(_pid - STARTS, card) || lock[card] == _pid - STARTS) -> card++
        :: else -> break
        od;
        if
        :: card == CARDS ->
            assert(!(label[_pid - STARTS] & ((_pid - STARTS != 0 && state[0] == RUNS -> label[0] : 0) |
                (_pid - STARTS != 1 && state[1] == RUNS -> label[1] : 0) |
                (_pid - STARTS != 2 && state[2] == RUNS -> label[2] : 0))));  /* each card has one kernel */
            state[_pid - STARTS] = RUNS;
            event(E_RUN, _pid - STARTS, label[_pid - STARTS])
#ifdef NO_LOCK
        :: card < CARDS -> lock[card] = _pid - STARTS
#else
        :: card < CARDS && lock[card] == NOBODY ->
            lock[card] = _pid - STARTS;
            event(E_LOCK, _pid - STARTS, card)
        :: card < CARDS && lock[card] != NOBODY ->
            /* EXIT_TAKEN, GpuAllocator.lost */
#ifndef BAD_KEEPS_SOME
            give_back(_pid - STARTS, card);
#endif
            state[_pid - STARTS] = (is_dead[_pid - STARTS] -> OVER : LOOKING);
            label[_pid - STARTS] = 0;
            event(E_TOO_LATE, _pid - STARTS, 0)
#endif
        fi;
        card = 0 }
    /* The kernel ends, or is ended because nobody ever asked it anything; the host frees its locks. */
#ifdef NO_END_WHEN_ALONE
    :: d_step { state[_pid - STARTS] == RUNS && !is_dead[_pid - STARTS] ->
#else
    :: d_step { state[_pid - STARTS] == RUNS ->
#endif
        give_back(_pid - STARTS, card);
        state[_pid - STARTS] = OVER; label[_pid - STARTS] = 0;
        event(E_END, _pid - STARTS, 0) }
    od
}

/* Laptops that sleep, and one that does not wake again. */
active [STARTS] proctype Laptop() {
end:
    do
    :: d_step { naps < SLEEPS && IS_AWAKE(_pid - 2 * STARTS) ->
        naps++;
        sleeps[_pid - 2 * STARTS] = true;
        event(E_SLEEP, _pid - 2 * STARTS, 0) }
    :: d_step { sleeps[_pid - 2 * STARTS] -> sleeps[_pid - 2 * STARTS] = false; event(E_WAKE, _pid - 2 * STARTS, 0) }
    :: d_step { deaths < DEATHS && !is_dead[_pid - 2 * STARTS] ->
        deaths++;
        is_dead[_pid - 2 * STARTS] = true; sleeps[_pid - 2 * STARTS] = false;
        event(E_DIE, _pid - 2 * STARTS, 0) }
    od
}

/* Ticket.is_awake, tidy: 60 s without a beat, and an hour. */
active [STARTS] proctype Time() {
end:
    do
    :: d_step { beats[_pid - 3 * STARTS] && !IS_AWAKE(_pid - 3 * STARTS) ->
        beats[_pid - 3 * STARTS] = false;
        event(E_SILENT, _pid - 3 * STARTS, 0) }
#ifndef NO_PASSING_OVER
    :: d_step { ticket[_pid - 3 * STARTS] && !beats[_pid - 3 * STARTS] && !IS_AWAKE(_pid - 3 * STARTS) ->
        ticket[_pid - 3 * STARTS] = 0;
        event(E_THROWN_AWAY, _pid - 3 * STARTS, 0) }
#endif
    od
}

#define HAS_ENDED(s) (state[s] == OVER || is_dead[s])
#define ALL_HAVE_ENDED (HAS_ENDED(0) && HAS_ENDED(1) && HAS_ENDED(2))

active proctype Judge() {
    timeout -> assert(ALL_HAVE_ENDED && lock[0] == NOBODY && lock[1] == NOBODY)  /* nobody waits for ever */
}

#ifdef PROGRESS
/* Each who can do something does it at some time: whoever is awake gets its cards, and they come back. */
ltl ends { <> (ALL_HAVE_ENDED) }
#endif
