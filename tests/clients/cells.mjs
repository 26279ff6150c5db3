// What a client does with a kernel connection of @jupyterlab/services, over ZMQ (VS Code) or a WebSocket alike:
// cells, input(), comms, and the count of what was received and what was really handled.
import services from "@jupyterlab/services";
import { within } from "./steps.mjs";

const { KernelMessage } = services;
const chains = new WeakMap(); // Kernel -> the last execute; VS Code sends the next one when this is done.

function outputOf(message) {
  const { header: { msg_type: type }, content } = message;
  if (type === "stream") return { type, name: content.name, text: content.text };
  if (type === "error") return { type, ename: content.ename, evalue: content.evalue, traceback: content.traceback };
  if (type === "clear_output") return { type, wait: content.wait };
  if (type === "status") return { type, state: content.execution_state };
  return { type, data: content.data, transient: content.transient, metadata: content.metadata };
}

const SHOWN = new Set(["stream", "error", "display_data", "update_display_data", "execute_result", "clear_output"]);

// What stands under the cell at the end: streams joined, clear_output obeyed.
function screenOf(outputs) {
  let shown = [];
  let clearNext = false;
  for (const output of outputs) {
    if (output.type === "clear_output") {
      if (output.wait) clearNext = true; else shown = [];
      continue;
    }
    if (clearNext) shown = [];
    clearNext = false;
    if (output.type === "stream") shown.push(output.text);
    // Both editors print the traceback where there is one, and nothing else.
    else if (output.type === "error") shown.push(output.traceback?.join("\n") || `${output.ename}: ${output.evalue}`);
    else shown.push(String(output.data?.["text/plain"] ?? ""));
  }
  return shown.join("");
}

async function sendCell(kernel, content, { metadata, replies = [] }) {
  const started = performance.now();
  const seconds = () => Math.round(performance.now() - started) / 1000;
  const outputs = [];
  const statuses = [];
  const prompts = [];
  const future = kernel.requestExecute(content, true, metadata);
  future.onIOPub = (message) => {
    const output = outputOf(message);
    if (output.type === "status") statuses.push(output.state);
    else if (SHOWN.has(output.type)) outputs.push({ ...output, at: seconds() });
  };
  future.onStdin = (message) => {
    prompts.push(message.content.prompt);
    kernel.sendInputReply({ status: "ok", value: replies.shift() ?? "" }, message.header);
  };
  const reply = await future.done; // Resolves once the reply *and* idle are in.
  return {
    status: reply.content.status, count: reply.content.execution_count, ename: reply.content.ename,
    evalue: reply.content.evalue, outputs, screen: screenOf(outputs), statuses, prompts, seconds: seconds(),
  };
}

// A user's cell. `replies` answer input(), in order.
export function runCell(kernel, { code, timeout_ms = 30_000, replies, cell = "cell-1", chained = true }) {
  const content = { code, silent: false, stop_on_error: false, allow_stdin: true, store_history: true };
  const before = chained ? (chains.get(kernel) ?? Promise.resolve()).catch(() => {}) : Promise.resolve();
  const sent = before.then(() => sendCell(kernel, content, { metadata: { cellId: cell }, replies }));
  chains.set(kernel, sent);
  return within(sent, timeout_ms, `cell ${JSON.stringify(code.slice(0, 40))}`);
}

// A cell that VS Code runs for itself: nobody sees it, and it has no time limit.
export function runHidden(kernel, code) {
  const content = { code, silent: false, stop_on_error: false, allow_stdin: true, store_history: false };
  return sendCell(kernel, content, {});
}

export async function requestControl(kernel, msgType, content, timeoutMs) {
  const message = KernelMessage.createMessage({
    msgType, channel: "control", username: kernel.username, session: kernel.clientId, content,
  });
  const reply = await within(kernel.sendControlMessage(message, true, true).done, timeoutMs, msgType);
  return reply.content;
}

export async function requestShell(kernel, msgType, content, timeoutMs) {
  const message = KernelMessage.createMessage({
    msgType, channel: "shell", username: kernel.username, session: kernel.clientId, content,
  });
  const reply = await within(kernel.sendShellMessage(message, true, true).done, timeoutMs, msgType);
  return reply.content;
}

