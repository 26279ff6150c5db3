// VS Code's ZMQ end of a kernel, dressed as the WebSocket that @jupyterlab/services wants.
// The launch of the process is in kernelprocess.mjs, what is said over it in rawkernel.mjs.
import { randomUUID } from "node:crypto";
import wire from "@nteract/messaging/lib/wire-protocol.js";
import zmq from "zeromq";

const UNLIMITED = { sendHighWaterMark: 0, receiveHighWaterMark: 0, maxMessageSize: -1 };
const HEADER_FIELDS = ["username", "version", "session", "msg_id", "msg_type"];

export class RawSocket {
  protocol = ""; // The old JSON protocol: objects pass as they are, see `passThrough`.
  onopen = () => {};
  onclose = () => {};
  onerror = () => {};
  onmessage = () => {};

  // What a real client would only log, and then lose a message or a whole channel over. A test asserts that it is empty.
  faults = [];
  // Message ids seen on each channel, to find a message that was delivered twice.
  #seen = new Set();
  #closed = false;
  #received = Promise.resolve();
  #sent = Promise.resolve();

  constructor(connection) {
    this.connection = connection;
    const routingId = randomUUID(); // One identity for all three: replies to input() are routed by it.
    this.channels = {
      iopub: this.#open("iopub", new zmq.Subscriber({ maxMessageSize: -1, receiveHighWaterMark: 0 })),
      shell: this.#open("shell", new zmq.Dealer({ routingId, ...UNLIMITED })),
      control: this.#open("control", new zmq.Dealer({ routingId, ...UNLIMITED })),
      stdin: this.#open("stdin", new zmq.Dealer({ routingId, ...UNLIMITED })),
    };
    this.channels.iopub.subscribe();
  }

  #open(channel, socket) {
    const { transport, ip } = this.connection;
    socket.connect(`${transport}://${ip}:${this.connection[`${channel}_port`]}`);
    this.#read(channel, socket).catch((error) => {
      // VS Code logs this and never reads the channel again: a bad signature is the end of it.
      if (!this.#closed) this.faults.push(`${channel} is dead: ${error.message}`);
    });
    return socket;
  }

  async #read(channel, socket) {
    for await (const frames of socket) {
      if (this.#closed) break;
      const message = wire.decode(frames, this.connection.key, this.connection.signature_scheme);
      message.channel = channel;
      const key = `${channel} ${message.header.msg_type} ${message.header.msg_id}`;
      if (this.#seen.has(key)) this.faults.push(`delivered twice: ${key}`);
      this.#seen.add(key);
      this.#received = this.#received.then(() => this.#deliver(message));
    }
  }

  #deliver(message) {
    if (this.#closed) return;
    for (const field of HEADER_FIELDS) {
      if (typeof message.header[field] !== "string") message.header[field] = "";
    }
    try {
      this.onmessage({ data: message, type: "message", target: this });
    } catch (error) {
      this.faults.push(`refused ${message.channel} ${message.header.msg_type}: ${error.message}`);
    }
  }

  send(message) {
    const frames = wire.encode(message, this.connection.key, this.connection.signature_scheme);
    this.#sent = this.#sent.then(() => {
      this.channels[message.channel].send(frames).catch((error) => {
        if (!this.#closed) this.faults.push(`cannot send on ${message.channel}: ${error.message}`);
      });
    });
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const socket of Object.values(this.channels)) socket.close();
  }
}

// VS Code takes the serializer out of its copy of the library; since 7.3 a setting does the same.
export const passThrough = { serialize: (message) => message, deserialize: (message) => message };
