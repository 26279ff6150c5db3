// One local kernel as VS Code holds it: process and connection, made ready and restarted as VS Code does.
import { randomUUID } from "node:crypto";
import services from "@jupyterlab/services";
import { KernelConnection } from "@jupyterlab/services/lib/kernel/default.js";
import { requestControl, runCell, runHidden } from "./cells.mjs";
import { KernelProcess, StartError } from "./kernelprocess.mjs";
import { RawSocket, passThrough } from "./rawsocket.mjs";
import { sleep, within } from "./steps.mjs";

const INFO_EVERY_MS = 500;
// The start-up cell ends with the notebook's path (VS Code 1.139: kernels/kernel.ts, gatherInternalStartupCode).
const hiddenCells = ({ hidden_cells: cells, notebook }) => (
  notebook ? [...cells.slice(0, -1), `${cells.at(-1)}__vsc_ipynb_file__ = ${JSON.stringify(notebook)}\n`] : cells);
const INTERRUPT_MS = 10_000; // jupyter.jupyterInterruptTimeout
const DIED_MS = 1_000; // What came before the end of the process has been read by then.
const WIDGETS_MARK = "e976ee50-99ed-4aba-9b6b-9dcd5634d07d:IPyWidgets:";

// The cells that VS Code runs before the user's, by their first and telling lines.
export const HIDDEN_CELLS = [
  `try:\n    import ipywidgets as _VSCODE_ipywidgets\n    print("${WIDGETS_MARK}" + _VSCODE_ipywidgets.__version__)\n`
    + "    del _VSCODE_ipywidgets\nexcept:\n    pass\n",
  "def __VSCODE_inject_module():\n    import builtins\n    builtins.__VSCODE_injected = True\n\n"
    + "__VSCODE_inject_module()\ndel __VSCODE_inject_module\n",
];

export class RawKernel {
  constructor(settings) {
    const usual = {
      launch_timeout_ms: 60_000, kernel_name: "", cwd: process.cwd(), hidden_cells: HIDDEN_CELLS,
      startup_commands: "", // jupyter.runStartupCommands
    };
    this.settings = { ...usual, ...settings };
    this.env = { ...process.env, ...settings.env };
    this.clientId = randomUUID();
    this.username = randomUUID();
    // Faults of connections that a restart replaced.
    this.pastFaults = [];
  }

  get faults() {
    return [...this.pastFaults, ...(this.socket?.faults ?? [])];
  }

  // Cells, interrupt and restart wait for the start: nothing of it can be given up before the hidden cells are done.
  start() {
    this.session = this.#start();
    this.session.catch(() => {});
    return this.session;
  }

