/* The relay's stream as a model for SPIN: HELLO, WELCOME, ACK and the hand-over, over lines that are cut and between
 * processes that are killed, leave, or take the kernel from each other. docs/explanation/protocol.md tells it in words.
 *
 * Each step stands for one turn of the real code's loops, and cites the function that it stands for. The steps are
 * those of kernelbridge/protocol/session.py (SendLane, ReceiveLane, Session), kernelbridge/relay/server.py (Server) and
 * kernelbridge/kernel/relay_client.py (RelayClient). tests/real/test_model.py replays traces of these against it.
 *
 * Left out: bytes and windows (each message is one frame, each third one two frames), the lane that overtakes (both
 * lanes keep the same rules, each by itself: here one goes each way), all of time but its order. The relay lives on:
 * another one has another epoch, and is joined by nobody who knew the one before.
 *
 * What is taken for granted (see Clock): a process that lives hands on what it has acknowledged before REPLAY_SECONDS
 * have passed, and no frame is under way for so long. BAD_SLOW_HANDS does without.
 *
 * To keep the search small, what makes no difference any more is forgotten: the numbers of a process that is over or
 * has lost the kernel, frames that nobody will read. What waits to be said is there from the start.
 *
 * Defines: MESSAGES, REQUESTS, CUTS, LINES, QUEUE, TAKES, BYES, KILLS set the size; a word that begins with NO_ or
 * BAD_ breaks one rule, and must be found out; REPLAY follows a trace of the real code.
 */

#ifndef MESSAGES
#define MESSAGES 3
#endif
#ifndef REQUESTS
#define REQUESTS 0
#endif
#ifndef CUTS
#define CUTS 2
#endif
#ifndef LINES
#define LINES 2
#endif
#ifndef QUEUE
#define QUEUE 2
#endif
/* Whether the first process may be killed, may leave with a GOODBYE, and whether another owner may take the kernel. */
#ifndef KILLS
#define KILLS 1
#endif
#ifndef BYES
#define BYES 1
#endif
#ifndef TAKES
#define TAKES 1
#endif
/* The processes here: 0 is the first life, 1 the second one, 2 another owner. A replay has more. */
#ifndef CLIENTS
#define CLIENTS 3
#endif
#define FRAMES (2 * MESSAGES + 1)
#define NONE 255

/* Frames on a line. HELLO: what was received, takes. DATA: number, message. ACK: number. BYE: whether it lacks any. */
#define HELLO 1
#define WELCOME 2
#define BUSY 3
#define DATA 4
#define ACK 5
#define PING 6
#define GOODBYE 7
/* In the place of a DATA frame's message: bit 0 says that more frames of it follow. */
#define PIECE(message, more) (2 * (message) + (more))
#define IS_LONG(message) ((message) % 3 == 2)
/* Why BUSY: somebody lives who has it; somebody else has had it since. In the place of the number: who. */
#define HELD 1
#define TAKEN 2

/* Events of a trace, each with three numbers; see traces.py. */
#define E_EMIT 1
#define E_START 2
#define E_HELLO 3
#define E_GREET 4
#define E_WELCOMED 5
#define E_REFUSED 6
#define E_RELAY_SENDS 7
#define E_CLIENT_TAKES 8
#define E_CLIENT_ACKS 9
#define E_RELAY_HEARS_ACK 10
#define E_HAND_ON 11
#define E_ASK 12
#define E_CLIENT_SENDS 13
#define E_RELAY_TAKES 14
#define E_RELAY_ACKS 15
#define E_CLIENT_HEARS_ACK 16
#define E_PING 17
#define E_RELAY_HEARS_PING 18
#define E_AGE 19
#define E_CUT 20
#define E_CLIENT_CLOSES 21
#define E_RELAY_CLOSES 22
#define E_KILL 23
#define E_BYE 24
#define E_RELAY_HEARS_BYE 25

/* -- a replay: each step must be the trace's next event, or the run ends there */

