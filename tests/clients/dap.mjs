// "Debug Cell" of VS Code: DAP requests as debug_request on control, events from iopub, in the order of the real one.
import { runCell, runHidden } from "./cells.mjs";
import { within } from "./steps.mjs";

const CELL_URI = (index) => `vscode-notebook-cell:/notebook.ipynb#cell-${index}`;
const INITIALIZE = {
  clientID: "vscode", clientName: "Visual Studio Code", adapterID: "Python Kernel Debug Adapter", pathFormat: "path",
  linesStartAt1: true, columnsStartAt1: true, supportsVariableType: true, supportsVariablePaging: true,
  supportsRunInTerminalRequest: true, locale: "en", supportsProgressReporting: true, supportsInvalidatedEvent: true,
  supportsMemoryReferences: true, supportsMemoryEvent: true, supportsArgsCanBeInterpretedByShell: true,
};

export class DebugSession {
  #seq = 1;
  // Events not yet waited for, oldest first; `#wake` resolves when one is added.
  #events = [];
  #wake = () => {};
  // Dumped cells: file name in the kernel -> the index of the cell.
  #files = new Map();
  commands = [];
  events = [];

  constructor(kernel) {
    this.kernel = kernel;
    this.onIopub = (_, message) => {
      if (message.header.msg_type !== "debug_event") return;
      this.#events.push(message.content);
      this.events.push(message.content.event);
      this.#wake();
    };
    kernel.iopubMessage.connect(this.onIopub);
  }

  async request(command, args = {}, timeoutMs = 15_000) {
    this.commands.push(command);
    const content = { seq: this.#seq, type: "request", command, arguments: args };
    this.#seq += 1;
    const reply = await within(this.kernel.requestDebug(content, true).done, timeoutMs, `DAP ${command}`);
    if (reply.content.success === false) throw new Error(`DAP ${command}: ${reply.content.message}`);
    return reply.content.body ?? {};
  }

  async waitEvent(wanted, timeoutMs) {
    const search = async () => {
      for (;;) {
        const at = this.#events.findIndex(({ event }) => wanted.includes(event));
        if (at >= 0) return this.#events.splice(0, at + 1).at(-1);
        await new Promise((resolve) => { this.#wake = resolve; });
      }
    };
    return within(search(), timeoutMs, `DAP event ${wanted.join(" or ")}`);
  }

  async #dump(cells, index) {
    const { sourcePath } = await this.request("dumpCell", { code: cells[index] });
    this.#files.set(sourcePath, index);
    return sourcePath;
  }

  // Runs `cells[debug]` with a breakpoint at each of `lines`, and in `files` of the workspace (path -> lines).
  async start({ cells, debug = 0, lines, files = {}, just_my_code = true, timeout_ms = 30_000 }) {
    const version = (await runHidden(this.kernel, "import ipykernel\nprint(ipykernel.__version__)")).screen.trim();
    if (!/^([6-9]|\d\d+)\.\d+\.\d+$/.test(version)) throw new Error(`ipykernel ${version} cannot debug in VS Code`);
    this.capabilities = await this.request("initialize", INITIALIZE);
    const { stoppedThreads = [] } = await this.request("debugInfo");
    for (const threadId of stoppedThreads) await this.request("continue", { threadId });
    const attached = this.request("attach", {
      type: "Python Kernel Debug Adapter", name: "notebook.ipynb", request: "attach", justMyCode: just_my_code,
      __mode: "cell", __cellIndex: debug, __notebookUri: "file:///notebook.ipynb", __sessionId: "1",
    });
    await Promise.all([attached, this.waitEvent(["initialized"], timeout_ms)]);
    await this.request("setFunctionBreakpoints", { breakpoints: [] });
    await this.request("setExceptionBreakpoints", { filters: ["uncaught"] });
    const cellPath = await this.#dump(cells, debug);
    const breakpoints = await this.#setBreakpoints(cellPath, lines);
    for (const [path, at] of Object.entries(files)) breakpoints.push(...await this.#setBreakpoints(path, at));
    await this.request("threads");
    await runHidden(this.kernel, "import debugpy\ndebugpy.debug_this_thread()");
    for (const index of cells.keys()) await this.#dump(cells, index);
    await this.request("configurationDone");
    this.cell = runCell(this.kernel, { code: cells[debug], timeout_ms: 300_000, cell: "debugged" });
    this.cell.catch(() => {});
    return { ipykernel: version, cellPath, breakpoints, ...await this.stopped(timeout_ms) };
  }

  async #setBreakpoints(path, lines) {
    const body = await this.request("setBreakpoints", {
      source: { path }, lines, breakpoints: lines.map((line) => ({ line })), sourceModified: false,
    });
    return body.breakpoints;
  }

  // Waits for a stop and asks all that VS Code's panes ask; a cell that ends instead is told so.
  async stopped(timeoutMs) {
    const finished = this.cell.then((cell) => ({ finished: true, cell }));
    const stop = this.waitEvent(["stopped"], timeoutMs);
    stop.catch(() => {});
    const first = await Promise.race([stop, finished]);
    if (first.finished) return { ...first, commands: this.commands };
    const { threadId, reason } = first.body;
    this.threadId = threadId;
    await this.request("threads");
    const { stackFrames } = await this.request("stackTrace", { threadId, startFrame: 0, levels: 20 });
    const [top] = stackFrames;
    const { scopes } = await this.request("scopes", { frameId: top.id });
    const variables = {};
    for (const scope of scopes.filter(({ expensive }) => !expensive).slice(0, 1)) {
      const body = await this.request("variables", { variablesReference: scope.variablesReference });
      for (const { name, value } of body.variables) variables[name] = value;
    }
    const index = this.#files.get(top.source?.path);
    return {
      finished: false, reason, line: top.line, function: top.name, source: top.source,
      cell_uri: index === undefined ? null : CELL_URI(index), scopes: scopes.map(({ name }) => name), variables,
      frames: stackFrames.map(({ name, line, source }) => ({ name, line, path: source?.path })), commands: this.commands,
    };
  }

  async step(command, timeoutMs = 20_000) {
    await this.request(command, { threadId: this.threadId });
    return this.stopped(timeoutMs);
  }

  async evaluate(expression) {
    const { stackFrames } = await this.request("stackTrace", { threadId: this.threadId, startFrame: 0, levels: 1 });
    return this.request("evaluate", { expression, frameId: stackFrames[0].id, context: "watch" });
  }

  // Ends the session; the dumped files are removed by a hidden cell, as VS Code does.
  async disconnect() {
    await this.request("disconnect", { restart: false });
    const names = JSON.stringify([...this.#files.keys()]);
    const each = `for _VSCODE_file in ${names}:\n    try:\n        os.remove(_VSCODE_file)\n    except OSError:\n        pass`;
    await runHidden(this.kernel, `import os\n${each}`);
    this.kernel.iopubMessage.disconnect(this.onIopub);
    return { commands: this.commands, events: this.events };
  }
}
