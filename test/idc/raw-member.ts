// A caller of a hub that speaks for itself, message by message, in the test's own process.

import { native } from '../../lib/native.js';

export type Message = Record<string, unknown>;

export class RawMember {
  readonly fd: number;
  /** Descriptors that came with messages. */
  readonly fds: number[] = [];
  private readonly buffer = new Uint8Array(1 << 16);
  private closed = false;

  constructor(path: string) {
    this.fd = native.unixConnect(path);
  }

  static async join(path: string, name: string, more: Message = {}): Promise<RawMember> {
    const member = new RawMember(path);
    member.send({ type: 'join', version: 1, name, ...more });
    return member;
  }

  send(message: Message | string, fds: number[] = []): void {
    const text = typeof message === 'string' ? message : JSON.stringify(message);
    native.unixSend(this.fd, Buffer.from(text), fds);
  }

  /** The next message; null when the hub has ended the connection. */
  async receive(ms = 5000): Promise<Message | null> {
    const end = performance.now() + ms;
    for (;;) {
      let got;
      try {
        got = native.unixReceive(this.fd, this.buffer);
      } catch {
        return null; // reset
      }
      if (got !== null) {
        this.fds.push(...got.fds);
        if (got.bytes === 0) return null;
        return JSON.parse(Buffer.from(this.buffer.subarray(0, got.bytes)).toString()) as Message;
      }
      if (performance.now() > end) throw new Error(`no message within ${ms} ms`);
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }

  /** The next message of a type; others are passed over. */
  async expect(type: string): Promise<Message> {
    for (;;) {
      const message = await this.receive();
      if (message === null) throw new Error(`the connection ended before ${type}`);
      if (message['type'] === type) return message;
    }
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    for (const fd of [this.fd, ...this.fds]) native.fileClose(fd);
  }
}
