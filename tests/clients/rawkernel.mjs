// One local kernel as VS Code holds it: process and connection, made ready and restarted as VS Code does.
import { randomUUID } from "node:crypto";
import services from "@jupyterlab/services";
import { KernelConnection } from "@jupyterlab/services/lib/kernel/default.js";
import { requestControl, runHidden } from "./cells.mjs";
import { KernelProcess, StartError } from "./kernelprocess.mjs";
import { RawSocket, passThrough } from "./rawsocket.mjs";
import { sleep, within } from "./steps.mjs";

const INFO_EVERY_MS = 500;
const INTERRUPT_MS = 10_000; // jupyter.jupyterInterruptTimeout
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
    const usual = { launch_timeout_ms: 60_000, kernel_name: "", cwd: process.cwd(), hidden_cells: HIDDEN_CELLS };
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

  async start() {
    const began = performance.now();
    const since = () => Math.round(performance.now() - began) / 1000;
    const limit = this.settings.launch_timeout_ms;
    this.process = new KernelProcess({
      argv: this.settings.argv, env: this.env, cwd: this.settings.cwd, kernelName: this.settings.kernel_name,
      firstPort: this.settings.first_port,
    });
    const bound = await this.process.launch(limit);
    // From here VS Code treats the end of the process as the death of the kernel.
    const died = this.process.exited.then(() => {
      throw new StartError("exited", "the kernel died", this.process.end());
    });
    died.catch(() => {});
    this.#connect();
    try {
      await Promise.race([this.#greet(limit), died]);
      const ready = since();
      await Promise.race([this.#prepare(limit), died]);
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

  async #prepare(limit) {
    this.hidden = [];
    for (const code of this.settings.hidden_cells) this.hidden.push(await runHidden(this.connection, code));
    this.widgets = this.hidden[0]?.screen.trim().replace(WIDGETS_MARK, "");
    const reply = await this.connection.requestKernelInfo();
    this.info = reply.content;
    await this.#waitIdle(limit);
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