#ifdef REPLAY
c_decl {
    \#include "replay.h"
}
#undef MESSAGES
#undef CLIENTS
#undef LINES
#undef QUEUE
#undef CUTS
#define MESSAGES 80
#define CLIENTS 7
#define LINES 3
#define QUEUE 60
#define CUTS 250
short at;
bool is_off;
byte said_kind, said_a, said_b, said_c;
#define go (!is_off)
inline event(which, x, y, z) {
    said_kind = which; said_a = x; said_b = y; said_c = z;
    c_code { now.is_off = !replays(now.at, now.said_kind, now.said_a, now.said_b, now.said_c); };
    at++; said_kind = 0; said_a = 0; said_b = 0; said_c = 0
}
#else
#define go true
/* Told when a counterexample is played. */
inline event(which, x, y, z) { printf("event %d %d %d %d\n", which, x, y, z) }
#endif

/* -- lines: each end is open or not; what is under way on one that is cut comes, or is lost with what follows it */

chan to_relay[LINES] = [QUEUE] of { byte, byte, byte };
chan to_client[LINES] = [QUEUE] of { byte, byte, byte };
bool client_end[LINES], relay_end[LINES], is_cut[LINES];
byte whose[LINES] = NONE;

#define IS_FREE(l) (!client_end[l] && !relay_end[l])

inline tell_relay(over, what, one, two) {
    if
    :: relay_end[over] && !is_cut[over] && len(to_relay[over]) < QUEUE -> to_relay[over]!what, one, two
    :: else -> skip
    fi
}

inline tell_client(over, what, one, two) {
    if
    :: client_end[over] && !is_cut[over] && len(to_client[over]) < QUEUE -> to_client[over]!what, one, two
    :: else -> skip
    fi
}

inline drain(pipe) {
    do
    :: nempty(pipe) -> pipe?_, _, _
    :: empty(pipe) -> break
    od
}

/* An end is closed: what nobody will read is no part of the state. */
inline tidy(gone) {
    if
    :: !client_end[gone] -> drain(to_client[gone])
    :: else -> skip
    fi;
    if
    :: !relay_end[gone] -> drain(to_relay[gone])
    :: else -> skip
    fi;
    if
    :: IS_FREE(gone) -> is_cut[gone] = false; whose[gone] = NONE
    :: else -> skip
    fi
}

/* -- the processes here (RelayClient, its Session, and the clients behind it) */

#define IDLE 0
#define JOINING 1
#define OUT 2
#define KILLED 3
#define LEFT 4
#define IS_ALIVE(c) (status[c] != KILLED && status[c] != LEFT && status[c] != IDLE)

#ifdef REPLAY
byte status[CLIENTS] = IDLE;
bool is_taker[CLIENTS];
#else
byte status[CLIENTS] = JOINING;
#endif
/* Whether it was ever let in: later it does not take the kernel from another owner (_hello_extras). */
bool was_in[CLIENTS];
byte line_of[CLIENTS] = NONE;
bool is_in[CLIENTS];
/* The newest of the relay's frames that was received; whether a message has begun (ReceiveLane), an ACK is owed. */
byte received[CLIENTS];
bool has_begun[CLIENTS], owes[CLIENTS];
#ifdef REPLAY
byte told[CLIENTS];
#endif
/* Messages: the newest that is whole, and that was handed on to the clients behind. */
byte got[CLIENTS], passed[CLIENTS];
/* Requests: added; newest on this line; acknowledged (SendLane); obeyed by the kernel. */
byte asked[CLIENTS], on_line[CLIENTS], acked[CLIENTS], obeyed[CLIENTS];

/* -- the relay (Server, its Session) */

byte conn = NONE, stream = NONE;
bool was_here[CLIENTS];
#ifdef REPLAY
byte emitted;
#else
#define emitted MESSAGES
#endif
/* Frames by their number; the newest on this line, ever, acknowledged (SendLane). */
byte frame[FRAMES];
byte sent, newest, acknowledged;
/* The next message to get a number, and whether its beginning has one. The newest whole one that was acknowledged. */
byte next_message = 1;
bool is_begun;
byte done;
/* The oldest message that is kept; and the oldest that was acknowledged less than REPLAY_SECONDS ago. */
byte kept = 1, young = 1;
byte taken_in;
bool relay_owes;

