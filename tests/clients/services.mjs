// A Jupyter server's kernel through @jupyterlab/services, the session shaped as VS Code shapes a remote one (steps.mjs).
// argv[2] is the settings as JSON: { url, token, kernel_name, notebook?, idle_timeout_ms?, hidden_cells? }
import { randomUUID } from "node:crypto";
import services from "@jupyterlab/services";
import WebSocket from "ws";
import { commEcho, commFlood, requestControl, requestShell, runCell, runHidden, Tally } from "./cells.mjs";
import { DebugSession } from "./dap.mjs";
import { HIDDEN_CELLS } from "./rawkernel.mjs";
import { serve, within } from "./steps.mjs";

const usual = { notebook: "analysis", idle_timeout_ms: 60_000, hidden_cells: HIDDEN_CELLS };
const settings = { ...usual, ...JSON.parse(process.argv[2]) };
const headers = { Authorization: `token ${settings.token}` };

class TokenSocket extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols, { headers });
  }
}

const serverSettings = services.ServerConnection.makeSettings({
  baseUrl: settings.url, wsUrl: settings.url.replace(/^http/, "ws"), token: settings.token, appendToken: true,
  init: { cache: "no-store", credentials: "same-origin" }, WebSocket: TokenSocket,
});
const specs = new services.KernelSpecManager({ serverSettings });
const kernels = new services.KernelManager({ serverSettings });
const sessions = new services.SessionManager({ serverSettings, kernelManager: kernels });
let session = null; // The session of the last "start" or "connect".
let debug = null; // The DebugSession of the last "debug" step.
let tally = null; // Counts from the last "tally" step on.

const kernel = () => session.kernel;

async function waitIdle(timeoutMs) {
  const connection = kernel();
  if (connection.status === "idle") return;
  let onStatus;
  const idle = new Promise((resolve) => {
    onStatus = (_, status) => { if (status === "idle") resolve(); };
    connection.statusChanged.connect(onStatus);
  });
  try {
    await within(idle, timeoutMs, "session idle");
  } finally {
    connection.statusChanged.disconnect(onStatus);
  }
}

async function prepare() {
  // VS Code gives up waiting after its limit, says nothing, and goes on.
  const idle = await waitIdle(settings.idle_timeout_ms).then(() => true, () => false);
  const hidden = [];
  for (const code of settings.hidden_cells) hidden.push(await runHidden(kernel(), code));
  return { idle, widgets: hidden[0]?.screen.trim().split(":").at(-1) };
}

function model() {
  return { id: kernel().id, name: kernel().name, status: kernel().status, connection: kernel().connectionStatus };
}

// An error of the server keeps its HTTP status and the message that VS Code puts into the cell.
async function asked(promise) {
  try {
    return await promise;
  } catch (error) {
    error.facts = { http: error.response?.status, message: error.message };
    throw error;
  }
}

const actions = {
  specs: async () => {
    const began = performance.now();
    await asked(services.KernelSpecAPI.getSpecs(serverSettings));
    const seconds = (performance.now() - began) / 1000;
    await specs.refreshSpecs();
    return { seconds, default: specs.specs.default, specs: specs.specs.kernelspecs };
  },
  start: async () => {
    const began = performance.now();
    await asked(Promise.all([kernels.refreshRunning(), specs.refreshSpecs()]));
    const id = () => randomUUID();
    session = await asked(sessions.startNew({
      path: `${settings.notebook}-jvsc-${id()}${id()}.ipynb`, name: `${settings.notebook}-${id()}.ipynb`,
      type: "notebook", kernel: { name: settings.kernel_name },
    }, { kernelConnectionOptions: { handleComms: true } }));
    const posted = (performance.now() - began) / 1000;
    const info = kernel().info;
    info.catch(() => {});
    const ready = await prepare();
    return { posted, ready: (performance.now() - began) / 1000, ...ready, info: await info, kernel: model() };
  },
  // A running session found again, as after a reload of the window.
  connect: async () => {
    await sessions.refreshRunning();
    const running = [...sessions.running()].filter(({ kernel: { name } }) => name === settings.kernel_name);
    session = sessions.connectTo({ model: running.at(-1) });
    await waitIdle(settings.idle_timeout_ms);
    return { running, kernel: model() };
  },
  execute: (step) => runCell(kernel(), { chained: false, ...step }),
  flood: (step) => commFlood(kernel(), { chained: false, ...step }),
  echo: (step) => commEcho(kernel(), step),
  request: async ({ type, content = {}, channel = "shell", timeout_ms = 10_000 }) => (
    { reply: await (channel === "shell" ? requestShell : requestControl)(kernel(), type, content, timeout_ms) }),
  tally: async () => { tally = new Tally(kernel()); return {}; },
  counts: async () => tally.facts(),
  status: async () => ({ kernel: model() }),
  interrupt: async () => { await asked(kernel().interrupt()); return {}; },
  restart: async () => {
    await asked(kernel().restart());
    return { ...await prepare(), kernel: model() };
  },
  running: async () => {
    await asked(kernels.refreshRunning());
    return { kernels: [...kernels.running()] };
  },
  debug: (step) => { debug = new DebugSession(kernel()); return debug.start(step); },
  next: ({ timeout_ms }) => debug.step("next", timeout_ms),
  continue: ({ timeout_ms }) => debug.step("continue", timeout_ms),
  disconnect: () => debug.disconnect(),
  stop: async () => { await asked(session.shutdown()); session = null; return {}; },
};

// VS Code never shuts a remote kernel down when it closes, and neither does this.
await serve(actions, { close: async () => { session?.dispose(); sessions.dispose(); kernels.dispose(); specs.dispose(); } });