// Received is what came off the wire; handled is what the library did not silently drop on its way to the handlers.
// It drops whatever was queued when a message with another header.session arrived.
export class Tally {
  constructor(kernel) {
    this.received = {};
    this.handled = {};
    this.sessions = new Set();
    this.statuses = [];
    this.kernel = kernel;
    kernel.anyMessage.connect(this.#onAny);
    kernel.iopubMessage.connect(this.#onHandled);
    kernel.statusChanged.connect(this.#onStatus);
  }

  stop() {
    this.kernel.anyMessage.disconnect(this.#onAny);
    this.kernel.iopubMessage.disconnect(this.#onHandled);
    this.kernel.statusChanged.disconnect(this.#onStatus);
  }

  #onAny = (_, { msg, direction }) => {
    if (direction !== "recv" || msg.channel !== "iopub") return;
    this.sessions.add(msg.header.session);
    this.#count(this.received, msg);
  };

  #onHandled = (_, msg) => this.#count(this.handled, msg);

  #onStatus = (_, status) => this.statuses.push(status);

  #count(where, message) {
    where[message.header.msg_type] = (where[message.header.msg_type] ?? 0) + 1;
  }

  get dropped() {
    const entries = Object.entries(this.received).map(([type, n]) => [type, n - (this.handled[type] ?? 0)]);
    return Object.fromEntries(entries.filter(([, n]) => n !== 0));
  }

  facts() {
    const { received, handled, dropped, statuses } = this;
    return {
      received: { ...received }, handled: { ...handled }, dropped, statuses: [...statuses], sessions: [...this.sessions],
    };
  }
}

// A message as if the kernel side had sent it, put between two real ones: proves that the tally can see a drop.
function inject(kernel, session) {
  const message = KernelMessage.createMessage({
    msgType: "stream", channel: "iopub", session, username: "", content: { name: "stderr", text: "planted\n" },
  });
  kernel._onWSMessage({ data: kernel.serverSettings.serializer.serialize(message, kernel._ws.protocol) });
}

const FLOOD_OPEN = `
import time
from comm import create_comm
_flood, _flood_n = create_comm(target_name=%TARGET%, data={}), 0
`;
const FLOOD_SOME = `
for _ in range(%N%):
    _flood.send({"i": _flood_n})
    _flood_n += 1
    if _flood_n % 10 == 0:
        print(_flood_n, end=" ", flush=True)
`;

// The kernel sends n comm messages from many small cells, so that comms, outputs and status changes come mixed.
// VS Code waits for a cell before it sends the next; JupyterLab (`chained` false) does not.
export async function commFlood(kernel, step) {
  const { n = 1000, cells = 20, target = "kernelbridge-flood", planted, chained = true, timeout_ms = 60_000 } = step;
  const seen = [];
  let opened = 0;
  let closed = 0;
  const tally = new Tally(kernel);
  const onTarget = (comm) => {
    opened += 1;
    comm.onMsg = async (message) => {
      await null; // Handlers are asynchronous in both clients: what comes meanwhile waits in a queue.
      seen.push(message.content.data.i);
      if (planted && seen.length % 100 === 50) inject(kernel, planted === "same" ? [...tally.sessions][0] : planted);
    };
    comm.onClose = () => { closed += 1; };
  };
  kernel.registerCommTarget(target, onTarget);
  const fill = (code) => code.replaceAll("%TARGET%", JSON.stringify(target)).replaceAll("%N%", String(n / cells));
  const sources = [FLOOD_OPEN, ...Array(cells).fill(FLOOD_SOME), "_flood.close()"].map(fill);
  try {
    const run = (code, at) => runCell(kernel, { code, timeout_ms, chained, cell: "flood" }).catch((error) => {
      error.facts = { cell: at, of: sources.length, count: seen.length, opened, closed, ...tally.facts() };
      throw error;
    });
    const results = await Promise.all(sources.map(run));
    const bad = results.filter(({ status }) => status !== "ok");
    return {
      opened, closed, count: seen.length, inOrder: seen.every((value, i) => value === i), bad,
      screen: results.map(({ screen }) => screen).join(""), ...tally.facts(),
    };
  } finally {
    kernel.removeCommTarget(target, onTarget);
    tally.stop();
  }
}

const ECHO = `
def _echo(comm, opened):
    comm.on_msg(lambda msg: comm.send({"echo": msg["content"]["data"]}, buffers=msg["buffers"]))
get_ipython().kernel.comm_manager.register_target(%TARGET%, _echo)
`;

// A comm opened here, bytes sent to the kernel and back; returns whether they are the same.
export async function commEcho(kernel, { bytes = 1000, target = "kernelbridge-echo", timeout_ms = 60_000 }) {
  await runHidden(kernel, ECHO.replaceAll("%TARGET%", JSON.stringify(target)));
  const payload = new Uint8Array(bytes);
  for (let i = 0; i < bytes; i += 1) payload[i] = (i * 31 + (i >> 8)) % 256;
  const comm = kernel.createComm(target);
  const answer = new Promise((resolve) => { comm.onMsg = resolve; });
  comm.open({});
  comm.send({ hello: 1 }, {}, [payload]);
  const message = await within(answer, timeout_ms, "comm echo");
  comm.close();
  const [back] = message.buffers;
  const view = new Uint8Array(back.buffer ?? back, back.byteOffset ?? 0, back.byteLength);
  const intact = Buffer.compare(Buffer.from(view), Buffer.from(payload)) === 0;
  return { intact, bytes: view.byteLength, data: message.content.data };
}