/* -- what is promised: all was handed on that is forgotten, and what is safe does not come again */

bool handed[MESSAGES + 3];
byte safe;
byte cuts;

inline forget(before, f) {
    for (f : kept .. before - 1) {
        assert(handed[f])  /* no loss */
    }
    f = 0;
    kept = before
}

/* Session.alive */
inline alive(j) {
    if
    :: young > kept ->
        safe = (young - 1 > safe -> young - 1 : safe);
#ifndef NO_FORGETTING
        forget(young, j)
#endif
    :: else -> skip
    fi
}

/* -- steps of a process here */

#ifdef REPLAY
#define ASKED(c) asked[c]
#define MAY_SEND(c) true
#define IS_TAKER(c) is_taker[c]
#define WANTS(c) (status[c] == JOINING)
#define MAY_END(c) (status[c] == JOINING || status[c] == OUT)
#define MAY_ACK(c) true
#define MAY_PING(c) true
#else
/* When something is said makes no difference before it is sent: all is there from the start. */
#define ASKED(c) REQUESTS
/* What is said to nobody makes no difference. */
#define MAY_SEND(c) (relay_end[line_of[c]] && !is_cut[line_of[c]])
#define IS_TAKER(c) (c == 2)
/* The second life begins after the first one. */
#define WANTS(c) (status[c] == JOINING && (c != 2 || TAKES) && (c != 1 || status[0] == KILLED || status[0] == LEFT))
#define MAY_END(c) (c == 0 && status[c] == JOINING)
#define MAY_ACK(c) (owes[c] && MAY_SEND(c))
#define MAY_PING(c) (young > kept && MAY_SEND(c))
#endif

#define MAY_KNOCK(c) (WANTS(c) && line_of[c] == NONE)

inline close_line(client) {
    client_end[line_of[client]] = false;
    tidy(line_of[client]);
    line_of[client] = NONE; is_in[client] = false; owes[client] = false; on_line[client] = 0
}

/* What makes no difference any more is no part of the state. */
inline forget_process(old) {
    received[old] = 0; has_begun[old] = false; owes[old] = false; was_in[old] = false;
    asked[old] = 0; on_line[old] = 0; acked[old] = 0; obeyed[old] = 0; got[old] = 0; passed[old] = 0
}

/* ReceiveLane.accept, RelayClient._take */
inline take_data(who, number, piece) {
    if
    :: number <= received[who] -> skip
    :: else ->
        assert(number == received[who] + 1);  /* no hole */
        received[who] = number; owes[who] = true;
        if
        :: piece % 2 ->
            assert(!has_begun[who]);
            has_begun[who] = true
        :: else ->
            assert(has_begun[who] == IS_LONG(piece / 2));  /* whole messages */
            has_begun[who] = false;
            /* In order, none twice to the same process; and to one that takes over nothing that is safe. */
            assert(got[who] == 0 || piece / 2 == got[who] + 1);
            assert(got[who] != 0 || who != stream || piece / 2 > safe);  /* none twice */
            passed[who] = (got[who] == 0 -> piece / 2 - 1 : passed[who]);
            got[who] = piece / 2
        fi
    fi
}

