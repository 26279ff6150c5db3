// The conversation with the test: one JSON line in is one step, one JSON line out is its result.
// A step { "do": name, "background": true } answers at once with a job number; { "do": "wait", "job": n } has its result.
import readline from "node:readline";

// Libraries print to stdout; that is the conversation's.
for (const level of ["log", "debug", "info", "warn", "error"]) {
  console[level] = (...words) => process.stderr.write(`${words.join(" ")}\n`);
}

function say(result) {
  process.stdout.write(`${JSON.stringify(result)}\n`);
}

export class Deadline extends Error {}

// The promise's value, or an error that says what was waited for.
export async function within(promise, timeoutMs, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Deadline(`${what}: nothing after ${timeoutMs / 1000} s`)), timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

export const sleep = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function run(actions, faults, step) {
  const started = performance.now();
  const seconds = () => Math.round(performance.now() - started) / 1000;
  try {
    const action = actions[step.do];
    if (!action) throw new Error(`no step is called ${step.do}`);
    const result = await action(step);
    return { do: step.do, ok: true, took: seconds(), ...result, faults: faults() };
  } catch (error) {
    const facts = error.facts ?? {};
    return { do: step.do, ok: false, took: seconds(), error: String(error.message), ...facts, faults: faults() };
  }
}

// Serves steps until stdin ends, then `close` is awaited and the process ends.
export async function serve(actions, { faults = () => [], close = async () => {} } = {}) {
  const jobs = [];
  process.on("unhandledRejection", (error) => console.error(`unhandled: ${error?.stack ?? error}`));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    if (!line.trim()) continue;
    const step = JSON.parse(line);
    if (step.do === "wait") {
      say(await jobs[step.job]);
    } else if (step.background) {
      jobs.push(run(actions, faults, step));
      say({ do: step.do, ok: true, job: jobs.length - 1 });
    } else {
      say(await run(actions, faults, step));
    }
  }
  await close();
  process.exit(0);
}
