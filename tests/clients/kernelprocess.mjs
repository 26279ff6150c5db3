// Starts a kernel as VS Code starts a local one: its ports, its connection file, spawn, two ports polled, SIGTERM.
// It knows nothing of messages: see rawsocket.mjs and rawkernel.mjs.
import { spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import portfinder from "portfinder";
import tcpPortUsed from "tcp-port-used";

const FIRST_PORT = 9000;
const POLL_MS = 200;
const getPorts = promisify(portfinder.getPorts);
// Ports handed out by this process; a restart must not take those of the kernel that is just ending.
const usedPorts = new Set();

async function freePorts(from) {
  const ports = await getPorts(5, { host: "127.0.0.1", port: from });
  if (ports.some((port) => usedPorts.has(port))) return freePorts(Math.max(...usedPorts, ...ports) + 1);
  for (const port of ports) usedPorts.add(port);
  return ports;
}

function runtimeDir(env) {
  if (env.JUPYTER_RUNTIME_DIR) return env.JUPYTER_RUNTIME_DIR;
  if (env.XDG_RUNTIME_DIR) return path.join(env.XDG_RUNTIME_DIR, "jupyter", "runtime");
  return path.join(env.HOME ?? os.homedir(), ".local", "share", "jupyter", "runtime");
}

function childrenOf(pid) {
  if (process.platform !== "linux") return [];
  try {
    const children = fs.readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number);
    return children.flatMap((child) => [...childrenOf(child), child]);
  } catch {
    return []; // It ended meanwhile.
  }
}

// What VS Code puts into the cell when a start fails before kernel_info is answered: the last line of stderr alone where
// it has the word Error in it, else all of it.
function shownText(stderr) {
  const last = stderr.trim().split("\n").at(-1) ?? "";
  return last.includes("Error") ? last : stderr;
}

export class StartError extends Error {
  constructor(kind, message, facts) {
    super(message);
    this.facts = { kind, ...facts };
  }
}

export class KernelProcess {
  stderr = "";
  stdout = "";
  exit = null; // { code, signal, at } once it has ended; set by the exit event.

  constructor({ argv, env, cwd, kernelName, firstPort }) {
    this.spec = { argv, kernelName, firstPort: firstPort ?? FIRST_PORT };
    this.env = env;
    this.cwd = cwd;
    this.exited = new Promise((resolve) => { this.markExited = resolve; });
  }

  async launch(timeoutMs) {
    const started = performance.now();
    await this.#writeConnectionFile();
    const [command, ...args] = this.spec.argv.map((word) => word.replace("{connection_file}", this.connectionFile));
    this.process = spawn(command, args, { cwd: this.cwd, env: this.env, stdio: ["pipe", "pipe", "pipe"] });
    this.pid = this.process.pid;
    this.process.stdout.on("data", (data) => { this.stdout += data; });
    this.process.stderr.on("data", (data) => { this.stderr += data; });
    const failed = new Promise((_, reject) => {
      this.process.on("error", (error) => reject(new StartError("spawn", error.message, {})));
      // "close" follows "exit" once the pipes are read to their end: the last line of stderr is in.
      this.process.on("close", (code, signal) => {
        this.exit = { code, signal, at: performance.now() };
        this.markExited(this.exit);
        reject(new StartError("exited", `exited with ${code ?? signal}`, this.end()));
      });
    });
    failed.catch(() => {});
    const used = (port) => tcpPortUsed.waitUntilUsed(port, POLL_MS, timeoutMs);
    const bound = Promise.all([used(this.connection.shell_port), used(this.connection.iopub_port)]).catch(() => {
      throw new StartError("ports", `ports not used after ${timeoutMs} ms`, { stderr: this.stderr });
    });
    try {
      await Promise.race([bound, failed]);
    } catch (error) {
      bound.catch(() => {});
      await this.dispose();
      throw error;
    }
    return (performance.now() - started) / 1000;
  }

  end() {
    return {
      code: this.exit?.code, signal: this.exit?.signal, stdout: this.stdout, stderr: this.stderr,
      shown: shownText(this.stderr),
    };
  }

  async #writeConnectionFile() {
    if (!this.spec.argv.some((word) => word.includes("{connection_file}"))) {
      throw new StartError("spec", "Connection file not found in kernelspec json args", {});
    }
    const [hb_port, control_port, shell_port, stdin_port, iopub_port] = await freePorts(this.spec.firstPort);
    this.connection = {
      key: randomUUID(), signature_scheme: "hmac-sha256", transport: "tcp", ip: "127.0.0.1",
      hb_port, control_port, shell_port, stdin_port, iopub_port, kernel_name: this.spec.kernelName,
    };
    const folder = runtimeDir(this.env);
    fs.mkdirSync(folder, { recursive: true });
    this.connectionFile = path.join(folder, `kernel-v3${randomBytes(20).toString("hex")}.json`);
    fs.writeFileSync(this.connectionFile, JSON.stringify(this.connection));
  }

  // SIGTERM to what the kernel process started, then to itself; nothing harder ever follows.
  async dispose() {
    if (this.disposed) return;
    this.disposed = performance.now();
    if (!this.exit && this.pid) {
      for (const child of childrenOf(this.pid)) {
        try { process.kill(child); } catch { /* It ended meanwhile. */ }
      }
      this.process.kill();
    }
    fs.rmSync(this.connectionFile, { force: true });
  }

  async waitExit(timeoutMs) {
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error(`still running ${timeoutMs} ms after SIGTERM`)), timeoutMs);
    });
    try {
      const exit = await Promise.race([this.exited, late]);
      return { ...this.end(), seconds: (exit.at - this.disposed) / 1000 };
    } finally {
      clearTimeout(timer);
    }
  }
}

// The Python extension runs a kernelspec's argv[0] as if it were an interpreter; stdin is an open pipe, as there.
export function probe({ command, args, env, cwd }, timeoutMs) {
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const child = spawn(command, args, { cwd, env, stdio: ["pipe", "pipe", "pipe"] });
    const said = { stdout: "", stderr: "" };
    const timer = setTimeout(() => child.kill("SIGKILL"), timeoutMs);
    child.stdout.on("data", (data) => { said.stdout += data; });
    child.stderr.on("data", (data) => { said.stderr += data; });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, seconds: (performance.now() - started) / 1000, ...said });
    });
  });
}