active [CLIENTS] proctype Client() {
    byte kind, a, b;
end:
    do
    /* A process starts; one of another owner takes the kernel where somebody has it. */
#ifdef REPLAY
    :: d_step { go && status[_pid] == IDLE ->
        status[_pid] = JOINING;
        c_code { now.said_b = trace_says(now.at); };
        is_taker[_pid] = said_b;
        event(E_START, _pid, is_taker[_pid], 0) }
#endif
    /* RelayClient._greet: a new line, and HELLO. */
    :: d_step { go && MAY_KNOCK(_pid) && (IS_FREE(0) || IS_FREE(1) || IS_FREE(LINES - 1)) ->
        a = (IS_FREE(0) -> 0 : (IS_FREE(1) -> 1 : LINES - 1));
        client_end[a] = true; relay_end[a] = true; whose[a] = _pid;
        line_of[_pid] = a;
        to_relay[a]!HELLO, received[_pid], IS_TAKER(_pid) && !was_in[_pid];
        event(E_HELLO, _pid, a, received[_pid]); a = 0 }
    /* RelayConnection.data_received: one frame. */
    :: d_step { go && line_of[_pid] != NONE && nempty(to_client[line_of[_pid]]) ->
        to_client[line_of[_pid]]?kind, a, b;
        if
        :: kind == WELCOME ->  /* RelayClient._welcomed, SendLane.rewind */
            is_in[_pid] = true; was_in[_pid] = true;
            assert(a >= acked[_pid]);  /* The relay knows what it has acknowledged. */
            on_line[_pid] = a;
#ifndef NO_ACK_AGAIN
            owes[_pid] = received[_pid] != 0;
#endif
            event(E_WELCOMED, _pid, a, 0)
        :: kind == BUSY ->  /* RelayClient._refused, _will_be_let_go */
            close_line(_pid);
            status[_pid] = ((b == HELD && !IS_ALIVE(a)) -> JOINING : OUT);
            if
#ifndef REPLAY
            /* As if it handed nothing on any more: that is the worst. */
            :: status[_pid] == OUT -> forget_process(_pid)
#endif
            :: else -> skip
            fi;
            event(E_REFUSED, _pid, b, 0)
        :: kind == DATA ->
            take_data(_pid, a, b);
            event(E_CLIENT_TAKES, _pid, a, got[_pid])
        :: kind == ACK ->
            acked[_pid] = (a > acked[_pid] -> a : acked[_pid]);
            event(E_CLIENT_HEARS_ACK, _pid, a, 0)
        fi;
        kind = 0; a = 0; b = 0 }
    /* RelayListener.delivered, and what is behind it: out of this process. */
    :: d_step { go && IS_ALIVE(_pid) && passed[_pid] < got[_pid] ->
        do
        :: passed[_pid]++;
            handed[passed[_pid]] = true;
#ifdef REPLAY
            break
#else
            if
            :: passed[_pid] == got[_pid] -> break
            :: else -> skip
            fi
#endif
        od;
        event(E_HAND_ON, _pid, passed[_pid], 0) }
    /* Session._acknowledgement, and repeat_at. */
    :: d_step { go && is_in[_pid] && MAY_ACK(_pid) && nfull(to_relay[line_of[_pid]]) ->
        tell_relay(line_of[_pid], ACK, received[_pid], 0);
        owes[_pid] = false;
#ifdef REPLAY
        told[_pid] = received[_pid];
#endif
        event(E_CLIENT_ACKS, _pid, received[_pid], 0) }
#ifdef REPLAY
    /* What came since cannot be handed on yet (RelayListener.acknowledges): it says again what it has said. */
    :: d_step { go && is_in[_pid] && told[_pid] != received[_pid] ->
        tell_relay(line_of[_pid], ACK, told[_pid], 0);
        event(E_CLIENT_ACKS, _pid, told[_pid], 0) }
#endif
    /* RelayClient.send */
#ifdef REPLAY
    :: d_step { go && IS_ALIVE(_pid) -> asked[_pid]++; event(E_ASK, _pid, asked[_pid], 0) }
#endif
    /* SendLane.take */
    :: d_step { go && is_in[_pid] && on_line[_pid] < ASKED(_pid) && MAY_SEND(_pid) && nfull(to_relay[line_of[_pid]]) ->
        on_line[_pid]++;
        tell_relay(line_of[_pid], DATA, on_line[_pid], 0);
        event(E_CLIENT_SENDS, _pid, on_line[_pid], 0) }
    /* RelayClient._keep */
    :: d_step { go && is_in[_pid] && MAY_PING(_pid) && nfull(to_relay[line_of[_pid]]) ->
        tell_relay(line_of[_pid], PING, 0, 0);
        event(E_PING, _pid, 0, 0) }
    /* RelayConnection.closed, RelayClient._drop_stream: the line ends, or is silent. */
    :: d_step { go && line_of[_pid] != NONE &&
            (is_cut[line_of[_pid]] || (!relay_end[line_of[_pid]] && empty(to_client[line_of[_pid]]))) ->
        a = line_of[_pid];
        close_line(_pid);
        event(E_CLIENT_CLOSES, _pid, a, 0); a = 0 }
#if KILLS
    :: d_step { go && MAY_END(_pid) ->
        if
        :: line_of[_pid] != NONE -> close_line(_pid)
        :: else -> skip
        fi;
        status[_pid] = KILLED;
        forget_process(_pid);
        event(E_KILL, _pid, 0, 0) }
#endif
#if BYES
    /* RelayClient.goodbye: acknowledges what was handed on, and says whether anything was not. */
    :: d_step { go && MAY_END(_pid) && is_in[_pid] && len(to_relay[line_of[_pid]]) + 2 <= QUEUE ->
        a = line_of[_pid];
#ifndef REPLAY
        if
        :: passed[_pid] == got[_pid] -> tell_relay(a, ACK, received[_pid], 0)
        :: else -> skip
        fi;
#endif
        tell_relay(a, GOODBYE, passed[_pid] != got[_pid], 0);
        status[_pid] = LEFT;
        event(E_BYE, _pid, passed[_pid] != got[_pid], 0);
        close_line(_pid);
        forget_process(_pid); a = 0 }
#endif
    od
}

