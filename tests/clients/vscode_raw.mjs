// VS Code's raw kernel path, driven step by step (steps.mjs). argv[2] is the settings as JSON:
//   { argv, env?, cwd?, kernel_name?, interrupt_mode?, launch_timeout_ms?, first_port?, hidden_cells?, notebook?,
//     startup_commands? }
import { commEcho, commFlood, requestShell, Tally } from "./cells.mjs";
import { DebugSession } from "./dap.mjs";
import { probe } from "./kernelprocess.mjs";
import { RawKernel } from "./rawkernel.mjs";
import { serve } from "./steps.mjs";

const settings = JSON.parse(process.argv[2]);
const kernel = new RawKernel(settings);
let debug = null; // The DebugSession of the last "debug" step.
let tally = null; // Counts from the last "tally" step on.

// The address of a cell, as VS Code sends it along.
const cellOf = ({ notebook }) => (notebook ? { cell: `vscode-notebook-cell:${encodeURI(notebook)}#W0sZmlsZQ%3D%3D` } : {});

const actions = {
  start: () => kernel.start(),
  execute: (step) => kernel.execute({ ...cellOf(settings), ...step }),
  interrupt: () => kernel.interrupt(),
  restart: () => kernel.restart(),
  request: async ({ type, content = {}, timeout_ms = 10_000 }) => (
    { reply: await requestShell(kernel.connection, type, content, timeout_ms) }),
  flood: (step) => commFlood(kernel.connection, step),
  echo: (step) => commEcho(kernel.connection, step),
  tally: async () => { tally = new Tally(kernel.connection); return {}; },
  counts: async () => tally.facts(),
  status: async () => ({ status: kernel.connection?.status, exit: kernel.process?.exit, ...kernel.process?.end() }),
  debug: (step) => { debug = new DebugSession(kernel.connection); return debug.start(step); },
  next: ({ timeout_ms }) => debug.step("next", timeout_ms),
  stepIn: ({ timeout_ms }) => debug.step("stepIn", timeout_ms),
  stepOut: ({ timeout_ms }) => debug.step("stepOut", timeout_ms),
  continue: ({ timeout_ms }) => debug.step("continue", timeout_ms),
  evaluate: ({ expression }) => debug.evaluate(expression),
  dap: async ({ command, args }) => ({ body: await debug.request(command, args) }),
  disconnect: () => debug.disconnect(),
  // SIGTERM, then the time until the process was gone; VS Code itself does not wait.
  stop: async ({ timeout_ms = 30_000 }) => {
    await kernel.stop();
    return kernel.process.waitExit(timeout_ms);
  },
  // Waits for an end that nobody asked for here.
  exit: ({ timeout_ms = 30_000 }) => {
    kernel.process.disposed ??= performance.now();
    return kernel.process.waitExit(timeout_ms);
  },
  probe: ({ args, timeout_ms = 10_000 }) => (
    probe({ command: settings.argv[0], args, env: process.env, cwd: kernel.settings.cwd }, timeout_ms)),
};

await serve(actions, { faults: () => kernel.faults, close: () => kernel.stop() });