  async #start() {
    const began = performance.now();
    const since = () => Math.round(performance.now() - began) / 1000;
    const limit = this.settings.launch_timeout_ms;
    this.process = new KernelProcess({
      argv: this.settings.argv, env: this.env, cwd: this.settings.cwd, kernelName: this.settings.kernel_name,
      firstPort: this.settings.first_port,
    });
    const bound = await this.process.launch(limit);
    // Until kernel_info is answered the end of the process ends the start, with its stderr for the user.
    const died = this.process.exited.then(() => {
      throw new StartError("exited", "the kernel died", this.process.end());
    });
    died.catch(() => {});
    this.#connect();
    try {
      await Promise.race([this.#greet(limit), died]);
      const ready = since();
      await Promise.race([this.#prepare(limit), this.#frozen()]);
      return { pid: this.process.pid, bound, ready, prepared: since(), ...this.#facts() };
    } catch (error) {
      await this.stop();
      throw error;
    }
  }

  #facts() {
    return {
      info: this.info, widgets: this.widgets, connection_file: this.process.connectionFile,
      ports: Object.entries(this.process.connection).filter(([key]) => key.endsWith("_port")).map(([, port]) => port),
    };
  }

  #connect() {
    const { connection } = this.process;
    let socket;
    class Wrapper extends RawSocket {
      constructor() {
        super(connection);
        socket = this;
      }
    }
    const serverSettings = services.ServerConnection.makeSettings({
      WebSocket: Wrapper, wsUrl: "RAW", serializer: passThrough,
    });
    this.connection = new KernelConnection({
      serverSettings, clientId: this.clientId, username: this.username, handleComms: true,
      model: { id: randomUUID(), name: this.settings.kernel_name },
    });
    this.socket = socket;
    socket.onopen({ target: socket });
  }

  // kernel_info on control and shell until one reply and any iopub message is in; all cancelled after the limit.
  async #greet(limit) {
    const kernel = this.connection;
    let heard;
    let answered;
    const published = new Promise((resolve) => { heard = resolve; });
    const replied = new Promise((resolve) => { answered = resolve; });
    const onIopub = () => heard();
    kernel.iopubMessage.connect(onIopub);
    let over = false;
    const ready = Promise.all([published, replied]).then(() => { over = true; });
    const ask = async () => {
      while (!over) {
        requestControl(kernel, "kernel_info_request", {}, limit).then(answered, () => {});
        kernel.requestKernelInfo().then((reply) => { if (reply) answered(); }, () => {});
        await Promise.race([ready, sleep(INFO_EVERY_MS)]);
      }
    };
    try {
      await within(Promise.all([ready, ask()]), limit, "kernel_info reply and an iopub message").catch((error) => {
        throw new StartError("timeout", error.message, { stderr: this.process.stderr });
      });
    } finally {
      over = true;
      kernel.iopubMessage.disconnect(onIopub);
    }
  }

  // From here on nothing is read from the process: when it ends, VS Code waits for its hidden cells for ever, and so do
  // the user's cells, interrupt and restart. Nothing is shown. Only here that is an error, so that a test ends.
  async #frozen() {
    await this.process.exited;
    await sleep(DIED_MS);
    throw new StartError("frozen", "the process ended with a hidden cell unanswered: the notebook is frozen", {});
  }

  async #prepare(limit) {
    this.hidden = [];
    const cells = [...hiddenCells(this.settings), this.settings.startup_commands].filter(Boolean);
    for (const code of cells) this.hidden.push(await runHidden(this.connection, code));
    this.widgets = this.hidden[0]?.screen.trim().replace(WIDGETS_MARK, "");
    const asked = this.connection.requestKernelInfo().then((reply) => reply.content);
    this.info = await Promise.race([this.connection.info, asked]); // The first is there since the greeting.
    await this.#waitIdle(limit);
  }

  // A user's cell: sent once the start is over. When the process ends meanwhile, VS Code says only that.
  async execute(step) {
    if (!this.session) throw new Error("no kernel was started");
    await this.session;
    const ended = this.process.exited.then(() => sleep(DIED_MS)).then(() => {
      throw new StartError("died", "The Kernel crashed while executing code", this.process.end());
    });
    ended.catch(() => {});
    return Promise.race([runCell(this.connection, step), ended]);
  }

  async #waitIdle(limit) {
    const kernel = this.connection;
    if (kernel.status === "idle") return;
    let onStatus;
    const idle = new Promise((resolve) => {
      onStatus = (_, status) => { if (status === "idle") resolve(); };
      kernel.statusChanged.connect(onStatus);
    });
    try {
      await within(idle, limit, "kernel status idle");
    } finally {
      kernel.statusChanged.disconnect(onStatus);
    }
  }

  // By message where the spec says so, else SIGINT to the children and then to the process.
  async interrupt() {
    if (!await this.session?.catch(() => undefined)) return {};
    if (this.settings.interrupt_mode === "signal") {
      this.process.process.kill("SIGINT");
      return {};
    }
    return { reply: await requestControl(this.connection, "interrupt_request", {}, INTERRUPT_MS) };
  }

  #forget() {
    this.pastFaults.push(...(this.socket?.faults ?? []));
    this.connection?.dispose();
    this.socket?.close();
    this.connection = undefined;
    this.socket = undefined;
  }

  // The old process gets its SIGTERM and is not waited for; the new one has other ports and another key.
  async restart() {
    if (!await this.session?.catch(() => undefined)) return this.start();
    const old = this.process;
    old.dispose();
    this.#forget();
    const started = await this.start();
    const ended = await old.waitExit(this.settings.launch_timeout_ms);
    return { ...started, old_exit: ended };
  }

  async stop() {
    await this.process?.dispose();
    this.#forget();
  }
}