/* -- steps of the relay */

/* SendLane.rewind */
inline rewind(has) {
#ifdef NO_REWIND
    sent = newest
#else
    sent = (has > acknowledged -> has : acknowledged)
#endif
}

/* Session.hand_over, SendLane.hand_over: all that is kept or was not acknowledged gets a new number. */
inline hand_over(j) {
#ifdef BAD_HAND_OVER_WITHOUT_KEPT
    next_message = done + 1; is_begun = false;
#else
#ifdef BAD_HAND_OVER_OF_PIECES
    next_message = kept;
#else
    next_message = kept; is_begun = false;
#endif
#endif
    for (j : 1 .. FRAMES - 1) {
        frame[j] = 0
    }
    j = 0; sent = 0; newest = 0; acknowledged = 0; done = next_message - 1; young = kept;
    taken_in = 0; relay_owes = false
}

/* SendLane.acknowledge */
inline acknowledge(upto, j) {
    if
    :: upto > acknowledged ->
        for (j : acknowledged + 1 .. upto) {
            if
            :: frame[j] % 2 == 0 -> done = frame[j] / 2
            :: else -> skip
            fi
        }
        j = 0;
        acknowledged = upto;
        sent = (sent < upto -> upto : sent)
#ifdef NO_KEEPING
        ; forget(done + 1, j)
#endif
    :: else -> skip
    fi
}

inline end_relay_line(ended) {
    relay_end[ended] = false;
    sent = (conn == ended -> newest : sent);
    conn = (conn == ended -> NONE : conn);
    tidy(ended)
}

/* Server._refusal */
inline refuse(by, taking, why) {
    why = (conn != NONE && whose[conn] != whose[by] && !taking -> HELD : 0);
#ifdef BAD_TWO_OWNERS
    why = 0;
#endif
#ifndef NO_MEMORY_OF_STREAMS
    why = (was_here[whose[by]] && stream != whose[by] -> TAKEN : why)
#endif
}

/* Another process has it. What the one before still hears and hands on, nobody here hears of: as if it were nothing. */
inline lose(loser) {
#if !defined(REPLAY) && !defined(NO_MEMORY_OF_STREAMS)
    if
    :: line_of[loser] != NONE -> drain(to_client[line_of[loser]])
    :: else -> skip
    fi;
    forget_process(loser)
#endif
    skip
}

/* Server._greet, _admit */
inline greet(n, number, take, m) {
    refuse(n, take, m);
    if
    :: m ->
        if
        :: m == HELD -> tell_client(n, BUSY, whose[conn], HELD)
        :: else -> tell_client(n, BUSY, stream, TAKEN)
        fi;
        event(E_GREET, n, m, 0)
    :: else ->
        assert(conn == NONE || whose[conn] == whose[n] || take);  /* nobody loses it unasked */
        if
#ifndef NO_HAND_OVER
        :: stream != NONE && stream != whose[n] -> lose(stream); hand_over(m)
#endif
        :: else -> skip
        fi;
        if
        :: conn != NONE && whose[conn] != whose[n] -> tell_client(conn, BUSY, whose[n], TAKEN)
        :: else -> skip
        fi;
        if
        :: conn != NONE ->
            m = conn;
            end_relay_line(m)
        :: else -> skip
        fi;
        m = 0;
        stream = whose[n]; was_here[stream] = true;
        conn = n;
        tell_client(n, WELCOME, taken_in, 0);
        rewind(number);
        relay_owes = taken_in != 0;
        event(E_GREET, n, 0, taken_in)
    fi;
    m = 0
}

/* Server._take: what came over one line. */
inline hear(line, kind, first, second, k) {
    if
    :: kind == HELLO -> greet(line, first, second, k)
    :: kind != HELLO && line != conn -> skip
    :: else ->
#ifndef BAD_SILENCE_FORGETS
        alive(k);
#endif
        if
        :: kind == ACK ->
            acknowledge(first, k);
            event(E_RELAY_HEARS_ACK, line, first, kept)
        :: kind == DATA ->
            if
            :: first <= taken_in -> skip
            :: else ->
                assert(first == taken_in + 1);  /* no hole */
                taken_in = first; relay_owes = true;
                if
                :: status[whose[line]] == JOINING ->
                    assert(obeyed[whose[line]] + 1 == first);  /* each once */
                    obeyed[whose[line]] = first
                :: else -> skip
                fi
            fi;
            event(E_RELAY_TAKES, line, first, kept)
        :: kind == PING -> event(E_RELAY_HEARS_PING, line, kept, 0)
        :: kind == GOODBYE ->
            if
#ifndef BAD_GOODBYE_FORGETS_ALL
            :: first -> skip
#endif
            :: else ->
                safe = (done > safe -> done : safe);
                forget(done + 1, k)
            fi;
            end_relay_line(line);
            event(E_RELAY_HEARS_BYE, line, first, kept)
        fi
    fi
}

active [LINES] proctype RelayLine() {
    byte kind, a, b, i;
end:
    do
    :: d_step { go && relay_end[_pid - CLIENTS] && nempty(to_relay[_pid - CLIENTS]) ->
        to_relay[_pid - CLIENTS]?kind, a, b;
        hear(_pid - CLIENTS, kind, a, b, i);
        kind = 0; a = 0; b = 0 }
    od
}

/* Server.serve: a line has ended, or is silent. */
active [LINES] proctype RelayWatch() {
end:
    do
    :: d_step { go && relay_end[_pid - CLIENTS - LINES] && (is_cut[_pid - CLIENTS - LINES] ||
            (!client_end[_pid - CLIENTS - LINES] && empty(to_relay[_pid - CLIENTS - LINES]))) ->
        end_relay_line(_pid - CLIENTS - LINES);
        event(E_RELAY_CLOSES, _pid - CLIENTS - LINES, 0, 0) }
    od
}

/* SendLane.take: one frame. */
inline send_frame() {
    if
    :: sent < newest -> sent++
    :: else ->
        newest++;
        sent = newest;
        if
        :: IS_LONG(next_message) && !is_begun ->
            is_begun = true;
            frame[newest] = PIECE(next_message, 1)
        :: else ->
            is_begun = false;
            frame[newest] = PIECE(next_message, 0);
            next_message++
        fi
    fi;
    tell_client(conn, DATA, sent, frame[sent]);
    event(E_RELAY_SENDS, sent, frame[sent] / 2, frame[sent] % 2)
}

#define CAN_SEND (conn != NONE && len(to_client[conn]) < QUEUE && (sent < newest || next_message <= emitted))

/* Server.flush, Session.outgoing: all that there is room for. Less of it comes where the line is cut. */
active proctype RelayFlush() {
end:
    do
#ifdef REPLAY
    :: d_step { go && CAN_SEND -> send_frame() }
#else
    :: d_step { CAN_SEND ->
        do
        :: CAN_SEND && !is_cut[conn] -> send_frame()
        :: !CAN_SEND || is_cut[conn] -> break
        od }
#endif
    /* Session._acknowledgement */
    :: d_step { go && conn != NONE && nfull(to_client[conn]) && relay_owes ->
        tell_client(conn, ACK, taken_in, 0);
        relay_owes = false;
        event(E_RELAY_ACKS, taken_in, 0, 0) }
    od
}

/* -- what is around them */

#ifdef REPLAY
active proctype Kernel() {
end:
    do
    :: d_step { go -> emitted++; event(E_EMIT, emitted, 0, 0) }
    od
}
#endif

/* REPLAY_SECONDS have passed since a message was acknowledged: whoever has it, and lives, has handed it on by now, and
 * nothing is under way any more that a process said before it was killed. */
#ifdef BAD_SLOW_HANDS
#define HAS_HANDED_ON true
#else
#define HAS_HANDED_ON (handed[young] || (stream != NONE && !IS_ALIVE(stream) && \
    (conn == NONE || whose[conn] != stream || len(to_relay[conn]) == 0)))
#endif

active proctype Clock() {
    byte l;
end:
    do
    :: d_step { go && young <= done && HAS_HANDED_ON ->
#ifdef REPLAY
        young++;
#else
        do
        :: young <= done && HAS_HANDED_ON -> young++
        :: !(young <= done && HAS_HANDED_ON) -> break
        od;
#endif
#ifdef BAD_SILENCE_FORGETS
        forget(young, l);
#endif
        event(E_AGE, young - 1, 0, 0) }
    od
}

active proctype Network() {
    byte l;
end:
    do
    :: d_step { go && cuts < CUTS && !IS_FREE(0) && !is_cut[0] -> is_cut[0] = true; cuts++; event(E_CUT, 0, 0, 0) }
    :: d_step { go && cuts < CUTS && !IS_FREE(1) && !is_cut[1] -> is_cut[1] = true; cuts++; event(E_CUT, 1, 0, 0) }
#if LINES > 2
    :: d_step { go && cuts < CUTS && !IS_FREE(2) && !is_cut[2] -> is_cut[2] = true; cuts++; event(E_CUT, 2, 0, 0) }
#endif
    od
}

/* -- at the end: whoever stays joined has all that nobody had before, and all that it asked was heard */

#ifndef REPLAY
#define IS_SERVED(c) (!WANTS(c) || (is_in[c] && obeyed[c] == REQUESTS && acked[c] == REQUESTS))
#define ARE_SERVED (IS_SERVED(0) && IS_SERVED(1) && IS_SERVED(2))
#define ALL_HANDED (handed[1] && (MESSAGES < 2 || handed[2]) && (MESSAGES < 3 || handed[3]))
#define SOMEBODY (WANTS(0) || WANTS(1) || WANTS(2))
#define IS_SETTLED (ARE_SERVED && \
    (!SOMEBODY || (ALL_HANDED && next_message > emitted && acknowledged == newest)))

active proctype Judge() {
    timeout -> assert(IS_SETTLED)  /* nobody waits for ever */
}

#ifdef PROGRESS
/* Whatever happened, and each who can do something does it at some time: all comes to rest with all delivered. */
ltl settles { []<> (IS_SETTLED) }
#endif
#endif
